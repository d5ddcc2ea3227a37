"""What each line of metrics says of a coder's training, averaged over batches."""

from collections.abc import Mapping

from torch import Tensor

from sae_transcoder.coder.corrected_coder import CoderOutput
from sae_transcoder.config import Activation, Config, matryoshka_widths


def loss_names(cfg: Config, width: int) -> list[str]:
    """The names of the values that are averaged, for a coder on a hookpoint of this width: fvu; with nested dictionaries
    `fvu_width_<latents>` of each smaller one; with batchtopk and jumprelu l0, the active latents per token; with jumprelu sparsity, its
    loss per token before it is weighted."""
    names = {
        "auxk": cfg.auxk_alpha > 0,
        "multi_topk_fvu": cfg.multi_topk,
        **{f"fvu_width_{latents}": True for latents in (matryoshka_widths(cfg, width) or [])[:-1]},
        "l0": cfg.activation in (Activation.batchtopk, Activation.jumprelu),
        "sparsity": cfg.activation == Activation.jumprelu,
    }
    return ["fvu", *(name for name, is_there in names.items() if is_there)]


def more_losses(cfg: Config, width: int, num_tokens: int, out: CoderOutput) -> Mapping[str, Tensor]:
    """Those of `loss_names` that sparsify's coders do not have, of a batch of so many tokens, or this part's share of them."""
    values: dict[str, Tensor] = {}
    if out.level_fvus is not None:
        levels = zip(matryoshka_widths(cfg, width) or (), out.level_fvus, strict=True)
        values |= {f"fvu_width_{latents}": fvu for latents, fvu in levels}
    if cfg.activation in (Activation.batchtopk, Activation.jumprelu):
        values["l0"] = (out.latent_acts > 0).sum() / num_tokens
    if out.sparsity is not None:
        values["sparsity"] = out.sparsity / num_tokens
    return values
