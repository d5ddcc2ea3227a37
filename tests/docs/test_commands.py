"""Every command and every piece of Python on a page works, as far as can be told without training."""

import ast
import functools
import importlib
import json
import re
import shlex
import tomllib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser

from helpers import ROOT
from helpers.command_line import composed
from helpers.pages import COMMANDS, PYTHON
from sae_transcoder import api, export, report
from sae_transcoder.config import Config, command_line, composition, old_json
from sae_transcoder.config.checks import faults
from sae_transcoder.config.explain_field import explanation, names_to_explain
from sae_transcoder.config.run_length import needed_samples, run_length
from sae_transcoder.evaluation.settings import refuse_unread
from sae_transcoder.exports.targets import find_writer
from sae_transcoder.latents.request import split_arguments
from sae_transcoder.preflight.length_faults import length_faults

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OLD_CONFIG = {"model_type": "sae", "k": 8}  # a config.json of the old program


@pytest.fixture(autouse=True)
def _files_that_commands_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the config.json that commands read."""
    monkeypatch.chdir(tmp_path)
    Path("config.json").write_text(json.dumps(OLD_CONFIG))


@functools.cache
def composed_faults(*overrides: str) -> list[str]:
    """What is wrong with the settings of one job, and with its length."""
    cfg = composed(*overrides)
    samples = needed_samples(cfg)
    return faults(cfg) + ([] if samples is None else length_faults(cfg, run_length(cfg, samples), samples))


def check_train(arguments: list[str]) -> None:
    """Overrides compose to jobs without a fault; each value of a grid is in one of those that are composed."""
    if (names := names_to_explain(arguments)) is not None:
        assert all(map(explanation, names))
        return
    if arguments[0] == "-sc":
        assert re.fullmatch(r"install=(bash|zsh|fish)", arguments[1])
        return
    given = command_line.split_arguments([word for word in arguments if word != "--to-yaml"])
    assert not given.faults
    if {"--help", "--version", "--info"} & set(given.options):
        return
    get_args_parser().parse_args(given.options)
    overrides, _ = old_json.expanded(given.overrides, lambda group, choice: composition.fields_of(group, choice, []))
    (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(overrides), None)
    seen: set[str] = set()
    for job in jobs:
        if not seen.issuperset(job):
            assert composed_faults(*job) == []
        seen.update(job)


def check_latents(arguments: list[str]) -> None:
    paths, _, overrides = split_arguments([word for word in arguments if word != "--page"])
    assert all(path.startswith("outputs/") for path in paths)
    refuse_unread(overrides)


def check_report(arguments: list[str]) -> None:
    options = report.parser().parse_args(report.arranged(arguments))
    assert all(str(folder).split("/")[0] == "outputs" for folder in options.folders)


def check_export(arguments: list[str]) -> None:
    settings = export.parse_settings(arguments[1:])
    find_writer(settings["to"], {name: value for name, value in settings.items() if name not in ("to", "out", "push")})


def check_pip(arguments: list[str]) -> None:
    """The files that it reads are there, and the extras."""
    for option, value in pairwise(arguments):
        if option == "-c":
            assert (ROOT / value).is_file()
        if extras := re.fullmatch(r"\.\[(.+)\]", value):
            assert set(extras[1].split(",")) <= set(PYPROJECT["project"]["optional-dependencies"])


def check_python(arguments: list[str]) -> None:
    """A script of the repository has the options that it is given, by itself or from the modules beside it."""
    if arguments[0] == "-m":
        assert arguments[1] == "venv"
        return
    script = ROOT / arguments[0]
    code = script.read_text() + "".join(path.read_text() for path in (ROOT / "benchmarks").glob("*.py"))
    options = [word for word in arguments if word.startswith("--")]
    assert all(f'"{option}"' in code for option in options), options


def check_pytest(arguments: list[str]) -> None:
    markers = {line.partition(":")[0].partition("(")[0] for line in PYPROJECT["tool"]["pytest"]["ini_options"]["markers"]}
    for option, value in zip(["", *arguments], arguments, strict=False):
        assert option != "-m" or value in markers
        assert option.startswith("-") or value.startswith("-") or (ROOT / value).exists()


def check_own_file(arguments: list[str]) -> None:
    assert (ROOT / arguments[0]).is_file()


def check_torchrun(arguments: list[str]) -> None:
    module = arguments.index("-m")
    assert arguments[module + 1] == "sae_transcoder.train"
    check_train(arguments[module + 2 :])


def check_eval_of_shell(arguments: list[str]) -> None:
    (inner,) = re.findall(r"\$\((.+)\)", arguments[0])
    check(inner)


def passes(arguments: list[str]) -> None:
    """A program of other people."""


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "sae-train": check_train,
    "sae-eval": lambda arguments: refuse_unread(arguments[1:]),
    "sae-latents": check_latents,
    "sae-report": check_report,
    "sae-export": check_export,
    "pip": check_pip,
    "python": check_python,
    "python3": check_python,
    "pytest": check_pytest,
    "bash": check_own_file,
    "torchrun": check_torchrun,
    "eval": check_eval_of_shell,
} | dict.fromkeys(("source", "export", "trackio", "pre-commit", "mkdocs", "git", "cd"), passes)


def check(command: str) -> None:
    words = shlex.split(command)
    words = words[: words.index(">")] if ">" in words else words
    while re.match(r"[A-Z_]+=", words[0]):  # of the environment
        words.pop(0)
    CHECKS[words[0].removeprefix(".venv/bin/")](words[1:])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_settings_and_options_that_there_are(command: str) -> None:
    check(command)


@pytest.mark.parametrize("command", ["sae-train model_type=sae kk=3", "sae-train --dry", "sae-eval outputs/run k=3", "ls"])
def test_a_command_that_does_not_work_is_found(command: str) -> None:
    with pytest.raises((Exception, SystemExit)):
        check(command)


def test_ci_runs_the_test_command_that_readers_are_told() -> None:
    steps = (ROOT / ".ci" / "run").read_text().splitlines()
    assert any(command in steps for command in COMMANDS if ".venv/bin/pytest" in command)


@pytest.mark.parametrize("block", PYTHON)
def test_every_piece_of_python_imports_names_that_there_are(block: str) -> None:
    for statement in ast.walk(ast.parse(block)):
        if isinstance(statement, ast.ImportFrom) and statement.module:
            module = importlib.import_module(statement.module)
            assert all(hasattr(module, name.name) for name in statement.names)


@pytest.mark.parametrize("block", [block for block in PYTHON if "load_config" in block])
def test_every_piece_of_python_that_trains_has_settings_that_can_run(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[object] = []

    def train(cfg: Config) -> None:
        assert faults(cfg) == []
        trained.append(cfg)

    def sweep(*overrides: str) -> None:
        check_train(["-m", *overrides])
        trained.append(overrides)

    monkeypatch.setattr(api, "train", train)
    monkeypatch.setattr(api, "sweep", sweep)
    exec(block, {})
    assert trained
