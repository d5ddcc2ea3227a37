"""What the tokens of a split depend on, by which they are found in the cache."""

import hashlib
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sae_transcoder.config import Config, DatasetKind
from sae_transcoder.config.paths import local_path
from sae_transcoder.data.file_bytes import file_identity
from sae_transcoder.data.mixture import parts
from sae_transcoder.data.sources import is_stream, local_name, local_paths
from sae_transcoder.data.special_tokens import SpecialTokens
from sae_transcoder.demo import text as demo_text

# A tokenizer's files beside those named token*.
VOCABULARIES = {"vocab.json", "merges.txt", "vocab.txt", "spiece.model", "chat_template.jinja", "chat_template.json"}


def cache_key_parts(cfg: Config, split: str, vocabulary: int, special: SpecialTokens) -> dict[str, Any]:
    """Everything that a split's tokens depend on; the vocabulary decides their number format and which ids are refused."""
    key: dict[str, Any] = {
        "split": split, "vocabulary": vocabulary, "length": cfg.max_seq_length - len(special.begin),
        "shuffle_seed": cfg.shuffle_seed, "shuffle_buffer": cfg.shuffle_buffer, "parts": [part_key(part) for part in parts(cfg)],
        "weights": cfg.dataset_weights,
    }  # fmt: skip
    if cfg.dataset_kind != DatasetKind.pretokenized:
        key |= {
            "tokenizer": tokenizer_identity(cfg),
            "separator": special.separator,
            "special_tokens_in_text": cfg.special_tokens_in_text,
            "train_on": cfg.train_on,
            "begin": special.begin if cfg.messages_column is not None else None,  # which conversations do not repeat
        }
    return key


def part_key(cfg: Config) -> dict[str, Any]:
    """What the rows of one part depend on."""
    column = cfg.tokens_column if cfg.dataset_kind == DatasetKind.pretokenized else cfg.messages_column or cfg.text_column
    key: dict[str, Any] = {
        "kind": cfg.dataset_kind,
        "name": cfg.dataset_name,
        "config": cfg.dataset_config,
        "column": column,
        "chat": cfg.messages_column is not None,
    }
    if cfg.dataset_kind == DatasetKind.demo:
        key["python"] = platform.python_version()
    elif cfg.dataset_kind == DatasetKind.hub:  # its name may be that of a folder
        paths = local_name(cfg).rglob("*") if local_name(cfg).is_dir() else ()
        key["files"] = [file_identity(p) for p in sorted(paths) if p.is_file()]
    else:
        key["files"] = [file_identity(p) for p in local_paths(cfg) or []]
    if is_stream(cfg):  # a cache is continued along the order of the stream, which depends on the version of datasets
        key["datasets"] = version("datasets")
    return key


def tokenizer_identity(cfg: Config) -> str:
    """The model's name and revision; for a local folder the hash of its tokenizer's files."""
    folder = Path(demo_text.__file__).parent / "model" if cfg.model_name == "demo" else local_path(cfg.model_name, "model_name")
    if not folder.is_dir():
        return f"{cfg.model_name}@{cfg.revision}"
    files = sorted(p for p in folder.iterdir() if p.is_file() and ("token" in p.name or p.name in VOCABULARIES))
    return hashlib.sha256(b"".join(p.name.encode() + p.read_bytes() for p in files)).hexdigest()
