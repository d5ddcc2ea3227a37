"""Files of latents as `sae-latents` leaves them, made up: each latent fires most on one token of a text, a little elsewhere."""

import inspect
import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sae_transcoder.coder.names import coder_dir, hookpoint_of, seed_of
from sae_transcoder.run_store import latent_files
from sae_transcoder.run_store.latent_files import CONTEXTS, LATENTS, TOP
from sae_transcoder.run_store.latents_pass import CoderInPass, LatentsPass, write_pass

EDGES = np.arange(-12, 8.5, 0.5)  # of the histograms
SEQUENCE = 256  # tokens of a sequence
LISTED = 10  # raised and lowered tokens, neighbours of a latent


@dataclass
class MadeUp:
    """What is made up. `corpus`: ids of tokens; `vocabulary`: their texts; every `dead`th latent never fires; `writes`: as in CoderInPass."""

    corpus: np.ndarray
    vocabulary: Sequence[str]
    latents: int = 300
    top: int = 4
    ranges: int = 10
    each: int = 1  # contexts of a range
    length: int = 32  # tokens of a context
    dead: int = 7
    coders: Sequence[str] = ("layers.2",)
    matryoshka: bool = False
    writes: bool = True
    tables: dict[str, tuple[pa.Table, pa.Table]] = field(default_factory=dict)  # {coder: (latents, contexts)}, what was written


def python_text(modules: Sequence[Any]) -> tuple[np.ndarray, list[str]]:
    """The sources of modules as ids of tokens, and the texts of these: words with the space before them, indents, single signs."""
    source = "".join(inspect.getsource(module) for module in modules)
    tokens = re.findall(r"\n|(?:    )+(?=\S)| ?\w+| ?[^\w\s]|\s", source)
    vocabulary = list(dict.fromkeys([*tokens, *keyword.kwlist]))
    ids = {text: i for i, text in enumerate(vocabulary)}
    return np.array([ids[token] for token in tokens]), vocabulary


