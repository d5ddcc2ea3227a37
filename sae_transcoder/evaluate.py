"""The entrypoint `sae-eval PATH [overrides]`: held-out metrics of coders that were trained before, by this project or by sparsify."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sae_transcoder.coder.stored_coders import coders_dir, find_coders, run_dir_of
from sae_transcoder.config import Config, ConfigError, evaluation_settings
from sae_transcoder.distributed import refuse
from sae_transcoder.evaluation.settings import (
    SELECTION,
    evaluation_config,
    refuse_trained_on,
    refuse_unread,
    run_settings,
    sparsify_settings,
)
from sae_transcoder.preflight.device import find_device
from sae_transcoder.preflight.directory import refuse_unwritable
from sae_transcoder.process.broken_device import DeviceBroken, diagnosing
from sae_transcoder.run_store import status
from sae_transcoder.run_store.eval_file import NAME, Evaluation, write

if TYPE_CHECKING:
    import torch

    from sae_transcoder.coder.corrected_coder import SparseCoder

DESCRIPTION = """\
Held-out metrics of sparse coders: reconstruction, sparsity, and the language model with the coders in place.

  sae-eval outputs/my_run                          as at the end of the run, with the run's own settings
  sae-eval outputs/my_run/best eval_samples=64     the best coders, on fewer sequences
  sae-eval outputs/my_run dataset=local_text 'dataset_name="other/*.txt"'
  sae-eval EleutherAI/sae-llama-3-8b-32x model=llama3_8b 'layers=[10]'
