"""What `sae-latents` keeps of a run's latents, in latents/ of its directory. Nothing here imports torch.

latents/coders/                     those of coders/; latents/best/ those of best/, latents/snapshots/step... those of a snapshot
  pass.json                         LatentsPass: which text was read, which coders, what the columns below count
  vocabulary.parquet                id, text: the model's tokens
  <hookpoint>/latents.parquet       LATENTS, a row for each latent, in their order; of several seeds seed<N>/<hookpoint>/
  <hookpoint>/contexts.parquet      CONTEXTS, a row for each place where a latent fires that is shown, in order of latents
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import parquet

from sae_transcoder.config import ConfigError
from sae_transcoder.process.atomic_files import replace_file, replace_text
from sae_transcoder.run_store.checked_files import damaged, read_object

NAME = "latents"
PASS, VOCABULARY, LATENTS_FILE, CONTEXTS_FILE = "pass.json", "vocabulary.parquet", "latents.parquet", "contexts.parquet"
VERSION = 1  # of these files
ROW_GROUP = 16_384
TOP = -1  # the `range` of a latent's strongest contexts
FIX = "remove the folder, and sae-latents makes it again"

LATENTS = pa.schema(
    {
        "latent": pa.int32(),
        "fires": pa.int64(),  # on how many of the pass's tokens
        "density": pa.float64(),  # share of tokens
        "max_activation": pa.float32(),  # 0 where it never fires, as the mean
        "mean_activation": pa.float32(),  # over the tokens on which it fires
        "histogram": pa.list_(pa.int64()),  # of log2 activations, by the pass's `histogram_edges`
        "threshold": pa.float32(),  # above which it fires; null for top-k and groupmax
        "level": pa.int32(),  # of a Matryoshka coder, from 0, the smallest dictionary that has it; else null
        "together": pa.list_(pa.int32()),  # the latents that fire on the most of its tokens, falling
        "together_share": pa.list_(pa.float32()),  # of its tokens on which they do
        "nearest": pa.list_(pa.int32()),  # latents by the cosine of decoder rows, falling
        "nearest_cosine": pa.list_(pa.float32()),
        "raised": pa.list_(pa.int32()),  # tokens whose logits its decoder row raises most by the final norm and unembedding; null:
        "raised_logits": pa.list_(pa.float32()),  # the module does not write into the residual stream
        "lowered": pa.list_(pa.int32()),
        "lowered_logits": pa.list_(pa.float32()),
        "read": pa.list_(pa.int32()),  # tokens whose embeddings give its encoder row the largest products; null as for raised
        "read_products": pa.list_(pa.float32()),
        "other_seed": pa.string(),  # `seed7`, the one whose latent is most like it, null where there is one seed
        "other_latent": pa.int32(),
        "other_cosine": pa.float32(),  # the smaller one of the cosines of encoder and decoder rows
    }
)

CONTEXTS = pa.schema(
    {
        "latent": pa.int32(),
        "range": pa.int8(),  # TOP (-1): one of its strongest; else which of the equal ranges of activations below the maximum, from 0
        "rank": pa.int32(),  # within the range, from 0
        "activation": pa.float32(),  # at `position`
        "document": pa.int64(),  # number in the text that was read; of a file of ids the number of the sequence
        "sequence": pa.int64(),
        "position": pa.int32(),  # in the sequence, from 0
        "start": pa.int32(),  # the position of the first of `tokens`
        "tokens": pa.list_(pa.int32()),
        "activations": pa.list_(
            pa.float32()
        ),  # of the latent on each of `tokens`, 0 where it does not fire or the token does not count
    }
)


@dataclass(frozen=True)
class CoderInPass:
    """One coder of a pass. `writes`: whether its module writes into the residual stream."""

    name: str
    hookpoint: str
    seed: int | None
    d_in: int
    latents: int
    k: int
    activation: str
    transcoder: bool
    matryoshka_widths: list[int] | None
    writes: bool


@dataclass(frozen=True)
class LatentsPass:
    """One pass over text. `text`: "held out" or "training"; `sequences`, `positions`: what was read; `tokens`: {coder: how many positions count
    for it}; `together_tokens`: {coder: on how many of these `together` is counted}; `latents`: the numbers of the latents that were asked for,
    None for all; `top`: strongest contexts kept of each; `ranges`: equal ranges of activations; `histogram_edges`: in log2 of the
    activation, smaller and larger ones count in the outermost bins; `fingerprint`: equal for passes that give the same."""

    model_name: str
    dataset_name: str
    text: str
    sequences: int
    sequence_length: int
    positions: int
    tokens: dict[str, int]
    together_tokens: dict[str, int]
    latents: list[int] | None
    top: int
    ranges: int
    histogram_edges: list[float]
    begin: list[int]
    settings: dict[str, Any]
    coders: list[CoderInPass]
    fingerprint: str = ""
    version: int = VERSION

    def coder(self, name: str) -> CoderInPass:
        """The coder of that name. Raises ConfigError where there is none."""
        for coder in self.coders:
            if coder.name == name:
                return coder
        raise ConfigError(f"coder={name}: not among {', '.join(coder.name for coder in self.coders)}")


def folder_of(root: Path, run_dir: Path) -> Path:
    """Where the latents of the coders in the folder `root` of a run are kept."""
    return run_dir / NAME / root.relative_to(run_dir)


@dataclass(frozen=True)
class DescribedLatents:
    """The latents of one coder. `texts`: of each token, by its id."""

    folder: Path
    about: LatentsPass
    coder: CoderInPass
    texts: list[str]

    def table(self) -> pa.Table:
        """A row for each latent, with the columns of LATENTS. Raises DamagedFile."""
        return read_table(self.folder / LATENTS_FILE)

    def contexts(self, latents: Sequence[int] | None = None) -> pa.Table:
        """The contexts of some latents, None for all, with the columns of CONTEXTS: strongest first, then the ranges from the highest. Raises
        DamagedFile."""
        return read_table(self.folder / CONTEXTS_FILE, latents)


def described(folder: Path, path: str) -> dict[str, DescribedLatents]:
    """The latents of each coder of the pass in a folder. path: of the run, for messages.

    Raises ConfigError where there is no pass, and DamagedFile.
    """
    if (about := read_pass(folder)) is None:
        begun = "is not complete" if folder.is_dir() else "is not there"
        raise ConfigError(f"{path}: what its latents stand for {begun} ({folder}); run sae-latents {path} first")
    texts = read_vocabulary(folder)
    return {
        coder.name: DescribedLatents(
            folder / Path(f"seed{coder.seed}" if coder.seed is not None else "") / coder.hookpoint, about, coder, texts
        )
        for coder in about.coders
    }


def write_pass(folder: Path, latents_pass: LatentsPass) -> None:
    """Replaces pass.json, which is written last: a folder without one is not complete."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / PASS, json.dumps(asdict(latents_pass), indent=1) + "\n")


