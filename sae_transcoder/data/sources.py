"""Documents and their token ids, from the hub, local files, rows of ids or the demo's text, in a shuffled order, one at a time."""

import glob
import hashlib
import itertools
import json
import os
import platform
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from sae_transcoder.config import Config, ConfigError, DatasetKind
from sae_transcoder.demo import text as demo_text

BUILDERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
VOCABULARIES = {"vocab.json", "merges.txt", "vocab.txt", "spiece.model"}  # a tokenizer's files beside those named token*
TOKENIZE = 64  # documents at a time


def cache_folder(cfg: Config) -> Path:
    """Where tokens are kept."""
    if cfg.cache_dir is not None:
        return Path(cfg.cache_dir)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sae_transcoder"


def train_split(cfg: Config) -> str:
    """The name of the split to train on."""
    return "train" if cfg.dataset_kind == DatasetKind.demo else cfg.dataset_split


def made_from(cfg: Config, split: str, vocabulary: int) -> dict[str, Any]:
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
    elif cfg.dataset_kind == DatasetKind.hub:  # which may be a folder
        inside = local_name(cfg).rglob("*") if local_name(cfg).is_dir() else ()
        parts["files"] = [facts(p) for p in sorted(inside) if p.is_file()]
    else:
        parts["files"] = [facts(p) for p in local_paths(cfg) or []]
    if is_stream(cfg):  # the order of a stream is up to datasets' version, and a cache is continued along that order
        parts["datasets"] = version("datasets")
    return parts


def facts(path: Path) -> tuple[str, int, int]:
    """By what a changed file is known: its path, size in bytes and time of change in ns."""
    return str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns


def tokenizer_identity(cfg: Config) -> str:
    """The model's name and revision, for a local folder the hash of its tokenizer's files."""
    folder = Path(demo_text.__file__).parent / "model" if cfg.model_name == "demo" else Path(cfg.model_name)
    if not folder.is_dir():
        return f"{cfg.model_name}@{cfg.revision}"
    files = sorted(p for p in folder.iterdir() if p.is_file() and ("token" in p.name or p.name in VOCABULARIES))
    return hashlib.sha256(b"".join(p.name.encode() + p.read_bytes() for p in files)).hexdigest()


def local_name(cfg: Config) -> Path:
    """`dataset_name` as a path."""
    return Path(cfg.dataset_name).expanduser()


def saved_splits(cfg: Config) -> list[str] | None:
    """The splits of a folder that datasets' save_to_disk wrote, none for a single data set; None for any other name."""
    try:
        return json.loads((local_name(cfg) / "dataset_dict.json").read_text())["splits"]
    except OSError:
        return [] if (local_name(cfg) / "dataset_info.json").is_file() else None


def local_paths(cfg: Config) -> list[Path] | None:
    """The files that `dataset_name` means; None where it names no files (a hub id, the demo).

    Raises ConfigError for local_text that matches nothing, or files of unknown or mixed kinds.
    """
    if cfg.dataset_kind not in (DatasetKind.local_text, DatasetKind.pretokenized):
        return None
    path = local_name(cfg)
    if saved_splits(cfg) is not None:
        return sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("cache-"))
    if path.is_dir():
        inside = [p for p in path.rglob("*") if p.is_file()]
        found = sorted(p for p in inside if p.suffix in BUILDERS) or sorted(inside)
    else:
        found = [path] if path.is_file() else sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
    known = ", ".join(BUILDERS)
    if not found:
        named_file = path.suffix in BUILDERS or glob.has_magic(str(path)) or path.is_dir()
        if cfg.dataset_kind == DatasetKind.pretokenized and not named_file:
            return None
        raise ConfigError(f"dataset_name={cfg.dataset_name}: no such file; give a path, a folder or a pattern of {known} files")
    kinds = sorted({p.suffix or "no suffix" for p in found})
    if len({BUILDERS.get(kind) for kind in kinds}) > 1 or kinds[0] not in BUILDERS:
        raise ConfigError(f"dataset_name={cfg.dataset_name}: files of the kinds {', '.join(kinds)}; give files of one of {known}")
    return found


def is_stream(cfg: Config) -> bool:
    """Whether the data is a hub set, read as a stream."""
    return cfg.dataset_kind == DatasetKind.hub or (cfg.dataset_kind == DatasetKind.pretokenized and local_paths(cfg) is None)


