"""Every held-out metric computed by itself, one sequence and one token at a time."""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from helpers.device import DEVICE
from sae_transcoder.evaluation.heldout import CodersToEvaluate


class Exchanged(nn.Module):
    """A module that gives `new(its input, its output)` [position, d] for one sequence, computed on the CPU."""

    def __init__(self, module: nn.Module, new: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.module, self.new = module, new

    def forward(self, *args: Tensor, **kwargs: object) -> object:
        result = self.module(*args, **kwargs)
        output = result[0] if isinstance(result, tuple) else result
        given = args[0] if args else kwargs["hidden_states"]
        new = self.new(given[0].cpu(), output[0].cpu())[None].to(output.device)
        return (new, *result[1:]) if isinstance(result, tuple) else new


def dense(coder: nn.Module, x: Tensor, width: int | None = None) -> tuple[Tensor, Tensor]:
    """A coder's output [d] and its latents [latent] for one input x [d], as vectors in float64; width: of the first latents alone."""
    weight, bias, decoder, b_dec = (p.cpu().double() for p in (coder.encoder.weight, coder.encoder.bias, coder.W_dec, coder.b_dec))
    x = x.double()
    preacts = weight @ (x if coder.cfg.transcode else x - b_dec) + bias
    acts = torch.zeros_like(preacts)
    threshold, values = getattr(coder, "threshold", None), preacts.tolist()
    if threshold is None:
        selected = sorted(range(len(values)), key=lambda i: -values[i])[: coder.cfg.k]
    else:
        selected = [i for i, bound in enumerate(threshold.cpu().expand(len(values)).tolist()) if values[i] > bound]
    for i in selected:
        acts[i] = max(0.0, values[i])
    acts[len(acts) if width is None else width :] = 0
    out = acts @ decoder + b_dec
    return (out if coder.W_skip is None else out + coder.W_skip.cpu().double() @ x), acts


def mean(sequences: list[list[float]]) -> float:
    """The mean over all positions of all sequences."""
    return sum(map(sum, sequences)) / sum(map(len, sequences))


def error_of_mean(sequences: list[list[float]]) -> float:
    """The standard error of `mean`, where sequences are independent."""
    middle = mean(sequences)
    squares = sum(sum(value - middle for value in values) ** 2 for values in sequences)
    return math.sqrt(squares * len(sequences) / (len(sequences) - 1)) / sum(map(len, sequences))


class Independent:
    """Every metric computed by itself, one sequence and one token at a time, by exchanging modules of the model."""

    def __init__(self, model: PreTrainedModel, run: CodersToEvaluate, ids: np.ndarray):
        self.model, self.cfg, self.coders = model, run.cfg, run.coders
        self.ids = [torch.from_numpy(row)[None] for row in ids]

    def counts(self, row: Tensor, position: int) -> bool:
        return position >= self.cfg.exclude_first_tokens and int(row[0, position]) not in self.cfg.exclude_tokens

    def logits(self, row: Tensor, new: dict[str, Callable[[Tensor, Tensor], Tensor]]) -> Tensor:
        """The next-token logits [position, vocabulary] in float64 with modules exchanged."""
        base, kept = self.model.base_model, {}
        for point, function in new.items():
            parent, _, name = point.rpartition(".")
            kept[point] = base.get_submodule(point)
            setattr(base.get_submodule(parent), name, Exchanged(kept[point], function))
        try:
            return self.model(input_ids=row.to(DEVICE), use_cache=False).logits[0].cpu().double()
        finally:
            for point, module in kept.items():
                parent, _, name = point.rpartition(".")
                setattr(base.get_submodule(parent), name, module)

    def replaced(self, row: Tensor, coder: nn.Module | Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Where tokens count, the coder's output, or a constant [d], in the place of the module's."""

        def new(given: Tensor, output: Tensor) -> Tensor:
            rows = []
            for position, (one, other) in enumerate(zip(given, output, strict=True)):
                if not self.counts(row, position):
                    rows.append(other)
                elif isinstance(coder, Tensor):
                    rows.append(coder.to(other.dtype).expand_as(other))
                else:
                    rows.append(dense(coder, one if coder.cfg.transcode else other)[0].to(other.dtype))
            return torch.stack(rows)

        return new

    def mean_output(self, point: str) -> Tensor:
        """The mean of a module's output [d] over the tokens that count."""
        seen: list[Tensor] = []
        for row in self.ids:
            outputs: list[Tensor] = []
            self.logits(row, {point: lambda given, output, outputs=outputs: (outputs.append(output), output)[1]})
            seen += [outputs[0][position].double() for position in range(row.shape[1]) if self.counts(row, position)]
        return torch.stack(seen).mean(0)

    def behaviour(self, points: dict[str, str]) -> dict[str, float]:
        """What the model does with the coders {hookpoint: name} in place."""
        means = {point: self.mean_output(point) for point in points}
        ways = {
            "sae": lambda row: {p: self.replaced(row, self.coders[name]) for p, name in points.items()},
            "zero": lambda row: {p: self.replaced(row, torch.zeros(1)) for p in points},
            "mean": lambda row: {p: self.replaced(row, means[p]) for p in points},
        }
        ce: dict[str, list[list[float]]] = {name: [] for name in ("clean", *ways)}  # of each sequence, of each position that counts
        kl: dict[str, list[list[float]]] = {name: [] for name in ways}
        for row in self.ids:
            logits = {"clean": self.logits(row, {})} | {name: self.logits(row, way(row)) for name, way in ways.items()}
            places = [position for position in range(row.shape[1]) if self.counts(row, position)]
            for name, values in logits.items():
                known = [position for position in places if position + 1 < row.shape[1]]
                ce[name].append([-float(values[i].log_softmax(0)[row[0, i + 1]]) for i in known])
                if name != "clean":
                    p = [logits["clean"][i].softmax(0) for i in places]
                    kl[name].append(
                        [float((q * (q.log() - values[i].softmax(0).log())).sum()) for q, i in zip(p, places, strict=True)]
                    )
        found = {
            "ce_loss_without_sae": mean(ce["clean"]), "ce_loss_with_sae": mean(ce["sae"]), "kl_div_with_sae": mean(kl["sae"]),
            "total_tokens_eval_reconstruction": sum(map(len, kl["sae"])),
        }  # fmt: skip
        for name, suffix, ablation in (("zero", "", "ablation"), ("mean", "_mean_ablation", "mean_ablation")):
            effects = [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(ce[name], ce["clean"], strict=True)]
            for loss, values, clean, effect in (("ce_loss", ce, mean(ce["clean"]), effects), ("kl_div", kl, 0.0, kl[name])):
                ablated, error = mean(values[name]), error_of_mean(effect)
                score = (ablated - mean(values["sae"])) / (ablated - clean) if ablated - clean > 4 * error else math.nan
                found |= {f"{loss}_with_{ablation}": ablated, f"{loss}_{ablation}_std_error": error, f"{loss}_score{suffix}": score}
        return found

    def own(self, point: str, name: str, width: int | None = None) -> tuple[dict[str, float], Tensor]:
        """The coder's own metrics, and the share of tokens on which each latent fires; width: of its first latents alone."""
        coder, ys, outs, latents, positions = self.coders[name], [], [], [], 0
        for row in self.ids:
            seen: list[tuple[Tensor, Tensor]] = []
            self.logits(row, {point: lambda given, output, seen=seen: (seen.append((given, output)), output)[1]})
            for position in range(row.shape[1]):
                positions += 1
                if self.counts(row, position):
                    given, output = (side[position] for side in seen[0])
                    out, acts = dense(coder, given if coder.cfg.transcode else output, width)
                    ys.append(output.double())
                    outs.append(out)
                    latents.append(acts)
        y, out, acts = torch.stack(ys), torch.stack(outs), torch.stack(latents)
        fvu = float(((y - out) ** 2).sum() / ((y - y.mean(0)) ** 2).sum())
        density = (acts > 0).double().mean(0)
        cosines = {}
        for side, rows in (("encoder", coder.encoder.weight), ("decoder", coder.W_dec)):
            rows = rows.detach().cpu().double()
            each = torch.stack([rows @ one for one in rows]) / torch.outer(rows.norm(dim=1), rows.norm(dim=1))
            cosines[side] = float(each.fill_diagonal_(-2).max(1).values.mean())
        found = {
            "fvu": fvu, "explained_variance": 1 - fvu,
            "mse": float(((y - out) ** 2).sum(1).mean()), "cossim": float(F.cosine_similarity(y, out).mean()),
            "l2_norm_in": float(y.norm(dim=1).mean()), "l2_norm_out": float(out.norm(dim=1).mean()),
            "l2_ratio": float((out.norm(dim=1) / y.norm(dim=1)).mean()),
            "relative_reconstruction_bias": float((out**2).sum() / (y * out).sum()),
            "l0": float((acts > 0).sum(1).double().mean()), "l1": float(acts.sum(1).mean()),
            "total_tokens_eval_sparsity_variance": len(y), "frac_tokens_excluded": 1 - len(y) / positions,
            "frac_alive": float((density > 0).double().mean()),
            "freq_over_1_percent": float((density > 0.01).double().mean()),
            "freq_over_10_percent": float((density > 0.1).double().mean()),
            "normalized_freq_over_1_percent": float(density[density > 0.01].sum() / density.sum()),
            "normalized_freq_over_10_percent": float(density[density > 0.1].sum() / density.sum()),
            "average_max_encoder_cosine_sim": cosines["encoder"], "average_max_decoder_cosine_sim": cosines["decoder"],
        }  # fmt: skip
        return found, density
