"""The Parquet files of one coder read piece by piece: some latents, and the contexts of these."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from sae_transcoder.reports.latents_page.packed import numbers
from sae_transcoder.run_store.checked_files import damaged
from sae_transcoder.run_store.latent_files import CONTEXTS, CONTEXTS_FILE, LATENTS, LATENTS_FILE, TOP, read_batches
from sae_transcoder.run_store.latents_pass import FIX

BATCH = 4096  # rows read at once


class Rows:
    """The rows of a file in order of latents, taken from its beginning. Raises DamagedFile where they are not in that order."""

    def __init__(self, path: Path, schema: pa.Schema):
        self.path, self.schema, self.batches = path, schema, read_batches(path, BATCH)
        self.rest = schema.empty_table()
        self.last = -1

    def read_on(self) -> bool:
        """Reads a batch more; False at the end of the file."""
        if (batch := next(self.batches, None)) is None:
            return False
        latents = batch["latent"].to_numpy()
        if (np.diff(latents, prepend=self.last) < 0).any():
            raise damaged(self.path, "rows are not in order of latents", FIX)
        self.last = int(latents[-1]) if len(latents) else self.last
        try:
            rows = pa.Table.from_batches([batch]).select(self.schema.names).cast(self.schema)
        except (KeyError, pa.ArrowInvalid) as error:
            raise damaged(self.path, f"not its columns: {error}", FIX) from error
        self.rest = pa.concat_tables([self.rest, rows])
        return True

    def first(self, count: int) -> pa.Table:
        """The next `count` rows, or those that are left."""
        while len(self.rest) < count and self.read_on():
            pass
        return self.taken(count)

    def up_to(self, latent: int) -> pa.Table:
        """The next rows, those of latents up to and with this one."""
        while self.last <= latent and self.read_on():
            pass
        return self.taken(int(np.searchsorted(numbers(self.rest["latent"]), latent, side="right")))

    def taken(self, count: int) -> pa.Table:
        """So many rows, which are no longer left."""
        rows, self.rest = self.rest.slice(0, count), self.rest.slice(count)
        return rows.combine_chunks()


def pieces(folder: Path, size: int) -> Iterator[tuple[pa.Table, pa.Table]]:
    """(`size` latents, their contexts as the page shows them) after one another. Raises DamagedFile."""
    latents, contexts = Rows(folder / LATENTS_FILE, LATENTS), Rows(folder / CONTEXTS_FILE, CONTEXTS)
    while len(piece := latents.first(size)):
        yield piece, as_shown(contexts.up_to(int(numbers(piece["latent"])[-1])))
    if len(contexts.first(1)):
        raise damaged(folder / CONTEXTS_FILE, f"contexts of latents that {LATENTS_FILE} lacks", FIX)


def as_shown(contexts: pa.Table) -> pa.Table:
    """The contexts of each latent: its strongest, then those of its ranges from high to low."""
    which = numbers(contexts["range"]).astype(int)
    falling = np.where(which == TOP, np.iinfo(int).min, -which)
    return contexts.take(np.lexsort((numbers(contexts["rank"]), falling, numbers(contexts["latent"]))))
