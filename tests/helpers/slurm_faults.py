"""Causes faults in runs inside SLURM jobs. Jobs import a copy of this package, so a sitecustomize.py on PYTHONPATH patches it there."""

import textwrap
from pathlib import Path

PLANT = """
import importlib.machinery, importlib.util, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "sae_transcoder.training.managed_run":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            real = module.ManagedRun.after_step
            def after_step(run, *arguments):
                fault(run.cfg, run.trainer.step)
                real(run, *arguments)
            module.ManagedRun.after_step = after_step
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())

def fault(cfg, step):
    import os, signal, time
"""


def plant(folder: Path, body: str) -> dict[str, str]:
    """The environment variables with which `body`, lines of Python, runs in each job after every optimizer step of a run; it can use `cfg` and
    `step`."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(PLANT + textwrap.indent(textwrap.dedent(body).strip() + "\n", "    "))
    return {"PYTHONPATH": str(folder)}
