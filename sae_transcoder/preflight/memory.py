"""The estimate of what a run needs of its device's memory, from the sizes of model, coders and batches.

It follows what the run really holds, tensor by tensor (tests/preflight/test_memory.py measures that on a CPU). Nothing here imports torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from sae_transcoder import distributed
from sae_transcoder.coder.chunk_sizes import CHUNK_SIZE, SMALL_BATCH
from sae_transcoder.config import Config, LossFn, ModelType, Optimizer, evaluation_batch
from sae_transcoder.preflight.peak import ALWAYS, BATCH, SAVE, Moment, Part

if TYPE_CHECKING:
    from sae_transcoder.language_model.sizes import ModelSizes


def latents(cfg: Config, width: int) -> int:
    """Latents of a coder on a hookpoint of this width."""
    return cfg.num_latents or width * cfg.expansion_factor


def coder_parameters(cfg: Config, width: int) -> int:
    """Parameters of one coder: encoder, decoder, their biases, and the skip connection."""
    return 2 * width * latents(cfg, width) + latents(cfg, width) + width + cfg.skip_connection * width**2


# Numbers of the size of the coder that each optimizer keeps beside weights and gradients.
OPTIMIZER_STATES = {Optimizer.adam: 2, Optimizer.muon: 1, Optimizer.signum: 1}
CONTEXT = 10**9  # bytes that CUDA and its libraries take; not measured
BFLOAT16, FLOAT32, FLOAT64, INT64 = 2, 4, 8, 8  # bytes
CANDIDATES = {"cpu": 8, "cuda": 32}  # latents that are looked at for each that is chosen (latent_selection.py)


def memory_estimate(cfg: Config, widths: Mapping[str, int], model: ModelSizes, device: str, processes: int = 1) -> list[Part]:
    """What a run holds on its device, of type cpu or cuda; of several processes on that of the one that holds most."""
    every = {point: coder_parameters(cfg, d) * len(cfg.init_seeds) for point, d in widths.items()}
    own = (
        max(distributed.shares(every, processes), key=lambda s: sum(every[p] for p in s))
        if cfg.distribute_modules
        else list(widths)
    )
    trained = {point: widths[point] for point in own}
    found = [Part("language model", model.weights, ALWAYS, True)]
    found += [Part("CUDA", CONTEXT, ALWAYS, True)] if device == "cuda" else []
    found += coders(cfg, trained, device)
    found += batch(cfg, trained, model, device) if cfg.loss_fn == LossFn.fvu else end_to_end(cfg, trained, model)
    found += update(cfg, trained, device, processes)
    found += save(cfg, widths, model)  # the first process evaluates all
    return found


def coders(cfg: Config, widths: Mapping[str, int], device: str) -> Iterator[Part]:
    """Weights, what the optimizer keeps, counts of each latent's tokens, and gradients."""
    numbers = sum(coder_parameters(cfg, d) for d in widths.values()) * len(cfg.init_seeds)
    counts = sum(latents(cfg, d) for d in widths.values()) * len(cfg.init_seeds) * (INT64 + 1)
    yield Part("coders", numbers * FLOAT32 * (1 + OPTIMIZER_STATES[cfg.optimizer]) + counts, ALWAYS)
    if cfg.grad_acc_steps > 1:
        yield Part("gradients", numbers * FLOAT32, BATCH)
    else:  # a run's are gone before the next one trains, unless they train together
        yield Part("gradients", numbers * FLOAT32, (Moment.coder, Moment.update), None if together(cfg, widths, device) else True)


def together(cfg: Config, widths: Mapping[str, int], device: str) -> bool:
    """Whether the run trains together with others (team.py)."""
    most = max(latents(cfg, d) for d in widths.values())
    return cfg.loss_fn == LossFn.fvu and cfg.batch_size * cfg.max_seq_length * most <= SMALL_BATCH[device]


def batch(cfg: Config, widths: Mapping[str, int], model: ModelSizes, device: str) -> Iterator[Part]:
    """The activations of a batch, what the language model's forward computes besides, and a coder's step."""
    tokens = cfg.batch_size * cfg.max_seq_length
    sequences = min(cfg.forward_batch_size or cfg.batch_size, cfg.batch_size)
    yield from seen(cfg, widths, tokens, model.itemsize, BATCH)
    if sequences < cfg.batch_size:  # what was seen in pieces is joined
        for point, d in widths.items():
            yield Part("pieces of activations", 2 * tokens * d * model.itemsize, (Moment.forward,), point)
    yield Part("a layer", layer(model, sequences * cfg.max_seq_length), (Moment.forward,), True)
    yield steps(cfg, widths, tokens, device)


