"""A binary file of token ids, mapped into memory: raw ids of a number format that must be told, or numpy's .npy, which tells its own."""

import json
from pathlib import Path

import numpy as np

from sae_transcoder.config import Config, ConfigError
from sae_transcoder.data.sources import local_name

# {first bytes: what such a file is}
OTHER_FILES = {
    b"PK\x03\x04": "a zip archive, as .npz and PyTorch's .pt are",
    b"\x1f\x8b\x08": "compressed with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"ARROW1": "an Arrow file",
    b"PAR1": "a Parquet file",
    b"\x89HDF": "an HDF5 file",
    b"\x80\x04\x95": "a pickle",
    b"\x80\x05\x95": "a pickle",
    b"version https://git-lfs": "a Git LFS pointer, without the data",
}
NPY = b"\x93NUMPY"


def open_ids(cfg: Config) -> np.ndarray:
    """The ids of the file that `dataset_name` names [token]. Raises ConfigError where it is not there, is of another kind, or its number format
    is not told."""
    path = local_name(cfg)
    if not path.is_file():
        raise ConfigError(f"dataset_name={cfg.dataset_name}: no such file; give the path of a flat binary file of token ids")
    with path.open("rb") as file:
        start = file.read(32)
    if start.startswith(NPY):
        return open_npy(cfg, path)
    kinds = [kind for first_bytes, kind in OTHER_FILES.items() if start.startswith(first_bytes)]
    if len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        kinds.append("a safetensors file")
    if kinds:
        raise ConfigError(
            f"dataset_name={cfg.dataset_name}: is {kinds[0]}, not a flat file of token ids; write the ids alone (numpy's tofile, or save)"
        )
    dtype = raw_dtype(cfg, path)
    if path.stat().st_size % dtype.itemsize:
        raise ConfigError(
            f"dataset_name={cfg.dataset_name}: {path.stat().st_size} bytes are no whole number of {dtype} ids; check tokens_dtype"
        )
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)


def open_npy(cfg: Config, path: Path) -> np.ndarray:
    """The ids of a .npy file [token]."""
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise ConfigError(f"dataset_name={cfg.dataset_name}: cannot be read ({error}); write it again with numpy's save") from error
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ConfigError(
            f"dataset_name={cfg.dataset_name}: holds {ids.dtype} numbers of shape {ids.shape}; give one row of integer token ids (ids.reshape(-1))"
        )
    if cfg.tokens_dtype is not None and ids.dtype != np.dtype(cfg.tokens_dtype.value):
        raise ConfigError(
            f"tokens_dtype={cfg.tokens_dtype}: {cfg.dataset_name} holds {ids.dtype}, as its header says; leave tokens_dtype out"
        )
    return ids


def raw_dtype(cfg: Config, path: Path) -> np.dtype:
    """The number format: tokens_dtype, or what FILE.json beside the file says. Raises ConfigError where neither tells."""
    if cfg.tokens_dtype is not None:
        return np.dtype(cfg.tokens_dtype.value)
    info = path.with_name(path.name + ".json")
    try:
        dtype = json.loads(info.read_text())["dtype"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"tokens_dtype=null: {info} does not say the dtype of {path.name}; set tokens_dtype=uint16 or uint32"
        ) from None
    if dtype not in ("uint16", "uint32"):
        raise ConfigError(f"{info}: dtype {dtype} is not uint16 or uint32; set tokens_dtype")
    return np.dtype(dtype)
