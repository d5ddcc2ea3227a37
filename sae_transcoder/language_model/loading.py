"""Loads the language model: its config, its outline without weights, or the model with weights in the wanted number format."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_token
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError
from torch import nn
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
from sae_transcoder.config.paths import expanded, is_path, local_path
from sae_transcoder.language_model.weights import is_of_head, weight_faults

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


def cannot_load(cfg: ModelConfig, part: str, error: Exception) -> ConfigError:
    """The message for a part of the model that cannot be loaded, with a fix for each cause that is known."""
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    setting = f"model_name={cfg.model_name}" + (f", revision={cfg.revision}" if cfg.revision else "")
    page, logged_in = f"{constants.ENDPOINT}/{cfg.model_name}", get_token() is not None
    folder = Path(model_path(cfg))
    causes = [error, error.__cause__, error.__context__]
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        login = "with the account that is logged in" if logged_in else "and run `hf auth login`, or set HF_TOKEN"
        fix = f"accept its conditions on {page} {login}"
    elif any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        login = "the login may not read it" if logged_in else "run `hf auth login`, or set HF_TOKEN"
        fix = f"there is no such model on {page}, or it is private: check the name, {login}"
    elif any(isinstance(cause, HfHubHTTPError) and cause.response.status_code == 401 for cause in causes):
        fix = "the hub does not know the token; run `hf auth login`, or correct HF_TOKEN"
    elif any(isinstance(cause, RevisionNotFoundError) for cause in causes):
        fix = f"there is no such branch, tag or commit on {page}; check revision"
    elif (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        fix = "the folder holds an adapter alone; merge it into its model (peft's merge_and_unload) and save that"
    else:
        fix = "check the name, the network (or that it is cached, with HF_HUB_OFFLINE=1), or give a local path; model=demo needs neither"
    return ConfigError(f"{setting}: its {part} cannot be loaded ({reason}); {fix}")


def config_of(cfg: ModelConfig, layers: int | None = None) -> Any:
    """The model's config, or that of its first `layers` layers."""
    model_config = AutoConfig.from_pretrained(model_path(cfg), revision=cfg.revision)
    if layers is not None:
        model_config.get_text_config().num_hidden_layers = layers
    return model_config


def text_config(model: PreTrainedModel) -> Any:
    """The config of the model's language part; for a model of text only, the whole config."""
    return model.config.get_text_config()


def outline(cfg: ModelConfig, layers: int | None = None) -> PreTrainedModel:
    """The model, or its first `layers` layers, without weights: parameters have shapes and take no memory.

    Raises ConfigError where the model's config cannot be loaded or describes no text model.
    """
    try:
        model_config = config_of(cfg, layers)
        with FakeTensorMode(), no_init_weights():  # some initialisations read values, and there are none
            # Shapes do not depend on the number format; the kernels of mixtures of experts exist in bfloat16 only.
            model = AutoModel.from_config(model_config, dtype=torch.bfloat16)
    except (OSError, ValueError, KeyError) as error:
        raise cannot_load(cfg, "config", error) from error
    return model.eval()


def tokenizer(cfg: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises ConfigError where it cannot be loaded."""
    try:
        return AutoTokenizer.from_pretrained(model_path(cfg), revision=cfg.revision)
    except (OSError, ValueError, KeyError) as error:
        raise cannot_load(cfg, "tokenizer", error) from error


def fetch(cfg: ModelConfig) -> None:
    """Downloads the model's weights into the hub's cache, unless they are there. Raises ConfigError where that fails."""
    if Path(model_path(cfg)).is_dir():
        return
    try:
        for name, index in [(SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)]:
            for file in (name, index):
                path = cached_file(cfg.model_name, file, revision=cfg.revision, _raise_exceptions_for_missing_entries=False)
                if path and file == index:
                    get_checkpoint_shard_files(cfg.model_name, path, revision=cfg.revision)
                if path:
                    return
    except (OSError, ValueError) as error:
        raise cannot_load(cfg, "weights", error) from error


def load(cfg: Config, device: torch.device, layers: int | None = None) -> PreTrainedModel:
    """The model with its weights, frozen, in eval mode, with a language-modelling head where the run or its evaluation needs one.

    layers: how many of its first layers to load; None for all of them, which a head needs. A model that lacks the head is loaded without it
    where only the evaluation needs it. Raises ConfigError where the weights cannot be loaded, or lack a head that the loss needs.
    """
    dtype = resolve_dtype(cfg, device)
    kwargs: dict[str, Any] = dict(revision=cfg.revision, dtype=dtype, ignore_mismatched_sizes=True)  # weight_faults refuses them
    try:
        model_config = config_of(cfg, layers)
        if cfg.quantization is not None:
            kwargs["quantization_config"] = _bitsandbytes_config(cfg.quantization, dtype)
        if cfg.quantization is not None or getattr(model_config, "quantization_config", None) is not None:
            kwargs["device_map"] = {"": device}  # quantized weights cannot be moved afterwards
        kind = AutoModelForCausalLM if needs_head(cfg, model_config) else AutoModel
        with quiet():  # it reports what weight_faults tells
            loaded: Any = kind.from_pretrained(model_path(cfg), config=model_config, output_loading_info=True, **kwargs)
        model, info = loaded
    except (OSError, ValueError, ImportError, SafetensorError) as error:  # ImportError: a package that a quantized checkpoint needs
        raise cannot_load(cfg, "weights", error) from error
    if faults := weight_faults(cfg, model, info, layers):
        raise ConfigError(*faults)
    if not any(is_of_head(model, key) for key in info["missing_keys"]):
        return _frozen(model, device)
    log.warning("model_name=%s: no language-modelling head among its weights, so no end-to-end evaluation", cfg.model_name)
    return _frozen(model.base_model, device)


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
    """Bytes of the model's weights once it is loaded, with the head that the run needs; `model` itself has none."""
    num_weights = sum(p.numel() for p in model.parameters())
    text = text_config(model)
    if needs_head(cfg, model.config) and not getattr(text, "tie_word_embeddings", True):
        num_weights += text.vocab_size * text.hidden_size
    quantized = quantized_weight_bytes(cfg, model.config)
    if quantized is None:
        return num_weights * dtype.itemsize
    linear = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear | Conv1D))
    return (num_weights - linear) * dtype.itemsize + int(linear * quantized)


def needs_head(cfg: Config, model_config: Any) -> bool:
    """Whether the run or its evaluation computes logits, and the model can compute them."""
    return predicts_next_token(model_config) and (cfg.loss_fn != LossFn.fvu or cfg.eval_end_to_end)


def predicts_next_token(model_config: Any) -> bool:
    """Whether models of this config have a causal language-modelling head."""
    # BERT and its like can be made decoders, and are listed among the causal models.
    masked = type(model_config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(model_config, "is_decoder", False)
    return type(model_config) in MODEL_FOR_CAUSAL_LM_MAPPING and not masked


def has_head(model: PreTrainedModel) -> bool:
    """Whether the model was loaded with a language-modelling head."""
    return model.base_model is not model


def resolve_dtype(cfg: ModelConfig, device: torch.device) -> torch.dtype:
    """The weights' number format: `dtype` where it is set, else bfloat16 on a GPU that has it, else float32."""
    if cfg.dtype is not None:
        return getattr(torch, cfg.dtype)
    if device.type != "cuda":
        return torch.float32
    # Without a GPU here, the run will be on another machine, whose GPUs most likely have bfloat16.
    has_bfloat16 = not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bfloat16 else torch.float32
