"""Held-out metrics: how well coders do on tokens that were never trained on. metric_names.py says what each means.

The coders' own metrics need a forward to the last hookpoint, which all of them share. The metrics of the language model with coders in
place need whole forwards: one of the model as it is, one for each coder, with several hookpoints one for all of them at once, one with
zeros and one with the mean in each coder's place. Sums are float64.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sae_transcoder.coder.corrected_coder import SparseCoder
from sae_transcoder.coder.names import coders_by_seed, hookpoint_of, seed_of
from sae_transcoder.coder.positions import PositionFilter
from sae_transcoder.config import Config, LossFn, evaluation_batch, evaluation_settings
from sae_transcoder.data.sequences import Sequences
from sae_transcoder.evaluation.reconstruction import ReconstructionStats, average_max_cosine, threshold_distribution
from sae_transcoder.evaluation.splice import Splice, measure_splices
from sae_transcoder.language_model.forward import capture
from sae_transcoder.language_model.loading import text_config
from sae_transcoder.language_model.model_class import has_head
from sae_transcoder.metric_names import LEVEL_METRICS, level_metric
from sae_transcoder.process.progress import Progress, progress
from sae_transcoder.run_store.data_origin import UNKNOWN, DataOrigin
from sae_transcoder.run_store.eval_file import CoderMetrics, Evaluation, LevelMetrics, TogetherMetrics

# The metric by which best/ is chosen, for each loss.
LOSS_METRIC = {LossFn.fvu: "fvu", LossFn.ce: "ce_loss_with_sae", LossFn.kl: "kl_div_with_sae"}


@dataclass(frozen=True)
class CodersToEvaluate:
    """The coders of a run {name: coder}, as they would be published; the config says which tokens count and what is replaced, `origin` where the
    held-out sequences come from."""

    cfg: Config
    coders: Mapping[str, SparseCoder]
    origin: DataOrigin = UNKNOWN


@dataclass
class EvalResult:
    """The metrics of a run's coders.

    coders: {coder: {metric: value}}, NaN for a metric that does not exist; densities: {coder: share of tokens on which each latent fires
    [latent]}; levels: {coder: the nested dictionaries of a Matryoshka coder, else empty}; thresholds: {coder: {name: value}}, empty for a
    coder without; target_means: {coder: the mean of what it reconstructs [d]}; together: {seed or "": {metric: value}} with the coders of all
    hookpoints in place, empty where there is one hookpoint.
    """

    coders: dict[str, dict[str, float]]
    densities: dict[str, np.ndarray]
    levels: dict[str, tuple[LevelMetrics, ...]]
    thresholds: dict[str, dict[str, float]]
    target_means: dict[str, Tensor]
    together: dict[str, dict[str, float]] = field(default_factory=dict)

    def loss(self, loss_fn: LossFn) -> dict[str, float]:
        """{coder: the value that training by `loss_fn` lowers}: its FVU, or the loss with all coders of its seed in place."""
        name = LOSS_METRIC[loss_fn]
        return {
            coder: (metrics if loss_fn == LossFn.fvu else self.together.get(seed_of(coder), metrics))[name]
            for coder, metrics in self.coders.items()
        }

    def values(self) -> dict[str, float]:
        """The metrics as trackers name them: {"heldout/<metric>/<coder>": value}, with `together` or `together/<seed>` for a coder."""
        scopes = {name: metrics | self.of_kind(name) for name, metrics in self.coders.items()}
        scopes |= {"/".join(filter(None, ["together", seed])): metrics for seed, metrics in self.together.items()}
        return {f"heldout/{metric}/{scope}": value for scope, metrics in scopes.items() for metric, value in metrics.items()}

    def of_kind(self, coder: str) -> dict[str, float]:
        """A coder's metrics {name: value} that coders of other kinds do not have: of its levels, and its thresholds."""
        levels = {level_metric(name, level.width): getattr(level, name) for level in self.levels[coder] for name in LEVEL_METRICS}
        return levels | self.thresholds[coder]

    def evaluation(self, run: CodersToEvaluate, step: int | None = None, tokens: int | None = None) -> Evaluation:
        """The content of eval.json; step, tokens: after how much training."""
        coders = []
        for name, metrics in self.coders.items():
            coder, seed = run.coders[name], seed_of(name)
            seed_number = int(seed.removeprefix("seed")) if seed else None
            sizes = (coder.d_in, coder.num_latents, coder.cfg.k)
            of_kind = (self.levels[name], self.thresholds[name])
            coders.append(CoderMetrics(name, hookpoint_of(name), seed_number, *sizes, metrics, *of_kind))
        together = [
            TogetherMetrics([name for name in self.coders if seed_of(name) == seed], metrics)
            for seed, metrics in self.together.items()
        ]
        return Evaluation(evaluation_settings(run.cfg), coders, together, step, tokens, self.densities, run.origin)


