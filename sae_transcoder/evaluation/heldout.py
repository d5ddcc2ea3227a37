"""Held-out metrics: how well coders do on tokens that were never trained on. What each means stands in metric_names.py.

The coders' own metrics need a forward to the last hookpoint, shared by all of them; those of the language model with coders in
place need whole forwards: one as it is, one for each coder and, with several hookpoints, for all at once, and one with zeros in
the place of each. Sums are float64.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sae_transcoder.coder import positions
from sae_transcoder.coder.corrected_coder import SparseCoder
from sae_transcoder.coder.names import coders_by_seed, hookpoint_of, seed_of
from sae_transcoder.config import Config, LossFn, evaluation_batch, evaluation_settings
from sae_transcoder.data.token_sets import Sequences
from sae_transcoder.evaluation import splice
from sae_transcoder.evaluation.reconstruction import ReconstructionStats, average_max_cosine
from sae_transcoder.evaluation.splice import Splice
from sae_transcoder.language_model.forward import capture
from sae_transcoder.language_model.loading import predicts, text_config
from sae_transcoder.run_store.eval_file import CoderMetrics, Evaluation, TogetherMetrics

# What best/ goes by, for each loss.
LOSS_METRIC = {LossFn.fvu: "fvu", LossFn.ce: "ce_loss_with_sae", LossFn.kl: "kl_div_with_sae"}


@dataclass(frozen=True)
class CodersToEvaluate:
    """Coders of a run {name: coder}, as they would be published; the config says which tokens count and what is replaced."""

    cfg: Config
    coders: Mapping[str, SparseCoder]


@dataclass
class EvalResult:
    """Metrics of a run's coders {coder: {metric: value}}, NaN where one does not exist; `together`: {seed or "": ...} of all hookpoints
    at once, empty where there is one hookpoint; `densities`: {coder: share of tokens on which each latent fires [latent]}."""

    coders: dict[str, dict[str, float]]
    densities: dict[str, np.ndarray]
    together: dict[str, dict[str, float]] = field(default_factory=dict)

    def loss(self, loss_fn: LossFn) -> dict[str, float]:
        """{coder: what `loss_fn` lowers}: its FVU, or the loss with all coders of its seed in place."""
        name = LOSS_METRIC[loss_fn]
        return {
            coder: (own if loss_fn == LossFn.fvu else self.together.get(seed_of(coder), own))[name]
            for coder, own in self.coders.items()
        }

    def values(self) -> dict[str, float]:
        """Names as trackers show them: {"heldout/<metric>/<coder>": value}, with `together` or `together/<seed>` for a coder."""
        scopes = self.coders | {"/".join(filter(None, ["together", seed])): own for seed, own in self.together.items()}
        return {f"heldout/{metric}/{scope}": value for scope, own in scopes.items() for metric, value in own.items()}

    def evaluation(self, subject: CodersToEvaluate, step: int | None = None, tokens: int | None = None) -> Evaluation:
        """The same as eval.json has it; step, tokens: how far training was."""
        coders = []
        for name, own in self.coders.items():
            coder, seed = subject.coders[name], seed_of(name)
            point, number = hookpoint_of(name), int(seed.removeprefix("seed")) if seed else None
            coders.append(CoderMetrics(name, point, number, coder.d_in, coder.num_latents, coder.cfg.k, own))
        together = [TogetherMetrics([n for n in self.coders if seed_of(n) == seed], own) for seed, own in self.together.items()]
        return Evaluation(evaluation_settings(subject.cfg), coders, together, step, tokens, self.densities)


@torch.no_grad()
def measure(model: PreTrainedModel, subjects: Sequence[CodersToEvaluate], heldout: Sequences, *, whole: bool) -> list[EvalResult]:
    """The metrics of each subject over all of `heldout` [sequence, position]; subjects share batch and sequence length.

    whole: everything that the subject's settings ask for; else the coders' own metrics, and what an end-to-end loss lowers.
    """
    cfg = subjects[0].cfg
    size = evaluation_batch(cfg, text_config(model).vocab_size)
    results = own_metrics(model, subjects, heldout, size)
    for subject, result in zip(subjects, results, strict=True):
        for name, coder in subject.coders.items() if whole else ():
            result.coders[name]["average_max_encoder_cosine_sim"] = average_max_cosine(coder.encoder.weight)
            result.coders[name]["average_max_decoder_cosine_sim"] = average_max_cosine(coder.W_dec)
    splices = [
        Splice(subject.cfg, {point: subject.coders[name] for point, name in names.items()}, target)
        for subject, result in zip(subjects, results, strict=True)
        if predicts(model) and (subject.cfg.loss_fn != LossFn.fvu or (whole and subject.cfg.eval_end_to_end))
        for names, target in splices_of(result, whole)
    ]
    if splices:
        splice.measure(model, splices, batches(heldout, min(size, cfg.forward_batch_size or size), model.device))
    return results


def batches(heldout: Sequences, size: int, device: torch.device) -> Iterator[Tensor]:
    """The held-out tokens in order, [sequence, position]."""
    for start in range(0, len(heldout), size):
        yield torch.from_numpy(heldout[start : start + size]).to(device)


def own_metrics(model: PreTrainedModel, subjects: Sequence[CodersToEvaluate], heldout: Sequences, size: int) -> list[EvalResult]:
    """Reconstruction, shrinkage, sparsity and density of every coder; one forward to the last hookpoint serves all."""
    points = list(dict.fromkeys(hookpoint_of(name) for s in subjects for name in s.coders))
    tallies = [{name: ReconstructionStats(coder) for name, coder in s.coders.items()} for s in subjects]
    for tokens in batches(heldout, size, model.device):
        seen = capture(model, points, tokens, subjects[0].cfg.forward_batch_size)
        for subject, tally in zip(subjects, tallies, strict=True):
            counted = positions.counted(subject.cfg, tokens)
            for name in subject.coders:
                here = seen[hookpoint_of(name)]
                x, y = positions.pair(subject.cfg, here, positions.kept(subject.cfg, here, counted))
                tally[name].add(x, y, tokens.numel())
    return [
        EvalResult({n: t.metrics() for n, t in tally.items()}, {n: t.density().cpu().numpy() for n, t in tally.items()})
        for tally in tallies
    ]


def splices_of(result: EvalResult, whole: bool) -> Iterator[tuple[dict[str, str], dict[str, float]]]:
    """The splices of a run's coders and where their metrics belong: all hookpoints at once, and, if `whole` or there is one, each alone."""
    for names in coders_by_seed(result.coders):
        if len(names) > 1:
            yield names, result.together.setdefault(seed_of(next(iter(names.values()))), {})
        if whole or len(names) == 1:
            for point, name in names.items():
                yield {point: name}, result.coders[name]
