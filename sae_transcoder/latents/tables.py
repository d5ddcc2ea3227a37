"""From what a pass has kept to the tables of latent_files."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sae_transcoder.coder.names import coder_dir, hookpoint_of, seed_of
from sae_transcoder.coder.trained_coder import TrainedCoder
from sae_transcoder.config import evaluation_settings
from sae_transcoder.data.sequences import Sequences
from sae_transcoder.language_model import loading
from sae_transcoder.language_model.loading import text_config
from sae_transcoder.latents import directions
from sae_transcoder.latents.activity import HISTOGRAM_EDGES
from sae_transcoder.latents.coder_pass import CoderPass
from sae_transcoder.latents.logs import AFTER, BEFORE, Together
from sae_transcoder.latents.request import LatentsRequest
from sae_transcoder.latents.samples import EMPTY
from sae_transcoder.run_store import data_origin, latent_files, latents_pass
from sae_transcoder.run_store.latent_files import CONTEXTS, LATENTS, TOP
from sae_transcoder.run_store.latents_pass import CoderInPass, LatentsPass

RANGES, OF_RANGE = 10, 2  # equal ranges of a latent's activations, contexts shown of each
TOKENS, LATENTS_SHOWN = 10, 10  # tokens raised, lowered or read; latents that fire together or are near
ROWS = 1024  # latents whose contexts are written at a time


def write(model: PreTrainedModel, request: LatentsRequest, coders: Mapping[str, CoderPass], sequences: Sequences) -> None:
    """Writes all files of a request, pass.json last."""
    cfg, folder = request.cfg, request.folder
    (folder / latents_pass.PASS).unlink(missing_ok=True)  # of another pass, whose tables are replaced one by one
    texts = token_texts(loading.tokenizer(cfg), range(text_config(model).vocab_size))
    latent_files.write_table(folder / latent_files.VOCABULARY, latent_files.vocabulary_table(texts))
    together_tokens, about = {}, []
    for name, coder in coders.items():
        own, places = (
            folder / coder_dir(name),
            directions.surroundings(model, hookpoint_of(name), transcoder=coder.coder.cfg.transcode),
        )
        together, together_tokens[name] = together_columns(coder.together, coder.coder.num_latents, coder.latents.numpy())
        columns = activity_columns(coder) | together | direction_columns(model, coder, places) | seed_columns(name, coders)
        nulls = {field.name: pa.nulls(len(coder.latents), field.type) for field in LATENTS}
        latent_files.write_table(own / latent_files.LATENTS_FILE, pa.table(nulls | columns, LATENTS))
        contexts = (
            contexts_table(coder, rows, sequences)
            for rows in np.array_split(np.arange(len(coder.latents)), -(-len(coder.latents) // ROWS))
        )
        latent_files.write_tables(own / latent_files.CONTEXTS_FILE, CONTEXTS, contexts)
        about.append(about_coder(name, coder.coder, writes=places.after is not None))
    length = sequences.width
    origin = data_origin.read(request.stored.run_dir) if request.stored.run_dir else None
    done = LatentsPass(
        model_name=cfg.model_name,
        dataset_name=str(cfg.dataset_name),
        text="held out" if request.wanted.tokens is None else "training",
        sequences=len(sequences),
        sequence_length=length,
        positions=len(sequences) * length,
        tokens={name: coder.tokens for name, coder in coders.items()},
        together_tokens=together_tokens,
        latents=None if request.wanted.latents is None else list(request.wanted.latents),
        top=request.wanted.top,
        ranges=RANGES,
        histogram_edges=HISTOGRAM_EDGES,
        begin=list(origin.begin) if origin else [],
        settings=evaluation_settings(cfg),
        coders=about,
        fingerprint=request.fingerprint(),
    )
    latents_pass.write_pass(folder, done)


def about_coder(name: str, coder: TrainedCoder, *, writes: bool) -> CoderInPass:
    """What pass.json says of a coder."""
    seed = seed_of(name).removeprefix("seed")
    return CoderInPass(
        name=name,
        hookpoint=hookpoint_of(name),
        seed=int(seed) if seed else None,
        d_in=coder.d_in,
        latents=coder.num_latents,
        k=coder.cfg.k,
        activation=coder.trained_activation,
        transcoder=coder.cfg.transcode,
        matryoshka_widths=coder.matryoshka_widths,
        writes=writes,
    )


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token as it stands within a text; `[7]` for one that the tokenizer does not have."""
    before = tokenizer("a", add_special_tokens=False)["input_ids"]  # without a text before it, some decoders drop a token's space
    start = tokenizer.decode(before, clean_up_tokenization_spaces=False)
    known = [number for number in ids if number < len(tokenizer)]
    decoded = tokenizer.batch_decode([[*before, number] for number in known], clean_up_tokenization_spaces=False)
    texts = {
        number: text[len(start) :] if text.startswith(start) else tokenizer.decode([number])
        for number, text in zip(known, decoded, strict=True)
    }
    return [texts.get(number, f"[{number}]") for number in ids]


