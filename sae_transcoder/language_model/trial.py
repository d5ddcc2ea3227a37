"""A trial of the forward on shapes alone: what the run will ask of its model is asked of the outline first, before weights load."""

import logging
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sae_transcoder.config import Config, ConfigError, LossFn, computes_logits
from sae_transcoder.language_model.forward import Activations, capture, spliced
from sae_transcoder.language_model.known_values import UNKNOWN, BeyondTable, KnownValues
from sae_transcoder.language_model.load_errors import reason
from sae_transcoder.language_model.model_class import base_name, has_head

SEQUENCES = 3  # unlike any dimension that a model gives a meaning of its own


class Shapes(NamedTuple):
    """The shapes of what goes into a module and comes out of it."""

    input: torch.Size
    output: torch.Size


_KNOWN: dict[Hashable, dict[str, Shapes]] = {}  # by all that they depend on: one program may plan runs of one model again and again


def forward_shapes(cfg: Config, model: PreTrainedModel, hookpoints: Sequence[str]) -> dict[str, Shapes]:
    """The shapes at the hookpoints, as `try_forward` finds them once for a model's class and config."""
    length, logits = trial_length(cfg, model), has_head(model) and computes_logits(cfg)
    key = type(model), model.config.to_json_string(), model.dtype, length, logits, cfg.loss_fn, *hookpoints
    if key not in _KNOWN:
        activations = try_forward(cfg, model, hookpoints)
        _KNOWN[key] = {name: Shapes(seen.input.shape, seen.output.shape) for name, seen in activations.items()}
    return _KNOWN[key]


def try_forward(cfg: Config, model: PreTrainedModel, hookpoints: Sequence[str]) -> dict[str, Activations]:
    """The shapes at the hookpoints of sequences [SEQUENCES, position] as long as the run's, from a forward of the outline as the run does it.

    A module that the forward does not call is missing. Raises ConfigError for a forward that fails, with the module that does.
    """
    path: list[str] = []
    fake_mode = next(model.parameters()).fake_mode  # type: ignore[attr-defined] # an outline's
    with torch.no_grad(), record_modules(model, path), silent(), fake_mode, KnownValues(fake_mode):
        try:
            tokens = torch.full((SEQUENCES, trial_length(cfg, model)), usual_id(model))
            if has_head(model) and computes_logits(cfg):
                return spliced_shapes(cfg, model, hookpoints, tokens)
            return capture(model, hookpoints, tokens)
        except Exception as error:  # of any model, in any part of it
            raise ConfigError(fault(cfg, model, path[-1] if path else "", error)) from error


def trial_length(cfg: Config, model: PreTrainedModel) -> int:
    """Positions of the run's sequences, or as many as the model has; model_checks refuses more."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(cfg.max_seq_length, positions) if isinstance(positions, int) and positions > 0 else cfg.max_seq_length


def usual_id(model: PreTrainedModel) -> int:
    """A token id that has no special meaning, such as padding, which has no position in some models."""
    configs = (model.config, model.config.get_text_config())
    special = {value for config in configs for name, value in vars(config).items() if "token" in name and isinstance(value, int)}
    return next(i for i in range(len(special) + 1) if i not in special)


def spliced_shapes(cfg: Config, model: PreTrainedModel, hookpoints: Sequence[str], tokens: Tensor) -> dict[str, Activations]:
    """The shapes at the hookpoints, from a whole forward in which each module's output is replaced by itself.

    Raises ValueError where the forward gives no logits for each position.
    """
    seen: dict[str, Activations] = {}

    def note(name: str, activations: Activations) -> Tensor:
        seen[name] = activations
        return activations.output

    labels = {"labels": tokens} if cfg.loss_fn == LossFn.ce else {}
    with spliced(model, hookpoints, note):
        result = model(input_ids=tokens, use_cache=False, **labels)
    if result.logits.shape[:-1] != tokens.shape:
        raise ValueError(f"logits of shape {list(result.logits.shape)} for {tokens.shape[0]} sequences of {tokens.shape[1]} tokens")
    return seen


@contextmanager
def silent() -> Iterator[None]:
    """While open, torch does not log the errors of its fake tensors, which are told once, by `fault`."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def record_modules(model: PreTrainedModel, path: list[str]) -> Iterator[None]:
    """While open, `path` holds the names, below the model's base, of the modules whose forward is under way; after an error, of those that
    it passed through."""
    base, handles = base_name(model), []
    for name, module in model.named_modules():
        short = name.removeprefix(base)
        handles.append(module.register_forward_pre_hook(lambda *_, short=short: path.append(short)))
        handles.append(module.register_forward_hook(lambda *_: path.__delitem__(-1)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def fault(cfg: Config, model: PreTrainedModel, module: str, error: Exception) -> str:
    """The message for a forward that fails in a module."""
    where = module or type(model).__name__
    if isinstance(error, BeyondTable):
        excess = error.asked + 1 - error.rows
        return (
            f"max_seq_length={cfg.max_seq_length}: {where} of {cfg.model_name} has {error.rows} positions, of which the first {excess} are no "
            f"token's; lower it to {trial_length(cfg, model) - excess}"
        )
    if isinstance(error, UNKNOWN):
        return (
            f"model_name={cfg.model_name}: in the forward of {type(model).__name__}, what {where} does depends on values that the weights give, so "
            "it cannot be tried without them; choose hookpoints before it, or another model"
        )
    short = {p.dtype for p in model.parameters() if p.dtype in (torch.float16, torch.bfloat16)}
    fixes = [f"set dtype=float32 in place of {str(dtype).removeprefix('torch.')}" for dtype in short]
    if getattr(model.config, "is_encoder_decoder", False):
        fixes.append("set hookpoints in its encoder, as its decoder has no input here")
    if has_head(model) and computes_logits(cfg) and cfg.loss_fn == LossFn.fvu:
        fixes.append("set eval_end_to_end=false, which needs no logits")
    fixes.append("choose other hookpoints, or another model")
    return f"model_name={cfg.model_name}: the forward of {type(model).__name__} fails in {where} ({reason(error)}); {', or '.join(fixes)}"
