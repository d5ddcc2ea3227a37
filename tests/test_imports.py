"""What stays instant: modules that need no torch import none."""

import pkgutil
import subprocess
import sys

import pytest

import sae_transcoder

# Packages all of whose modules are read by --help, completion, sae-report or a refusal before a model is needed.
LIGHT = ["config", "run_store", "reports"]
COMMANDS = ["train", "evaluate", "show_latents", "report", "export", "slurm_client", "metric_names", "distributed"]
HEAVY = {"torch", "transformers", "sparsify", "datasets", "wandb", "trackio", "submitit"}


def modules() -> list[str]:
    """The names of these modules."""
    every = [module.name for module in pkgutil.walk_packages(sae_transcoder.__path__, "sae_transcoder.")]
    return [name for name in every if name.split(".")[1] in LIGHT or name.split(".")[1] in COMMANDS]


@pytest.mark.parametrize("name", modules())
def test_a_module_that_needs_no_torch_imports_none(name: str) -> None:
    code = f"import sys, {name}; print(*sys.modules)"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert name in imported
    assert HEAVY.isdisjoint(imported)
