"""The language model's forward: up to the last hookpoint, and with modules' outputs replaced."""

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sae_transcoder.config import LossFn

T = TypeVar("T")


@dataclass(frozen=True)
class Activations:
    """A module's input and output at the positions of a batch, each [batch, position, d].

    `derived`: what runs of a pack have worked out of them, for the next one that needs the same.
    """

    input: Tensor
    output: Tensor
    derived: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)

    def cached(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returns, called once for each key."""
        if key not in self.derived:
            self.derived[key] = make()
        return self.derived[key]


class _Reached(Exception):
    """The last hookpoint has been computed; nothing later in the model is needed."""


def _first_tensor(values: Any) -> Tensor | None:
    """The hidden states among a module's arguments or results, which may be a tensor, a tuple or named."""
    if isinstance(values, Tensor):
        return values
    candidates = values.values() if isinstance(values, dict) else values if isinstance(values, list | tuple) else ()
    return next((v for v in candidates if isinstance(v, Tensor)), None)


def _activations(args: tuple, kwargs: dict[str, Any], result: Any) -> Activations | None:
    """What a forward hook is given, as hidden states in and out; None where there are none."""
    given, output = _first_tensor(args), _first_tensor(result)
    if given is None:
        given = kwargs.get("hidden_states", _first_tensor(kwargs))
    return None if given is None or output is None else Activations(given, output)


@contextmanager
def _hooked(model: PreTrainedModel, points: Sequence[str], hook: Callable[[str, Activations, Any], Any]) -> Iterator[None]:
    """While it is open, `hook(point, its input and output, what it returned)` is called after each of the modules; a result other than
    None takes the place of what the module returned."""

    def hook_of(name: str) -> Any:
        def called(module: nn.Module, args: tuple, kwargs: dict[str, Any], result: Any) -> Any:
            seen = _activations(args, kwargs, result)
            return None if seen is None else hook(name, seen, result)

        return called

    base = model.base_model
    handles = [base.get_submodule(name).register_forward_hook(hook_of(name), with_kwargs=True) for name in points]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# Models whose modules write into what an earlier module returned (Falcon's layers do): their activations are copied.
_OVERWRITING: WeakSet[PreTrainedModel] = WeakSet()


@torch.no_grad()
def capture(model: PreTrainedModel, points: Sequence[str], tokens: Tensor, size: int | None = None) -> dict[str, Activations]:
    """Inputs and outputs of the modules `points` for `tokens` [batch, position], in the model's dtype, as they were when each was called.

    size: sequences per forward, None: all. The forward stops once each has been seen; a module that the forward does not call is missing
    from the result.
    """
    if size is not None and size < len(tokens):
        parts = [capture(model, points, part) for part in tokens.split(size)]
        return {
            name: Activations(torch.cat([p[name].input for p in parts]), torch.cat([p[name].output for p in parts]))
            for name in parts[0]
        }
    seen: dict[str, Activations] = {}
    versions: dict[str, tuple[int, int]] = {}
    copying = model in _OVERWRITING

    def keep(name: str, activations: Activations, result: Any) -> None:
        seen[name] = Activations(activations.input.clone(), activations.output.clone()) if copying else activations
        versions[name] = (seen[name].input._version, seen[name].output._version)
        if len(seen) == len(points):
            raise _Reached

    with contextlib.suppress(_Reached), _hooked(model, points, keep):
        model.base_model(input_ids=tokens, use_cache=False)
    if any(versions[name] != (a.input._version, a.output._version) for name, a in seen.items()):
        _OVERWRITING.add(model)
        return capture(model, points, tokens)
    return seen


Replace = Callable[[str, Activations], Tensor]


def spliced(model: PreTrainedModel, points: Sequence[str], replace: Replace) -> AbstractContextManager[None]:
    """While it is open, the module at each of `points` gives what `replace(point, its input and output)` returns, [batch, position, d].

    Whatever else the module returns (attention weights, a cache) stays as it is. A module further on sees the replaced values.
    """

    def instead(name: str, activations: Activations, result: Any) -> Any:
        new = replace(name, activations)
        return new if isinstance(result, Tensor) else (new, *result[1:])

    return _hooked(model, points, instead)


def spliced_output(output: Tensor, kept: Tensor | None, reconstruction: Tensor) -> Tensor:
    """`output` [batch, position, d] with the positions `kept` [token] (None: all) replaced by `reconstruction` [token, d]."""
    if kept is None:
        return reconstruction.to(output.dtype).view(output.shape)
    flat = output.flatten(0, 1).clone()
    flat[kept] = reconstruction.to(output.dtype)
    return flat.view(output.shape)


def end_to_end_loss(model: PreTrainedModel, tokens: Tensor, points: Sequence[str], replace: Replace, loss_fn: LossFn) -> Tensor:
    """The loss of `tokens` [batch, position] with the modules at `points` replaced, in nats, differentiable in what `replace` returns.

    ce: mean cross-entropy of the next token; kl: mean KL(original || spliced) of the next-token distributions over all positions.
    """
    if loss_fn == LossFn.ce:
        with spliced(model, points, replace):
            return model(input_ids=tokens, labels=tokens, use_cache=False).loss
    with torch.no_grad():
        clean = model(input_ids=tokens, use_cache=False).logits.float()
    with spliced(model, points, replace):
        dirty = model(input_ids=tokens, use_cache=False).logits.float().log_softmax(dim=-1)
    return (clean.softmax(dim=-1) * (clean.log_softmax(dim=-1) - dirty)).sum(dim=-1).mean()
