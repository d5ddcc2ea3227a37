"""The lists of messages on docs/errors.md, from the texts of sae_transcoder.

python docs/scripts/error_messages.py docs/errors.md   renews each list between its two marks

A mark names the modules whose messages stand below it. A message is a text that the code raises as an error of its own or logs as a warning,
and every other text with a colon or a semicolon, which is how messages are written (`field=value: cause; fix`).
"""

import ast
import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import sae_transcoder

PACKAGE = Path(sae_transcoder.__file__).parent
BEGIN, END = "<!-- messages of ", "<!-- end of messages -->"
BLOCK = re.compile(rf"{BEGIN}(.*?) -->\n.*?{END}", re.DOTALL)
LOGGED = {"warning", "error"}
OF_PYTHON = {"ValueError", "TypeError", "LookupError", "OSError", "AttributeError"}  # caught, and told in another message
FEWEST_WORDS = 4  # of a text that is not raised

OTHER_TEXTS = {
    "config/explain_field.py": "what --explain prints",
    "config/explain_group.py": "what --explain prints",
    "config/field_index.py": "what --explain prints",
    "config/old_json.py": "what the conversion of an old config tells",
    "config/other_words.py": "what other programs' names are called here",
    "demo/train_model.py": "the script that trained the demo model",
    "evaluation/table.py": "the table of sae-eval",
    "exports/hub.py": "the model card",
    "launch/sweep_output.py": "the lines at a sweep's start",
    "preflight/header.py": "the lines at a run's start",
    "preflight/machine_info.py": "what --info prints",
    "reports/interactive_plots.py": "captions of pictures",
    "reports/page.py": "captions of the report's page",
    "reports/pareto.py": "captions of pictures",
    "reports/seed_columns.py": "headings of the report's table",
    "reports/static_plots.py": "captions of pictures",
    "run_store/differing_settings.py": "settings that differ, which other messages contain",
    "run_store/run_log.py": "the form of a line of train.log",
}
"""{module: what its texts are that are not raised}; none of them is a message."""


def shown(node: ast.AST) -> str | None:
    """A text literal as a reader knows it: a value is its name in capitals, or `...` where it has no name. None for other nodes."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        text = re.sub(r"%[-.\d]*[sdrf]", "...", node.value)
        return re.sub(r"\{(\w+)\}", lambda match: match[1].upper(), text)
    if not isinstance(node, ast.JoinedStr):
        return None
    parts = [part.value if isinstance(part, ast.Constant) else f"\0{value_name(part.value)}\0" for part in node.values]  # type: ignore[attr-defined]
    text = re.sub(r"(?<=\w)\0\w+\0|\0\w+\0(?=\w)", "...", "".join(parts))  # part of a word
    return re.sub(r"\.{4,}", "...", text.replace("\0", ""))


def value_name(node: ast.expr) -> str:
    """What stands for a value inside a text."""
    if isinstance(node, ast.Name):
        return node.id.upper()
    return node.attr.upper() if isinstance(node, ast.Attribute) and not node.attr.startswith("__") else "..."


def own_name(call: ast.AST) -> str:
    """The name of the function or class that is called; empty for other nodes."""
    if not isinstance(call, ast.Call):
        return ""
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def is_told(node: ast.AST) -> bool:
    """Whether the texts inside are raised as an error of this package, or logged as a warning."""
    if isinstance(node, ast.Raise):
        return own_name(node.exc) not in OF_PYTHON if node.exc else False
    name = own_name(node)
    return name in LOGGED or (name.endswith("Error") and name not in OF_PYTHON)


def is_aside(node: ast.AST) -> bool:
    """Whether the texts inside are no messages whatever they say: docstrings, the help of options, patterns."""
    return (
        (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        or (isinstance(node, ast.keyword) and node.arg == "help")
        or (isinstance(node, ast.Call) and own_name(node) in ("compile", "search", "match", "fullmatch", "add_argument"))
    )


def texts(node: ast.AST, told: bool = False) -> Iterator[tuple[str, bool]]:
    """Every text below a node but asides, and whether it is raised or logged."""
    if is_aside(node):
        return
    told = told or is_told(node)
    if (text := shown(node)) is not None:
        yield text.strip(" ;:,"), told
        return
    for child in ast.iter_child_nodes(node):
        yield from texts(child, told)


@functools.cache
def all_texts() -> dict[str, list[tuple[str, bool]]]:
    """{module, as config/checks.py: its texts, and whether each is raised or logged}."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return {str(path.relative_to(PACKAGE)): list(texts(ast.parse(path.read_text()))) for path in paths}


def messages() -> dict[str, list[str]]:
    """{module: its messages, in alphabetical order}, of modules that have some."""
    found = {
        module: sorted({text for text, told in read if "\n" not in text and is_message(text, told, module)}, key=str.lower)
        for module, read in all_texts().items()
    }
    return {module: of_module for module, of_module in found.items() if of_module}


def is_message(text: str, told: bool, module: str) -> bool:
    """Whether a text of a module is a message."""
    if told:
        return " " in text and re.search("[a-z]{2}", text) is not None  # else it only passes another message on
    return module not in OTHER_TEXTS and len(text.split()) >= FEWEST_WORDS and re.search(r"\S[:;] ", text) is not None


def quoted(message: str) -> str:
    """A message as an item of a Markdown list."""
    return f"- `` {message} ``" if "`" in message else f"- `{message}`"


def placed(page: str) -> str:
    """The text of the page with each list as the code has it."""
    by_module = messages()

    def block(match: re.Match[str]) -> str:
        items = sorted({quoted(message) for module in match[1].split() for message in by_module.get(module, [])}, key=str.lower)
        return "\n".join([f"{BEGIN}{match[1]} -->", "", *items, "", END])

    return BLOCK.sub(block, page)


def main() -> None:
    """Renews the lists in the files that the command line names."""
    for name in sys.argv[1:]:
        Path(name).write_text(placed(Path(name).read_text()))


if __name__ == "__main__":
    main()
