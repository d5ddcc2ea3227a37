"""The estimate of what a run needs of its device's memory, from the sizes of model, coders and batches.

It counts what the run really holds, tensor by tensor (tests/preflight/test_memory_estimate.py measures that on a CPU). Nothing here imports torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from sae_transcoder import distributed
from sae_transcoder.coder.chunk_sizes import CHUNK_SIZE, SMALL_BATCH
from sae_transcoder.config import (
    OPTIMIZERS,
    WITH_THRESHOLD,
    Activation,
    Config,
    LossFn,
    ModelType,
    NormalizeActivations,
    evaluation_batch,
    matryoshka_widths,
    num_latents,
)
from sae_transcoder.preflight.peak import ALWAYS, BATCH, SAVE, Moment, Part

if TYPE_CHECKING:
    from sae_transcoder.language_model.sizes import ModelSizes

CUDA_CONTEXT = 10**9  # bytes that CUDA and its libraries take; not measured
BFLOAT16, FLOAT32, FLOAT64, INT64 = 2, 4, 8, 8  # bytes
CANDIDATES = {"cpu": 8, "cuda": 32}  # latents searched for each one selected (coder/latent_selection.py)


def coder_parameters(cfg: Config, width: int) -> int:
    """Parameters of one coder: encoder, decoder, their biases, thresholds, and the skip connection."""
    biases = num_latents(cfg, width) * (2 if cfg.activation == Activation.jumprelu else 1) + width
    return 2 * width * num_latents(cfg, width) + biases + cfg.skip_connection * width**2


def all_parameters(cfg: Config, widths: Mapping[str, int]) -> int:
    """Parameters of the coders of all seeds on these hookpoints."""
    return sum(coder_parameters(cfg, d) for d in widths.values()) * len(cfg.init_seeds)


def memory_estimate(cfg: Config, widths: Mapping[str, int], model: ModelSizes, device: str, processes: int = 1) -> list[Part]:
    """What a run holds on its device, of type cpu or cuda. Of several processes, what the one that holds most holds on its own device.

    widths: {hookpoint: d}.
    """
    trained = largest_share(cfg, widths, processes) if cfg.distribute_modules else dict(widths)
    parts = [Part("language model", model.weights, ALWAYS, True)]
    parts += [Part("CUDA", CUDA_CONTEXT, ALWAYS, True)] if device == "cuda" else []
    parts += coder_parts(cfg, trained, device)
    parts += batch_parts(cfg, trained, model, device) if cfg.loss_fn == LossFn.fvu else end_to_end_parts(cfg, trained, model)
    parts += update_parts(cfg, trained, device, processes)
    parts += save_parts(cfg, widths, model)  # the first process evaluates all coders
    return parts


def largest_share(cfg: Config, widths: Mapping[str, int], processes: int) -> dict[str, int]:
    """The widths of the hookpoints of the process with the most parameters."""
    parameters = {point: coder_parameters(cfg, d) * len(cfg.init_seeds) for point, d in widths.items()}
    points = max(distributed.split_hookpoints(parameters, processes), key=lambda share: sum(parameters[point] for point in share))
    return {point: widths[point] for point in points}


def coder_parts(cfg: Config, widths: Mapping[str, int], device: str) -> Iterator[Part]:
    """Weights, optimizer states, the tokens since each latent fired, and gradients."""
    numbers = all_parameters(cfg, widths)
    counts = sum(num_latents(cfg, d) for d in widths.values()) * len(cfg.init_seeds) * (INT64 + 1)
    yield Part("coders", numbers * FLOAT32 * (1 + OPTIMIZERS[cfg.optimizer].states) + counts, ALWAYS)
    if cfg.grad_acc_steps > 1:
        yield Part("gradients", numbers * FLOAT32, BATCH)
    else:  # freed before the next run trains, unless the runs train together
        shared = None if trains_together(cfg, widths, device) else True
        yield Part("gradients", numbers * FLOAT32, (Moment.coder, Moment.update), shared)


def trains_together(cfg: Config, widths: Mapping[str, int], device: str) -> bool:
    """Whether the run's coders are computed together with those of other runs (training/batched_training.py)."""
    most = max(num_latents(cfg, d) for d in widths.values())
    return cfg.loss_fn == LossFn.fvu and cfg.batch_size * cfg.max_seq_length * most <= SMALL_BATCH[device]


