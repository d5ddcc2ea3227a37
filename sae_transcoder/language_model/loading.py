"""Loads the language model: its config, its outline without weights, or the model with weights in the wanted number format."""

import logging
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME, cached_file
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import get_checkpoint_shard_files

from sae_transcoder.config import Config, ConfigError, ModelConfig, Quantization
from sae_transcoder.config.paths import expanded, is_path, local_path
from sae_transcoder.language_model.load_errors import explain_load_errors
from sae_transcoder.language_model.model_class import auto_class, base
from sae_transcoder.language_model.weights import is_of_head, weight_faults
from sae_transcoder.language_model.weights_dtype import resolve_dtype

log = logging.getLogger(__name__)

DEMO = Path(__file__).parents[1] / "demo" / "model"


def model_path(cfg: ModelConfig) -> str:
    """The name that transformers gets: the bundled model's folder for `demo`, else model_name, expanded where it is a path.

    Raises ConfigError for a path that cannot be followed.
    """
    if cfg.model_name == "demo":
        return str(DEMO)
    if is_path(cfg.model_name):
        local_path(cfg.model_name, "model_name")
    return expanded(cfg.model_name, "model_name")


def config_of(cfg: ModelConfig, layers: int | None = None) -> Any:
    """The model's config, or that of its first `layers` layers."""
    model_config = AutoConfig.from_pretrained(model_path(cfg), revision=cfg.revision, trust_remote_code=cfg.trust_remote_code)
    if layers is not None:
        model_config.get_text_config().num_hidden_layers = layers
    return model_config


def text_config(model: PreTrainedModel) -> Any:
    """The config of the model's language part; for a model of text only, the whole config."""
    return model.config.get_text_config()


# By all that they depend on: the packs and evaluations of one program ask for the same models, each with a PlanCache of its own or none.
_OUTLINES: dict[Hashable, PreTrainedModel] = {}
MOST_OUTLINES = 8  # of a large model one takes some megabytes


