"""The table that sae-eval prints."""

import math
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sae_transcoder.config import as_list
from sae_transcoder.run_store.eval_file import Evaluation, Metrics, never_fired
from sae_transcoder.run_store.scores import reasons

COLUMNS = {
    "L0": "l0", "FVU": "fvu", "CE loss score": "ce_loss_score", "mean ablation": "ce_loss_score_mean_ablation",
    "CE loss": "ce_loss_with_sae", "without": "ce_loss_without_sae", "KL": "kl_div_with_sae", "cosine": "cossim",
}  # fmt: skip


def print_table(evaluation: Evaluation, eval_path: Path) -> None:
    """Prints the main metrics of each coder, below a Matryoshka coder those of its smaller dictionaries, and where all metrics are."""
    table = Table(box=None, pad_edge=False)
    for header in ("coder", "latents", "k", *COLUMNS, "never fired"):
        table.add_column(header, justify="left" if header == "coder" else "right")
    rows: list[tuple[str, str, str, Metrics]] = []
    for c in evaluation.coders:
        rows.append((c.coder, f"{c.num_latents:,}", str(c.k), c.metrics))
        rows += [
            ("  of its latents the first", f"{level.width:,}", "", {"fvu": level.fvu, "l0": level.l0}) for level in c.levels[:-1]
        ]
    rows += [(f"together: {len(t.coders)}", "", "", t.metrics) for t in evaluation.together]
    for coder, latents, k, metrics in rows:
        share = never_fired(metrics)
        cells = [
            "" if name not in metrics else "-" if math.isnan(metrics[name]) else f"{metrics[name]:.4f}" for name in COLUMNS.values()
        ]
        table.add_row(coder, latents, k, *cells, "" if share is None else f"{100 * share:.1f} %")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    console.print(table)
    for c in evaluation.coders:
        if c.thresholds:
            console.print(f"latents of {c.coder} fire above {c.thresholds_in_words()}", markup=False, soft_wrap=True)
        if c.metrics.get("fvu", 0) > 1:
            console.print(f"FVU of {c.coder} is above 1: worse than the mean output at every token", markup=False, soft_wrap=True)
    for name, metrics in [(c.coder, c.metrics) for c in evaluation.coders] + [
        ("all together", t.metrics) for t in evaluation.together
    ]:
        for score in reasons(metrics).keys() & COLUMNS.values():
            console.print(f"{name} has no {score}: {reasons(metrics)[score]}", markup=False, soft_wrap=True)
    tokens = evaluation.coders[0].metrics["total_tokens_eval_sparsity_variance"]
    names = evaluation.config["dataset_name"]
    console.print(
        f"{tokens:,.0f} held-out tokens of {' and '.join(as_list(names))}; all metrics: {eval_path}",
        soft_wrap=True,
    )
