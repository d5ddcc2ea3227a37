"""The entrypoint `sae-export PATH to=TARGET`: trained coders in the files of the programs that read them."""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path

from sae_transcoder.config import ConfigError
from sae_transcoder.distributed import refuse
from sae_transcoder.exports.source import Source, Write, source

DESCRIPTION = """\
Writes trained coders for other programs; sparsify's own format is what a run's coders/ holds already.

  sae-export outputs/my_run to=sae_lens out=exported          one folder per coder, for sae_lens.SAE.load_from_disk
  sae-export outputs/my_run to=hub out=card                   sparsify's files, the settings, the metrics and a model card
  sae-export outputs/my_run to=hub push=me/my-saes            the same, uploaded to the Hugging Face Hub
  sae-export outputs/my_run to=circuit_tracer out=transcoders  a transcoder set: one for every layer
"""


def export(path: str, to: str, out: Path) -> Path:
    """Writes the coders in `path` into the new folder `out`, whole or not at all.

    Raises ConfigError for an unknown target, a folder that exists, and coders that the target cannot express.
    """
    make = target(to)
    if out.exists():
        raise ConfigError(f"out={out}: exists; choose another folder, or remove it")
    write = make(source(path))
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.absolute().parent) as folder:
            whole = Path(folder) / "whole"
            whole.mkdir()
            write(whole)
            whole.rename(out)
    except OSError as error:
        raise ConfigError(f"out={out}: cannot be written ({error.strerror}); choose another folder") from error
    return out


def targets() -> dict[str, Callable[[Source], Write]]:
    """{target: what checks that it can express the coders, and returns what writes its files into an empty folder}."""
    from sae_transcoder.exports import circuit_tracer, hub, sae_lens

    return {"sae_lens": sae_lens.writer, "hub": hub.writer, "circuit_tracer": circuit_tracer.writer}


def target(name: str) -> Callable[[Source], Write]:
    """The function of a target. Raises ConfigError where there is none of that name."""
    known = targets()
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean to={near[0]}?" if near else f"choose one of {', '.join(known)}"
        raise ConfigError(f"to={name}: there is no such target; {hint}")
    return known[name]


def arguments_of(given: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE arguments. Raises ConfigError for others, and for names that there are not."""
    found: dict[str, str] = {}
    for argument in given:
        name, sign, value = argument.partition("=")
        if name not in ("to", "out", "push") or not sign or not value:
            raise ConfigError(f"{argument}: not known; write to=TARGET, out=FOLDER or push=USER/NAME")
        if name in found:
            raise ConfigError(f"{name}={found[name]} {argument}: {name} stands there twice; leave one out")
        found[name] = value
    return found


def main() -> None:
    """The command line; exit code 1 and a message where something cannot be exported."""
    parser = argparse.ArgumentParser("sae-export", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="a run's directory, its best/ or one of its snapshots/")
    parser.add_argument("settings", nargs="+", help="to=sae_lens, hub or circuit_tracer; out=FOLDER; with to=hub push=USER/NAME")
    asked = parser.parse_args()
    try:
        settings = arguments_of(asked.settings)
        if "to" not in settings:
            raise ConfigError(f"to is missing: add to=TARGET, one of {', '.join(targets())}")
        if "push" in settings:
            push(asked.path, settings)
            return
        if "out" not in settings:
            raise ConfigError("out is missing: add out=FOLDER")
        print(f"written: {export(asked.path, settings['to'], Path(settings['out']))}")
    except ConfigError as error:
        refuse(error.faults)


def push(path: str, settings: dict[str, str]) -> None:
    """Writes the hub's layout and uploads it. Raises ConfigError where it cannot be."""
    from sae_transcoder.exports import hub

    if settings["to"] != "hub":
        raise ConfigError(f"push={settings['push']} with to={settings['to']}: only to=hub is uploaded; leave push out")
    if "out" in settings:
        raise ConfigError(f"push={settings['push']} with out={settings['out']}: what is uploaded is not kept; leave one out")
    with tempfile.TemporaryDirectory() as folder:
        out = export(path, "hub", Path(folder) / "card")
        print(f"pushed: {hub.upload(out, settings['push'])}")


if __name__ == "__main__":
    main()
