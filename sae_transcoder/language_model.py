"""The language model: its outline without weights, the forward up to the last hookpoint, and the forward with modules replaced."""

import contextlib
import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from huggingface_hub import constants, get_token
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME, cached_file
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import get_checkpoint_shard_files

from sae_transcoder.config import Config, ConfigError, LossFn, ModelConfig, Quantization

log = logging.getLogger(__name__)

DEMO = Path(__file__).parent / "demo" / "model"


T = TypeVar("T")


@dataclass(frozen=True)
class Activations:
    """A module's input and output at the positions of a batch, each [batch, position, d].

    `derived`: what runs of a pack have worked out of them, for the next one that needs the same.
    """

    input: Tensor
    output: Tensor
    derived: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returns, called once for each key."""
        if key not in self.derived:
            self.derived[key] = make()
        return self.derived[key]


def model_path(cfg: ModelConfig) -> str:
    """What transformers is asked for: the bundled model's folder for `demo`, else the name as it is."""
    return str(DEMO) if cfg.model_name == "demo" else cfg.model_name


def _cannot_load(cfg: ModelConfig, what: str, error: Exception) -> ConfigError:
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    where = f"model_name={cfg.model_name}" + (f", revision={cfg.revision}" if cfg.revision else "")
    page, known = f"{constants.ENDPOINT}/{cfg.model_name}", get_token() is not None
    folder = Path(cfg.model_name).expanduser()
    causes = [error, error.__cause__, error.__context__]
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        who = "with the account that is logged in" if known else "and run `hf auth login`, or set HF_TOKEN"
        fix = f"accept its conditions on {page} {who}"
    elif any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        who = "the login may not read it" if known else "run `hf auth login`, or set HF_TOKEN"
        fix = f"there is no such model on {page}, or it is private: check the name, {who}"
    elif any(isinstance(cause, RevisionNotFoundError) for cause in causes):
        fix = f"there is no such branch, tag or commit on {page}; check revision"
    elif (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        fix = "the folder holds an adapter alone; merge it into its model (peft's merge_and_unload) and save that"
    else:
        fix = "check the name, the network (or that it is cached, with HF_HUB_OFFLINE=1), or give a local path; model=demo needs neither"
    return ConfigError(f"{where}: its {what} cannot be loaded ({reason}); {fix}")


def _config(cfg: ModelConfig, layers: int | None = None) -> Any:
    """The model's config, or that of its first `layers` layers."""
    model_config = AutoConfig.from_pretrained(model_path(cfg), revision=cfg.revision)
    if layers is not None:
        model_config.get_text_config().num_hidden_layers = layers
    return model_config


def text_config(model: PreTrainedModel) -> Any:
    """What the model's config says of its language part; for a model of text alone all of it."""
    return model.config.get_text_config()


def outline(cfg: ModelConfig, layers: int | None = None) -> PreTrainedModel:
    """The model without its weights, or its first `layers` layers: its parameters have shapes and no memory.

    Raises ConfigError where the model's config cannot be had or describes no text model.
    """
    try:
        model_config = _config(cfg, layers)
        with FakeTensorMode(), no_init_weights():  # values, which some initialisations ask for, there are none
            # Shapes do not depend on the number format; the kernels of mixtures of experts exist in bfloat16 only.
            model = AutoModel.from_config(model_config, dtype=torch.bfloat16)
    except (OSError, ValueError, KeyError) as error:
        raise _cannot_load(cfg, "config", error) from error
    return model.eval()


def tokenizer(cfg: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises ConfigError where there is none to be had."""
    try:
        return AutoTokenizer.from_pretrained(model_path(cfg), revision=cfg.revision)
    except (OSError, ValueError, KeyError) as error:
        raise _cannot_load(cfg, "tokenizer", error) from error


def fetch(cfg: ModelConfig) -> None:
    """Downloads the model's weights into the hub's cache, unless they are there. Raises ConfigError where they cannot be had."""
    if Path(model_path(cfg)).is_dir():
        return
    try:
        for name, index in [(SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)]:
            for part in (name, index):
                found = cached_file(cfg.model_name, part, revision=cfg.revision, _raise_exceptions_for_missing_entries=False)
                if found and part == index:
                    get_checkpoint_shard_files(cfg.model_name, found, revision=cfg.revision)
                if found:
                    return
    except (OSError, ValueError) as error:
        raise _cannot_load(cfg, "weights", error) from error


def load(cfg: Config, device: torch.device, layers: int | None = None) -> PreTrainedModel:
    """The model with its weights, frozen, in eval mode; with a language-modelling head where the run or its evaluation needs one and the
    model has one. layers: only so many of its first layers, None: all of them, as a head needs.

    Raises ConfigError where the weights cannot be had, or a head that the run needs is not among them.
    """
    dtype = resolve_dtype(cfg, device)
    transformers_logging.disable_progress_bar()
    arguments: dict[str, Any] = dict(revision=cfg.revision, dtype=dtype)
    if cfg.quantization is not None:
        arguments |= dict(quantization_config=_in_few_bits(cfg.quantization, dtype), device_map={"": device})
    try:
        model_config = _config(cfg, layers)
        if not (predicts_next_token(model_config) and (cfg.loss_fn != LossFn.fvu or cfg.eval_end_to_end)):
            with _quiet() if layers is not None else contextlib.nullcontext():  # it reports every weight of the other layers
                return _ready(AutoModel.from_pretrained(model_path(cfg), config=model_config, **arguments), device)
        loaded: Any = AutoModelForCausalLM.from_pretrained(model_path(cfg), output_loading_info=True, **arguments)
        model, info = loaded
    except (OSError, ValueError) as error:
        raise _cannot_load(cfg, "weights", error) from error
    if not info["missing_keys"]:
        return _ready(model, device)
    if cfg.loss_fn != LossFn.fvu:
        lacks = ", ".join(sorted(info["missing_keys"]))
        raise ConfigError(f"loss_fn={cfg.loss_fn} with model_name={cfg.model_name}: its weights lack {lacks}; use loss_fn=fvu")
    log.warning("model_name=%s: no language-modelling head among its weights, so no end-to-end evaluation", cfg.model_name)
    return _ready(model.base_model, device)


@contextmanager
def _quiet() -> Iterator[None]:
    """While it is open, transformers reports errors only."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _ready(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    if not getattr(model, "is_quantized", False):
        model.to(device)  # type: ignore[arg-type]
    for module in model.modules():
        # bitsandbytes 0.50.2 packs 4-bit weights anew for CPUs with AVX512-BF16, and fails where a width is no multiple of 32 or gradients follow.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return model.eval().requires_grad_(False)


def _in_few_bits(quantization: Quantization, dtype: torch.dtype) -> BitsAndBytesConfig:
    """How bitsandbytes is to keep linear layers, and compute with them."""
    if quantization == Quantization.int8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


# Bytes of a quantized weight; of 64 weights in 4 bits a float32 scale is kept.
WEIGHT_BYTES = {Quantization.int8: 1.0, Quantization.nf4: 0.5 + 4 / 64}


def weight_bytes(cfg: ModelConfig, model: PreTrainedModel, dtype: torch.dtype) -> int:
    """Bytes of the model's weights once it is loaded."""
    every = sum(p.numel() for p in model.parameters())
    if cfg.quantization is None:
        return every * dtype.itemsize
    linear = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear | Conv1D))
    return (every - linear) * dtype.itemsize + int(linear * WEIGHT_BYTES[cfg.quantization])


def predicts_next_token(model_config: Any) -> bool:
    """Whether models of this config have a causal language-modelling head."""
    # BERT and its like can be made decoders, and are listed as such.
    masked = type(model_config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(model_config, "is_decoder", False)
    return type(model_config) in MODEL_FOR_CAUSAL_LM_MAPPING and not masked


def predicts(model: PreTrainedModel) -> bool:
    """Whether the model was loaded with a head that gives logits."""
    return model.base_model is not model


def resolve_dtype(cfg: ModelConfig, device: torch.device) -> torch.dtype:
    """The weights' number format: as set, else bfloat16 on a GPU that has it, else float32."""
    if cfg.dtype is not None:
        return getattr(torch, cfg.dtype)
    if device.type != "cuda":
        return torch.float32
    # Where there is no GPU the run will be on another machine, whose GPUs most likely have it.
    has = not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has else torch.float32


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
