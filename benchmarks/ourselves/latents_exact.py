"""Are the latents that `sae-latents` describes those of a reading by brute force? Contexts, activations and densities of latents drawn at random.

    sae-train experiment=demo sweep_name=null run_name=latents && sae-latents outputs/latents
    python benchmarks/ourselves/latents_exact.py outputs/latents [--latents 100]

It reads the same text once more, keeps every activation of the latents [place, latent], and finds by sorting what the pass found in one reading
with bounded memory. Latents fire as sparsify says, by torch's top-k or the maxima of groups, or above the coder's thresholds.
"""

import argparse
import math
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel

from sae_transcoder.api import load_coders
from sae_transcoder.coder.names import coder_dir
from sae_transcoder.config import Config
from sae_transcoder.data import token_sets
from sae_transcoder.evaluation.request import stored_coders
from sae_transcoder.language_model import loading
from sae_transcoder.latents.batch import priorities
from sae_transcoder.run_store import latent_files, latents_pass
from sae_transcoder.run_store.latent_files import TOP
from sae_transcoder.run_store.latents_pass import LatentsPass

BINS, RANGES, OF_RANGE = 64, 10, 2


def all_text(cfg: Config, about: LatentsPass) -> tuple[np.ndarray, np.ndarray]:
    """The ids and the documents of all sequences of the pass, both [sequence, position]."""
    tokenizer, vocabulary = (lambda: loading.tokenizer(cfg)), 2**20
    vocabulary = loading.text_config(loading.outline(cfg)).vocab_size
    if about.text == "held out":
        sequences, _ = token_sets.heldout_sequences(cfg, tokenizer, vocabulary)
    else:
        cfg.max_samples = about.sequences
        sequences = token_sets.prepare(cfg, tokenizer, vocabulary).train
    numbers = np.arange(about.sequences)
    return sequences.at(numbers), sequences.documents(numbers)


@torch.no_grad()
def all_activations(cfg: Config, hookpoint: str, coder: torch.nn.Module, ids: np.ndarray, latents: np.ndarray) -> np.ndarray:
    """The activation of each of the latents at each place [place, latent], float32."""
    model = AutoModel.from_pretrained(loading.model_path(cfg), dtype=torch.float32).eval()
    seen: dict[str, torch.Tensor] = {}

    def note(module: torch.nn.Module, given: tuple, made: object) -> None:
        first = made[0] if isinstance(made, tuple) else made
        seen["x"] = (given[0] if coder.cfg.transcode else first).flatten(0, 1)

    model.get_submodule(hookpoint).register_forward_hook(note)
    rows = []
    for start in range(0, len(ids), 32):
        model(input_ids=torch.from_numpy(ids[start : start + 32]))
        x = seen["x"] if coder.cfg.transcode else seen["x"] - coder.b_dec
        preacts = (x @ coder.encoder.weight.T + coder.encoder.bias).relu()
        if coder.threshold is not None:
            acts = preacts.where(preacts > coder.threshold, 0)
        elif coder.cfg.activation == "groupmax":
            groups = preacts.unflatten(1, (coder.cfg.k, -1))
            acts = torch.zeros_like(groups).scatter_(2, groups.argmax(2, keepdim=True), groups.amax(2, keepdim=True)).flatten(1)
        else:
            best = preacts.topk(coder.cfg.k)
            acts = torch.zeros_like(preacts).scatter_(1, best.indices, best.values)
        rows.append(acts[:, latents].numpy())
    return np.concatenate(rows) * counted(cfg, ids).reshape(-1, 1)


def counted(cfg: Config, ids: np.ndarray) -> np.ndarray:
    """Whether a position counts [sequence, position]."""
    if cfg.max_norm_multiple is not None:
        sys.exit("max_norm_multiple: which positions count depends on how the text is cut into batches; give another run")
    mask = ~np.isin(ids, cfg.exclude_tokens)
    mask[:, : cfg.exclude_first_tokens] = False
    return mask


def strongest(acts: np.ndarray, documents: np.ndarray, top: int) -> list[int]:
    """The strongest place of each document, falling, equal ones in the order of the text."""
    order = np.lexsort((np.arange(len(acts)), -acts))
    order = order[acts[order] > 0]
    _, first = np.unique(documents[order], return_index=True)
    return order[np.sort(first)][:top].tolist()


