"""The bytes of a file, uncompressed, and as text in UTF-8."""

import io
from pathlib import Path, PurePath
from typing import Any

from sae_transcoder.config import ConfigError

# {suffix: how such a file is compressed, in pyarrow's word}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}


def open_bytes(path: str) -> Any:
    """The bytes of a local file, or of what datasets' streams name, which they uncompress themselves."""
    if "://" in path:
        from datasets.utils.file_utils import xopen

        return xopen(path, "rb")
    import pyarrow as pa

    codec = COMPRESSIONS.get(PurePath(path).suffix)
    return io.BufferedReader(io.FileIO(path) if codec is None else pa.input_stream(path, compression=codec))


def decoded(data: bytes, path: str, line: int) -> str:
    """The data, which begins on a line of the file, as text. Raises ConfigError where it is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, byte = line + before.count(b"\n"), error.start - before.rfind(b"\n")
        raise ConfigError(
            f"dataset_name: {path}, line {line}, byte {byte} of it: {data[error.start]:#04x} is not UTF-8; write the file again as UTF-8"
        ) from error


def file_identity(path: Path) -> tuple[str, int, int]:
    """What tells whether a file has changed: its path, size in bytes and time of change in ns."""
    return str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns
