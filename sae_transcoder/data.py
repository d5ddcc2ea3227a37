"""The tokens to train on and those held out, from the hub, local files, token ids or the demo's text."""

import glob
import hashlib
import itertools
import json
import math
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sae_transcoder.config import Config, ConfigError, DatasetKind
from sae_transcoder.demo import text as demo_text
from sae_transcoder.token_cache import WINDOW, Sequences, fill, mixed

BUILDERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
TOKENIZE = 64  # documents at a time
MEMMAP_BLOCK = 64  # consecutive sequences of a memmap that stay together when the whole file is mixed


@dataclass(frozen=True)
class TokenSets:
    """Sequences to train on and sequences that are never trained on."""

    train: Sequences
    heldout: Sequences


def needed_samples(cfg: Config) -> int | None:
    """Training sequences that the run reads at most; None: all there are."""
    by_steps = None if cfg.max_steps is None else cfg.max_steps * cfg.grad_acc_steps * cfg.batch_size
    return min((n for n in (cfg.max_samples, by_steps) if n is not None), default=None)


def prepare(cfg: Config, tokenizer: Callable[[], Any], vocabulary: int) -> TokenSets:
    """The run's sequences, tokenised or read as far as it needs them, kept for the next run.

    tokenizer: loads the model's tokenizer, called only where text has to be tokenised. vocabulary: how many ids the model has.
    Raises ConfigError for data that cannot be read, lacks its column, has ids beyond the vocabulary or fills no sequence.
    """
    needed = needed_samples(cfg)
    if cfg.dataset_kind == DatasetKind.memmap:
        return from_memmap(cfg, needed, vocabulary)
    separate = cfg.dataset_kind == DatasetKind.demo or cfg.eval_split is not None
    ahead = 0 if separate else cfg.eval_samples
    # Whole windows, so that the order of what is read does not depend on how much is read.
    total = None if needed is None else ahead + math.ceil(needed / WINDOW) * WINDOW
    rows, _ = sequences_of(cfg, train_split(cfg), tokenizer, vocabulary, total)
    available = len(rows) - ahead
    if total is not None:
        available = min(available, total - ahead)
    if available < 1:
        raise ConfigError(
            f"dataset_name={cfg.dataset_name}: {len(rows)} sequences of max_seq_length={cfg.max_seq_length} tokens in all"
            + (f", of which eval_samples={ahead} are held out" if ahead else "")
            + ": none is left to train on; give more text, or lower max_seq_length or eval_samples"
        )
    train = Sequences(rows, mixed(ahead, available, cfg.shuffle_seed), available if needed is None else min(available, needed))
    if separate:
        rows, _ = sequences_of(cfg, cfg.eval_split or "heldout", tokenizer, vocabulary, cfg.eval_samples)
        if not len(rows):
            raise ConfigError(
                f"eval_split={cfg.eval_split}: fills no sequence of max_seq_length={cfg.max_seq_length} tokens; choose another"
            )
    return TokenSets(train, Sequences(rows, lambda positions: positions, min(cfg.eval_samples, len(rows))))


def train_split(cfg: Config) -> str:
    """The name of the split to train on."""
    return "train" if cfg.dataset_kind == DatasetKind.demo else cfg.dataset_split


def sequences_of(
    cfg: Config, split: str, tokenizer: Callable[[], Any], vocabulary: int, total: int | None
) -> tuple[np.ndarray, bool]:
    """One split's sequences from the cache, which is extended as far as needed."""
    tokens_given = cfg.dataset_kind == DatasetKind.pretokenized

    def documents(skip: int) -> Iterator[np.ndarray]:
        source = itertools.islice(rows_of(cfg, split), skip, None)
        return ids_of(cfg, source, skip, vocabulary) if tokens_given else tokenized(cfg, source, tokenizer())

    cache = cache_folder(cfg)
    label = f"{'reading' if tokens_given else 'tokenising'} {cfg.dataset_name} ({split})"
    return fill(cache, made_from(cfg, split), cfg.max_seq_length, vocabulary, total, documents, join=not tokens_given, label=label)


def cache_folder(cfg: Config) -> Path:
    """Where tokens are kept."""
    if cfg.cache_dir is not None:
        return Path(cfg.cache_dir)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sae_transcoder"


