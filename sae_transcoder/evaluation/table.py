"""The table that sae-eval prints."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sae_transcoder.config import as_list
from sae_transcoder.run_store.eval_file import Evaluation, Metrics, never_fired
from sae_transcoder.run_store.scores import is_worse_than_mean, reasons

COLUMNS = {
    "L0": "l0", "FVU": "fvu", "CE loss score": "ce_loss_score", "mean ablation": "ce_loss_score_mean_ablation",
    "CE loss": "ce_loss_with_sae", "without": "ce_loss_without_sae", "KL": "kl_div_with_sae", "cosine": "cossim",
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """An evaluation, the run's name for the table, and the file that has all metrics."""

    run: str
    evaluation: Evaluation
    path: Path


def print_table(measured: Sequence[Measured]) -> None:
    """Prints the main metrics of each coder, below a Matryoshka coder those of its smaller dictionaries, what is to be said of them, and where all
    metrics are."""
    several = len(measured) > 1
    table = Table(box=None, pad_edge=False)
    for header in (*(["run"] if several else []), "coder", "latents", "k", *COLUMNS, "never fired"):
        table.add_column(header, justify="left" if header in ("run", "coder") else "right")
    for each in measured:
        run = each.run
        for coder, latents, k, metrics in rows(each.evaluation):
            share = never_fired(metrics)
            table.add_row(
                *(Text(name) for name in ([run] if several else [])), coder, latents, k,
                *(cell(metrics.get(name)) for name in COLUMNS.values()), "" if share is None else f"{100 * share:.1f} %",
            )  # fmt: skip
            run = ""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200 + max(len(each.run) for each in measured))
    console.print(table)
    lines = [line for each in measured for line in remarks(each.evaluation, f" of {each.run}" if several else "")]
    for line in [*lines, *(f"{told(each.evaluation)}; all metrics: {each.path}" for each in measured)]:
        console.print(line, markup=False, soft_wrap=True)


def cell(value: float | None) -> str:
    """A metric in the table: empty where it was not measured, `-` where it is undefined."""
    return "" if value is None else "-" if math.isnan(value) else f"{value:.4f}"


def rows(evaluation: Evaluation) -> list[tuple[str, str, str, Metrics]]:
    """(coder, latents, k, metrics) of each row."""
    rows: list[tuple[str, str, str, Metrics]] = []
    for c in evaluation.coders:
        rows.append((c.coder, f"{c.num_latents:,}", str(c.k), c.metrics))
        rows += [
            ("  of its latents the first", f"{level.width:,}", "", {"fvu": level.fvu, "l0": level.l0}) for level in c.levels[:-1]
        ]
    return rows + [(f"together: {len(t.coders)}", "", "", t.metrics) for t in evaluation.together]


def remarks(evaluation: Evaluation, of_run: str) -> list[str]:
    """The thresholds of each coder, an FVU above 1, and why a score is missing."""
    lines = [f"latents of {c.coder}{of_run} fire above {c.thresholds_in_words()}" for c in evaluation.coders if c.thresholds]
    lines += [
        f"FVU of {c.coder}{of_run} is above 1: worse than the mean output at every token"
        for c in evaluation.coders
        if is_worse_than_mean(c.metrics)
    ]
    named = [(c.coder, c.metrics) for c in evaluation.coders] + [("all together", t.metrics) for t in evaluation.together]
    return lines + [
        f"{name}{of_run} has no {score}: {why}"
        for name, metrics in named
        for score, why in reasons(metrics).items()
        if score in COLUMNS.values()
    ]


def told(evaluation: Evaluation) -> str:
    """On how many tokens of which data the metrics were measured."""
    tokens = evaluation.coders[0].metrics["total_tokens_eval_sparsity_variance"]
    return f"{tokens:,.0f} held-out tokens of {' and '.join(as_list(evaluation.config['dataset_name']))}"
