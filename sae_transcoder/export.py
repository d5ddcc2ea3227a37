"""The entrypoint `sae-export PATH to=TARGET`: trained coders in the files of the programs that read them."""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from sae_transcoder.coder import stored as stored_coders
from sae_transcoder.config import FIELDS, ConfigError
from sae_transcoder.config.composition import refuse
from sae_transcoder.run_store import eval_file, files, status
from sae_transcoder.run_store.eval_file import Evaluation
from sae_transcoder.run_store.status import State

DESCRIPTION = """\
Writes trained coders for other programs; sparsify's own format is what a run's coders/ holds already.

  sae-export outputs/my_run to=sae_lens out=exported          one folder per coder, for sae_lens.SAE.load_from_disk
  sae-export outputs/my_run to=hub out=card                   sparsify's files, the settings, the metrics and a model card
  sae-export outputs/my_run to=hub push=me/my-saes            the same, uploaded to the Hugging Face Hub
  sae-export outputs/my_run to=circuit_tracer out=transcoders  a transcoder set: one for every layer
"""


@dataclass(frozen=True)
class Coder:
    """A coder as sparsify stored it: its folder, its cfg.json, its tensors by sparsify's names."""

    place: Path
    cfg: dict[str, Any]
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """What is exported: the coders by name, the run's settings and held-out metrics."""

    path: Path
    coders: dict[str, Coder]
    settings: dict[str, Any]
    evaluation: Evaluation | None


def source(path: str) -> Source:
    """The coders of a run that is done, of its best/ or of a snapshot.

    Raises ConfigError where there are none, where they cannot be read, or the run is not done.
    """
    root = Path(path).expanduser()
    root = root / "coders" if (root / "coders").is_dir() else root
    run = stored_coders.run_of(root)
    places = stored_coders.find(root)
    if run is None or not places:
        lacks = "no coders" if run else "no run" if root.is_dir() else "there is no such folder"
        raise ConfigError(f"{path}: {lacks}; give the directory of a run, its best/ or one of its snapshots/")
    try:
        found, settings = status.read(run), files.read_config(run)
        evaluation = eval_file.read(run) if root.name == "coders" else None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if (found is None or found.state != State.done) and root.parent.name != "snapshots":
        what = f"its run is {found.state} at step {found.step} of {found.total}" if found else "its run has not begun"
        raise ConfigError(f"{path}: {what}; finish it by the command that began it, or export one of its snapshots/")
    if lacking := [name for name in FIELDS if name not in settings]:
        raise ConfigError(f"{run / files.CONFIG}: lacks {', '.join(lacking)}; it is of another version of this program")
    return Source(root, {name: stored(place) for name, place in places.items()}, settings, evaluation)


def stored(place: Path) -> Coder:
    """A coder's files, read. Raises ConfigError where they are damaged."""
    try:
        return Coder(place, json.loads((place / "cfg.json").read_text()), load_file(place / "sae.safetensors"))
    except Exception as error:  # json and safetensors raise what the damage happens to hit
        raise ConfigError(f"{place}: cannot be read ({str(error).splitlines()[0]}); export another copy") from error


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


Write = Callable[[Path], None]


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