"""


def main() -> None:
    """The command line; exit code 1 and a message where the coders or the overrides are not what they should be."""
    parser = argparse.ArgumentParser("sae-eval", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="a run's directory, a folder of coders in sparsify's format, or a hub id")
    parser.add_argument("overrides", nargs="*", help="FIELD=VALUE or GROUP=CHOICE, as for sae-train")
    parser.add_argument(
        "--output", type=Path, help="folder for eval.json; by default PATH, with overrides one below save_dir/evals"
    )
    arguments = parser.parse_args()
    try:
        evaluate(arguments.path, arguments.overrides, arguments.output)
    except ConfigError as error:
        refuse(error.faults)
    except DeviceBroken as error:
        refuse([f"{error}; start the command again, and it measures on a GPU that works"])


def evaluate(path: str, overrides: Sequence[str] = (), output: Path | None = None) -> Evaluation:
    """Measures the coders in `path` and writes eval.json and feature_density.npz into `output`.

    Raises ConfigError where there are no coders, where they do not fit the model, and for settings that an evaluation does not read or
    that would measure what the coders were trained on.
    """
    refuse_unread(overrides)
    root = coders_dir(path, path)
    if (root / "cfg.json").is_file():  # a single coder's folder
        root, places = root.parent, {root.name: root}
    else:
        places = find_coders(root)
    if not places:
        raise ConfigError(
            f"{path}: holds no coders (folders with cfg.json and sae.safetensors); give a run's directory or its coders/"
        )
    run = run_dir_of(root)
    base = run_settings(run) if run else sparsify_settings(root, places)
    selecting = any(o.split("=")[0] in SELECTION for o in overrides)
    if selecting or not run:
        base = {name: value for name, value in base.items() if name not in SELECTION}
    cfg = evaluation_config(base, overrides)
    if run:
        refuse_trained_on(evaluation_config(base, ()), cfg)
    if output is None:
        key = hashlib.sha256(json.dumps([path, evaluation_settings(cfg), sorted(places)]).encode()).hexdigest()[:8]
        aside = Path(cfg.save_dir) / "evals" / f"{Path(path).name}-{key}"
        output = aside if overrides or not Path(path).exists() else Path(path)
    refuse_unwritable("--output", output)
    evaluation = measured(cfg, places, path, *progress(run, root), selecting=selecting)
    write(output, evaluation)
    show(evaluation, output)
    return evaluation


def progress(run: Path | None, root: Path) -> tuple[int | None, int | None]:
    """Optimizer steps and tokens after which the coders in `root` were saved; None where that is not known."""
    if match := re.fullmatch(r"step(\d+)_tokens(\d+)", root.name):
        return int(match[1]), int(match[2])
    found = status.read(run) if run and root.name == "coders" else None
    return (found.step, found.tokens) if found and found.state == status.State.done else (None, None)


def measured(
    cfg: Config, places: dict[str, Path], path: str, step: int | None, tokens: int | None, *, selecting: bool
) -> Evaluation:
    """Loads the model and the coders and measures them; `selecting`: only those on the hookpoints that `cfg` names."""
    from sae_transcoder.coder.names import hookpoint_of
    from sae_transcoder.data import token_sets
    from sae_transcoder.evaluation import heldout
    from sae_transcoder.language_model import hookpoints, layers, loading, model_checks
    from sae_transcoder.process import devices

    device = find_device(cfg)
    outline = loading.outline(cfg)
    if selecting:
        wanted = hookpoints.hookpoint_names(cfg, outline)
        if lost := [point for point in wanted if point not in map(hookpoint_of, places)]:
            raise ConfigError(f"{path}: no coders for {', '.join(lost)}; it holds {', '.join(places)}")
        places = {name: place for name, place in places.items() if hookpoint_of(name) in wanted}
    points = list(dict.fromkeys(map(hookpoint_of, places)))
    modules = dict(outline.named_modules())
    if lost := [point for point in points if point not in modules]:
        raise ConfigError(
            f"{path}: coders on {', '.join(lost)}, which model_name={cfg.model_name} does not have "
            f"(it has {hookpoints.name_patterns(filter(None, modules))}); set model or model_name"
        )
    widths = hookpoints.widths(cfg, outline, points)
    with diagnosing(), devices.configured(cfg, device):
        coders, faults = loaded(cfg, places, widths, device)
        count = layers.num_layers_needed(cfg, outline, points)
        faults += model_checks.faults(cfg, outline, layers.compile_obstacle(cfg, outline, points, count, device))
        if faults:
            raise ConfigError(*faults)
        sequences = token_sets.heldout_sequences(cfg, lambda: loading.tokenizer(cfg), loading.text_config(outline).vocab_size)
        subject = heldout.CodersToEvaluate(cfg, coders)
        model = layers.load_for_hookpoints(cfg, device, count, points)
        (found,) = heldout.measure(model, [subject], sequences, all_metrics=True)
        return found.evaluation(subject, step, tokens)


def loaded(
    cfg: Config, places: Mapping[str, Path], widths: Mapping[str, int], device: torch.device
) -> tuple[dict[str, SparseCoder], list[str]]:
    """The coders {name: coder}, and what is wrong with those that cannot be read or do not fit a hookpoint's width."""
    from sae_transcoder.coder.corrected_coder import SparseCoder
    from sae_transcoder.coder.names import hookpoint_of

    coders, faults = {}, []
    for name, place in places.items():
        try:
            coders[name] = SparseCoder.load_from_disk(place, device).float().requires_grad_(False)
        except Exception as error:  # json, safetensors and torch raise what the damage happens to hit
            faults.append(f"{place}: cannot be read ({str(error).splitlines()[0]})")
            continue
        if coders[name].d_in != (width := widths[hookpoint_of(name)]):
            faults.append(
                f"{place}: a coder of width {coders[name].d_in}, {hookpoint_of(name)} of model_name={cfg.model_name} has {width}; set model"
            )
    return coders, faults


COLUMNS = {
    "FVU": "fvu", "CE loss score": "ce_loss_score", "CE loss": "ce_loss_with_sae", "without": "ce_loss_without_sae", "KL": "kl_div_with_sae",
    "L0": "l0", "cosine": "cossim", "alive": "frac_alive",
}  # fmt: skip


def show(evaluation: Evaluation, output: Path) -> None:
    """A table of the main metrics, and where all of them are."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("coder", "latents", "k", *COLUMNS):
        table.add_column(name, justify="left" if name == "coder" else "right")
    rows = [(c.coder, f"{c.num_latents:,}", str(c.k), c.metrics) for c in evaluation.coders]
    rows += [(f"together: {len(t.coders)}", "", "", t.metrics) for t in evaluation.together]
    for coder, latents, k, metrics in rows:
        table.add_row(coder, latents, k, *(f"{metrics[name]:.4f}" if name in metrics else "" for name in COLUMNS.values()))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    console.print(table)
    tokens = evaluation.coders[0].metrics["total_tokens_eval_sparsity_variance"]
    console.print(
        f"{tokens:,.0f} held-out tokens of {evaluation.config['dataset_name']}; all metrics: {output / NAME}", soft_wrap=True
    )


if __name__ == "__main__":
    main()