def lists(values: Tensor | np.ndarray) -> pa.ListArray:
    """A column of lists from a table [row, place]."""
    array = values.cpu().numpy() if isinstance(values, Tensor) else values
    return (
        pa.ListArray.from_arrays(np.arange(0, array.size + 1, array.shape[1], dtype=np.int32), array.reshape(-1))
        if array.shape[1]
        else pa.array([[]] * len(array))
    )


def activity_columns(coder: CoderPass) -> dict[str, Any]:
    """How often the latents fire and how strongly; thresholds and levels."""
    counts = coder.activity.counts.cpu().numpy()
    fires = counts.sum(1)
    columns: dict[str, Any] = {
        "latent": coder.latents.numpy(),
        "fires": fires,
        "density": fires / max(1, coder.tokens),
        "max_activation": coder.strongest.activations[:, 0].cpu().numpy(),
        "mean_activation": coder.activity.sums.cpu().numpy() / np.maximum(fires, 1),
        "histogram": lists(counts),
    }
    if coder.coder.threshold is not None:
        columns["threshold"] = coder.coder.threshold.float().expand(coder.coder.num_latents).cpu()[coder.latents].numpy()
    if coder.coder.matryoshka_widths is not None:
        columns["level"] = np.searchsorted(coder.coder.matryoshka_widths, coder.latents.numpy(), side="right")
    return columns


