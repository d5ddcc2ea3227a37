"""Hydra's plugins for sweeps on this machine: the sweeper `grid` and the launcher `local`. sae_transcoder.launch.sweep does the work.

Hydra finds plugins only in the namespace package hydra_plugins, and their classes must be defined there.
"""

import sys
from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class GridSweeper(BasicSweeper):
    """Every combination of the values. Hydra's own sweeper composes each job twice, writes files before anything is checked, and reports only
    one failure."""

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        """Passes all jobs to the launcher at once. Ends with exit code 1 if one fails."""
        from sae_transcoder.launch.sweep_from_overrides import combinations

        assert self.hydra_context is not None
        assert self.launcher is not None
        jobs = combinations(self.hydra_context.config_loader, self.config, arguments)
        results = self.launcher.launch(jobs, initial_job_idx=0)
        if any(result.status == JobStatus.FAILED for result in results):
            sys.exit(1)
        return results


class LocalLauncher(Launcher):
    """Trains the jobs on this machine; those that can share forwards train side by side."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """The results of the jobs in order; each return value is the job's objective."""
        from sae_transcoder.launch.sweep import launch

        return launch(self.hydra_context.config_loader, self.config, job_overrides, initial_job_idx)


# Plain dicts: Hydra executes this file as a module that is not in sys.modules, where dataclasses cannot be defined.
HERE = "hydra_plugins.sae_transcoder_local"
for group, name, node in [
    ("hydra/sweeper", "grid", {"_target_": f"{HERE}.GridSweeper", "max_batch_size": None, "params": None}),
    ("hydra/launcher", "local", {"_target_": f"{HERE}.LocalLauncher"}),
]:
    ConfigStore.instance().store(group=group, name=name, node=node, provider="sae_transcoder")
