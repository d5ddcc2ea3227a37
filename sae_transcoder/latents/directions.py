"""What a coder's rows mean by themselves: the tokens that they raise, lower or read, the rows that are like them.

Directions in the residual stream are compared with tokens directly, as in nostalgebraist's logit lens (2020), and not through later layers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from sae_transcoder.language_model import hookpoints
from sae_transcoder.language_model.layers import layer_stack
from sae_transcoder.language_model.model_class import base, base_name
from sae_transcoder.language_model.trial import usual_id

COMPARED = 2**26  # numbers that are computed at once, of rows times tokens or latents
Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Surroundings:
    """What lies between a module and the residual stream, each a map of [row, d], None where the module does not touch the stream.

    `before`: of the embeddings, to what the module's coder reads; `after`: of the module's output, to what is unembedded.
    """

    before: Map | None
    after: Map | None


class Trace:
    """The tensors that pass through the modules of a model in one forward."""

    def __init__(self, model: PreTrainedModel):
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        prefix = base_name(model)
        handles = []
        for name, module in model.named_modules():
            short = name.removeprefix(prefix)
            handles.append(module.register_forward_hook(self._noting(short), with_kwargs=True))
        try:
            ids = torch.full((1, 4), usual_id(model), device=model.device)
            model(input_ids=ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()

    def _noting(self, name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple, kwargs: dict, result: object) -> None:
            given = [value for value in (*args, kwargs.get("hidden_states"), *kwargs.values()) if isinstance(value, Tensor)]
            made = result if isinstance(result, Tensor) else next(iter(tensors_in(result)), None)
            if given:
                self.inputs[name] = given[0]
            if made is not None:
                self.outputs[name] = made

        return note


def tensors_in(result: object) -> Iterator[Tensor]:
    """The tensors among a module's results."""
    values = result.values() if isinstance(result, dict) else result if isinstance(result, list | tuple) else ()
    yield from (value for value in values if isinstance(value, Tensor))


def same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two tensors are the same numbers in memory."""
    return one is not None and other is not None and one.data_ptr() == other.data_ptr() and one.shape == other.shape


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises its input."""
    return type(module).__name__.endswith("Norm") or isinstance(module, nn.LayerNorm)


def through(module: nn.Module | None) -> Map:
    """A norm as a map of directions [row, d], without what its bias adds; None: the directions as they are."""
    if module is None:
        return lambda rows: rows

    def mapped(rows: Tensor) -> Tensor:
        parameters = list(module.parameters())
        rows = rows.to(parameters[0].dtype) if parameters else rows
        return (module(rows) - module(torch.zeros_like(rows[:1]))).float()

    return mapped


def surroundings(model: PreTrainedModel, hookpoint: str, *, transcoder: bool) -> Surroundings:
    """How a coder's module is joined to the residual stream: found from one forward, in which the same numbers lie at the same place."""
    trace = Trace(model)
    modules = dict(base(model).named_modules())
    stack, _ = layer_stack(model)
    below = hookpoint.removeprefix(f"{stack}.").split(".") if hookpoint.startswith(f"{stack}.") else []
    layer = f"{stack}.{below[0]}" if below else ""
    output, given = trace.outputs.get(hookpoint), trace.inputs.get(hookpoint)
    norms = {name: module for name, module in modules.items() if is_norm(module)}
    sites = [name for names in hookpoints.SITE_NAMES.values() for name in names]
    is_layer = hookpoint == layer
    writes = is_layer or (below != [] and any(same(output, trace.outputs.get(f"{layer}.{site}")) for site in sites))

    def between(places: dict[str, Tensor], tensor: Tensor | None) -> nn.Module | None:
        found = [module for name, module in norms.items() if name.startswith(f"{layer}.") and same(places.get(name), tensor)]
        return found[0] if found else None

    after = through(None if is_layer else between(trace.inputs, output)) if writes else None
    if not transcoder:
        return Surroundings(through(None) if is_layer else None, after)
    norm = between(trace.outputs, given)
    reads = is_layer or norm is not None
    return Surroundings(through(norm) if reads else None, after)


def final_norm(model: PreTrainedModel) -> nn.Module | None:
    """The norm whose output the head reads; None where the head reads something else."""
    trace = Trace(model)
    head = model.get_output_embeddings()
    name = next((name for name, module in model.named_modules() if module is head), "").removeprefix(base_name(model))
    found = [
        module
        for norm, module in base(model).named_modules()
        if is_norm(module) and same(trace.outputs.get(norm), trace.inputs.get(name))
    ]
    return found[-1] if found else None


def embedding_width(model: PreTrainedModel) -> int:
    """The width of the token embeddings."""
    return model.get_input_embeddings().weight.shape[1]  # type: ignore[index, return-value]


def unembedding_width(model: PreTrainedModel) -> int | None:
    """The width of what the head unembeds; None for a model without a head."""
    head = model.get_output_embeddings()
    return None if head is None else head.weight.shape[1]  # type: ignore[index, return-value]


def chunks(rows: Tensor, width: int) -> Iterator[Tensor]:
    """The rows in pieces whose products with `width` others fit."""
    return iter(rows.split(max(1, COMPARED // width)))


def token_effects(model: PreTrainedModel, rows: Tensor, after: Map, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The tokens that directions [row, d] raise and lower most, by the final norm and the unembedding, and by how much:
    raised, their logits, lowered, their logits, each [row, count]."""
    unembedding: Tensor = model.get_output_embeddings().weight  # type: ignore[union-attr, assignment]
    last = through(final_norm(model))
    found = []
    for piece in chunks(rows, len(unembedding)):
        logits = last(after(piece)).float() @ unembedding.float().T
        raised, lowered = logits.topk(count), logits.topk(count, largest=False)
        found.append((raised.indices, raised.values, lowered.indices, lowered.values))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))  # type: ignore[return-value]


def tokens_read(model: PreTrainedModel, rows: Tensor, before: Map, count: int) -> tuple[Tensor, Tensor]:
    """The tokens whose embeddings give rows of the encoder [row, d] the largest products, and these: both [row, count]."""
    weight: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    embeddings = before(weight).float()
    found = [(piece @ embeddings.T).topk(count) for piece in chunks(rows, len(embeddings))]
    return torch.cat([best.indices for best in found]), torch.cat([best.values for best in found])


def nearest(rows: Tensor, chosen: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """For the `chosen` of the rows [row, d]: the other rows of the largest cosine, and the cosines, both [chosen, count]."""
    unit = F.normalize(rows.float(), dim=1)
    count = min(count, len(rows) - 1)
    found = []
    for numbers in chosen.split(max(1, COMPARED // len(rows))):
        cosines = unit[numbers] @ unit.T
        cosines.scatter_(1, numbers[:, None], -torch.inf)
        found.append(cosines.topk(count))
    return torch.cat([best.indices for best in found]), torch.cat([best.values for best in found])


def best_match(coder: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], chosen: Tensor) -> tuple[Tensor, Tensor]:
    """For the `chosen` latents: the latent of another coder that is most like it, by the smaller one of the cosines of encoder and decoder
    rows, and that cosine, both [chosen]. Each coder is its rows (encoder, decoder), each [latent, d]."""
    units, others = ([F.normalize(rows.float(), dim=1) for rows in each] for each in (coder, other))
    found = []
    for numbers in chosen.split(max(1, COMPARED // len(others[0]))):
        cosines = torch.minimum(units[0][numbers] @ others[0].T, units[1][numbers] @ others[1].T)
        found.append(cosines.max(1))
    return torch.cat([best.indices for best in found]), torch.cat([best.values for best in found])