def outline(cfg: Config, layers: int | None = None, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """The model that `load` would give, or its first `layers` layers, without weights: parameters have shapes and take no memory.

    The same object for the same config; nothing may change it. Raises ConfigError where the model's config cannot be loaded or describes no
    text model.
    """
    with explain_load_errors(cfg, "config"):
        model_config = config_of(cfg, layers)
        kind = auto_class(cfg, model_config)
        if cfg.trust_remote_code:  # whose code may change
            return _make_outline(kind, model_config, dtype, trust_remote_code=True)
        key = kind, type(model_config), model_config.to_json_string(), dtype
        if key not in _OUTLINES:
            if len(_OUTLINES) == MOST_OUTLINES:
                _OUTLINES.clear()
            _OUTLINES[key] = _make_outline(kind, model_config, dtype, trust_remote_code=False)
        return _OUTLINES[key]


def _make_outline(kind: Any, model_config: Any, dtype: torch.dtype, *, trust_remote_code: bool) -> PreTrainedModel:
    with FakeTensorMode(), no_init_weights():  # some initialisations read values, and there are none
        model = kind.from_config(model_config, dtype=dtype, trust_remote_code=trust_remote_code)
        model.tie_weights()
    return model.eval()


def tokenizer(cfg: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises ConfigError where it cannot be loaded."""
    with explain_load_errors(cfg, "tokenizer"):
        return AutoTokenizer.from_pretrained(model_path(cfg), revision=cfg.revision, trust_remote_code=cfg.trust_remote_code)


def fetch(cfg: ModelConfig) -> None:
    """Downloads the model's weights into the hub's cache, unless they are there. Raises ConfigError where that fails."""
    if Path(model_path(cfg)).is_dir():
        return
    with explain_load_errors(cfg, "weights"):
        for name, index in [(SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)]:
            for file in (name, index):
                path = cached_file(cfg.model_name, file, revision=cfg.revision, _raise_exceptions_for_missing_entries=False)
                if path and file == index:
                    get_checkpoint_shard_files(cfg.model_name, path, revision=cfg.revision)
                if path:
                    return


def fetch_all(cfgs: Iterable[Config]) -> None:
    """The same for the models of several runs, each once."""
    for cfg in {(cfg.model_name, cfg.revision): cfg for cfg in cfgs}.values():
        fetch(cfg)


def load(cfg: Config, device: torch.device, layers: int | None = None) -> PreTrainedModel:
    """The model with its weights, frozen, in eval mode, with a language-modelling head where the run or its evaluation needs one.

    layers: how many of its first layers to load; None for all of them, which a head needs. A model that lacks the head is loaded without it
    where only the evaluation needs it. Raises ConfigError where the weights cannot be loaded, or lack a head that the loss needs.
    """
    dtype = resolve_dtype(cfg, device)
    kwargs: dict[str, Any] = dict(revision=cfg.revision, dtype=dtype, trust_remote_code=cfg.trust_remote_code)
    with explain_load_errors(cfg, "weights"):
        model_config = config_of(cfg, layers)
        if cfg.quantization is not None:
            kwargs["quantization_config"] = _bitsandbytes_config(cfg.quantization, dtype)
        if cfg.quantization is not None or getattr(model_config, "quantization_config", None) is not None:
            kwargs["device_map"] = {"": device}  # quantized weights cannot be moved afterwards
        kind: Any = auto_class(cfg, model_config)
        with quiet():  # it reports what weight_faults tells
            model, info = kind.from_pretrained(
                model_path(cfg), config=model_config, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
    if faults := weight_faults(cfg, model, info, layers):
        raise ConfigError(*faults)
    if not any(is_of_head(model, key) for key in info["missing_keys"]):
        return _frozen(model, device)
    log.warning("model_name=%s: no language-modelling head among its weights, so no end-to-end evaluation", cfg.model_name)
    return _frozen(base(model), device)


@contextmanager
def quiet() -> Iterator[None]:
    """While open, transformers reports errors only; it shows no progress from then on."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _frozen(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The model on the device, in eval mode, without gradients."""
    if not getattr(model, "is_quantized", False):
        model.to(device)  # type: ignore[arg-type]
    for module in model.modules():
        # bitsandbytes 0.50.2 packs 4-bit weights anew for CPUs with AVX512-BF16, and fails where a width is no multiple of 32 or gradients follow.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return model.eval().requires_grad_(False)


def _bitsandbytes_config(quantization: Quantization, dtype: torch.dtype) -> BitsAndBytesConfig:
    """How bitsandbytes stores linear layers and computes with them."""
    if quantization == Quantization.int8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


# Bytes of a quantized weight; 64 weights of 4 bits share a float32 scale.
WEIGHT_BYTES = {Quantization.int8: 1.0, Quantization.nf4: 0.5 + 4 / 64}


def quantized_weight_bytes(cfg: ModelConfig, model_config: Any) -> float | None:
    """Bytes of one weight of a linear layer where the settings or the checkpoint quantize it; None where neither does."""
    checkpoint = getattr(model_config, "quantization_config", None) or {}
    if cfg.quantization is not None:
        return WEIGHT_BYTES[cfg.quantization]
    if checkpoint.get("load_in_4bit"):
        return WEIGHT_BYTES[Quantization.nf4]
    if checkpoint.get("load_in_8bit"):
        return WEIGHT_BYTES[Quantization.int8]
    return checkpoint["bits"] / 8 if "bits" in checkpoint else None  # as in GPTQ and AWQ


def weight_bytes(cfg: Config, model: PreTrainedModel, dtype: torch.dtype) -> int:
    """Bytes of the weights of `model`, an outline, once it is loaded."""
    num_weights = sum(p.numel() for p in model.parameters())
    quantized = quantized_weight_bytes(cfg, model.config)
    if quantized is None:
        return num_weights * dtype.itemsize
    # A head stays as it is.
    linear = sum(module.weight.numel() for module in base(model).modules() if isinstance(module, nn.Linear | Conv1D))
    return (num_weights - linear) * dtype.itemsize + int(linear * quantized)
