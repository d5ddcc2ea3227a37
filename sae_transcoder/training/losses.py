"""What a coder's output adds to the loss, and what each line of metrics says of it."""

from torch import Tensor

from sae_transcoder.coder.corrected_coder import CoderOutput
from sae_transcoder.config import WITH_THRESHOLD, Activation, Config, JumpReLULoss, l0_coefficient, matryoshka_widths


def beside_fvu(cfg: Config, step: int, num_tokens: int, out: CoderOutput) -> Tensor:
    """The losses that a coder adds to its FVU, in a batch of so many tokens; 0 for none."""
    loss = cfg.auxk_alpha * out.auxk_loss
    if cfg.multi_topk:
        loss = loss + out.multi_topk_fvu / 8
    if out.sparsity is not None:
        loss = loss + l0_coefficient(cfg, step) / num_tokens * out.sparsity
    return loss


def beside_models_loss(cfg: Config, step: int, num_tokens: int, out: CoderOutput) -> Tensor:
    """The losses that a coder adds to that of the language model. Those of `beside_fvu`, and of a Matryoshka coder the FVUs of its smaller
    dictionaries, weighted as in the mean of all."""
    loss = beside_fvu(cfg, step, num_tokens, out)
    return loss if out.level_fvus is None else loss + out.level_fvus[:-1].sum() / len(out.level_fvus)


def reach_inputs(cfg: Config) -> bool:
    """Whether `beside_models_loss` has a gradient for the coder's inputs: those of AuxK and of numbers of latents have none."""
    is_tanh = cfg.activation == Activation.jumprelu and cfg.jumprelu_loss == JumpReLULoss.tanh
    return cfg.matryoshka_widths is not None or is_tanh


def loss(cfg: Config, step: int, num_tokens: int, out: CoderOutput) -> Tensor:
    """A coder's whole loss in a batch of so many tokens; of a Matryoshka coder the mean of its dictionaries' FVUs is its FVU."""
    fvu = out.fvu if out.level_fvus is None else out.level_fvus.mean()
    return fvu + beside_fvu(cfg, step, num_tokens, out)


def logged_names(cfg: Config, width: int) -> list[str]:
    """The names of the values that are averaged for a coder on a hookpoint of this width: fvu; with a Matryoshka coder `fvu_width_<latents>`
    of each smaller dictionary; with batchtopk and jumprelu l0, the active latents per token; with jumprelu sparsity, its loss per token
    before it is weighted."""
    names = {
        "auxk": cfg.auxk_alpha > 0,
        "multi_topk_fvu": cfg.multi_topk,
        **{f"fvu_width_{latents}": True for latents in (matryoshka_widths(cfg, width) or [])[:-1]},
        "l0": cfg.activation in WITH_THRESHOLD,
        "sparsity": cfg.activation == Activation.jumprelu,
    }
    return ["fvu", *(name for name, is_there in names.items() if is_there)]


def logged(cfg: Config, width: int, num_tokens: int, out: CoderOutput) -> dict[str, Tensor]:
    """The values of `logged_names` and more, of a batch of so many tokens, or what a piece of it adds to them."""
    values = {"fvu": out.fvu, "auxk": out.auxk_loss, "multi_topk_fvu": out.multi_topk_fvu}
    if out.level_fvus is not None:
        levels = zip(matryoshka_widths(cfg, width) or (), out.level_fvus, strict=True)
        values |= {f"fvu_width_{latents}": fvu for latents, fvu in levels}
    if cfg.activation in WITH_THRESHOLD:
        values["l0"] = (out.latent_acts > 0).sum() / num_tokens
    if out.sparsity is not None:
        values["sparsity"] = out.sparsity / num_tokens
    return values
