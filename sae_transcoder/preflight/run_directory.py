"""Whether a run's directory can be used: it can be written to, and holds nothing or this very run."""

import os
import tempfile
from pathlib import Path

from sae_transcoder.config import Config, ConfigError, Resume, run_dir, run_name, signature
from sae_transcoder.config.paths import label, local_path, path_fault
from sae_transcoder.run_store import job_record, status
from sae_transcoder.run_store.differing_settings import differences, nearest_run

# What a run's directory may hold before the run writes its status.
EARLY_FILES = {".hydra", "train.log", ".lock", ".status.json.new", job_record.LINK}


def refuse_unwritable(name: str, written: str | Path) -> None:
    """Raises ConfigError, with the setting's name, where the folder that it names cannot be made or written to. Leaves nothing there."""
    folder = local_path(written, name).absolute()
    nearest = next(p for p in (folder, *folder.parents) if os.path.exists(p))
    try:
        with tempfile.TemporaryDirectory(dir=nearest):
            pass
    except OSError as error:
        raise ConfigError(
            f"{label(written, name)}: cannot be written to ({error.strerror}: {nearest}); choose another folder"
        ) from error


def refuse_directory(cfg: Config) -> None:
    """Raises ConfigError where the run's directory holds anything but this very run."""
    directory, name = run_dir(cfg), run_name(cfg)
    fix = "choose another run_name or save_dir"
    if fault := path_fault(directory):
        raise ConfigError(f"run_name={name}: {fault}")
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"run_name={name}: {directory} is a file; {fix}")
    current = status.read(directory)
    if current is None:
        if directory.is_dir() and {p.name for p in directory.iterdir()} - EARLY_FILES:
            raise ConfigError(f"run_name={name}: {directory} holds files but no run; {fix}")
    elif current.signature != signature(cfg):
        raise ConfigError(f"run_name={name}: {directory} holds a run of other settings ({differences(directory, cfg)}); {fix}")
    elif cfg.resume == Resume.never and current.state != status.State.queued:
        raise ConfigError(f"resume=never: {directory} holds a run ({current.state}); {fix}, or set resume=auto")
    done = current is not None and current.state == status.State.done
    if cfg.resume == Resume.must and not done and not status.state_path(directory).exists():
        nearest = nearest_run(directory.parent, cfg)
        beside = f" ({nearest.name} beside it differs: {differences(nearest, cfg)})" if nearest not in (None, directory) else ""
        raise ConfigError(
            f"resume=must: {directory} holds no training state{beside}; check save_dir and run_name, or set resume=auto"
        )
