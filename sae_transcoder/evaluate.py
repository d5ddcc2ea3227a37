"""The command `sae-eval PATH [overrides]`: held-out metrics of coders that this project or sparsify has trained."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sae_transcoder.config import ConfigError
from sae_transcoder.config.explain_field import OPTION, Explain
from sae_transcoder.distributed import refuse
from sae_transcoder.evaluation.request import evaluation_request
from sae_transcoder.process.broken_device import DeviceBroken
from sae_transcoder.run_store import eval_file
from sae_transcoder.run_store.eval_file import Evaluation

DESCRIPTION = """\
Held-out metrics of sparse coders: reconstruction, sparsity, and the language model with the coders in place.

  sae-eval outputs/my_run                          as at the end of the run, with the run's own settings
  sae-eval outputs/my_run/best eval_samples=64     the best coders, on fewer sequences
  sae-eval outputs/my_run dataset=local_text 'dataset_name="other/*.txt"'
  sae-eval EleutherAI/sae-llama-3-8b-32x model=llama3_8b 'layers=[10]'
"""


def main() -> None:
    """Runs the command. Exit code 1 with a message where the coders or the overrides are wrong."""
    parser = argparse.ArgumentParser("sae-eval", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="a run's directory, a folder of coders in sparsify's format, or a hub id")
    parser.add_argument("overrides", nargs="*", help="FIELD=VALUE or GROUP=CHOICE, as for sae-train")
    parser.add_argument(
        "--output", type=Path, help="folder for eval.json; by default PATH, with overrides one below save_dir/evals"
    )
    parser.add_argument(OPTION, nargs="+", action=Explain, metavar="FIELD", help="what is known of a field, and end")
    arguments = parser.parse_intermixed_args()
    try:
        evaluate(arguments.path, arguments.overrides, arguments.output)
    except ConfigError as error:
        refuse(error.faults)
    except DeviceBroken as error:
        refuse([f"{error}; start the command again, and it measures on a GPU that works"])


def evaluate(path: str, overrides: Sequence[str] = (), output: Path | None = None) -> Evaluation:
    """Measures the coders in `path`, writes eval.json and feature_density.npz into `output`, and prints the main metrics.

    Raises ConfigError where there are no coders, where they do not fit the model, and for settings that an evaluation does not read or
    that would measure what the coders were trained on.
    """
    request = evaluation_request(path, overrides, output)
    from sae_transcoder.evaluation import table  # these import torch and rich, once the request is known to be valid
    from sae_transcoder.evaluation.measure_stored import measure_stored

    evaluation = measure_stored(request)
    eval_file.write(request.output_dir, evaluation)
    table.print_table(evaluation, request.output_dir / eval_file.NAME)
    return evaluation


if __name__ == "__main__":
    main()
