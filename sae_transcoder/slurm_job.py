"""launch/slurm/job.py by the name that jobs queued before the packages know. Goes after release 0.1."""

from sae_transcoder.launch.slurm.job import Pack

__all__ = ["Pack"]
