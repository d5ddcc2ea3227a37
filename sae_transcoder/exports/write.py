"""Writes an export, whole or not at all."""

import tempfile
from pathlib import Path

from sae_transcoder.config import ConfigError
from sae_transcoder.config.paths import local_path
from sae_transcoder.exports.source import read_source
from sae_transcoder.exports.targets import find_writer


def export(path: str, target: str, out: str | Path, **settings: str) -> Path:
    """Writes the coders in `path` into the new folder `out`, and returns its path. settings: the target's own, as the command takes them.

    Raises ConfigError for an unknown target, a folder that exists, and coders that the target cannot express.
    """
    writer = find_writer(target, settings)
    out_dir = local_path(out, "out")
    if out_dir.exists():
        raise ConfigError(f"out={out}: exists; choose another folder, or remove it")
    write_files = writer(read_source(path))
    try:
        parent = out_dir.absolute().parent
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out_dir.name}-", dir=parent) as temporary:
            staging_dir = Path(temporary) / "export"
            staging_dir.mkdir()
            write_files(staging_dir)
            staging_dir.rename(out_dir)
    except OSError as error:
        raise ConfigError(f"out={out}: cannot be written ({error.strerror}); choose another folder") from error
    return out_dir
