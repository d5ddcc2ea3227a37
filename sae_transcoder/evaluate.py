"""The command `sae-eval PATH ... [overrides]`: held-out metrics of coders that this project or sparsify has trained."""

from collections.abc import Sequence
from pathlib import Path

from sae_transcoder.config import FIELDS, GROUPS, ConfigError
from sae_transcoder.config.command_help import CommandParser
from sae_transcoder.config.explain_field import add_explain
from sae_transcoder.distributed import refuse
from sae_transcoder.evaluation.request import EvaluationRequest, evaluation_requests, split_paths, tell, tell_notes, titles
from sae_transcoder.launch.endings import end_if_stopped_or_disk_full
from sae_transcoder.process.broken_device import DeviceBroken
from sae_transcoder.process.version_option import add_version
from sae_transcoder.run_store import eval_file
from sae_transcoder.run_store.eval_file import Evaluation

DESCRIPTION = """\
Held-out metrics of sparse coders: reconstruction, sparsity, the language model with them in place.

  sae-eval outputs/my_run                         as at the end of the run, with its own settings
  sae-eval outputs/my_run/best eval_samples=64    the best coders, on fewer sequences
  sae-eval outputs/my_sweep dataset=local_text 'dataset_name="other/*.txt"'
                                                  all runs of a sweep on other text, one forward;
                                                  sae-report then shows these numbers too
  sae-eval EleutherAI/sae-llama-3-8b-32x model=llama3_8b 'layers=[10]'
                                                  coders of the hub
"""


def main() -> None:
    """Runs the command. Exit code 1 with a message where the coders or the overrides are wrong."""
    parser = CommandParser("sae-eval", (*FIELDS, *GROUPS), description=DESCRIPTION)
    parser.add_argument("arguments", nargs="+", metavar="PATH or NAME=VALUE",
                        help="a run, its best/, a snapshot, a folder of runs, a folder of coders in sparsify's format, a hub id; "
                        "FIELD=VALUE, GROUP=CHOICE of sae-train")  # fmt: skip
    parser.add_argument("--output", type=Path, help="folder for eval.json; without it the run's own, for other data or settings one in the run's "
                        "evals/, with save_dir or for coders of no run one in save_dir/evals")  # fmt: skip
    add_explain(parser)
    add_version(parser)
    arguments = parser.parse_intermixed_args()
    try:
        paths, overrides = split_paths(arguments.arguments)
        if not paths:
            raise ConfigError("no coders: give the directory of a run, a folder of runs, a folder of coders, or a hub id")
        with end_if_stopped_or_disk_full("stopped; nothing was measured, what was tokenised is kept"):
            evaluate(paths, overrides, arguments.output)
    except ConfigError as error:
        refuse(error.faults)
    except DeviceBroken as error:
        refuse([f"{error}; start the command again, and it measures on a GPU that works"])


def evaluate(paths: Sequence[str], overrides: Sequence[str] = (), output: Path | None = None) -> list[Evaluation]:
    """Measures the coders in each of the paths, those of one model and text on the same forwards, writes eval.json and feature_density.npz of
    each, and prints the main metrics. Returns the evaluations in the order of the runs.

    Raises ConfigError where there are no coders, where they do not fit the model, and for settings that an evaluation does not read or
    that would measure what the coders were trained on.
    """
    requests = evaluation_requests(paths, overrides, output, tell)
    tell_notes(request.stored for request in requests)
    from sae_transcoder.evaluation import table  # these import torch and rich, once the requests are known to be valid
    from sae_transcoder.evaluation.measure_stored import groups, measure_stored

    found: dict[EvaluationRequest, Evaluation] = {}
    for group in groups(requests):
        for request, evaluation in zip(group, measure_stored(group), strict=True):
            eval_file.write(request.output_dir, evaluation)
            found[request] = evaluation
    names = titles(request.stored for request in requests)
    table.print_table(
        [
            table.Measured(name, found[request], request.output_dir / eval_file.NAME)
            for name, request in zip(names, requests, strict=True)
        ]
    )
    return [found[request] for request in requests]


if __name__ == "__main__":
    main()
