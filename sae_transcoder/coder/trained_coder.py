"""A coder once it is trained: which latents fire no longer depends on the batch. And its files.

On disk it is sparsify's coder: cfg.json and sae.safetensors. Beside them, where latents fire above thresholds, lies threshold.safetensors with
`threshold` [latent] or [1], float32. cfg.json has two more keys, which sparsify ignores: `trained_activation` (batchtopk or jumprelu, where it
is none of sparsify's own) and `matryoshka_widths`.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_transcoder.coder.entries import Entries, entries_above, joined
from sae_transcoder.coder.latent_selection import group_max, select_preacts, top_k
from sae_transcoder.coder.sparsify_parts import EncoderOutput, ForwardOutput, SparseCoder, SparseCoderConfig
from sae_transcoder.coder.stored_coders import THRESHOLDS, WEIGHTS, coder_settings


class TrainedCoder(SparseCoder):
    """sparsify's coder. With a threshold, a latent fires where its pre-activation lies above it; without, sparsify's activation decides."""

    def __init__(
        self,
        d_in: int,
        cfg: SparseCoderConfig,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        *,
        threshold: Tensor | None = None,
        trained_activation: str | None = None,
        matryoshka_widths: Sequence[int] | None = None,
    ):
        """threshold: [latent], or [1] for one that all share; trained_activation: how latents were selected in training, None as cfg says;
        matryoshka_widths: latents of each nested dictionary, None for one dictionary."""
        super().__init__(d_in, cfg, device, dtype)
        self.register_buffer("threshold", threshold, persistent=False)  # sae.safetensors is sparsify's
        self.trained_activation = trained_activation or cfg.activation
        self.matryoshka_widths = None if matryoshka_widths is None else list(matryoshka_widths)

    @classmethod
    def of(cls, coder: SparseCoder, **of_training: Any) -> "TrainedCoder":
        """A coder with the tensors of another one, which it takes over."""
        trained = cls(coder.d_in, copy.copy(coder.cfg), "meta", coder.dtype, **of_training)
        names = trained.state_dict()
        trained.load_state_dict({name: value for name, value in coder.state_dict().items() if name in names}, assign=True)
        return trained.requires_grad_(False)

    def firing(self, x: Tensor) -> Entries:
        """The latents that fire for x [token, d_in], with their activations as `preacts`."""
        centered_input = x if self.cfg.transcode else x - self.b_dec
        weight, bias = self.encoder.weight, self.encoder.bias
        if self.threshold is not None:
            return joined([*entries_above(centered_input, weight, bias, self.threshold.clamp(min=0))])
        select = partial(top_k if self.cfg.activation == "topk" else group_max, k=self.cfg.k)
        ((acts, latents),) = select_preacts(centered_input, weight, bias, [select])
        tokens, places = (acts > 0).nonzero(as_tuple=True)
        return Entries(acts[tokens, places], tokens, latents[tokens, places])

    def encode(self, x: Tensor) -> EncoderOutput:
        """The latents that fire for x [token, d_in]: activations and indices [token, most that fire for a token], and pre-activations.

        Where fewer fire, other latents with the activation 0 fill the row.
        """
        if self.threshold is None:
            return super().encode(x)
        centered_input = x if self.cfg.transcode else x - self.b_dec
        preacts = F.linear(centered_input, self.encoder.weight, self.encoder.bias).relu_()
        acts = preacts.where(preacts > self.threshold, 0)
        most = max(1, int((acts > 0).sum(1).max())) if len(acts) else 1  # sparsify's decoder takes no empty rows
        return EncoderOutput(*acts.topk(most, dim=-1, sorted=False), preacts)

    def forward(
        self, x: Tensor, y: Tensor | None = None, *, total_variance: Tensor | None = None, **of_training: Any
    ) -> ForwardOutput:
        """As sparsify's forward; with thresholds there are no losses of training but the FVU."""
        if self.threshold is None:
            return super().forward(x, y, total_variance=total_variance, **of_training)
        y = x if y is None else y
        acts, indices, _ = self.encode(x)
        sae_out = self.decode(acts, indices)
        if self.W_skip is not None:
            sae_out = sae_out + x.to(self.dtype) @ self.W_skip.mT
        if total_variance is None:
            total_variance = (y - y.mean(0)).pow(2).sum()
        zero = sae_out.new_zeros(())
        return ForwardOutput(sae_out, acts, indices, (y - sae_out).pow(2).sum() / total_variance, zero, zero)

    def save_to_disk(self, path: Path | str) -> None:
        """Writes the coder's files into the folder `path`."""
        super().save_to_disk(path)
        path = Path(path)
        more: dict[str, Any] = {}
        if self.trained_activation != self.cfg.activation:
            more["trained_activation"] = self.trained_activation
        if self.matryoshka_widths is not None:
            more["matryoshka_widths"] = self.matryoshka_widths
        if more:
            cfg_path = path / "cfg.json"
            cfg_path.write_text(json.dumps(json.loads(cfg_path.read_text()) | more))
        if self.threshold is not None:
            save_file({"threshold": self.threshold.float().contiguous()}, path / THRESHOLDS)


def load_coder(folder: Path, device: str | torch.device = "cpu") -> TrainedCoder:
    """The coder stored in a folder, by this project or by sparsify, in the number format of its file.

    Raises DamagedFile, or what safetensors and torch raise, for files that cannot be read; `coder_faults` says beforehand what is wrong.
    """
    settings = coder_settings(folder)
    # SparseCoder.load_from_disk would print a warning of the keys that it ignores.
    cfg = SparseCoderConfig(**{f.name: settings[f.name] for f in fields(SparseCoderConfig) if f.name in settings})
    weights = load_file(folder / WEIGHTS, str(device))
    threshold = load_file(folder / THRESHOLDS, str(device))["threshold"] if (folder / THRESHOLDS).is_file() else None
    names = ("trained_activation", "matryoshka_widths")
    more = {name: settings[name] for name in names if name in settings}
    coder = TrainedCoder(settings["d_in"], cfg, "meta", weights["W_dec"].dtype, threshold=threshold, **more)
    coder.load_state_dict(weights, assign=True)
    return coder