def write_latents(folder: Path, made: MadeUp, seed: int = 0) -> Path:
    """Writes the folder of a pass, as latents/coders, and returns it."""
    folder.mkdir(parents=True)
    latent_files.write_table(folder / latent_files.VOCABULARY, latent_files.vocabulary_table(made.vocabulary))
    described = []
    for i, name in enumerate(made.coders):
        rng = np.random.default_rng([seed, i])
        contexts, largest = contexts_table(made, rng)
        latents = latents_table(made, largest, name, rng)
        made.tables[name] = latents, contexts
        latent_files.write_table(folder / coder_dir(name) / latent_files.LATENTS_FILE, latents)
        latent_files.write_table(folder / coder_dir(name) / latent_files.CONTEXTS_FILE, contexts)
        widths = [made.latents // 4, made.latents] if made.matryoshka else None
        coder_seed = int(seed_of(name).removeprefix("seed")) if seed_of(name) else None
        described.append(
            CoderInPass(name, hookpoint_of(name), coder_seed, 256, made.latents, 32, "topk", False, widths, made.writes)
        )
    tokens = dict.fromkeys(made.coders, len(made.corpus))
    latents_pass = LatentsPass(
        "demo", "python", "held out", -(-len(made.corpus) // SEQUENCE), SEQUENCE, len(made.corpus), tokens, tokens, None, made.top, made.ranges,
        EDGES.tolist(), [], {}, described,
    )  # fmt: skip
    write_pass(folder, latents_pass)
    return folder


def contexts_table(made: MadeUp, rng: np.random.Generator) -> tuple[pa.Table, np.ndarray]:
    """CONTEXTS of one coder, and the largest activation of each latent [latent], 0 for those that never fire."""
    fires = np.arange(made.latents) % made.dead != made.dead - 1
    largest = np.where(fires, np.exp(rng.normal(0.5, 0.8, made.latents)), 0).astype(np.float32)
    ranges = np.concatenate([np.full(made.top, TOP), np.repeat(np.arange(made.ranges), made.each)])
    ranks = np.concatenate([np.arange(made.top), np.tile(np.arange(made.each), made.ranges)])
    latents = np.repeat(np.flatnonzero(fires), len(ranges))
    which, rank = np.tile(ranges, fires.sum()), np.tile(ranks, fires.sum())
    share = np.where(which == TOP, 1 - 0.01 * rank, (which + rng.uniform(0.1, 0.9, len(which))) / made.ranges)
    activation = (largest[latents] * share).astype(np.float32)
    position = occurrences(made.corpus, latents, rng)
    start = np.maximum(position - made.length * 2 // 3, position // SEQUENCE * SEQUENCE)
    start = np.minimum(start, len(made.corpus) - made.length)
    window = start[:, None] + np.arange(made.length)
    activations = activation[:, None] * np.where(rng.random(window.shape) < 0.05, 0.4 * rng.random(window.shape), 0)
    activations[np.arange(len(position)), position - start] = activation
    columns = [
        latents, which, rank, activation, position // 1000, position // SEQUENCE, position % SEQUENCE, start % SEQUENCE,
        lists(made.corpus[window], pa.int32()), lists(activations, pa.float32()),
    ]  # fmt: skip
    return table(columns, CONTEXTS), largest


def occurrences(corpus: np.ndarray, latents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each latent a place in the corpus of its token, of the frequent ones first."""
    order = np.argsort(corpus, kind="stable")
    counts = np.bincount(corpus)
    frequent = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    token = frequent[latents % len(frequent)]
    begin = np.cumsum(counts) - counts
    return order[begin[token] + (rng.random(len(latents)) * counts[token]).astype(int)]


def latents_table(made: MadeUp, largest: np.ndarray, name: str, rng: np.random.Generator) -> pa.Table:
    """LATENTS of one coder whose latents have these largest activations [latent]."""
    n, fires = made.latents, largest > 0
    density = np.where(fires, np.minimum(0.5, np.exp(rng.normal(-6, 1.5, n))), 0)
    count = np.where(fires, np.maximum(1, density * len(made.corpus)), 0).astype(int)
    middle = np.log2(np.where(fires, largest, 1)) - 2
    bell = np.exp(-(((EDGES[:-1] - middle[:, None]) / 1.5) ** 2)) * (EDGES[:-1] < np.log2(np.where(fires, largest, 1))[:, None])
    histogram = np.rint(bell * (count / np.maximum(bell.sum(1), 1e-9))[:, None]).astype(int)

    def tokens() -> pa.Array:
        return lists(rng.integers(0, len(made.vocabulary), (n, LISTED)), pa.int32(), made.writes)

    def others() -> pa.Array:
        return lists(rng.integers(0, n, (n, LISTED)), pa.int32())

    def falling() -> pa.Array:
        return lists(-np.sort(-rng.random((n, LISTED))), pa.float32())

    def logits() -> pa.Array:
        return lists(-np.sort(-rng.random((n, LISTED))), pa.float32(), made.writes)

    twin = next((other for other in made.coders if other != name and hookpoint_of(other) == hookpoint_of(name)), None)
    seed = seed_of(twin) if twin else None
    level = np.where(np.arange(n) < n // 4, 0, 1) if made.matryoshka else [None] * n
    columns = [
        np.arange(n), count, density, largest, largest / 3, lists(histogram, pa.int64()), [None] * n, level,
        others(), falling(), others(), falling(), tokens(), logits(), tokens(), logits(), tokens(), logits(),
        [seed] * n, rng.integers(0, n, n) if twin else [None] * n, rng.random(n) if twin else [None] * n,
    ]  # fmt: skip
    return table(columns, LATENTS)


def lists(values: np.ndarray, kind: pa.DataType, there: bool = True) -> pa.Array:
    """Rows [row, n] as a column of lists, or of nulls."""
    if not there:
        return pa.nulls(len(values), pa.list_(kind))
    offsets = pa.array(np.arange(len(values) + 1) * values.shape[1], pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(values.ravel().astype(kind.to_pandas_dtype()), kind))


def table(columns: Sequence[Any], schema: pa.Schema) -> pa.Table:
    """The table of these columns."""
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column).cast(kind)
        for column, kind in zip(columns, schema.types, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
