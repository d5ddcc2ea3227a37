"""SAEBench's core evaluation (https://github.com/adamkarvonen/SAEBench) of an SAE that was trained here, on the sequences that its run held out.

SAEBench 0.6.0 needs an environment of its own, and reads what `sae-export to=sae_lens` writes:

    sae-train experiment=demo run_name=demo separator=none
    sae-export outputs/demo to=sae_lens out=outputs/demo_sae_lens
    python examples/sae_bench_core.py sequences outputs/demo outputs/demo_heldout
    python benchmarks/peers/environments.py sae_bench && source ~/.cache/sae_transcoder_benchmarks/sae_bench/bin/activate
    python examples/sae_bench_core.py core outputs/demo_sae_lens/layers.2 outputs/demo_heldout --compare outputs/demo/eval.json

The last line prints SAEBench's metrics, beside them those of eval.json. separator=none, since SAEBench leaves begin, end and padding tokens out
of its means whatever the run did. What is not the same by definition: docs/other_programs.md.
"""

import argparse
import json
from pathlib import Path
from typing import Any

BUNDLED = Path(__file__).parents[1] / "sae_transcoder" / "demo" / "model"  # what model_name: demo stands for
SEQUENCES = "sequences.jsonl"


def write_sequences(run: str, out: Path) -> int:
    """Writes the token ids of the sequences that a run held out, a line for each. Returns how many. Needs this project's environment."""
    import numpy as np

    from sae_transcoder.data import token_sets
    from sae_transcoder.evaluation.request import stored_coders
    from sae_transcoder.language_model import loading

    cfg = stored_coders(run, []).cfg
    vocabulary = loading.text_config(loading.outline(cfg)).vocab_size
    sequences, _ = token_sets.heldout_sequences(cfg, lambda: loading.tokenizer(cfg), vocabulary)
    marked = sequences.at(np.arange(len(sequences)))
    ids = np.maximum(marked, ~marked)  # of a conversation, what is left out is marked
    out.mkdir(parents=True)
    (out / SEQUENCES).write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in ids.tolist()))
    return len(ids)


def core_evaluation(export: Path, sequences: Path, model: str | None, batch: int) -> dict[str, float]:
    """SAEBench's core metrics of an exported SAE on all of these sequences. Needs SAEBench's environment."""
    import torch
    from datasets import Dataset
    from sae_bench.evals.core.eval_config import CoreEvalConfig
    from sae_bench.evals.core.main import calculate_misc_metrics, run_evals
    from sae_bench.sae_bench_utils.general_utils import load_and_format_sae
    from sae_lens import SAE
    from sae_lens.training.activations_store import ActivationsStore
    from transformer_lens import HookedTransformer, loading_from_pretrained

    rows = [json.loads(line) for line in (sequences / SEQUENCES).read_text().splitlines()]
    if len(rows) % batch:
        raise SystemExit(f"--batch {batch}: does not divide {len(rows)} sequences; choose another")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sae = SAE.load_from_disk(export, device=device)
    metadata = sae.cfg.metadata
    if metadata.hook_name is None:
        raise SystemExit(f"{export}: no hook_name in cfg.json; SAEBench reads modules that TransformerLens has a name for")
    load_and_format_sae(export.name, sae, device)
    name = model or (str(BUNDLED) if metadata.model_name == "demo" else metadata.model_name)
    if Path(name).is_dir():  # TransformerLens loads no folder that is not among its names
        loading_from_pretrained.OFFICIAL_MODEL_NAMES.append(name)
    lens = HookedTransformer.from_pretrained_no_processing(name, device=device, dtype=torch.float32)
    config = CoreEvalConfig(
        model_name=name,
        batch_size_prompts=batch,
        n_eval_reconstruction_batches=len(rows) // batch,
        n_eval_sparsity_variance_batches=len(rows) // batch,
        exclude_special_tokens_from_reconstruction=True,
        dataset=str(sequences),
        context_size=len(rows[0]["input_ids"]),
        compute_featurewise_density_statistics=True,
        compute_featurewise_weight_based_metrics=True,
        **dict.fromkeys(
            ("compute_kl", "compute_ce_loss", "compute_l2_norms", "compute_sparsity_metrics", "compute_variance_metrics"), True
        ),
    )
    # Its command takes the name of a data set on the hub. A local folder of token ids fails there: SAELens looks for it on the hub
    # (validate_pretokenized_dataset_tokenizer).
    store = ActivationsStore.from_sae(lens, sae, Dataset.from_list(rows), context_size=config.context_size, device=device)
    special = {lens.tokenizer.pad_token_id, lens.tokenizer.eos_token_id, lens.tokenizer.bos_token_id}
    metrics, by_latent = run_evals(sae, store, lens, config, ignore_tokens=special)
    metrics["misc_metrics"] = calculate_misc_metrics(by_latent)
    return {name: value for group in metrics.values() for name, value in group.items()}


def ours(path: Path, coder: str) -> dict[str, Any]:
    """The metrics of one coder in eval.json, by SAEBench's names."""
    found = next(entry for entry in json.loads(path.read_text())["eval_result_unstructured"]["coders"] if entry["coder"] == coder)
    return {name: value for group in found["metrics"].values() for name, value in group.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("sequences", help="write the sequences that a run held out (in this project's environment)")
    writing.add_argument("run", help="a run's directory")
    writing.add_argument("out", type=Path, help="the folder that is written")
    core = commands.add_parser("core", help="SAEBench's core evaluation (in its own environment)")
    core.add_argument("export", type=Path, help="a coder's folder that sae-export to=sae_lens wrote")
    core.add_argument("sequences", type=Path, help="the folder of sequences")
    core.add_argument("--model", help="path or TransformerLens's name of the language model; default: as the export says")
    core.add_argument("--batch", type=int, default=8, help="sequences at a time (8)")
    core.add_argument("--compare", type=Path, help="the run's eval.json, printed beside SAEBench's")
    arguments = parser.parse_args()
    if arguments.command == "sequences":
        print(f"written: {write_sequences(arguments.run, arguments.out)} sequences, {arguments.out / SEQUENCES}")
        return
    theirs = core_evaluation(arguments.export, arguments.sequences, arguments.model, arguments.batch)
    here = ours(arguments.compare, arguments.export.name) if arguments.compare else {}
    print(f"{'':40}{'SAEBench':>12}{'eval.json' if here else '':>12}")
    for name, value in theirs.items():
        print(f"{name:40}{value:12.6g}" + (f"{here[name]:12.6g}" if name in here else ""))


if __name__ == "__main__":
    main()