def made_from(cfg: Config, split: str) -> dict[str, Any]:
    """Everything that a split's tokens depend on."""
    local = isinstance(local_paths(cfg), list)
    parts: dict[str, Any] = {
        "kind": cfg.dataset_kind, "name": cfg.dataset_name, "config": cfg.dataset_config, "split": split,
        "max_seq_length": cfg.max_seq_length, "shuffle_seed": cfg.shuffle_seed, "shuffle_buffer": cfg.shuffle_buffer,
    }  # fmt: skip
    if cfg.dataset_kind == DatasetKind.pretokenized:
        parts |= {"column": cfg.tokens_column}
    else:
        parts |= {"column": cfg.text_column, "tokenizer": tokenizer_identity(cfg)}
    if local:
        parts["files"] = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in local_paths(cfg) or []]
    if cfg.dataset_kind == DatasetKind.demo:
        parts["python"] = platform.python_version()
    return parts


def tokenizer_identity(cfg: Config) -> str:
    """The model's name and revision, for a local folder the hash of its tokenizer's files."""
    from sae_transcoder.language_model import model_path

    folder = Path(model_path(cfg))
    if not folder.is_dir():
        return f"{cfg.model_name}@{cfg.revision}"
    files = sorted(
        p for p in folder.iterdir() if p.is_file() and ("token" in p.name or p.name in ("vocab.json", "merges.txt", "vocab.txt"))
    )
    return hashlib.sha256(b"".join(p.name.encode() + p.read_bytes() for p in files)).hexdigest()


def local_paths(cfg: Config) -> list[Path] | None:
    """The files that `dataset_name` means; None where it names no files (a hub id, a saved data set, the demo).

    Raises ConfigError for local_text that matches nothing, or files of unknown or mixed kinds.
    """
    if cfg.dataset_kind not in (DatasetKind.local_text, DatasetKind.pretokenized):
        return None
    name = os.path.expanduser(cfg.dataset_name)
    if Path(name).is_dir():
        if (Path(name) / "dataset_info.json").exists():
            return sorted(p for p in Path(name).rglob("*") if p.is_file())
        found = sorted(p for p in Path(name).rglob("*") if p.suffix in BUILDERS)
    else:
        found = sorted(Path(p) for p in glob.glob(name, recursive=True) if Path(p).is_file())
    if not found:
        if cfg.dataset_kind == DatasetKind.pretokenized and not Path(name).suffix and not glob.has_magic(name):
            return None
        raise ConfigError(
            f"dataset_name={cfg.dataset_name}: no such file; give a path, a folder or a pattern of {', '.join(BUILDERS)} files"
        )
    kinds = sorted({p.suffix for p in found})
    if len({BUILDERS.get(kind) for kind in kinds}) > 1 or kinds[0] not in BUILDERS:
        raise ConfigError(
            f"dataset_name={cfg.dataset_name}: files of the kinds {', '.join(kinds)}; give files of one of {', '.join(BUILDERS)}"
        )
    return found


def rows_of(cfg: Config, split: str) -> Iterable[dict[str, Any]]:
    """The rows (documents) of a split in their shuffled order; an Arrow file on disk or a stream, never a list of all."""
    if cfg.dataset_kind == DatasetKind.demo:
        texts = list(demo_text.documents(split))
        order = np.random.default_rng(cfg.shuffle_seed).permutation(len(texts))
        return ({cfg.text_column: texts[i]} for i in order)
    import datasets

    datasets.disable_progress_bars()
    paths = local_paths(cfg)
    try:
        if paths is not None and Path(cfg.dataset_name).is_dir() and (Path(cfg.dataset_name) / "dataset_info.json").exists():
            saved = datasets.load_from_disk(cfg.dataset_name)
            return checked(cfg, saved.shuffle(seed=cfg.shuffle_seed), saved.column_names)
        if paths is not None:
            builder = BUILDERS[paths[0].suffix]
            whole = {"sample_by": "document"} if builder == "text" else {}
            files = {"train": [str(p) for p in paths]}
            read = datasets.load_dataset(
                builder, data_files=files, split="train", cache_dir=str(cache_folder(cfg) / "arrow"), **whole
            )
            return checked(cfg, read.shuffle(seed=cfg.shuffle_seed), read.column_names)
        stream = datasets.load_dataset(cfg.dataset_name, cfg.dataset_config, split=split, streaming=True)
        names = stream.column_names or list(next(iter(stream)))
        return checked(cfg, stream.shuffle(seed=cfg.shuffle_seed, buffer_size=cfg.shuffle_buffer), names)
    except ConfigError:
        raise
    except Exception as error:  # each loader raises its own kinds
        raise cannot_load(cfg, split, error) from error


