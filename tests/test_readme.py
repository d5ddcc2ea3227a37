"""The README's claims that can be checked without running a minute of training."""

import re
import shlex
import subprocess

import pytest
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

import field_table
from helpers import ROOT
from helpers.command_line import composed
from sae_transcoder import export, report
from sae_transcoder.config import FIELDS
from sae_transcoder.config.checks import faults
from sae_transcoder.config.explain_field import explanation, names_to_explain
from sae_transcoder.evaluation.settings import refuse_unread
from sae_transcoder.exports.targets import find_writer
from sae_transcoder.latents.request import split_arguments

README = (ROOT / "README.md").read_text()
DOCS = "\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
COMMANDS = [
    command.strip()
    for block in re.findall(r"```bash\n(.*?)```", README + DOCS, re.DOTALL)
    for line in block.splitlines()
    for command in line.split("  #")[0].split(" && ")
]


def test_ci_runs_the_readmes_test_command() -> None:
    (command,) = [c for c in COMMANDS if "pytest" in c]
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize(
    "command",
    [c for c in COMMANDS if c.startswith("sae-train") and not re.search(r"--help|--version|--info|--explain|-sc|json=", c)],
)
def test_every_training_command_composes_and_passes_the_checks(command: str) -> None:
    given = OverridesParser.create().parse_overrides([o for o in shlex.split(command)[1:] if "=" in o])
    (jobs,) = BasicSweeper.split_arguments(given, None)
    assert all(faults(composed(*job)) == [] for job in jobs)


@pytest.mark.parametrize("command", [c for c in COMMANDS if "--explain" in c])
def test_every_field_that_a_command_asks_about_is_there(command: str) -> None:
    assert explanation(names_to_explain(shlex.split(command)[1:]) or [])


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("sae-eval")])
def test_every_evaluation_command_has_overrides_that_an_evaluation_reads(command: str) -> None:
    refuse_unread(shlex.split(command)[2:])


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("sae-latents")])
def test_every_command_for_latents_has_settings_that_are_read(command: str) -> None:
    paths, _, overrides = split_arguments([word for word in shlex.split(command)[1:] if word != "--page"])
    assert [path.split("/")[0] for path in paths] == ["outputs"]
    refuse_unread(overrides)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("sae-report")])
def test_every_report_command_has_options_that_there_are(command: str) -> None:
    options = report.parser().parse_args(report.arranged(shlex.split(command)[1:]))
    assert [str(folder).split("/")[0] for folder in options.folders] == ["outputs"]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("sae-export")])
def test_every_export_command_has_settings_that_there_are(command: str) -> None:
    settings = export.parse_settings(shlex.split(command)[2:])
    find_writer(settings["to"], {name: value for name, value in settings.items() if name not in ("to", "out", "push")})


def test_every_picture_is_there() -> None:
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", README)
    assert pictures
    assert all((ROOT / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)


def test_the_table_of_fields_is_that_of_the_code() -> None:
    assert field_table.placed(README) == README, "python docs/field_table.py README.md"


def test_every_field_has_a_meaning() -> None:
    documented = [name for fields in field_table.meanings().values() for name in fields]
    assert sorted(documented) == sorted(FIELDS)


def test_the_workflow_runs_what_ci_runs() -> None:
    (job,) = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]


def test_everything_in_the_clone_is_where_the_design_says() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git clone: what is tracked cannot be told")
    top = {path.split("/")[0] for path in tracked.stdout.split()}
    allowed = {
        "conf",
        "sae_transcoder",
        "tests",
        "pyproject.toml",
        "README.md",
        "hydra_plugins",
        "benchmarks",
        "examples",
        "docs",
        ".ci",
        ".github",
    }
    assert top <= allowed | {
        "LICENSE",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "CITATION.cff",
        "constraints.txt",
        ".gitignore",
        ".gitattributes",
        ".git_archival.txt",
        ".pre-commit-config.yaml",
    }
