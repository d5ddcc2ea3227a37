"""Whether a model's weights fit its config: which tensors its loader misses, and which of the file's nothing takes.

transformers fills what is missing with random numbers, and trains on. It says so in a report only.
"""

import re
from collections.abc import Collection, Iterable
from typing import Any

from transformers import PreTrainedModel

from sae_transcoder.config import Config, LossFn
from sae_transcoder.language_model.model_class import base, base_name

# {prefix: what saves a model under it, and what to save in its place}
PREFIXES = {
    "base_model.model.": "peft saves such names: merge the adapter into its model (merge_and_unload) and save that",
    "_forward_module.": "DeepSpeed and Fabric save such names: save the module inside",
    "_fsdp_wrapped_module.": "FSDP saves such names: gather the full state dict and save the model's own",
    "_orig_mod.": "torch.compile saves such names: save the model that was compiled (model._orig_mod)",
    "module.": "DataParallel and its like save such names: save the model inside (model.module)",
}
# Tensors that older versions of transformers saved and newer ones compute.
BUFFERS = re.compile(r"(rotary_emb\.inv_freq|masked_bias|(attn|attention)\.bias)$")
POOLER = re.compile(r"(^|\.)pooler\.")  # above all layers
SHOWN = 3  # names in a message


def weight_faults(cfg: Config, model: PreTrainedModel, info: dict[str, Any], layers: int | None = None) -> list[str]:
    """What `info`, from_pretrained's loading info, says of weights that do not fit the model.

    A head that only the evaluation needs, and a pooler, may be missing. Tensors outside the model's layers may be left over, such as other
    heads, and those of layers that are not loaded: `layers` are the first ones, None for all.
    """
    head = {key for key in info["missing_keys"] if is_of_head(model, key)}
    missing = {key for key in set(info["missing_keys"]) - head if not POOLER.search(key)}
    left_over = set(info["unexpected_keys"])
    mismatched = sorted(str(key[0]) for key in info["mismatched_keys"])
    in_layers = tensors_of_layers(model, left_over, layers)
    faults = []
    if missing or in_layers:
        parts = [f"lack {named(missing)}"] if missing else []
        parts += (
            [f"hold {named(unused)}, which the model has no place for"] if (unused := left_over if missing else in_layers) else []
        )
        cause = prefix_cause(missing, left_over) or decoder_cause(cfg, model, left_over)
        cause = cause or "give the config that the weights were saved with"
        faults.append(f"{' and '.join(parts)}; {cause}")
    if mismatched:
        faults.append(f"have other shapes than the config says for {named(mismatched)}; give the config that they were saved with")
    faults = [f"model_name={cfg.model_name}: its weights {fault}" for fault in faults]
    if head and cfg.loss_fn != LossFn.fvu:
        faults.append(f"loss_fn={cfg.loss_fn} with model_name={cfg.model_name}: its weights lack {named(head)}; use loss_fn=fvu")
    return faults


def is_of_head(model: PreTrainedModel, key: str) -> bool:
    """Whether a tensor belongs to the language-modelling head."""
    return base(model) is not model and not key.startswith(base_name(model))


LAYER = re.compile(r"^(.*?)\.(\d+)\.")  # of a tensor's name: its stack, and its layer there


def tensors_of_layers(model: PreTrainedModel, keys: Iterable[str], layers: int | None) -> set[str]:
    """Those of the names that are of the model's own layers, or of layers beyond those of its config; not buffers, nor of layers left out."""
    prefix = f"{model.base_model_prefix}."
    stacks = {match[1].removeprefix(prefix) for name, _ in model.named_parameters() if (match := LAYER.match(name))}
    matches = {key: match for key in keys if not BUFFERS.search(key) and (match := LAYER.match(key.removeprefix(prefix)))}
    return {key for key, match in matches.items() if match[1] in stacks and (layers is None or int(match[2]) < layers)}


def prefix_cause(missing: Collection[str], left_over: Iterable[str]) -> str | None:
    """Why the file's names differ from the model's by a known prefix; None where they do not."""
    for prefix, cause in PREFIXES.items():
        without = {key.removeprefix(prefix) for key in left_over if key.startswith(prefix)}
        if missing and any(key in without or any(name.endswith(f".{key}") for name in without) for key in missing):
            return f"the file's names begin with {prefix!r}: {cause}"
    return None


def decoder_cause(cfg: Config, model: PreTrainedModel, left_over: Iterable[str]) -> str | None:
    """Why weights of an encoder and a decoder do not fit a model that is a decoder alone; None where they are not."""
    if not any(".encoder." in f".{key}" for key in left_over) or any(
        "encoder" in name.split(".") for name, _ in model.named_modules()
    ):
        return None
    settings = "eval_end_to_end=false" if cfg.loss_fn == LossFn.fvu else "loss_fn=fvu and eval_end_to_end=false"
    return f"they are of an encoder and a decoder, and {type(model).__name__} is a decoder alone; set {settings} and name modules with hookpoints"


def named(keys: Collection[str]) -> str:
    """The first names, and how many there are."""
    names = sorted(keys)
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"
