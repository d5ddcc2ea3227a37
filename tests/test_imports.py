"""What stays instant: modules that need no torch import none."""

import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import sae_transcoder

# Packages all of whose modules are read by --help, completion, sae-report or a refusal before a model is needed.
LIGHT = ["config", "run_store", "reports"]
COMMANDS = ["train", "evaluate", "show_latents", "report", "export", "slurm_client", "metric_names", "distributed"]
HEAVY = {"torch", "transformers", "sparsify", "datasets", "wandb", "trackio", "submitit"}


def modules() -> list[str]:
    """The names of these modules."""
    every = [module.name for module in pkgutil.walk_packages(sae_transcoder.__path__, "sae_transcoder.")]
    return [name for name in every if name.split(".")[1] in LIGHT or name.split(".")[1] in COMMANDS]


def test_modules_that_need_no_torch_import_none() -> None:
    """All in one process: what none of them imports there, none imports by itself."""
    code = """
import importlib, sys
for name in sys.argv[1].split(","):
    importlib.import_module(name)
    print(name, *(heavy for heavy in sys.argv[2].split(",") if heavy in sys.modules))
"""
    arguments = [",".join(modules()), ",".join(sorted(HEAVY))]
    imported = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True).stdout
    assert imported.splitlines() == modules(), "the first line that names more than a module tells which imports it"


def test_sparsify_is_imported_in_one_place_which_keeps_it_silent() -> None:
    package = Path(sae_transcoder.__file__).parent
    importing = [
        path for path in package.rglob("*.py") if re.search(r"^\s*(from|import) sparsify\b", path.read_text(), re.MULTILINE)
    ]
    assert [str(path.relative_to(package)) for path in importing] == ["coder/sparsify_parts.py"]
