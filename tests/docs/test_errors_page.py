"""docs/errors.md quotes the messages that the code has, and leaves none out."""

import ast
import re
import signal

import error_messages
from helpers import ROOT
from sae_transcoder.process import broken_device, stop_signal

PAGE = (ROOT / "docs" / "errors.md").read_text()
MODULES_ON_PAGE = [module for block in error_messages.BLOCK.finditer(PAGE) for module in block[1].split()]


def test_every_message_that_the_page_explains_is_one_of_the_codes() -> None:
    texts = [text for of_module in error_messages.all_texts().values() for text, _ in of_module]
    quotes = [line for block in re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    patterns = [re.compile(".*".join(map(re.escape, quote.split("..."))), re.DOTALL) for quote in quotes]
    assert len(quotes) > 50
    assert [pattern.pattern for pattern in patterns if not any(map(pattern.search, texts))] == []


def test_every_module_with_messages_stands_on_the_page_once() -> None:
    assert sorted(MODULES_ON_PAGE) == sorted(error_messages.messages())


def test_the_lists_of_messages_are_those_of_the_code() -> None:
    assert error_messages.placed(PAGE) == PAGE, "python docs/scripts/error_messages.py docs/errors.md"


def test_every_list_leads_to_a_section_of_the_page() -> None:
    leads = re.findall(rf"^\[(.*)\]\(#.*\)\n\n{error_messages.BEGIN}", PAGE, re.MULTILINE)
    assert len(leads) == len(error_messages.BLOCK.findall(PAGE))
    assert set(leads) <= set(re.findall("^## (.*)$", PAGE, re.MULTILINE))


def test_every_exit_code_of_the_code_stands_in_the_table() -> None:
    sources = "\n".join(path.read_text() for path in error_messages.PACKAGE.rglob("*.py"))
    codes = {int(code) for code in re.findall(r"sys\.exit\((\d+)\)", sources)} | {broken_device.EXIT_CODE}
    assert codes >= {0, 1, 130, 134}
    codes |= {128 + number for number in stop_signal.SIGNALS}
    (table,) = re.findall(r"\| code \|.*?\n\n", PAGE, re.DOTALL)
    assert codes <= set(map(int, re.findall(r"\d+", table)))
    assert f"{128 + signal.SIGUSR2} for SIGUSR2" in table


def found_in(source: str, module: str = "some/module.py") -> list[str]:
    """The messages of a module with this source."""
    texts = error_messages.texts(ast.parse(source))
    return [text for text, told in texts if error_messages.is_message(text, told, module)]


def test_a_message_is_found_however_it_is_told() -> None:
    assert found_in('raise Refused(f"{cfg.k} latents")') == ["K latents"]
    assert found_in('errors.append(f"k={k}: more than {len(latents)} latents; lower it")') == [
        "k=K: more than ... latents; lower it"
    ]
    assert found_in('log.warning("%s: cannot be written", path)') == ["...: cannot be written"]


def test_docstrings_help_and_errors_that_are_told_in_others_are_no_messages() -> None:
    assert found_in('def f():\n    """Does this: a thing; and another."""') == []
    assert found_in('add("--out", help="folder: where the result lies; made anew")') == []
    assert found_in('raise ValueError("not a number")') == []
    assert found_in('print("a heading: with some words in it")', next(iter(error_messages.OTHER_TEXTS))) == []


def test_no_module_is_excepted_that_has_only_messages() -> None:
    texts = error_messages.all_texts()
    for module in error_messages.OTHER_TEXTS:
        assert any(error_messages.is_message(text, told, "another.py") and not told for text, told in texts[module]), module
