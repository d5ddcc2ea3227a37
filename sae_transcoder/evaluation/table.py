"""The table that sae-eval prints."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sae_transcoder.config import as_list
from sae_transcoder.run_store.eval_file import Evaluation, Metrics

COLUMNS = {
    "L0": "l0", "FVU": "fvu", "CE loss score": "ce_loss_score", "CE loss": "ce_loss_with_sae", "without": "ce_loss_without_sae",
    "KL": "kl_div_with_sae", "cosine": "cossim", "alive": "frac_alive",
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """An evaluation, the run's name for the table, and the file that has all metrics."""

    run: str
    evaluation: Evaluation
    path: Path


def print_table(measured: Sequence[Measured]) -> None:
    """Prints the main metrics of each coder, below a Matryoshka coder those of its smaller dictionaries, and where all metrics are."""
    several = len(measured) > 1
    table = Table(box=None, pad_edge=False)
    for header in (*(["run"] if several else []), "coder", "latents", "k", *COLUMNS):
        table.add_column(header, justify="left" if header in ("run", "coder") else "right")
    for each in measured:
        run = each.run
        for coder, latents, k, metrics in rows(each.evaluation):
            cells = (f"{metrics[name]:.4f}" if name in metrics else "" for name in COLUMNS.values())
            table.add_row(*(Text(name) for name in ([run] if several else [])), coder, latents, k, *cells)
            run = ""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200 + max(len(each.run) for each in measured))
    console.print(table)
    for each in measured:
        for c in each.evaluation.coders:
            if c.thresholds:
                of_run = f" of {each.run}" if several else ""
                console.print(f"latents of {c.coder}{of_run} fire above {c.thresholds_in_words()}", markup=False, soft_wrap=True)
    for each in measured:
        console.print(f"{told(each.evaluation)}; all metrics: {each.path}", markup=False, soft_wrap=True)


def rows(evaluation: Evaluation) -> list[tuple[str, str, str, Metrics]]:
    """(coder, latents, k, metrics) of each row."""
    rows: list[tuple[str, str, str, Metrics]] = []
    for c in evaluation.coders:
        rows.append((c.coder, f"{c.num_latents:,}", str(c.k), c.metrics))
        rows += [
            ("  of its latents the first", f"{level.width:,}", "", {"fvu": level.fvu, "l0": level.l0}) for level in c.levels[:-1]
        ]
    return rows + [(f"together: {len(t.coders)}", "", "", t.metrics) for t in evaluation.together]


def told(evaluation: Evaluation) -> str:
    """On how many tokens of which data the metrics were measured."""
    tokens = evaluation.coders[0].metrics["total_tokens_eval_sparsity_variance"]
    return f"{tokens:,.0f} held-out tokens of {' and '.join(as_list(evaluation.config['dataset_name']))}"
