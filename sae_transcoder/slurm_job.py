"""The old name of launch/slurm/job.py, for pickled jobs that were queued before it moved. Delete after release 0.1."""

from sae_transcoder.launch.slurm.job import PackTask as Pack

__all__ = ["Pack"]
