"""Faults in the coders' sizes on the model's hookpoints, and in their division over ranks."""

from collections.abc import Mapping

from sae_transcoder.config import Activation, Config, num_latents

FEWEST_SHARED = 8  # latents of which an eighth is a whole dictionary


def width_faults(cfg: Config, widths: Mapping[str, int]) -> list[str]:
    """A `k` that coders have too few latents for, and nested dictionaries that are not all of their latents. widths: {hookpoint: d}."""
    faults = []
    size_field = "num_latents" if cfg.num_latents else "expansion_factor"
    for point, width in widths.items():
        size = num_latents(cfg, width)
        coder = f"{size_field}={getattr(cfg, size_field)}: the coder on {point} (width {width}) has {size} latents"
        if cfg.k > size:
            faults.append(f"k={cfg.k} with {coder}; lower k or raise {size_field}")
        elif cfg.activation == Activation.groupmax and size % cfg.k:
            faults.append(f"k={cfg.k}, activation=groupmax with {coder}, which k must divide into equal groups; choose a divisor")
        elif cfg.multi_topk and 4 * cfg.k > size:
            faults.append(f"k={cfg.k}, multi_topk=True with {coder}, fewer than 4k = {4 * cfg.k}; lower k or raise {size_field}")
        if cfg.matryoshka_widths is not None:
            faults += nesting_faults(cfg, size, coder)
    return list(dict.fromkeys(faults))


def nesting_faults(cfg: Config, size: int, coder: str) -> list[str]:
    """Matryoshka widths that are not those of a coder with `size` latents; coder: its description."""
    widths = cfg.matryoshka_widths
    if widths and widths[-1] != size:
        fitting = [*(width for width in widths if width < size), size]
        return [
            f"matryoshka_widths={widths} with {coder}, and the last width is the number of latents; write matryoshka_widths={fitting}, "
            f"num_latents={widths[-1]}, or matryoshka_widths=[] for an eighth, a quarter, a half and all"
        ]
    if not widths and size < FEWEST_SHARED:
        return [f"matryoshka_widths=[] with {coder}, too few for an eighth of them; name the widths, the last of which is {size}"]
    return []


def share_faults(cfg: Config, num_hookpoints: int, processes: int) -> list[str]:
    """More ranks than hookpoints, where each rank trains its share of them."""
    if not cfg.distribute_modules or processes <= num_hookpoints:
        return []
    return [
        f"distribute_modules=True on {processes} ranks with {num_hookpoints} hookpoints: each rank trains whole ones; "
        f"start at most {num_hookpoints} ranks, or choose more hookpoints"
    ]
