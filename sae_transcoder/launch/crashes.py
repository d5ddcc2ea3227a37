"""How often the process or the SLURM job of a run may crash, and how the run continues."""

from dataclasses import replace

from sae_transcoder.config import Config, Resume

MAX_CRASHES = 3  # consecutive, without a new checkpoint


def count_crashes(before: int, saved_before: object, saved_now: object) -> int:
    """Consecutive crashes after one more; starts again at 1 where a checkpoint was written since the last crash.

    saved_before, saved_now: when checkpoints were last written, as of the last crash and now.
    """
    return before + 1 if saved_now == saved_before else 1


def restarted(cfg: Config) -> Config:
    """The config with which a run continues: resume=never would refuse the run that this same command has begun."""
    return replace(cfg, resume=Resume.auto) if cfg.resume == Resume.never else cfg
