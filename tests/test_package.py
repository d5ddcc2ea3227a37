"""What people expect of a package: its texts, its extras, the forms for issues, the workflow that publishes."""

import re
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from helpers import ROOT
from sae_transcoder.config.group_choices import choice_fault

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*_*.yml"))


def test_the_changes_begin_with_those_that_are_not_released() -> None:
    headings = re.findall(r"^## (.+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"


def test_the_citation_has_what_its_format_asks_for_and_no_version_that_grows_old() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert "version" not in citation


def test_every_pinned_version_installs_on_the_oldest_python_that_suffices() -> None:
    oldest = PROJECT["requires-python"].removeprefix(">=") + ".0"
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    needs = {canonicalize_name(d.name): d.metadata["Requires-Python"] or "" for d in distributions()}
    installed = [name for name in map(canonicalize_name, pinned) if name in needs]
    assert len(installed) > 0.9 * len(pinned), "all but those that build the package"
    assert [name for name in installed if not SpecifierSet(needs[name]).contains(oldest)] == []


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_extra_is_explained(extra: str) -> None:
    (row,) = re.findall(rf"^\| `{extra}` \|(.*)", (ROOT / "docs" / "install.md").read_text(), re.MULTILINE)
    packages = [re.split("[<>=[]", requirement)[0] for requirement in EXTRAS[extra]]
    assert any(package in row for package in packages)


def test_a_sweeper_whose_extra_is_missing_is_refused_with_the_line_that_installs_it() -> None:
    assert choice_fault("hydra/sweeper/optuna", ["basic", "grid"]).endswith("run pip install -c constraints.txt -e '.[search]'")


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_for_issues_is_one_that_github_reads(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= form.keys()
    assert all(part["type"] == "textarea" and part["attributes"]["label"] for part in form["body"])
    assert len({part["id"] for part in form["body"]}) == len(form["body"])


def test_a_bug_report_asks_for_what_info_prints() -> None:
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug_report.yml").read_text())
    (info,) = [part for part in form["body"] if part["id"] == "info"]
    assert info["attributes"]["label"] == "sae-train --info"
    assert info["validations"]["required"]


def test_what_is_published_is_what_the_script_of_ci_has_tried() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "publish.yml").read_text())
    assert workflow[True] == {"push": {"tags": ["v[0-9]*"]}}  # YAML reads `on` as true
    package, pypi = workflow["jobs"]["package"], workflow["jobs"]["pypi"]
    assert "PYTHON=python .ci/package dist" in [step.get("run") for step in package["steps"]]
    assert pypi["needs"] == "package"
    assert pypi["permissions"] == {"id-token": "write"}
    assert ".ci/package" in (ROOT / ".ci" / "run").read_text()
