"""One coder's data as script files, each loaded by the page when asked for; written with the memory of ROWS latents.

numbers.js            one number for each latent of what the table sorts and filters by
rows/<n>.js           of ROWS latents what else the table shows, and what its search reads first
latents/<n>.js        of LATENTS latents all that the view of one shows
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sae_transcoder.reports.latents_page.packed import lists, numbers, pack, pack_column, pack_lists, script
from sae_transcoder.reports.latents_page.streams import pieces
from sae_transcoder.run_store.checked_files import damaged
from sae_transcoder.run_store.latent_files import LATENTS_FILE, TOP
from sae_transcoder.run_store.latents_pass import FIX

ROWS = 1024
LATENTS = 128  # divides ROWS
DETAILS = (
    "fires", "threshold", "histogram", "together", "together_share", "nearest", "nearest_cosine", "raised", "raised_logits",
    "lowered", "lowered_logits", "read", "read_products", "other_seed", "other_latent", "other_cosine",
)  # fmt: skip
CONTEXT = ("range", "activation", "document", "sequence", "position", "start")


def write_coder(source: Path, data: Path, key: str, bins: int) -> dict[str, Any]:
    """Writes the shards of the coder whose Parquet files lie in `source` into data/<key>/; returns what the page's index says of them.

    bins: how many the histograms have. Raises DamagedFile.
    """
    tables: list[dict[str, np.ndarray]] = []
    used = np.zeros(bins, bool)
    for i, (latents, contexts) in enumerate(pieces(source, ROWS)):
        counts = histograms(latents, bins, source)
        used |= counts.any(0)
        best = strongest(latents, contexts)
        tables.append(table_numbers(latents, best, counts))
        put(data, f"{key}/rows/{i}", table_rows(latents, best, counts))
        for start in range(0, len(latents), LATENTS):
            part = latents.slice(start, LATENTS)
            put(data, f"{key}/latents/{(i * ROWS + start) // LATENTS}", latent_details(part, contexts))
    table = {name: np.concatenate([each[name] for each in tables]) for name in tables[0]} if tables else {}
    put(data, f"{key}/numbers", {name: pack(values) for name, values in table.items()})
    where = np.flatnonzero(used)
    return {
        "key": key,
        "shown": len(table["latent"]) if tables else 0,
        "bins": [int(where[0]), int(where[-1]) + 1] if len(where) else [0, bins],
        "levels": bool(tables) and bool((table["level"] >= 0).any()),
        "raised": bool(tables) and bool((table["raised"] >= 0).any()),
    }


def put(data: Path, key: str, value: Any) -> None:
    """Writes the script file of a key."""
    path = data / f"{key}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script(key, value), encoding="ascii")


def histograms(latents: pa.Table, bins: int, source: Path) -> np.ndarray:
    """The histograms as counts [latent, bin]; an empty one is zeros. Raises DamagedFile where one has another number of bins."""
    lengths, values = lists(latents["histogram"])
    if not np.isin(lengths, (0, bins)).all():
        raise damaged(source / LATENTS_FILE, f"histograms that do not have the {bins} bins of the pass", FIX)
    counts = np.zeros((len(latents), bins))
    counts[lengths > 0] = values.reshape(-1, bins)
    return counts


def strongest(latents: pa.Table, contexts: pa.Table) -> pa.Table:
    """The strongest context of each latent; a row of nulls for a latent without one."""
    first = contexts.filter(pc.and_(pc.equal(contexts["range"], TOP), pc.equal(contexts["rank"], 0)))
    place = np.searchsorted(numbers(latents["latent"]), numbers(first["latent"]))
    indices = np.full(len(latents), -1)
    indices[place] = np.arange(len(first))
    return first.take(pa.array(indices, mask=indices < 0))


def table_numbers(latents: pa.Table, best: pa.Table, counts: np.ndarray) -> dict[str, np.ndarray]:
    """What the table sorts and filters by, each [latent]: `peak`, `raised` are ids of tokens, -1 for none; `centre`: the mean bin."""
    columns = {"latent": "latent", "density": "density", "max": "max_activation", "mean": "mean_activation", "level": "level"}
    total = counts.sum(1)
    centre = counts @ np.arange(counts.shape[1]) / np.where(total > 0, total, np.nan)
    return {
        **{name: numbers(latents[column]) for name, column in columns.items()},
        "centre": centre.astype(np.float32),
        "peak": element(best["tokens"], places(best)),
        "raised": element(latents["raised"], np.zeros(len(latents), int)),
    }


def places(contexts: pa.Table) -> np.ndarray:
    """Where among its tokens each context has its position [context]; 0 for a row of nulls."""
    return numbers(contexts["position"]) - numbers(contexts["start"])


def element(column: pa.ChunkedArray, places: np.ndarray) -> np.ndarray:
    """One element of each list [row]; -1 where the list is shorter."""
    lengths, values = lists(column)
    there = places < lengths
    found = np.full(len(lengths), -1, np.int64)
    found[there] = values[(np.cumsum(lengths) - lengths + places)[there]]
    return found


def table_rows(latents: pa.Table, best: pa.Table, counts: np.ndarray) -> dict[str, Any]:
    """What the table shows of latents beyond `table_numbers`. `heights`: of the histograms' bars, 255 for a latent's highest."""
    highest = counts.max(1, initial=1, keepdims=True)
    return {
        "heights": pack(np.ceil(counts / highest * 255).astype(int).ravel()),
        "context": tokens_and_firing(best) | {"peak": pack(places(best))},
        "raised": pack_lists(latents["raised"]),
        "lowered": pack_lists(latents["lowered"]),
    }


def tokens_and_firing(contexts: pa.Table) -> dict[str, Any]:
    """The tokens of contexts, and where the latent fires on them: `at` counts through the tokens of all contexts."""
    activations = lists(contexts["activations"])[1]
    at = np.flatnonzero(activations)
    return {"tokens": pack_lists(contexts["tokens"]), "at": pack(at), "activations": pack(activations[at])}


def latent_details(latents: pa.Table, contexts: pa.Table) -> dict[str, Any]:
    """What the view of each of the latents shows beyond `table_numbers`. contexts: theirs, and others'. `count`: how many of them each has."""
    of = numbers(contexts["latent"])
    shown = numbers(latents["latent"])
    begin, end = np.searchsorted(of, shown), np.searchsorted(of, shown, side="right")
    own = contexts.slice(begin[0], end[-1] - begin[0])
    return {
        **{name: pack_column(latents[name]) for name in DETAILS},
        "contexts": {
            **{name: pack_column(own[name]) for name in CONTEXT},
            "count": pack(end - begin),
            **tokens_and_firing(own),
        },
    }