def batch_parts(cfg: Config, widths: Mapping[str, int], model: ModelSizes, device: str) -> Iterator[Part]:
    """The activations of a batch, the rest of the language model's forward, and a coder's step."""
    tokens = cfg.batch_size * cfg.max_seq_length
    sequences = min(cfg.forward_batch_size or cfg.batch_size, cfg.batch_size)
    yield from activation_parts(cfg, widths, tokens, model.itemsize, BATCH)
    if sequences < cfg.batch_size:  # the forward runs on pieces of the batch, whose activations are then joined
        for point, d in widths.items():
            yield Part("pieces of activations", 2 * tokens * d * model.itemsize, (Moment.forward,), point)
    yield Part("a layer", layer_bytes(model, sequences * cfg.max_seq_length), (Moment.forward,), True)
    yield coder_steps(cfg, widths, tokens, device)


def coder_steps(cfg: Config, widths: Mapping[str, int], tokens: int, device: str) -> Part:
    """What coders' steps on a batch hold: one step after the other; for small batches, as many at once as fill a piece."""
    largest = max(step_bytes(cfg, d, tokens, device) for d in widths.values())
    own_way = cfg.multi_topk or cfg.skip_connection or cfg.matryoshka_widths is not None
    own_way = own_way or cfg.activation in WITH_THRESHOLD or not cfg.corrections
    if own_way or not trains_together(cfg, widths, device):  # batched_coders.batch_key
        return Part("coders' steps", largest, (Moment.coder,), "one by one")
    stacked = max(coder_parameters(cfg, d) for d in widths.values()) * FLOAT32  # a copy of the weights beside those of other coders
    at_once = max(1, CHUNK_SIZE[device] // (tokens * max(num_latents(cfg, d) for d in widths.values())))
    seeds = min(at_once, len(cfg.init_seeds))
    return Part("coders' steps", seeds * (largest + stacked), (Moment.coder,), "together", at_once // seeds)


def activation_parts(
    cfg: Config, widths: Mapping[str, int], tokens: int, itemsize: int, moments: Sequence[Moment]
) -> Iterator[Part]:
    """The inputs and outputs of the hookpoints for so many tokens, and the coders' inputs made of them."""
    selection = (tuple(cfg.exclude_tokens), cfg.exclude_first_tokens, cfg.max_norm_multiple)
    sides = 2 if cfg.model_type == ModelType.transcoder else 1
    for point, d in widths.items():
        for tensor in (point, input_tensor(point)):
            yield Part("activations", tokens * d * itemsize, moments, tensor)
        if itemsize != FLOAT32 or any(selection):  # else the coders' inputs are the same tensors
            later = [moment for moment in moments if moment != Moment.forward]
            yield Part("coders' inputs", sides * tokens * d * FLOAT32, later, (point, cfg.model_type, selection))


def input_tensor(point: str) -> str:
    """The name of a hookpoint's input: that of the layer before, whose output it is, or a name of its own."""
    match = re.fullmatch(r"(.*\.)(\d+)", point)
    return f"{match[1]}{int(match[2]) - 1}" if match else f"{point}'s input"


def layer_bytes(model: ModelSizes, tokens: int) -> int:
    """Bytes that a layer computes at once: three tensors of an MLP's inner width, and the hidden states with and without their norm."""
    return tokens * model.itemsize * (3 * model.widest + 2 * model.width)


def end_to_end_parts(cfg: Config, widths: Mapping[str, int], model: ModelSizes) -> Iterator[Part]:
    """What a forward with the coders in place keeps for its gradient: the layers after the first hookpoint, the logits and all coders."""
    tokens = cfg.batch_size * cfg.max_seq_length
    first = min(int(next((part for part in point.split(".") if part.isdigit()), 0)) for point in widths)
    kept_by_layer = tokens * model.itemsize * (3 * model.widest + 6 * model.width)
    yield from activation_parts(cfg, widths, tokens, model.itemsize, (Moment.coder,))
    yield Part("layers", (model.layers - 1 - first) * kept_by_layer, (Moment.coder,), True)
    # ce: the logits' softmax and two gradients; kl: softmax, its logarithm, their difference, for both models
    yield Part("logits", tokens * model.vocabulary * FLOAT32 * (5 if cfg.loss_fn == LossFn.kl else 3), (Moment.coder,), True)
    yield Part("coders' steps", sum(forward_bytes(cfg, d, tokens) for d in widths.values()), (Moment.coder,), True)


def auxk_can_act(cfg: Config) -> bool:
    """Whether the run may be long enough for dead latents, on which AuxK acts."""
    tokens = min(math.inf if cfg.max_samples is None else cfg.max_samples * cfg.max_seq_length, cfg.max_tokens or math.inf)
    return cfg.auxk_alpha > 0 and tokens > cfg.dead_feature_threshold


def latents_per_token(cfg: Config, d: int) -> list[int]:
    """How many latents are selected for a token at most, for each reconstruction: by k, by AuxK and by Multi-TopK."""
    size = num_latents(cfg, d)
    k = min(size, 10 * d) if cfg.k_decay_steps else cfg.k
    if cfg.activation == Activation.jumprelu:
        k = max(2 * k, math.ceil(size * share_near_or_above(cfg)))
    return [k, *([min(size, d // 2)] if auxk_can_act(cfg) else []), *([min(size, 4 * k)] if cfg.multi_topk else [])]


def share_near_or_above(cfg: Config) -> float:
    """The share of latents whose pre-activations lie above the window of JumpReLU's thresholds at the start, where encoder rows are random:
    about half without normalisation, whose scale is not known here."""
    if cfg.normalize_activations == NormalizeActivations.none:
        return 0.5
    deviation = 3**-0.5  # of a pre-activation, by the norm of torch's rows
    return 0.5 * math.erfc((cfg.jumprelu_init_threshold - cfg.jumprelu_bandwidth / 2) / deviation / 2**0.5)


def entry_bytes(cfg: Config) -> int:
    """Bytes that a forward holds for each chosen latent: index, pre-activation, activation; where tokens have differing numbers of them their
    token and its copies of another type; with jumprelu own thresholds and slopes."""
    return INT64 + 2 * FLOAT32 + {Activation.batchtopk: 2 * INT64, Activation.jumprelu: 5 * INT64}.get(cfg.activation, 0)


def copies_input(cfg: Config) -> bool:
    """Whether a coder's input is a new tensor: an SAE subtracts the decoder's bias from it."""
    return cfg.model_type == ModelType.sae


def forward_bytes(cfg: Config, d: int, tokens: int) -> int:
    """Bytes that a coder's forward makes for so many tokens.

    For each reconstruction: the sum of rows, the same with the bias, and the error; for one of them its squares too. For each chosen
    latent: `entry_bytes`. For each dictionary of a Matryoshka coder: its part, whose memory its error takes over.
    """
    chosen = latents_per_token(cfg, d)
    nested = len(matryoshka_widths(cfg, d) or ())
    return tokens * (d * FLOAT32 * (copies_input(cfg) + 3 * len(chosen) + 1 + nested) + sum(chosen) * entry_bytes(cfg))


def batch_selection_bytes(cfg: Config, d: int, tokens: int) -> int:
    """Bytes that batchtopk holds of a whole batch while its pieces are trained: its input, and each selected latent with its token."""
    if cfg.activation != Activation.batchtopk or cfg.micro_acc_steps == 1:
        return 0
    return tokens * (d * FLOAT32 * copies_input(cfg) + latents_per_token(cfg, d)[0] * (2 * INT64 + FLOAT32))


def step_bytes(cfg: Config, d: int, tokens: int, device: str) -> int:
    """Bytes that a coder's forward and backward make at once, on a batch of so many tokens in `micro_acc_steps` pieces."""
    selected = batch_selection_bytes(cfg, d, tokens)
    tokens, size, chosen = math.ceil(tokens / cfg.micro_acc_steps), num_latents(cfg, d), latents_per_token(cfg, d)
    row, forward = tokens * d * FLOAT32, forward_bytes(cfg, d, tokens)
    item = BFLOAT16 if device == "cuda" else FLOAT32  # bytes of a pre-activation
    if not cfg.corrections:
        all_latents = tokens * size * item  # pre-activations, and after ReLU; or their gradient
        return max(2 * all_latents + forward, all_latents + row * (copies_input(cfg) + 4 + cfg.k))  # a row for each chosen latent
    # The output and gradients; chosen latents sorted, with their tokens, places and gradients.
    backward = row * (copies_input(cfg) + len(chosen) + 1) + tokens * (40 * sum(chosen) + 12 * max(chosen))
    piece = min(tokens, max(1, CHUNK_SIZE[device] // size))  # tokens
    # Pre-activations of a piece, of the one before and of dead latents, and the candidates for the k largest.
    candidates = max(CANDIDATES[device] * k if 2 * CANDIDATES[device] * k <= size else 0 for k in chosen)
    pre_activations = (min(tokens, 2 * piece) + piece * auxk_can_act(cfg)) * size * item
    selection = row * copies_input(cfg) + pre_activations + piece * candidates * (INT64 + item)
    if device == "cpu":
        return max(selection, selected + forward, selected + backward)
    copies = BFLOAT16 * (size * d + tokens * d)  # of a weight and of rows
    # Activations of a piece as a dense matrix, or partial sums of latents that fire often.
    sums = max(piece * size * BFLOAT16, (tokens * sum(chosen) // 256 + size) * d * FLOAT32)
    return max(selection + copies, selected + forward, selected + backward + copies + sums)


def update_parts(cfg: Config, widths: Mapping[str, int], device: str, processes: int) -> Iterator[Part]:
    """What an optimizer's step computes, and before it the gradients that ranks exchange."""
    largest = max(widths.values(), key=lambda d: coder_parameters(cfg, d))
    matrix = num_latents(cfg, largest) * largest  # numbers
    optimizer = OPTIMIZERS[cfg.optimizer]
    if not optimizer.fused or cfg.corrections:
        held = matrix * optimizer.step_bytes
    elif device == "cpu":  # torch steps in several passes, parameter by parameter
        held = 2 * matrix * FLOAT32
    else:  # and on a GPU for all parameters at once
        held = sum(coder_parameters(cfg, d) for d in widths.values()) * FLOAT32
    yield Part("an optimizer's step", held, (Moment.update,), True)
    if processes > 1 and not cfg.distribute_modules:
        yield Part("gradients exchanged", coder_parameters(cfg, largest) * FLOAT32, (Moment.update,), True)


def save_parts(cfg: Config, widths: Mapping[str, int], model: ModelSizes) -> Iterator[Part]:
    """Copies of the coders, and what their evaluation computes."""
    numbers = all_parameters(cfg, widths)
    yield Part("copies of coders", numbers * FLOAT32, SAVE)
    if OPTIMIZERS[cfg.optimizer].averaged:  # the weights are kept while their average is copied
        yield Part("weights kept", numbers * FLOAT32, (Moment.copy,), True)
    sequences = min(evaluation_batch(cfg, model.vocabulary), cfg.eval_samples)
    tokens = sequences * cfg.max_seq_length
    d = max(widths.values(), key=lambda d: coder_parameters(cfg, d))
    size = num_latents(cfg, d)
    encoded = tokens * (2 * size * FLOAT32 + 2 * d * FLOAT32)
    yield from activation_parts(cfg, widths, tokens, model.itemsize, (Moment.reconstruction,))
    yield Part("reconstructions", max(encoded, tokens * d * 8 * FLOAT64), (Moment.reconstruction,), True)
    yield Part("cosines", size * d * FLOAT32 + 2 * min(size, 1024) * size * FLOAT32, (Moment.comparison,), True)
    if model.predicts:
        sequence = cfg.max_seq_length * model.vocabulary  # logits
        logits = min(sequences, cfg.forward_batch_size or sequences) * sequence * model.itemsize
        computed = max(encoded, logits + 5 * sequence * FLOAT64, layer_bytes(model, tokens))
        yield Part("held-out logits", logits + computed, (Moment.predictions,), True)
