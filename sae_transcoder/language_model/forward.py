"""The language model's forward: up to the last hookpoint, or with the outputs of modules replaced."""

import contextlib
import copy
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from sae_transcoder.config import LossFn
from sae_transcoder.language_model.model_class import base

T = TypeVar("T")

IGNORED = -100  # the label that cross_entropy leaves out


@dataclass(frozen=True)
class Activations:
    """A module's input and output for a batch, each [batch, position, d].

    `derived`: values that a run has computed from them, kept for other runs of the pack that need the same.
    """

    input: Tensor
    output: Tensor
    derived: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)

    def cached(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The result of `compute`, which is called once for each key."""
        if key not in self.derived:
            self.derived[key] = compute()
        return self.derived[key]


class _Reached(Exception):
    """The last hookpoint has been computed; nothing later in the model is needed."""


def _first_tensor(values: Any) -> Tensor | None:
    """The first tensor among a module's arguments or results, which may be a tensor, a tuple or a dict."""
    if isinstance(values, Tensor):
        return values
    candidates = values.values() if isinstance(values, dict) else values if isinstance(values, list | tuple) else ()
    return next((v for v in candidates if isinstance(v, Tensor)), None)


def _with_first_tensor(values: Any, tensor: Tensor) -> Any:
    """A module's results with another first tensor; their kind, which may have names, stays."""
    if isinstance(values, Tensor):
        return tensor
    if isinstance(values, dict):
        named = copy.copy(values)
        named[next(name for name, value in values.items() if isinstance(value, Tensor))] = tensor
        return named
    place = next(i for i, value in enumerate(values) if isinstance(value, Tensor))
    changed = [*values[:place], tensor, *values[place + 1 :]]
    return type(values)(*changed) if hasattr(values, "_fields") else type(values)(changed)


def _activations(args: tuple, kwargs: dict[str, Any], result: Any) -> Activations | None:
    """The hidden states in and out among a forward hook's arguments; None where there are none."""
    hidden_states, output = _first_tensor(args), _first_tensor(result)
    if hidden_states is None:
        hidden_states = kwargs.get("hidden_states", _first_tensor(kwargs))
    return None if hidden_states is None or output is None else Activations(hidden_states, output)


@contextmanager
def _hooked(model: PreTrainedModel, hookpoints: Sequence[str], hook: Callable[[str, Activations, Any], Any]) -> Iterator[None]:
    """While open, calls `hook(hookpoint, activations, result)` after each of the modules; what it returns, unless None, replaces the
    module's result."""

    def hook_of(name: str) -> Any:
        def forward_hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], result: Any) -> Any:
            activations = _activations(args, kwargs, result)
            return None if activations is None else hook(name, activations, result)

        return forward_hook

    below = base(model)
    handles = [below.get_submodule(name).register_forward_hook(hook_of(name), with_kwargs=True) for name in hookpoints]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# Models in which a module writes into an earlier module's output (Falcon's layers do): their activations are copied.
_OVERWRITING: WeakSet[PreTrainedModel] = WeakSet()


def ids_of(tokens: Tensor) -> Tensor:
    """The ids of `tokens`, in which the complement of an id marks a position that is left out of training and evaluation."""
    return torch.where(tokens < 0, ~tokens, tokens)


@torch.no_grad()
def capture(
    model: PreTrainedModel, hookpoints: Sequence[str], tokens: Tensor, batch_size: int | None = None
) -> dict[str, Activations]:
    """The inputs and outputs of the modules at `hookpoints` for `tokens` [batch, position], in the model's dtype, as they were at the call.

    batch_size: sequences per forward, None for all. The forward stops after the last of the modules; a module that the forward does not call
    is missing from the result.
    """
    if batch_size is not None and batch_size < len(tokens):
        parts = [capture(model, hookpoints, part) for part in tokens.split(batch_size)]
        return {
            name: Activations(torch.cat([p[name].input for p in parts]), torch.cat([p[name].output for p in parts]))
            for name in parts[0]
        }
    captured: dict[str, Activations] = {}
    versions: dict[str, tuple[int, int]] = {}
    copying = model in _OVERWRITING

    def keep(name: str, activations: Activations, result: Any) -> None:
        captured[name] = Activations(activations.input.clone(), activations.output.clone()) if copying else activations
        versions[name] = (captured[name].input._version, captured[name].output._version)
        if len(captured) == len(hookpoints):
            raise _Reached

    with contextlib.suppress(_Reached), _hooked(model, hookpoints, keep):
        base(model)(input_ids=ids_of(tokens), use_cache=False)
    if any(versions[name] != (a.input._version, a.output._version) for name, a in captured.items()):
        _OVERWRITING.add(model)
        return capture(model, hookpoints, tokens)
    return captured


Replace = Callable[[str, Activations], Tensor]


def spliced(model: PreTrainedModel, hookpoints: Sequence[str], replace: Replace) -> AbstractContextManager[None]:
    """While open, the output of the module at each hookpoint is what `replace(hookpoint, activations)` returns, [batch, position, d].

    Whatever else the module returns (attention weights, a cache) stays as it is. Later modules see the replaced output.
    """

    def replaced_result(name: str, activations: Activations, result: Any) -> Any:
        return _with_first_tensor(result, replace(name, activations))

    return _hooked(model, hookpoints, replaced_result)


def spliced_output(output: Tensor, kept: Tensor | None, reconstruction: Tensor) -> Tensor:
    """`output` [batch, position, d] with the positions `kept` [token] (None: all) replaced by `reconstruction` [token, d]."""
    if kept is None:
        return reconstruction.to(output.dtype).view(output.shape)
    flat = output.flatten(0, 1).clone()
    flat[kept] = reconstruction.to(output.dtype)
    return flat.view(output.shape)


def end_to_end_loss(
    model: PreTrainedModel, tokens: Tensor, hookpoints: Sequence[str], replace: Replace, loss_fn: LossFn, *, marked: bool = False
) -> Tensor:
    """The loss in nats of `tokens` [batch, position] with the modules at `hookpoints` replaced, differentiable in what `replace` returns.

    ce: mean cross-entropy of the next token; kl: mean KL(original || spliced) of the next-token distributions over all positions.
    marked: whether some tokens are marked as left out (see ids_of); neither the prediction of these nor the distributions there count then.
    """
    ids = ids_of(tokens)
    if loss_fn == LossFn.ce:
        with spliced(model, hookpoints, replace):
            if not marked:
                return model(input_ids=ids, labels=ids, use_cache=False).loss
            logits = model(input_ids=ids, use_cache=False).logits.float()
            labels = tokens[:, 1:].masked_fill(tokens[:, 1:] < 0, IGNORED).flatten()
            return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels, reduction="sum") / (labels != IGNORED).sum().clamp(min=1)
    with torch.no_grad():
        clean = model(input_ids=ids, use_cache=False).logits.float()
    with spliced(model, hookpoints, replace):
        spliced_log_probs = model(input_ids=ids, use_cache=False).logits.float().log_softmax(dim=-1)
    divergence = (clean.softmax(dim=-1) * (clean.log_softmax(dim=-1) - spliced_log_probs)).sum(dim=-1)
    return (divergence * (tokens >= 0)).sum() / (tokens >= 0).sum().clamp(min=1) if marked else divergence.mean()
