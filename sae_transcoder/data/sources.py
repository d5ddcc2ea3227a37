"""Documents from the hub, from local files or from the demo's text, in a shuffled order, one at a time."""

import glob
import json
import os
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sae_transcoder.config import Config, ConfigError, DatasetKind
from sae_transcoder.config.paths import expanded, local_path
from sae_transcoder.data.file_bytes import COMPRESSIONS
from sae_transcoder.data.file_values import KINDS, MissingColumn, Wanted, file_kind, missing_column
from sae_transcoder.data.hub_streams import open_stream
from sae_transcoder.data.local_files import check_column, open_files
from sae_transcoder.demo import text as demo_text


def cache_dir(cfg: Config) -> Path:
    """The folder in which tokens are cached."""
    if cfg.cache_dir is not None:
        return local_path(cfg.cache_dir, "cache_dir")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sae_transcoder"


def train_split(cfg: Config) -> str:
    """The name of the split to train on."""
    return "train" if cfg.dataset_kind == DatasetKind.demo else cfg.dataset_split


def local_name(cfg: Config) -> Path:
    """`dataset_name` as a path."""
    return local_path(cfg.dataset_name, "dataset_name")


def saved_splits(cfg: Config) -> list[str] | None:
    """The splits of a folder that datasets' save_to_disk wrote, an empty list for one without splits; None for any other name."""
    try:
        return json.loads((local_name(cfg) / "dataset_dict.json").read_text())["splits"]
    except OSError:
        return [] if (local_name(cfg) / "dataset_info.json").is_file() else None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"dataset_name={cfg.dataset_name}: its dataset_dict.json is damaged ({error}); save the data set again"
        ) from error