def read_pass(folder: Path) -> LatentsPass | None:
    """The pass whose files lie in the folder; None where there is none. Raises DamagedFile."""
    path = folder / PASS
    if (values := read_object(path, FIX)) is None:
        return None
    try:
        if values["version"] != VERSION:
            raise ValueError(f"version {values['version']}, this program reads {VERSION}")
        return LatentsPass(**values | {"coders": [CoderInPass(**coder) for coder in values["coders"]]})
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, f"not written by this version: {error}", FIX) from error


def write_table(path: Path, table: pa.Table) -> None:
    """Replaces a Parquet file atomically."""
    write_tables(path, table.schema, [table])


def write_tables(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """The same for tables one below the other, of which only one is in memory."""

    def write(file: BinaryIO) -> None:
        with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table, row_group_size=ROW_GROUP)

    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, write)


def read_table(path: Path, latents: Sequence[int] | None = None) -> pa.Table:
    """A Parquet file, or its rows of some latents. Raises DamagedFile."""
    try:
        return parquet.read_table(path, filters=None if latents is None else [("latent", "in", list(latents))])
    except (OSError, pa.ArrowInvalid) as error:
        raise damaged(path, str(error).splitlines()[0], FIX) from error


def read_batches(path: Path, rows: int) -> Iterator[pa.RecordBatch]:
    """A Parquet file piece by piece, at most so many rows at once. Raises DamagedFile."""
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:  # with it, all that was read stays in memory
            yield from file.iter_batches(rows)
    except (OSError, pa.ArrowInvalid) as error:
        raise damaged(path, str(error).splitlines()[0], FIX) from error


def vocabulary_table(texts: Iterable[str]) -> pa.Table:
    """The table of vocabulary.parquet for the text of each token."""
    texts = list(texts)
    return pa.table({"id": pa.array(range(len(texts)), pa.int32()), "text": pa.array(texts, pa.string())})


def read_vocabulary(folder: Path) -> list[str]:
    """The text of each token, by its id. Raises DamagedFile."""
    return read_table(folder / VOCABULARY)["text"].to_pylist()