def cannot_load(cfg: Config, split: str, error: Exception) -> ConfigError:
    """The message for a data set that cannot be loaded."""
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    named = f"dataset_name={cfg.dataset_name}, dataset_split={split}" + (
        f", dataset_config={cfg.dataset_config}" if cfg.dataset_config else ""
    )
    if os.environ.get("HF_HUB_OFFLINE") == "1" and cfg.dataset_kind in (DatasetKind.hub, DatasetKind.pretokenized):
        fix = "HF_HUB_OFFLINE=1 is set: unset it, or choose dataset=local_text or dataset=demo"
    elif "gated" in str(error).lower() or "401" in str(error):
        fix = "accept its terms on the hub and run `hf auth login`"
    else:
        fix = "check dataset_name, dataset_config and dataset_split, the network, or the files"
    return ConfigError(f"{named}: cannot be loaded ({type(error).__name__}: {reason}); {fix}")


def checked(cfg: Config, rows: Iterable[dict[str, Any]], columns: list[str]) -> Iterable[dict[str, Any]]:
    """The rows, once they have the column that is needed. Raises ConfigError where they lack it."""
    field = "tokens_column" if cfg.dataset_kind == DatasetKind.pretokenized else "text_column"
    wanted = getattr(cfg, field)
    if wanted not in columns:
        raise ConfigError(f"{field}={wanted}: {cfg.dataset_name} has the columns {', '.join(columns)}; set {field} to one of them")
    return rows.select_columns([wanted])  # type: ignore[attr-defined]


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


def ids_of(cfg: Config, rows: Iterable[dict[str, Any]], skip: int, vocabulary: int) -> Iterator[np.ndarray]:
    """Each row's ids. Raises ConfigError for what is not a list of integers, or an id beyond the vocabulary."""
    for number, row in enumerate(rows, skip):
        values = np.asarray(row[cfg.tokens_column])
        if values.ndim != 1 or (len(values) and values.dtype.kind not in "iu"):
            raise ConfigError(
                f"tokens_column={cfg.tokens_column}: row {number} of {cfg.dataset_name} is not a list of token ids; choose another column"
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


def from_memmap(cfg: Config, needed: int | None, vocabulary: int) -> TokenSets:
    """The sequences of a flat file of ids, read in place. Raises ConfigError as `prepare` does."""
    path = Path(os.path.expanduser(cfg.dataset_name))
    if not path.is_file():
        raise ConfigError(f"dataset_name={cfg.dataset_name}: no such file; give the path of a flat binary file of token ids")
    dtype, length = memmap_dtype(cfg, path), cfg.max_seq_length
    if path.stat().st_size % dtype.itemsize:
        raise ConfigError(
            f"dataset_name={cfg.dataset_name}: {path.stat().st_size} bytes are no whole number of {dtype} ids; check tokens_dtype"
        )
    count = path.stat().st_size // dtype.itemsize // length
    available = count - cfg.eval_samples
    if available < 1:
        raise ConfigError(
            f"dataset_name={cfg.dataset_name}: {count} sequences of max_seq_length={length} tokens, of which eval_samples={cfg.eval_samples} "
            "are held out: none is left to train on; lower max_seq_length or eval_samples"
        )
    rows = np.memmap(path, dtype, "r", shape=(count, length))
    blocks = np.random.default_rng(cfg.shuffle_seed).permutation(count // MEMMAP_BLOCK)
    mix = mixed(cfg.eval_samples, available, cfg.shuffle_seed)

    def spread(positions: np.ndarray) -> np.ndarray:
        """Positions in an order of shuffled blocks; the tail that fills no block stays last."""
        block = positions // MEMMAP_BLOCK
        inside = block < len(blocks)
        moved = positions.copy()
        moved[inside] = blocks[block[inside]] * MEMMAP_BLOCK + positions[inside] % MEMMAP_BLOCK
        return moved

    train = Sequences(rows, lambda positions: spread(mix(positions)), available if needed is None else min(available, needed))
    sets = TokenSets(train, Sequences(rows, spread, cfg.eval_samples))
    for part in (sets.heldout, sets.train):
        for start in range(0, len(part), WINDOW):
            worst = int(part[start : start + WINDOW].max())
            if worst >= vocabulary:
                raise ConfigError(beyond(cfg, worst, vocabulary))
    return sets


def memmap_dtype(cfg: Config, path: Path) -> np.dtype:
    """The number format as set, else as FILE.json beside the file says. Raises ConfigError where neither does."""
    if cfg.tokens_dtype is not None:
        return np.dtype(cfg.tokens_dtype.value)
    side = path.with_name(path.name + ".json")
    try:
        named = json.loads(side.read_text())["dtype"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"tokens_dtype=null: {side} does not say the dtype of {path.name}; set tokens_dtype=uint16 or uint32"
        ) from None
    if named not in ("uint16", "uint32"):
        raise ConfigError(f"{side}: dtype {named} is not uint16 or uint32; set tokens_dtype")
    return np.dtype(named)
