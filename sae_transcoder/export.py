"""The command `sae-export PATH to=TARGET`: writes trained coders in the formats of other programs."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from sae_transcoder.config import ConfigError
from sae_transcoder.config.command_help import CommandParser
from sae_transcoder.distributed import refuse
from sae_transcoder.exports.targets import TARGETS
from sae_transcoder.launch.endings import end_if_stopped_or_disk_full
from sae_transcoder.process.version_option import add_version

DESCRIPTION = """\
Writes trained coders for other programs. A run's coders/ holds sparsify's own format already.

  sae-export outputs/my_run to=sae_lens out=exported    for sae_lens.SAE.load_from_disk
  sae-export outputs/my_run to=hub out=card             the files, settings, metrics, a model card
  sae-export outputs/my_run to=hub push=me/my-saes      the same, uploaded to the Hugging Face Hub
  sae-export outputs/my_run to=circuit_tracer out=transcoders
                                                        transcoders, one for every layer; with
                                                        features=true what its page shows of each
                                                        latent (sae-latents first)
  sae-export outputs/my_run to=neuronpedia out=rows     rows for Neuronpedia's bulk import
                                                        (sae-latents first)

Coders trained with batchtopk or jumprelu become JumpReLUs there, skip connection or not; those
trained with topk stay top-k, in SAELens without a skip connection; groupmax goes to the hub only.
"""


OWN_SETTINGS = "".join(
    f"; with to={name} {', '.join(f'{setting}={value}' for setting, value in target.settings.items())}"
    for name, target in TARGETS.items()
    if target.settings
)
KNOWN = ("to", "out", "push", *(name for target in TARGETS.values() for name in target.settings))


def parse_settings(arguments: Sequence[str]) -> dict[str, str]:
    """{name: value} of arguments NAME=VALUE. Raises ConfigError for unknown names, and for a name that stands there twice."""
    settings: dict[str, str] = {}
    for argument in arguments:
        name, sign, value = argument.partition("=")
        if name not in KNOWN or not sign or not value:
            raise ConfigError(f"{argument}: not known; write to=TARGET, out=FOLDER, push=USER/NAME{OWN_SETTINGS}")
        if name in settings:
            raise ConfigError(f"{name}={settings[name]} {argument}: {name} stands there twice; leave one out")
        settings[name] = value
    return settings


def main() -> None:
    """Runs the command. Exit code 1 with a message where something cannot be exported."""
    parser = CommandParser("sae-export", KNOWN, description=DESCRIPTION)
    parser.add_argument("path", help="a run's directory, its best/ or one of its snapshots/")
    parser.add_argument(
        "settings", nargs="+", help=f"to={', '.join(TARGETS)}; out=FOLDER; with to=hub push=USER/NAME{OWN_SETTINGS}"
    )
    add_version(parser)
    arguments = parser.parse_args()
    try:
        settings = parse_settings(arguments.settings)
        if "to" not in settings:
            raise ConfigError(f"to is missing: add to=TARGET, one of {', '.join(TARGETS)}")
        with end_if_stopped_or_disk_full("stopped; the export is not complete"):
            write_or_push(arguments.path, settings)
    except ConfigError as error:
        refuse(error.faults)


def write_or_push(path: str, settings: dict[str, str]) -> None:
    """Exports as the settings say. Raises ConfigError where that is not possible."""
    if "push" in settings:
        push(path, settings)
        return
    if "out" not in settings:
        raise ConfigError("out is missing: add out=FOLDER")
    from sae_transcoder.exports.write import export  # imports torch

    target, out = settings.pop("to"), settings.pop("out")
    print(f"written: {export(path, target, out, **settings)}")


def push(path: str, settings: dict[str, str]) -> None:
    """Exports for the Hugging Face Hub and uploads the files. Raises ConfigError where that is not possible."""
    if settings["to"] != "hub":
        raise ConfigError(f"push={settings['push']} with to={settings['to']}: only to=hub is uploaded; leave push out")
    if "out" in settings:
        raise ConfigError(f"push={settings['push']} with out={settings['out']}: what is uploaded is not kept; leave one out")
    from sae_transcoder.exports import hub
    from sae_transcoder.exports.write import export

    own = {name: value for name, value in settings.items() if name not in ("to", "push")}
    with tempfile.TemporaryDirectory() as temporary:
        out_dir = export(path, "hub", Path(temporary) / "card", **own)
        print(f"pushed: {hub.upload(out_dir, settings['push'])}")


if __name__ == "__main__":
    main()
