"""Made-up data, what its sequences should be, and the sequences that the project makes of it."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.characters import EOS, LENGTH, SEED, VOCABULARY, Characters
from sae_transcoder.config import Config, ConfigError
from sae_transcoder.data.token_sets import TokenSets, prepare

WINDOW = 1024  # the promise of the README, not whatever the module says


def documents(count: int = 400, seed: int = 0) -> list[str]:
    """Texts of 1 to 200 characters, the tenth much longer."""
    rng = np.random.default_rng(seed)
    sizes = [4000 if i == 9 else int(rng.integers(1, 200)) for i in range(count)]
    return ["".join(map(chr, rng.integers(97, 123, size))) for size in sizes]


def sets(cfg: Config, tokenizer: Any = None, vocabulary: int = VOCABULARY) -> TokenSets:
    return prepare(cfg, lambda: tokenizer or Characters(), vocabulary)


def untouched() -> Any:
    raise AssertionError("the tokenizer was loaded though the cache suffices")


def refusal(cfg: Config, tokenizer: Any = None, vocabulary: int = VOCABULARY) -> str:
    with pytest.raises(ConfigError) as error:
        sets(cfg, tokenizer, vocabulary)
    return str(error.value)


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def packed(ids: list[list[int]], length: int = LENGTH) -> np.ndarray:
    stream = [i for document in ids for i in document]
    return np.array(stream[: len(stream) // length * length]).reshape(-1, length)


LEFT_OUT = 40  # of the 400 documents: a tenth, which suffices for HELD sequences


def trained_on(ids: list[list[int]], left_out: int = LEFT_OUT) -> np.ndarray:
    """The training rows, as they lie on disk: those that begin after the first documents, which are held out."""
    first = math.ceil(sum(map(len, ids[:left_out])) / LENGTH)
    return packed(ids)[first:]


def pieces(rows: np.ndarray) -> list[str]:
    """What stands between the separators of rows, as characters."""
    return "".join("\n" if i == EOS else chr(i - 300) for i in rows.flatten().tolist()).split("\n")


def windowed(rows: np.ndarray, seed: int = SEED) -> np.ndarray:
    """The reading order of training rows, one row at a time."""
    out = []
    for window, start in enumerate(range(0, len(rows), WINDOW)):
        part = rows[start : start + WINDOW]
        out += [part[i] for i in np.random.default_rng([seed, window]).permutation(len(part))]
    return np.array(out)


def shuffled(things: list[Any], seed: int = SEED) -> list[Any]:
    return [things[i] for i in np.random.default_rng(seed).permutation(len(things))]


def hub_folder(folder: Path, suffix: str = "jsonl", validation: list[str] | None = None) -> str:
    """A data set as the hub keeps it: two splits, the training one in three files."""
    texts = documents()
    parts = {f"train-{i:05}-of-00003": texts[i * 150 : i * 150 + 150] for i in range(3)}
    for part, of in (parts | {"validation-00000-of-00001": validation or documents(100, seed=9)}).items():
        rows = [{"text": t, "n": i} for i, t in enumerate(of)]
        jsonl(folder / f"{part}.jsonl", rows)
        if suffix == "parquet":
            (folder / f"{part}.jsonl").unlink()
            pq.write_table(pa.Table.from_pylist(rows), folder / f"{part}.parquet")
    return str(folder)


def id_rows(count: int = 300, seed: int = 3) -> list[list[int]]:
    """Rows of 0 to 100 ids."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCABULARY, rng.integers(0, 100)).tolist() for _ in range(count)]


def flat(path: Path, values: np.ndarray, **side: Any) -> str:
    path.write_bytes(values.tobytes())
    if side:
        Path(f"{path}.json").write_text(json.dumps(side))
    return str(path)
