"""The sparse coder."""

from dataclasses import dataclass
from enum import StrEnum

from sae_transcoder.config.fields.metadata import added, bounded


class Activation(StrEnum):
    topk = "topk"
    groupmax = "groupmax"
    batchtopk = "batchtopk"
    jumprelu = "jumprelu"


WITH_THRESHOLD = (Activation.batchtopk, Activation.jumprelu)
"""Those whose trained coders compare with thresholds, and whose tokens have differing numbers of active latents."""


class JumpReLULoss(StrEnum):
    quadratic = "quadratic"
    step = "step"
    tanh = "tanh"


class NormalizeActivations(StrEnum):
    none = "none"
    mean_norm = "mean_norm"


class BiasInit(StrEnum):
    mean = "mean"
    zeros = "zeros"


@dataclass
class ArchitectureConfig:
    """The sparse coder (group `architecture`)."""

    expansion_factor: int = bounded(8, at_least=1, at_most=2**20)
    """Latents per dimension of the hookpoint, where `num_latents` is 0."""
    num_latents: int = bounded(0, at_least=0, at_most=2**31)
    """Number of latents; above 0 it takes the place of `expansion_factor`."""
    k: int = bounded(8, at_least=1)
    """Latents active per token: exactly with topk and groupmax, on average over a batch with batchtopk, as the target of the training with
    jumprelu."""
    activation: Activation = Activation.topk
    """topk: the k largest; groupmax: the largest of each of k equal groups of latents; batchtopk: the k x tokens largest of a batch (Bussmann
    et al. 2024); jumprelu: those above a trained threshold of their own (Rajamanoharan et al. 2024). Once trained, batchtopk and
    jumprelu coders compare with thresholds and need no batch."""
    normalize_decoder: bool | None = None
    """Keep each decoder row at norm 1. null: true for an SAE, false for a transcoder, for which true is refused
    (its decoder starts at zero)."""
    multi_topk: bool = False
    """Add the FVU with 4k active latents, weighted 1/8, to the loss (Gao et al. 2024, appendix D)."""
    skip_connection: bool = False
    """Add a linear map from input to output, started at zero."""
    matryoshka_widths: list[int] | None = added(None)
    """Widths of nested dictionaries, rising to all latents: the first latents of each reconstruct the target by themselves, and the loss
    is the mean of their FVUs (Bussmann et al. 2025). With topk or batchtopk. []: an eighth, a quarter, a half and all of the latents.
    null: one dictionary."""
    auxk_per_level: bool = added(False)
    """With `matryoshka_widths`: AuxK has each dictionary's new dead latents predict what that dictionary leaves unexplained, and adds these
    losses up. false: all dead latents predict what the largest leaves."""
    l0_coefficient: float | None = added(None, at_least=0.0)
    """jumprelu: weight of the sparsity loss beside the FVU. null: 0.1 with quadratic, 1e-3 with step and tanh."""
    l0_warmup_steps: int = added(0, at_least=0)
    """jumprelu: optimizer steps over which the weight of the sparsity loss rises from 0."""
    jumprelu_loss: JumpReLULoss = added(JumpReLULoss.quadratic)
    """jumprelu's sparsity loss, per token, of its active latents L0: quadratic: 2 (L0 - k)^2 / k, towards k (Gemma Scope 2); step: L0
    (Rajamanoharan et al. 2024); tanh: the sum of tanh(4 x activation x norm of the decoder row) (Anthropic 2025). With the last two,
    `k` is not aimed at: l0_coefficient sets the sparsity."""
    jumprelu_bandwidth: float = added(0.05)
    """jumprelu: width of the window around a threshold in which pre-activations give it a gradient, in their units."""
    jumprelu_init_threshold: float = added(0.01, at_least=0.0, at_most=1e6)
    """jumprelu: each latent's threshold at the start, in the units of pre-activations; with `finetune` where the coder there has none."""
    threshold_beta: float | None = added(None, at_least=0.0)
    """batchtopk: share of the running threshold that stays at each batch; the rest is the batch's smallest selected activation. null: the
    threshold averages about the last twentieth of the run, 10 batches at least and 1,000 at most."""
    normalize_activations: NormalizeActivations = added(NormalizeActivations.none)
    """mean_norm: train on activations scaled to a mean norm of sqrt(d), estimated on the first batch; published coders take activations as
    they are. none: train on activations as they are."""
    decoder_init_norm: float | None = added(None)
    """Norm of each decoder row at the start, in the direction of its encoder row. null: sparsify's start: an SAE's encoder row, at norm 1
    with `normalize_decoder`; zero for a transcoder. Refused where decoder rows are kept at norm 1."""
    b_dec_init: BiasInit = added(BiasInit.mean)
    """The coder's biases at the start. mean: the decoder's is the mean of the first batch's targets, and a transcoder's encoder takes the mean
    of its inputs away, as in sparsify. zeros: all are zero, as in SAELens; the mean would also take away part of features that fire often."""
