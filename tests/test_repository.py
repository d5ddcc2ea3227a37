"""What a clone holds: everything in its place, and a workflow that runs what CI runs."""

import subprocess

import pytest
import yaml

from helpers import ROOT


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
        "mkdocs.yml",
        ".gitignore",
        ".gitattributes",
        ".git_archival.txt",
        ".pre-commit-config.yaml",
    }