def drawn(acts: np.ndarray, maximum_at: int) -> dict[tuple[int, int], int]:
    """{(range, rank): place}: of each bin the place of the lowest priority, of these OF_RANGE in each range."""
    places = np.nonzero(acts)[0]
    largest = acts.max()
    order = priorities(torch.from_numpy(places)).numpy()
    bins = np.floor(acts[places].astype(np.float64) / 2.0 ** np.frexp(largest)[1] * BINS)
    kept = [min(np.nonzero(bins == number)[0], key=lambda i: order[i]) for number in np.unique(bins)]
    ranges = np.minimum(acts[places].astype(np.float64) / float(largest) * RANGES, RANGES - 1).astype(int)
    found = {}
    for number in range(RANGES):
        own = sorted((i for i in kept if ranges[i] == number and places[i] != maximum_at), key=lambda i: order[i])
        found |= {(number, rank): int(places[i]) for rank, i in enumerate(own[:OF_RANGE])}
    return found


def differences(folder: Path, path: str, count: int) -> list[str]:
    """What differs, of `count` latents of each coder, between the files in `folder` and a reading by brute force."""
    about = latents_pass.read_pass(folder)
    assert about is not None
    stored = stored_coders(path, [])
    ids, documents = all_text(stored.cfg, about)
    tokens = int(counted(stored.cfg, ids).sum())
    faults: list[str] = []
    for name, coder in load_coders(path).items():
        table = latent_files.read_table(folder / coder_dir(name) / latent_files.LATENTS_FILE)
        chosen = np.sort(np.random.default_rng(0).choice(len(table), min(count, len(table)), replace=False))
        acts = all_activations(stored.cfg, name.partition("/")[0], coder, ids, table["latent"].to_numpy()[chosen])
        contexts = latent_files.read_table(folder / coder_dir(name) / latent_files.CONTEXTS_FILE)
        for column, row in enumerate(table.take(chosen).to_pylist()):
            own = acts[:, column]
            shown = contexts.filter(np.equal(contexts["latent"].to_numpy(), row["latent"])).to_pylist()
            faults += [
                f"{name} latent {row['latent']}: {fault}" for fault in faults_of(about, row, shown, own, tokens, ids, documents)
            ]
    return faults


def faults_of(
    about: LatentsPass, row: dict, shown: list[dict], acts: np.ndarray, tokens: int, ids: np.ndarray, documents: np.ndarray
) -> list[str]:
    """What is wrong with the row and the contexts of a latent with these activations [place], where so many tokens count."""
    length, flat_documents = ids.shape[1], documents.reshape(-1)
    fires = int((acts > 0).sum())
    numbers = {
        "fires": fires,
        "density": fires / tokens,
        "max_activation": acts.max(),
        "mean_activation": acts.sum(dtype=float) / max(1, fires),
    }
    faults = [
        f"{name} {row[name]}, not {value}" for name, value in numbers.items() if not math.isclose(row[name], value, rel_tol=1e-5)
    ]
    edges = np.exp2(about.histogram_edges[1:-1]).astype(np.float32)
    histogram = np.bincount(np.searchsorted(edges, acts[acts > 0], side="right"), minlength=len(edges) + 1)
    if np.abs(histogram - row["histogram"]).sum() > 2:  # a value at an edge may round to either side
        faults.append("another histogram")
    places = {(c["range"], c["rank"]): c["sequence"] * length + c["position"] for c in shown}
    best = strongest(acts, flat_documents, about.top)
    expected = {(TOP, rank): place for rank, place in enumerate(best)} | (drawn(acts, best[0]) if best else {})
    if places != expected:
        faults.append(f"contexts at {places}, not {expected}")
    for context in shown:
        start = context["sequence"] * length + context["start"]
        window = slice(start, start + len(context["tokens"]))
        place = context["sequence"] * length + context["position"]
        near = np.abs(context["activations"] - acts[window]) <= 1e-4 + 1e-4 * acts[window]  # np.allclose takes ten times as long
        if context["tokens"] != ids.reshape(-1)[window].tolist() or not near.all():
            faults.append(f"other tokens or activations around {place}")
        if context["document"] != flat_documents[place] or not math.isclose(context["activation"], acts[place], rel_tol=1e-5):
            faults.append(f"another document or activation at {place}")
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the directory of a run with latents/")
    parser.add_argument("--latents", type=int, default=100, help="of each coder (100)")
    asked = parser.parse_args()
    faults = differences(Path(asked.run) / latents_pass.FOLDER / "coders", asked.run, asked.latents)
    print("\n".join(faults) or f"{asked.latents} latents of each coder: contexts, activations and densities equal")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