def local_paths(cfg: Config) -> list[Path] | None:
    """The files that `dataset_name` names; None where it names none (a hub id, the demo).

    Raises ConfigError where local_text names no file, and for files of unknown or mixed kinds.
    """
    if cfg.dataset_kind not in (DatasetKind.local_text, DatasetKind.pretokenized):
        return None
    path = local_name(cfg)
    if saved_splits(cfg) is not None:
        return sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("cache-"))
    if path.is_dir():
        files = files_below(cfg, path)
        paths = sorted(p for p in files if file_kind(p)) or sorted(files)
    else:
        matches = [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
        refuse_dangling(cfg, matches)
        paths = [path] if path.is_file() else [p for p in matches if p.is_file()]
    known = ", ".join(KINDS)
    if not paths:
        named_file = file_kind(path) or glob.has_magic(str(path)) or path.is_dir()
        if cfg.dataset_kind == DatasetKind.pretokenized and not named_file:
            return None
        raise ConfigError(f"dataset_name={cfg.dataset_name}: no such file; give a path, a folder or a pattern of {known} files")
    kinds = {kind_of_name(p): (file_kind(p), p.suffix in COMPRESSIONS) for p in paths}
    if len(set(kinds.values())) > 1 or file_kind(paths[0]) is None:
        raise ConfigError(
            f"dataset_name={cfg.dataset_name}: files of the kinds {', '.join(sorted(kinds))}; give files of one of {known}, "
            f"all but .parquet also with {', '.join(COMPRESSIONS)} after it"
        )
    return paths


def files_below(cfg: Config, folder: Path) -> list[Path]:
    """The files in a folder and those below it that are not hidden; links are followed, each folder once."""
    files, seen = [], set()
    for name, folders, names in os.walk(folder, followlinks=True):
        if (place := os.path.realpath(name)) in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = [each for each in folders if not each.startswith(".")]
        files += [Path(name, each) for each in names if not each.startswith(".")]
    refuse_dangling(cfg, files)
    return files


def refuse_dangling(cfg: Config, paths: Iterable[Path]) -> None:
    """Raises ConfigError for a link that leads nowhere."""
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise ConfigError(
                f"dataset_name={cfg.dataset_name}: {path} is a link to {path.readlink()}, where nothing is; correct or remove the link"
            )


def kind_of_name(path: Path) -> str:
    """What a file's name says about its kind, for a message."""
    return "".join(path.suffixes[-2:] if path.suffix in COMPRESSIONS else path.suffixes[-1:]) or "no suffix"


def is_stream(cfg: Config) -> bool:
    """Whether the data is streamed from the hub."""
    return cfg.dataset_kind == DatasetKind.hub or (cfg.dataset_kind == DatasetKind.pretokenized and local_paths(cfg) is None)


def read_rows(cfg: Config, split: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of a split in their shuffled order. Raises ConfigError for any error of reading them, and where all are empty."""
    has_content = False
    with reading(cfg, split):
        for row in open_rows(cfg, split):
            has_content = has_content or any(value.strip() if isinstance(value, str) else value for value in row.values())
            yield row
    if not has_content:
        raise ConfigError(
            f"dataset_name={cfg.dataset_name}: no document in it (empty, blank lines or a header alone); give data that holds some"
        )


@contextmanager
def reading(cfg: Config, split: str) -> Iterator[None]:
    """Raises ConfigError for any error of a loader while it is open."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # each loader raises its own kinds
        raise cannot_load(cfg, split, error) from error


def count_rows(cfg: Config, split: str) -> int | None:
    """How many rows a split has; None where only reading it to its end would tell, as of a stream. Raises ConfigError as `read_rows` does."""
    if is_stream(cfg):
        return None
    with reading(cfg, split):
        rows = open_rows(cfg, split)
        return len(rows) if isinstance(rows, Sized) else None


def open_rows(cfg: Config, split: str) -> Iterable[dict[str, Any]]:
    """The rows (documents) of a split in their shuffled order; an Arrow file on disk or a stream, so that memory never holds all of them."""
    if cfg.dataset_kind == DatasetKind.demo:
        texts = list(demo_text.documents(split))
        order = np.random.default_rng(cfg.shuffle_seed).permutation(len(texts))
        return [{cfg.text_column: texts[i]} for i in order]
    import datasets

    datasets.disable_progress_bars()
    column, wanted = column_to_read(cfg)
    paths = local_paths(cfg)
    if paths is None:
        stream = open_stream(expanded(cfg.dataset_name, "dataset_name"), cfg.dataset_config, split, column, wanted)
        return stream.shuffle(seed=cfg.shuffle_seed, buffer_size=cfg.shuffle_buffer)
    if (splits := saved_splits(cfg)) is not None:
        rows = open_saved(cfg, split, splits, column, wanted)
    else:
        rows = open_files(paths, column, wanted, cache_dir(cfg) / "arrow")
    # In memory: datasets would write the order into the user's own folder.
    return rows.shuffle(seed=cfg.shuffle_seed, keep_in_memory=True)


def lacks_column(cfg: Config) -> MissingColumn | None:
    """The error for a data set, no mixture, that lacks the column to read, told from its beginning; None where it has it or has no columns.

    Raises ConfigError where it cannot be opened.
    """
    if cfg.dataset_kind not in (DatasetKind.hub, DatasetKind.local_text, DatasetKind.pretokenized):
        return None
    column, wanted = column_to_read(cfg)
    split, paths = cfg.eval_split or train_split(cfg), local_paths(cfg)
    try:
        if paths is None:
            open_stream(expanded(cfg.dataset_name, "dataset_name"), cfg.dataset_config, split, column, wanted)
        elif (splits := saved_splits(cfg)) is not None:
            open_saved(cfg, split, splits, column, wanted)
        else:
            check_column(paths, column, wanted)
    except MissingColumn as error:
        return error
    except ConfigError:
        raise
    except Exception as error:  # each loader raises its own kinds
        raise cannot_load(cfg, split, error) from error
    return None


def column_to_read(cfg: Config) -> tuple[str, Wanted]:
    """The column that is read, and what it must hold."""
    if cfg.messages_column is not None:
        return cfg.messages_column, None
    return (cfg.tokens_column, "ids") if cfg.dataset_kind == DatasetKind.pretokenized else (cfg.text_column, "text")


def open_saved(cfg: Config, split: str, splits: list[str], column: str, wanted: Wanted) -> Any:
    """The column of a split (one of `splits`; none: there is one data set) that datasets' save_to_disk wrote, as plain Python values."""
    import datasets

    if splits and split not in splits:
        field = "dataset_split" if split == train_split(cfg) else "eval_split"
        raise ConfigError(f"{field}={split}: {cfg.dataset_name} has the splits {', '.join(splits)}; choose one of these")
    rows = datasets.load_from_disk(str(local_name(cfg) / split if splits else local_name(cfg)))
    if column not in rows.column_names:
        raise missing_column(cfg.dataset_name, column, wanted, rows.column_names)
    return rows.with_format(None).select_columns([column])  # whatever set_format said before it was saved


def cannot_load(cfg: Config, split: str, error: Exception) -> ConfigError:
    """The error for a data set that cannot be loaded, or cannot be read to its end, with a fix for each known cause."""
    import datasets

    cause: BaseException = error
    while cause.__cause__ is not None:  # datasets hides the reason behind "an error occurred"
        cause = cause.__cause__
    reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
    field = "dataset_split" if split == train_split(cfg) else "eval_split"
    settings = f"dataset_name={cfg.dataset_name}, {field}={split}"
    if cfg.dataset_config:
        settings += f", dataset_config={cfg.dataset_config}"
    text = f"{type(error).__name__}: {error} {reason}"
    if "OfflineMode" in text or (datasets.config.HF_HUB_OFFLINE and isinstance(error, ConnectionError)):
        fix = "HF_HUB_OFFLINE=1 is set: unset it, or choose dataset=local_text or dataset=demo"
    elif "gated" in text.lower() or "401" in text or "DatasetNotFound" in text:
        fix = "check dataset_name; if it is private or gated, accept its terms on the hub and run `hf auth login` or set HF_TOKEN"
    elif "No match for FieldRef" in text:
        fix = "one of its Parquet files lacks the column: choose one that each file has, or another data set"
    elif isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        fix = "check the network; the same command goes on from what was read"
    else:
        fix = "check dataset_name, dataset_config, dataset_split and eval_split, or the files"
    return ConfigError(f"{settings}: cannot be loaded ({type(cause).__name__}: {reason}); {fix}")