def together_columns(together: Together, num_latents: int, chosen: np.ndarray) -> tuple[dict[str, Any], int]:
    """The latents that fire on the most tokens of each latent, and on how many tokens that was counted."""
    counts, latents = together.counts.read(), together.latents.read()
    ends = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    fires = scipy.sparse.csr_matrix((np.ones(len(latents), np.int32), np.asarray(latents), ends), (len(counts), num_latents))
    by_latent = fires.T.tocsr()
    totals = np.diff(by_latent.indptr)
    shown = min(LATENTS_SHOWN, num_latents - 1)
    found, shares = [], []
    for numbers in np.array_split(chosen, -(-len(chosen) * num_latents // directions.COMPARED)):
        products = torch.from_numpy((by_latent[numbers] @ fires).toarray())
        products.scatter_(1, torch.from_numpy(numbers.astype(np.int64))[:, None], -1)
        best = products.topk(shown)
        found += [row[values > 0].tolist() for row, values in zip(best.indices, best.values, strict=True)]
        share = best.values / torch.from_numpy(totals[numbers]).clamp(min=1)[:, None]
        shares += [row[values > 0].tolist() for row, values in zip(share, best.values, strict=True)]
    return {"together": found, "together_share": shares}, len(counts)


def direction_columns(model: PreTrainedModel, coder: CoderPass, places: directions.Surroundings) -> dict[str, Any]:
    """What the latents' rows raise, lower and read, and the latents that are near."""
    device = coder.coder.b_dec.device
    chosen = coder.latents.to(device)
    decoder, encoder = coder.coder.W_dec, coder.coder.encoder.weight
    near, cosines = directions.nearest(decoder, chosen, LATENTS_SHOWN)
    columns: dict[str, Any] = {"nearest": lists(near.int()), "nearest_cosine": lists(cosines)}
    if places.after is not None and directions.unembedding_width(model) == decoder.shape[1]:
        raised, raised_logits, lowered, lowered_logits = directions.token_effects(model, decoder[chosen], places.after, TOKENS)
        columns |= {"raised": lists(raised.int()), "raised_logits": lists(raised_logits)}
        columns |= {"lowered": lists(lowered.int()), "lowered_logits": lists(lowered_logits)}
    if places.before is not None and directions.embedding_width(model) == encoder.shape[1]:
        read, products = directions.tokens_read(model, encoder[chosen], places.before, TOKENS)
        columns |= {"read": lists(read.int()), "read_products": lists(products)}
    return columns


def seed_columns(name: str, coders: Mapping[str, CoderPass]) -> dict[str, Any]:
    """The latent of another seed that is most like each; nothing where there is one seed."""
    own = coders[name]
    best = torch.full((len(own.latents),), -torch.inf, device=own.coder.b_dec.device)
    latents, seeds = torch.zeros_like(best, dtype=torch.int64), np.full(len(best), "", object)
    rows = {
        other: (each.coder.encoder.weight, each.coder.W_dec)
        for other, each in coders.items()
        if hookpoint_of(other) == hookpoint_of(name)
    }
    for other in rows.keys() - {name}:
        found, cosines = directions.best_match(rows[name], rows[other], own.latents.to(best.device))
        better = cosines > best
        best, latents = torch.where(better, cosines, best), torch.where(better, found, latents)
        seeds[better.cpu().numpy()] = seed_of(other)
    if len(rows) < 2:
        return {}
    return {"other_seed": seeds.tolist(), "other_latent": latents.int().cpu().numpy(), "other_cosine": best.cpu().numpy()}


def contexts_table(coder: CoderPass, rows: np.ndarray, sequences: Sequences) -> pa.Table:
    """The contexts of the latents in these rows of the statistics: the strongest, then those of the ranges, from the highest."""
    strongest = {name: values[torch.from_numpy(rows)].cpu().numpy() for name, values in coder.strongest.tensors().items()}
    samples = {name: values[torch.from_numpy(rows)].cpu().numpy() for name, values in coder.samples.tensors().items()}
    top_lines, top_ranks = np.nonzero(strongest["activations"] > 0)
    lines, bins, ranges, ranks = drawn(strongest, samples)
    place = np.concatenate([strongest["places"][top_lines, top_ranks], samples["places"][lines, bins]])
    window = np.concatenate([strongest["windows"][top_lines, top_ranks], samples["windows"][lines, bins]])
    columns = {
        "line": np.concatenate([top_lines, lines]),
        "range": np.concatenate([np.full(len(top_lines), TOP), ranges]),
        "rank": np.concatenate([top_ranks, ranks]),
        "activation": np.concatenate([strongest["activations"][top_lines, top_ranks], samples["activations"][lines, bins]]),
    }
    falling = np.where(columns["range"] == TOP, -RANGES, -columns["range"])
    order = np.lexsort((columns["rank"], falling, columns["line"]))
    columns = {name: values[order] for name, values in columns.items()}
    latents = coder.latents.numpy()[rows][columns.pop("line")]
    text = text_columns(place[order], coder.windows.dense(window[order]), sequences)
    return pa.table({"latent": latents, **columns, **text}, CONTEXTS)


def drawn(strongest: dict[str, np.ndarray], samples: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """Which places of the samples are shown: OF_RANGE of each range of activations, those of the lowest priorities, but not the maximum itself.

    Returns their lines, bins, ranges and ranks, each [context].
    """
    lines, bins = np.nonzero((samples["priorities"] != EMPTY) & (samples["places"] != strongest["places"][:, :1]))
    largest = strongest["activations"][lines, 0].astype(np.float64)
    ranges = np.minimum(samples["activations"][lines, bins] / largest * RANGES, RANGES - 1).astype(np.int64)
    order = np.lexsort((samples["priorities"][lines, bins], ranges, lines))
    lines, bins, ranges = lines[order], bins[order], ranges[order]
    groups = lines * RANGES + ranges
    first = np.searchsorted(groups, groups)  # groups are ascending
    ranks = np.arange(len(groups)) - first
    shown = ranks < OF_RANGE
    return lines[shown], bins[shown], ranges[shown], ranks[shown]


def text_columns(places: np.ndarray, activations: np.ndarray, sequences: Sequences) -> dict[str, Any]:
    """The text around places, with the activations there [context, BEFORE + 1 + AFTER]."""
    length = sequences.width
    number, position = np.divmod(places, length)
    unique, line = np.unique(number, return_inverse=True)
    marked = sequences.at(unique)
    ids = np.maximum(marked, ~marked)  # some may be marked as left out
    around = position[:, None] + np.arange(-BEFORE, AFTER + 1)
    inside = (around >= 0) & (around < length)
    around = around.clip(0, length - 1)
    offsets = np.concatenate([[0], np.cumsum(inside.sum(1))]).astype(np.int32)
    return {
        "document": sequences.documents(unique)[line, position],
        "sequence": number,
        "position": position.astype(np.int32),
        "start": np.maximum(position - BEFORE, 0).astype(np.int32),
        "tokens": pa.ListArray.from_arrays(offsets, ids[line[:, None], around][inside].astype(np.int32)),
        "activations": pa.ListArray.from_arrays(offsets, activations[inside]),
    }
