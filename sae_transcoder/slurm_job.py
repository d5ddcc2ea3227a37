"""Where jobs that were queued before 0.2 find their pack: sae_transcoder/launch/slurm/job.py by its old name. Goes with release 0.3."""

from sae_transcoder.launch.slurm.job import Pack

__all__ = ["Pack"]
