"""Faults in the coder's fields: kinds of coders that exclude each other, and fields that the kind at hand does not read."""

import math
from itertools import pairwise

from sae_transcoder.config import DEFAULTS, WITH_THRESHOLD, Activation, Config, ModelType, normalize_decoder

# Fields of one kind of coder, which others would ignore.
READ_BY = {
    Activation.jumprelu: ("l0_coefficient", "l0_warmup_steps", "jumprelu_loss", "jumprelu_bandwidth", "jumprelu_init_threshold"),
    Activation.batchtopk: ("threshold_beta",),
}
# Fields of any kind of coder that have no counterpart in sparsify.
BEYOND_SPARSIFY = (
    "matryoshka_widths", "normalize_activations", "decoder_init_norm", "b_dec_init", "lr_schedule", "lr_decay_steps", "grad_clip_norm", "adam_betas",
)  # fmt: skip


def architecture_faults(cfg: Config) -> list[str]:
    """Faults of the coder's fields by themselves; those that the number of latents decides are in preflight/coder_size_faults.py."""
    groups = (unread_faults, activation_faults, matryoshka_faults, decoder_faults, number_faults, correction_faults)
    return [fault for group in groups for fault in group(cfg)]


def is_set(cfg: Config, name: str) -> bool:
    """Whether a field is not at its default."""
    return bool(getattr(cfg, name) != DEFAULTS[name])


def unread_faults(cfg: Config) -> list[str]:
    """Fields that this kind of coder does not read."""
    return [
        f"{name}={getattr(cfg, name)} with activation={cfg.activation}: only {activation} reads it; leave it out, or set activation={activation}"
        for activation, names in READ_BY.items()
        for name in names
        if is_set(cfg, name) and cfg.activation != activation
    ]


def activation_faults(cfg: Config) -> list[str]:
    """What a way of selecting latents does not go with."""
    faults = []
    if cfg.multi_topk and cfg.activation != Activation.topk:
        faults.append(f"multi_topk=True with activation={cfg.activation}: only topk has a 4k-latent version; set one of them")
    if cfg.activation == Activation.jumprelu and cfg.k_decay_steps:
        faults.append(
            f"k_decay_steps={cfg.k_decay_steps} with activation=jumprelu: k is what the sparsity loss aims at, no number of latents that "
            "could fall; leave it out, and set l0_warmup_steps for a loss that begins dense"
        )
    return faults


def matryoshka_faults(cfg: Config) -> list[str]:
    """Faults of nested dictionaries."""
    widths = cfg.matryoshka_widths
    faults = []
    if cfg.auxk_per_level and widths is None:
        faults.append(
            "auxk_per_level=True with matryoshka_widths=null: there is one dictionary; leave it out, or set matryoshka_widths"
        )
    if cfg.auxk_per_level and cfg.auxk_alpha == 0:
        faults.append(
            f"auxk_per_level=True with auxk_alpha={cfg.auxk_alpha}: there is no AuxK; leave it out, or set auxk_alpha=0.03125"
        )
    if widths is None:
        return faults
    if cfg.activation not in (Activation.topk, Activation.batchtopk):
        faults.append(
            f"matryoshka_widths={widths} with activation={cfg.activation}: dictionaries are nested with topk and batchtopk; set one of these, "
            "or leave matryoshka_widths out"
        )
    if cfg.multi_topk:
        faults.append(f"matryoshka_widths={widths} with multi_topk=True: each adds losses of its own; set one of them")
    if any(width < 1 for width in widths):
        faults.append(f"matryoshka_widths={widths}: a dictionary has 1 latent or more; leave the others out")
    elif any(after <= before for before, after in pairwise(widths)):
        faults.append(
            f"matryoshka_widths={widths}: each width is above the one before; write matryoshka_widths={sorted(set(widths))}"
        )
    return faults


def decoder_faults(cfg: Config) -> list[str]:
    """Starts of the decoder, and norms of its rows, that cannot be as they are set."""
    faults = []
    if cfg.finetune is not None and is_set(cfg, "b_dec_init"):
        faults.append(
            f"b_dec_init={cfg.b_dec_init} with finetune={cfg.finetune}: the biases are those of finetune; set one of them"
        )
    if cfg.model_type == ModelType.transcoder and cfg.normalize_decoder:
        faults.append(
            "normalize_decoder=True with model_type=transcoder: a transcoder's decoder starts at zero and cannot be normalised; "
            "leave normalize_decoder out"
        )
    if (norm := cfg.decoder_init_norm) is None:
        return faults
    if not 0 < norm < math.inf:
        faults.append(f"decoder_init_norm={norm}: must be above 0 and finite, or null for sparsify's start")
    if normalize_decoder(cfg):
        faults.append(
            f"decoder_init_norm={norm} with model_type={cfg.model_type}, normalize_decoder={cfg.normalize_decoder}: rows are kept at norm 1; "
            "set normalize_decoder=false, or leave decoder_init_norm out"
        )
    if cfg.finetune is not None:
        faults.append(f"decoder_init_norm={norm} with finetune={cfg.finetune}: the weights are those of finetune; set one of them")
    return faults


def number_faults(cfg: Config) -> list[str]:
    """Numbers outside what they mean, where the fields' bounds do not say it."""
    faults = []
    if not 0 < cfg.jumprelu_bandwidth < math.inf:
        faults.append(
            f"jumprelu_bandwidth={cfg.jumprelu_bandwidth}: must be above 0 and finite; no pre-activation gives a gradient else"
        )
    if cfg.threshold_beta is not None and cfg.threshold_beta >= 1:
        faults.append(
            f"threshold_beta={cfg.threshold_beta}: must be below 1, else the threshold never moves; 0.999 averages about 1,000 batches"
        )
    return faults


def correction_faults(cfg: Config) -> list[str]:
    """With corrections=false, what sparsify does not have."""
    if cfg.corrections:
        return []
    asked = [f"activation={cfg.activation}"] if cfg.activation in WITH_THRESHOLD else []
    asked += [f"{name}={getattr(cfg, name)}" for name in BEYOND_SPARSIFY if is_set(cfg, name)]
    return [
        f"{setting} with corrections=False: sparsify, whose behaviour that is, has none; leave one of them out" for setting in asked
    ]
