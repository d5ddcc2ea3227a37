"""What `sae-latents` keeps of a run's latents, in latents/ of its directory. Nothing here imports torch.

latents/coders/                     those of coders/; latents/best/ those of best/, latents/snapshots/step... those of a snapshot
  pass.json                         latents_pass.LatentsPass: which text was read, which coders, what the columns below count
  vocabulary.parquet                id, text: the model's tokens
  <hookpoint>/latents.parquet       LATENTS, a row for each latent, in their order; of several seeds seed<N>/<hookpoint>/
  <hookpoint>/contexts.parquet      CONTEXTS, a row for each place where a latent fires that is shown, in order of latents
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
from pyarrow import parquet

from sae_transcoder.config import ConfigError
from sae_transcoder.process.atomic_files import replace_file
from sae_transcoder.run_store.checked_files import damaged
from sae_transcoder.run_store.latents_pass import FIX, CoderInPass, LatentsPass, read_pass

VOCABULARY, LATENTS_FILE, CONTEXTS_FILE = "vocabulary.parquet", "latents.parquet", "contexts.parquet"
ROW_GROUP = 16_384
TOP = -1  # the `range` of a latent's strongest contexts

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
class DescribedLatents:
    """The latents of one coder. `texts`: of each token, by its id."""

    folder: Path
    about: LatentsPass = field(repr=False)
    coder: CoderInPass
    texts: list[str] = field(repr=False)

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


def write_table(path: Path, table: pa.Table) -> None:
    """Replaces a Parquet file atomically."""
    write_tables(path, table.schema, [table])


def write_tables(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """The same for tables one below the other, of which only one is in memory."""

    def write(file: BinaryIO) -> None:
        with parquet.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer:
            for table in tables:
                writer.write_table(table, row_group_size=ROW_GROUP)

    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, write)


def read_table(path: Path, latents: Sequence[int] | None = None) -> pa.Table:
    """A Parquet file, or its rows of some latents. Raises DamagedFile."""
    try:
        filters = None if latents is None else [("latent", "in", list(latents))]
        return parquet.read_table(path, filters=filters, page_checksum_verification=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise damaged(path, str(error).splitlines()[0], FIX) from error


def read_batches(path: Path, rows: int) -> Iterator[pa.RecordBatch]:
    """A Parquet file piece by piece, at most so many rows at once. Raises DamagedFile."""
    try:
        with parquet.ParquetFile(
            path, pre_buffer=False, page_checksum_verification=True
        ) as file:  # with it, all that was read stays in memory
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
