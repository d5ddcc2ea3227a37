"""Hydra's plugin for sweeps on SLURM: the launcher `slurm`. sae_transcoder.launch.sweep does the work.

hydra-submitit-launcher's own launcher composes each job again on its node, waits for all jobs, and reports only one failure.
"""

from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra_plugins.hydra_submitit_launcher import submitit_launcher


class SlurmLauncher(submitit_launcher.SlurmLauncher):
    """Submits the jobs in packs, as one array."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """The results of the jobs in order; each return value is the job's objective, if the command waits for the jobs."""
        from sae_transcoder.launch.sweep import launch

        assert self.hydra_context is not None
        assert self.config is not None
        return launch(self.hydra_context.config_loader, self.config, job_overrides, initial_job_idx)


# Plain dicts: Hydra executes this file as a module that is not in sys.modules, where dataclasses cannot be defined.
node = {"_target_": "hydra_plugins.sae_transcoder_slurm.SlurmLauncher"}
ConfigStore.instance().store(group="hydra/launcher", name="slurm", node=node, provider="sae_transcoder")