def steps(cfg: Config, widths: Mapping[str, int], tokens: int, device: str) -> Part:
    """What coders' steps make of a batch; one after the other, or where batches are small of as many at once as make a piece."""
    largest = max(step(cfg, d, tokens, device) for d in widths.values())
    if not together(cfg, widths, device) or not cfg.corrections or cfg.multi_topk or cfg.skip_connection:
        return Part("coders' steps", largest, (Moment.coder,), "one by one")
    beside = max(coder_parameters(cfg, d) for d in widths.values()) * FLOAT32  # weights side by side
    at_once = max(1, CHUNK_SIZE[device] // (tokens * max(latents(cfg, d) for d in widths.values())))
    own = min(at_once, len(cfg.init_seeds))
    return Part("coders' steps", own * (largest + beside), (Moment.coder,), "together", at_once // own)


def seen(cfg: Config, widths: Mapping[str, int], tokens: int, itemsize: int, during: Sequence[Moment]) -> Iterator[Part]:
    """The inputs and outputs of the hookpoints for so many tokens, and what coders are given of them."""
    alike = (cfg.model_type, tuple(cfg.exclude_tokens), cfg.exclude_first_tokens, cfg.max_norm_multiple)
    sides = 2 if cfg.model_type == ModelType.transcoder else 1
    for point, d in widths.items():
        for tensor in (point, before(point)):
            yield Part("activations", tokens * d * itemsize, during, tensor)
        if itemsize != FLOAT32 or any(alike[1:]):  # else they are the same tensors
            later = [moment for moment in during if moment != Moment.forward]
            yield Part("coders' inputs", sides * tokens * d * FLOAT32, later, (point, alike))


def before(point: str) -> str:
    """The tensor that a hookpoint is given: the output of the layer before it, or one of its own."""
    match = re.fullmatch(r"(.*\.)(\d+)", point)
    return f"{match[1]}{int(match[2]) - 1}" if match else f"{point}'s input"


def layer(model: ModelSizes, tokens: int) -> int:
    """Bytes that a layer computes at once: three tensors of an MLP's inner width, and the hidden states with and without their norm."""
    return tokens * model.itemsize * (3 * model.widest + 2 * model.width)


def end_to_end(cfg: Config, widths: Mapping[str, int], model: ModelSizes) -> Iterator[Part]:
    """What a forward with the coders in place keeps for its gradient: of each layer after the first hookpoint, of logits and of all coders."""
    tokens = cfg.batch_size * cfg.max_seq_length
    first = min(int(next((part for part in point.split(".") if part.isdigit()), 0)) for point in widths)
    kept = tokens * model.itemsize * (3 * model.widest + 6 * model.width)
    yield from seen(cfg, widths, tokens, model.itemsize, (Moment.coder,))
    yield Part("layers", (model.layers - 1 - first) * kept, (Moment.coder,), True)
    # ce: the logits' softmax and two gradients; kl: softmax, its logarithm, their difference, for both models
    yield Part("logits", tokens * model.vocabulary * FLOAT32 * (5 if cfg.loss_fn == LossFn.kl else 3), (Moment.coder,), True)
    yield Part("coders' steps", sum(outputs(cfg, d, tokens) for d in widths.values()), (Moment.coder,), True)


def may_die(cfg: Config) -> bool:
    """Whether AuxK can act: the run may be long enough for dead latents."""
    samples = math.inf if cfg.max_samples is None else cfg.max_samples
    return cfg.auxk_alpha > 0 and samples * cfg.max_seq_length > cfg.dead_feature_threshold


def entries(cfg: Config, d: int) -> list[int]:
    """Latents that a token chooses at most, for each reconstruction: by k, by AuxK and by Multi-TopK."""
    size = latents(cfg, d)
    k = min(size, 10 * d) if cfg.k_decay_steps else cfg.k
    return [k, *([min(size, d // 2)] if may_die(cfg) else []), *([min(size, 4 * k)] if cfg.multi_topk else [])]


def shifted(cfg: Config) -> bool:
    """Whether a coder's input is a tensor of its own: of an SAE the bias is taken out."""
    return cfg.model_type == ModelType.sae


def outputs(cfg: Config, d: int, tokens: int) -> int:
    """Bytes of what a coder's forward makes for so many tokens: of each reconstruction the sum of rows, the same with the bias, and the
    error, and of one its squares; of each entry the latent, its pre-activation and its activation."""
    chosen = entries(cfg, d)
    return tokens * (d * FLOAT32 * (shifted(cfg) + 3 * len(chosen) + 1) + sum(chosen) * (INT64 + 2 * FLOAT32))


def step(cfg: Config, d: int, tokens: int, device: str) -> int:
    """Bytes that a coder's forward and backward make at once for a piece of so many tokens of a batch."""
    tokens, size, chosen = math.ceil(tokens / cfg.micro_acc_steps), latents(cfg, d), entries(cfg, d)
    row, forward = tokens * d * FLOAT32, outputs(cfg, d, tokens)
    item = BFLOAT16 if device == "cuda" else FLOAT32  # bytes of a pre-activation
    if not cfg.corrections:
        whole = tokens * size * item  # pre-activations, and after ReLU; or their gradient
        return max(2 * whole + forward, whole + row * (shifted(cfg) + 4 + cfg.k))  # a row for each entry
    # The output and gradients; entries sorted by latent, with their tokens, places and gradients.
    backward = row * (shifted(cfg) + len(chosen) + 1) + tokens * (40 * sum(chosen) + 12 * max(chosen))
    piece = min(tokens, max(1, CHUNK_SIZE[device] // size))  # tokens
    # Pre-activations of a piece, of the one before and of dead latents, and those among which the largest are looked for.
    looked_at = max(CANDIDATES[device] * k if 2 * CANDIDATES[device] * k <= size else 0 for k in chosen)
    choosing = (
        row * shifted(cfg) + (min(tokens, 2 * piece) + piece * may_die(cfg)) * size * item + piece * looked_at * (INT64 + item)
    )
    if device == "cpu":
        return max(choosing, forward, backward)
    copies = BFLOAT16 * (size * d + tokens * d)  # of a weight and of rows
    # Activations of a piece between zeros, or partial sums of latents that fire often.
    sums = max(piece * size * BFLOAT16, (tokens * sum(chosen) // 256 + size) * d * FLOAT32)
    return max(choosing + copies, forward, backward + copies + sums)


def update(cfg: Config, widths: Mapping[str, int], device: str, processes: int) -> Iterator[Part]:
    """What an optimizer's step computes, and before it the part of a gradient that is taken out."""
    largest = max(widths.values(), key=lambda d: coder_parameters(cfg, d))
    matrix = latents(cfg, largest) * largest
    held = matrix * {Optimizer.adam: FLOAT32, Optimizer.muon: 4 * BFLOAT16, Optimizer.signum: FLOAT32}[cfg.optimizer]
    if cfg.optimizer == Optimizer.adam and not cfg.corrections:  # not in one pass; on a GPU for all parameters at once
        held = 2 * matrix * FLOAT32 if device == "cpu" else sum(coder_parameters(cfg, d) for d in widths.values()) * FLOAT32
    yield Part("an optimizer's step", held, (Moment.update,), True)
    if processes > 1 and not cfg.distribute_modules:
        yield Part("gradients exchanged", coder_parameters(cfg, largest) * FLOAT32, (Moment.update,), True)


def save(cfg: Config, widths: Mapping[str, int], model: ModelSizes) -> Iterator[Part]:
    """Copies of the coders, and what their evaluation computes."""
    numbers = sum(coder_parameters(cfg, d) for d in widths.values()) * len(cfg.init_seeds)
    yield Part("copies of coders", numbers * FLOAT32, SAVE)
    if cfg.optimizer == Optimizer.signum:  # what is published is an average; the weights go on
        yield Part("weights kept", numbers * FLOAT32, (Moment.copy,), True)
    sequences = min(evaluation_batch(cfg, model.vocabulary), cfg.eval_samples)
    tokens = sequences * cfg.max_seq_length
    d = max(widths.values(), key=lambda d: coder_parameters(cfg, d))
    size = latents(cfg, d)
    encoded = tokens * (2 * size * FLOAT32 + 2 * d * FLOAT32)
    yield from seen(cfg, widths, tokens, model.itemsize, (Moment.reconstruction,))
    yield Part("reconstructions", max(encoded, tokens * d * 8 * FLOAT64), (Moment.reconstruction,), True)
    yield Part("cosines", size * d * FLOAT32 + 2 * min(size, 1024) * size * FLOAT32, (Moment.comparison,), True)
    if model.predicts:
        sequence = cfg.max_seq_length * model.vocabulary
        logits = min(sequences, cfg.forward_batch_size or sequences) * sequence * model.itemsize
        more = max(encoded, logits + 5 * sequence * FLOAT64, layer(model, tokens))
        yield Part("held-out logits", logits + more, (Moment.predictions,), True)
