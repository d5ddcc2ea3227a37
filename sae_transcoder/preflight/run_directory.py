"""Whether a run's directory can be used: it can be written to, and holds nothing or this very run."""

import tempfile
from pathlib import Path

from sae_transcoder.config import Config, ConfigError, Resume, run_dir, run_name, signature
from sae_transcoder.run_store import job_record, status

# What a run's directory may hold before the run writes its status.
EARLY_FILES = {".hydra", "train.log", ".lock", ".status.json.new", job_record.LINK}


def refuse_unwritable(name: str, folder: Path) -> None:
    """Raises ConfigError, with the setting's name, where `folder` cannot be made or written to. Leaves nothing there."""
    nearest = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    try:
        with tempfile.TemporaryDirectory(dir=nearest):
            pass
    except OSError as error:
        raise ConfigError(f"{name}={folder}: cannot be written to ({error.strerror}: {nearest}); choose another folder") from error


def refuse_directory(cfg: Config) -> None:
    """Raises ConfigError where the run's directory holds anything but this very run."""
    directory, name = run_dir(cfg), run_name(cfg)
    fix = "choose another run_name or save_dir"
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"run_name={name}: {directory} is a file; {fix}")
    try:
        current = status.read(directory)
    except ValueError as error:
        raise ConfigError(f"{error}; {fix}") from error
    if current is None:
        if directory.is_dir() and {p.name for p in directory.iterdir()} - EARLY_FILES:
            raise ConfigError(f"run_name={name}: {directory} holds files but no run; {fix}")
    elif cfg.resume == Resume.never and current.state != status.State.queued:
        raise ConfigError(f"resume=never: {directory} holds a run ({current.state}); {fix}, or set resume=auto")
    elif current.signature != signature(cfg):
        raise ConfigError(
            f"run_name={name}: {directory} holds a run of other settings "
            f"(signature {current.signature}, this one's is {signature(cfg)}); {fix}"
        )
    done = current is not None and current.state == status.State.done
    if cfg.resume == Resume.must and not done and not status.state_path(directory).exists():
        raise ConfigError(f"resume=must: {directory} holds no training state; check save_dir and run_name, or set resume=auto")