def readable(cfg: Config, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a split in their shuffled order. Raises ConfigError for all that keeps them from being read."""
    try:
        yield from rows_of(cfg, split)
    except ConfigError:
        raise
    except Exception as error:  # each loader raises its own kinds
        raise cannot_load(cfg, split, error) from error


def rows_of(cfg: Config, split: str) -> Iterable[dict[str, Any]]:
    """The rows (documents) of a split in their shuffled order; an Arrow file on disk or a stream, never a list of all."""
    if cfg.dataset_kind == DatasetKind.demo:
        texts = list(demo_text.documents(split))
        order = np.random.default_rng(cfg.shuffle_seed).permutation(len(texts))
        return ({cfg.text_column: texts[i]} for i in order)
    import datasets

    datasets.disable_progress_bars()
    paths = local_paths(cfg)
    if paths is None:
        stream = datasets.load_dataset(os.path.expanduser(cfg.dataset_name), cfg.dataset_config, split=split, streaming=True)
        names = stream.column_names or list(next(iter(stream), {}))
        return checked(cfg, stream, names).shuffle(seed=cfg.shuffle_seed, buffer_size=cfg.shuffle_buffer)
    if (splits := saved_splits(cfg)) is not None:
        if splits and split not in splits:
            field = "dataset_split" if split == train_split(cfg) else "eval_split"
            raise ConfigError(f"{field}={split}: {cfg.dataset_name} has the splits {', '.join(splits)}; choose one of these")
        rows = datasets.load_from_disk(str(local_name(cfg) / split if splits else local_name(cfg)))
    else:
        builder = BUILDERS[paths[0].suffix]
        whole = {"sample_by": "document"} if builder == "text" else {}
        files = {"train": [str(p) for p in paths]}
        rows = datasets.load_dataset(builder, data_files=files, split="train", cache_dir=str(cache_folder(cfg) / "arrow"), **whole)
    # Otherwise the order would be written into the user's own folder.
    return checked(cfg, rows, rows.column_names).shuffle(seed=cfg.shuffle_seed, keep_in_memory=True)


def cannot_load(cfg: Config, split: str, error: Exception) -> ConfigError:
    """The message for a data set that cannot be loaded, or not be read to its end."""
    import datasets

    cause: BaseException = error
    while cause.__cause__ is not None:  # datasets hides the reason behind "an error occurred"
        cause = cause.__cause__
    reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
    field = "dataset_split" if split == train_split(cfg) else "eval_split"
    named = f"dataset_name={cfg.dataset_name}, {field}={split}"
    if cfg.dataset_config:
        named += f", dataset_config={cfg.dataset_config}"
    seen = f"{type(error).__name__}: {error} {reason}"
    if "OfflineMode" in seen or (datasets.config.HF_HUB_OFFLINE and isinstance(error, ConnectionError)):
        fix = "HF_HUB_OFFLINE=1 is set: unset it, or choose dataset=local_text or dataset=demo"
    elif "gated" in seen.lower() or "401" in seen or "DatasetNotFound" in seen:
        fix = "check dataset_name; if it is private or gated, accept its terms on the hub and run `hf auth login` or set HF_TOKEN"
    elif isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        fix = "check the network; the same command goes on from what was read"
    else:
        fix = "check dataset_name, dataset_config, dataset_split and eval_split, or the files"
    return ConfigError(f"{named}: cannot be loaded ({type(cause).__name__}: {reason}); {fix}")


def checked(cfg: Config, rows: Any, columns: list[str]) -> Any:
    """The one column that is needed of the rows. Raises ConfigError where they lack it."""
    field = "tokens_column" if cfg.dataset_kind == DatasetKind.pretokenized else "text_column"
    wanted = getattr(cfg, field)
    if wanted not in columns:
        raise ConfigError(f"{field}={wanted}: {cfg.dataset_name} has the columns {', '.join(columns)}; set {field} to one of them")
    return rows.select_columns([wanted])


def tokenized(cfg: Config, rows: Iterable[dict[str, Any]], tokenizer: Any) -> Iterator[np.ndarray]:
    """Each document's ids with the separator before them; documents without text give nothing but are counted."""
    separators = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.sep_token_id)
    separator = next((i for i in separators if i is not None), None)
    if separator is None:
        raise ConfigError(
            f"model_name={cfg.model_name}: its tokenizer has no end, begin or separator token; use dataset=pretokenized"
        )
    rows = iter(rows)
    while batch := list(itertools.islice(rows, TOKENIZE)):
        texts = [row[cfg.text_column] for row in batch]
        wrong = next((t for t in texts if t is not None and not isinstance(t, str)), None)
        if wrong is not None:
            raise ConfigError(
                f"text_column={cfg.text_column}: {cfg.dataset_name} holds {type(wrong).__name__} there, not text; choose another column"
            )
        filled = [t for t in texts if t]
        ids = iter(
            tokenizer(filled, add_special_tokens=False, verbose=False, return_attention_mask=False)["input_ids"] if filled else []
        )
        for text in texts:
            yield np.array([separator, *next(ids)] if text else [], dtype=np.int64)


def within(cfg: Config, documents: Iterable[np.ndarray], vocabulary: int) -> Iterator[np.ndarray]:
    """The documents' ids as they are. Raises ConfigError where the tokenizer gives one that the model lacks."""
    for ids in documents:
        if len(ids) and (worst := int(ids.max())) >= vocabulary:
            raise ConfigError(
                f"model_name={cfg.model_name}: its tokenizer gives the id {worst}, the model has the ids 0 to {vocabulary - 1}; "
                "choose a model whose tokenizer fits it"
            )
        yield ids


def ids_of(cfg: Config, rows: Iterable[dict[str, Any]], skip: int, vocabulary: int) -> Iterator[np.ndarray]:
    """Each row's ids. Raises ConfigError for what is not a list of integers, or an id beyond the vocabulary."""
    for number, row in enumerate(rows, skip):
        try:
            values = np.asarray(row[cfg.tokens_column])
        except ValueError:  # lists of unequal lengths inside the row
            values = np.empty((0, 0))
        if values.ndim != 1 or (len(values) and values.dtype.kind not in "iu"):
            raise ConfigError(
                f"tokens_column={cfg.tokens_column}: row {number} of {cfg.dataset_name} (as shuffled) is not a list of token ids; choose another"
            )
        if len(values) and (values.max() >= vocabulary or values.min() < 0):
            raise ConfigError(beyond(cfg, int(values.max() if values.max() >= vocabulary else values.min()), vocabulary))
        yield values.astype(np.int64)


def beyond(cfg: Config, worst: int, vocabulary: int) -> str:
    """The message for an id that the model does not have."""
    return (
        f"dataset_name={cfg.dataset_name}: holds the token id {worst}, and model_name={cfg.model_name} has the ids 0 to {vocabulary - 1}; "
        "choose the model that it was tokenised for, or its text"
    )
