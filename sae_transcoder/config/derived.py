"""What follows from the settings: the values that null stands for, and sizes that several fields make together."""

from typing import Any

from sae_transcoder.config.fields import Config
from sae_transcoder.config.fields.architecture import JumpReLULoss
from sae_transcoder.config.fields.dataset import DatasetKind, TrainOn
from sae_transcoder.config.fields.model_type import ModelType, Site
from sae_transcoder.config.fields.training import LossFn

MAX_LOGITS = 2**27  # numbers held at once; with a vocabulary of 128,000, four sequences of 256 tokens


def site(cfg: Config) -> Site:
    """The module of a layer that is read where `hookpoints` is not set."""
    return cfg.site or (Site.mlp if cfg.model_type == ModelType.transcoder else Site.residual)


def normalize_decoder(cfg: Config) -> bool:
    """Whether decoder rows are kept at norm 1."""
    return cfg.model_type == ModelType.sae if cfg.normalize_decoder is None else cfg.normalize_decoder


def warmup_steps(cfg: Config, steps: int) -> int:
    """Warmup in optimizer steps for a run of `steps`: as set, else a twentieth of the run, at most 1,000."""
    return min(1000, steps // 20) if cfg.lr_warmup_steps is None else cfg.lr_warmup_steps


def threshold_beta(cfg: Config, batches: int) -> float:
    """The share of batchtopk's running threshold that stays at each batch of a run of so many: as set, else so that about the last twentieth
    counts, 10 batches at least and 1,000 at most."""
    return 1 - 1 / min(1000, max(10, batches // 20)) if cfg.threshold_beta is None else cfg.threshold_beta


L0_COEFFICIENTS = {JumpReLULoss.quadratic: 0.1, JumpReLULoss.step: 1e-3, JumpReLULoss.tanh: 1e-3}


def l0_coefficient(cfg: Config, step: int) -> float:
    """The weight of JumpReLU's sparsity loss in the optimizer step that follows `step` steps."""
    weight = L0_COEFFICIENTS[cfg.jumprelu_loss] if cfg.l0_coefficient is None else cfg.l0_coefficient
    return weight * min(1.0, step / cfg.l0_warmup_steps) if cfg.l0_warmup_steps else weight


def computes_logits(cfg: Config) -> bool:
    """Whether the run or its evaluation asks the language model for logits."""
    return cfg.loss_fn != LossFn.fvu or cfg.eval_end_to_end


def has_stored_ids(cfg: Config) -> bool:
    """Whether the data are token ids, which are taken as they are stored."""
    return cfg.dataset_kind in (DatasetKind.pretokenized, DatasetKind.memmap)


def leaves_roles_out(cfg: Config) -> bool:
    """Whether the positions that the assistant did not write are marked as left out."""
    return cfg.train_on == TrainOn.assistant


def as_list(value: Any) -> list[Any]:
    """A setting that is a text or a list, as a list: the names of a data set's parts."""
    return value if isinstance(value, list) else [value]


def num_latents(cfg: Config, width: int) -> int:
    """Latents of a coder on a hookpoint of this width."""
    return cfg.num_latents or width * cfg.expansion_factor


def matryoshka_widths(cfg: Config, width: int) -> list[int] | None:
    """Widths of the nested dictionaries of a coder on a hookpoint of this width, rising to all its latents; None: one dictionary.

    An empty list, as it is set, stands for an eighth, a quarter, a half and all of the latents.
    """
    if cfg.matryoshka_widths is None:
        return None
    return list(cfg.matryoshka_widths) or [num_latents(cfg, width) // share for share in (8, 4, 2, 1)]


def evaluation_batch(cfg: Config, vocabulary: int) -> int:
    """Sequences per forward of an evaluation: the run's batch, or fewer where their logits would need too much memory."""
    return max(1, min(cfg.batch_size, MAX_LOGITS // (cfg.max_seq_length * vocabulary)))
