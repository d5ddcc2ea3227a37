"""What the tokens of a split depend on, by which they are found in the cache."""

import hashlib
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sae_transcoder.config import Config, DatasetKind
from sae_transcoder.config.paths import local_path
from sae_transcoder.data.sources import is_stream, local_name, local_paths
from sae_transcoder.demo import text as demo_text

VOCABULARIES = {"vocab.json", "merges.txt", "vocab.txt", "spiece.model"}  # a tokenizer's files beside those named token*


def cache_key_parts(cfg: Config, split: str, vocabulary: int) -> dict[str, Any]:
    """Everything that a split's tokens depend on; the vocabulary decides their number format and which ids are refused."""
    parts: dict[str, Any] = {
        "kind": cfg.dataset_kind, "name": cfg.dataset_name, "config": cfg.dataset_config, "split": split, "vocabulary": vocabulary,
        "max_seq_length": cfg.max_seq_length, "shuffle_seed": cfg.shuffle_seed, "shuffle_buffer": cfg.shuffle_buffer,
    }  # fmt: skip
    if cfg.dataset_kind == DatasetKind.pretokenized:
        parts |= {"column": cfg.tokens_column}
    else:
        parts |= {"column": cfg.text_column, "tokenizer": tokenizer_identity(cfg)}
    if cfg.dataset_kind == DatasetKind.demo:
        parts["python"] = platform.python_version()
    elif cfg.dataset_kind == DatasetKind.hub:  # its name may be that of a folder
        paths = local_name(cfg).rglob("*") if local_name(cfg).is_dir() else ()
        parts["files"] = [file_identity(p) for p in sorted(paths) if p.is_file()]
    else:
        parts["files"] = [file_identity(p) for p in local_paths(cfg) or []]
    if is_stream(cfg):  # a cache is continued along the order of the stream, which depends on the version of datasets
        parts["datasets"] = version("datasets")
    return parts


def file_identity(path: Path) -> tuple[str, int, int]:
    """What tells whether a file has changed: its path, size in bytes and time of change in ns."""
    return str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns


def tokenizer_identity(cfg: Config) -> str:
    """The model's name and revision; for a local folder the hash of its tokenizer's files."""
    folder = Path(demo_text.__file__).parent / "model" if cfg.model_name == "demo" else local_path(cfg.model_name, "model_name")
    if not folder.is_dir():
        return f"{cfg.model_name}@{cfg.revision}"
    files = sorted(p for p in folder.iterdir() if p.is_file() and ("token" in p.name or p.name in VOCABULARIES))
    return hashlib.sha256(b"".join(p.name.encode() + p.read_bytes() for p in files)).hexdigest()
