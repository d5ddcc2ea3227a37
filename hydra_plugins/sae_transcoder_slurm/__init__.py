"""Hydra's side of a sweep on SLURM: the launcher `slurm`, a thin door to sae_transcoder.launch.sweep.

hydra-submitit-launcher's own composes each job again where it runs, waits for all of them, and tells of one failure only.
"""

from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra_plugins.hydra_submitit_launcher import submitit_launcher


class SlurmLauncher(submitit_launcher.SlurmLauncher):
    """Submits the jobs in packs, as one array."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """The jobs' results in order where the command waits for them; the return value of each is its objective."""
        from sae_transcoder.launch import sweep

        assert self.hydra_context is not None
        assert self.config is not None
        return sweep.launch(self.hydra_context.config_loader, self.config, job_overrides, initial_job_idx)


# Plain values: Hydra runs this file as a module that Python does not know, in which no dataclass can be made.
node = {"_target_": "hydra_plugins.sae_transcoder_slurm.SlurmLauncher"}
ConfigStore.instance().store(group="hydra/launcher", name="slurm", node=node, provider="sae_transcoder")