@torch.no_grad()
def measure(
    model: PreTrainedModel,
    runs: Sequence[CodersToEvaluate],
    heldout: Sequences,
    *,
    all_metrics: bool,
    progress: Progress = progress,
) -> list[EvalResult]:
    """The metrics of each run's coders over all of `heldout` [sequence, position]; the runs share batch and sequence length.

    all_metrics: all that the run's settings ask for; otherwise only the coders' reconstruction metrics and the end-to-end loss.
    progress: shows how far it is.
    """
    cfg = runs[0].cfg
    batch_size = evaluation_batch(cfg, text_config(model).vocab_size)
    with progress("evaluation of the coders", len(heldout)) as show:
        results = measure_reconstruction(model, runs, token_batches(heldout, batch_size, model.device, show))
    if all_metrics:
        measure_cosines(runs, results, progress)
    splices = [
        Splice(
            run.cfg,
            {hookpoint: run.coders[name] for hookpoint, name in names.items()},
            metrics,
            {hookpoint: result.target_means[name] for hookpoint, name in names.items()},
        )
        for run, result in zip(runs, results, strict=True)
        if has_head(model) and (run.cfg.loss_fn != LossFn.fvu or (all_metrics and run.cfg.eval_end_to_end))
        for names, metrics in coders_to_splice(result, all_metrics)
    ]
    if splices:
        with progress("evaluation of the model with coders in place", len(heldout)) as show:
            size = min(batch_size, cfg.forward_batch_size or batch_size)
            measure_splices(model, splices, token_batches(heldout, size, model.device, show))
    return results


def token_batches(heldout: Sequences, batch_size: int, device: torch.device, show: Callable[[int], None]) -> Iterator[Tensor]:
    """Yields the held-out tokens in order, [sequence, position]; calls `show` with how many sequences are done."""
    for start in range(0, len(heldout), batch_size):
        yield torch.from_numpy(heldout[start : start + batch_size]).to(device)
        show(min(start + batch_size, len(heldout)))


def measure_cosines(runs: Sequence[CodersToEvaluate], results: Sequence[EvalResult], progress: Progress) -> None:
    """Adds to each coder's metrics how alike the latents of its encoder and its decoder are."""
    coders = [(result.coders[name], coder) for run, result in zip(runs, results, strict=True) for name, coder in run.coders.items()]
    with progress("evaluation of likeness between latents", len(coders), "coders") as show:
        for number, (metrics, coder) in enumerate(coders, 1):
            metrics["average_max_encoder_cosine_sim"] = average_max_cosine(coder.encoder.weight)
            metrics["average_max_decoder_cosine_sim"] = average_max_cosine(coder.W_dec)
            show(number)


def measure_reconstruction(model: PreTrainedModel, runs: Sequence[CodersToEvaluate], batches: Iterable[Tensor]) -> list[EvalResult]:
    """The reconstruction, shrinkage, sparsity and density of every coder on batches [sequence, position]; one forward to the last hookpoint
    serves all."""
    hookpoints = list(dict.fromkeys(hookpoint_of(name) for run in runs for name in run.coders))
    stats = [{name: ReconstructionStats(coder) for name, coder in run.coders.items()} for run in runs]
    for tokens in batches:
        activations = capture(model, hookpoints, tokens, runs[0].cfg.forward_batch_size)
        for run, run_stats in zip(runs, stats, strict=True):
            position_filter = PositionFilter.of(run.cfg)
            counted = position_filter.by_token(tokens)
            for name in run.coders:
                at_hookpoint = activations[hookpoint_of(name)]
                x, y = position_filter.inputs_and_targets(at_hookpoint, position_filter.kept(at_hookpoint, counted))
                run_stats[name].add(x, y, tokens.numel())
    return [
        EvalResult(
            {name: s.metrics() for name, s in run_stats.items()},
            {name: s.density().cpu().numpy() for name, s in run_stats.items()},
            {name: s.levels() for name, s in run_stats.items()},
            {name: threshold_distribution(s.coder) for name, s in run_stats.items()},
            {name: s.y_sum / s.tokens for name, s in run_stats.items()},
        )
        for run_stats in stats
    ]


def coders_to_splice(result: EvalResult, all_metrics: bool) -> Iterator[tuple[dict[str, str], dict[str, float]]]:
    """Yields the coders {hookpoint: coder} that are put in place at once, and the dict that takes their metrics.

    These are the coders of all hookpoints of a seed, and, with all_metrics or where there is one hookpoint, each coder alone.
    """
    for names in coders_by_seed(result.coders):
        if len(names) > 1:
            yield names, result.together.setdefault(seed_of(next(iter(names.values()))), {})
        if all_metrics or len(names) == 1:
            for hookpoint, name in names.items():
                yield {hookpoint: name}, result.coders[name]
