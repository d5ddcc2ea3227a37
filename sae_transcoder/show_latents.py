"""The command `sae-latents PATH ... [NAME=VALUE ...]`: what the latents of trained coders stand for."""

import sys
from collections.abc import Sequence
from pathlib import Path

from sae_transcoder.config import FIELDS, GROUPS, ConfigError
from sae_transcoder.config.command_help import CommandParser
from sae_transcoder.config.explain_field import add_explain
from sae_transcoder.config.paths import local_path
from sae_transcoder.distributed import refuse
from sae_transcoder.evaluation.request import tell, tell_notes, titles
from sae_transcoder.latents.request import OWN, LatentsRequest, latents_requests, split_arguments
from sae_transcoder.launch.endings import end_if_stopped_or_disk_full
from sae_transcoder.process.broken_device import DeviceBroken
from sae_transcoder.process.stop_signal import Stopped
from sae_transcoder.process.version_option import add_version
from sae_transcoder.reports.errors import ReportError
from sae_transcoder.run_store import latents_pass

DESCRIPTION = """\
Describes each latent of trained coders: where it fires, with what, what it reads and writes.
The result lies in latents/ of the run.

  sae-latents outputs/my_run                           over what the run held out
  sae-latents outputs/my_run tokens=1_000_000          over so many tokens of the text for training
  sae-latents outputs/my_run latents=0-99,512 top=50   some latents, more contexts of each
  sae-latents outputs/my_sweep                         all runs of a sweep, one pass over a text
  sae-latents outputs/my_run --page                    and a page that opens from disk
"""
PAGE = "page"  # the page's folder beside the tables


def main() -> None:
    """Runs the command. Exit code 1 with a message where the coders or the settings are wrong."""
    parser = CommandParser("sae-latents", (*OWN, *FIELDS, *GROUPS), description=DESCRIPTION)
    parser.add_argument("arguments", nargs="+", metavar="PATH or NAME=VALUE",
                        help="a run, its best/, a snapshot, a folder of runs; tokens=N, latents=0-99, top=20, FIELD=VALUE, "
                        "GROUP=CHOICE of sae-train, as for sae-eval")  # fmt: skip
    parser.add_argument("--output", type=Path, help="folder for the result, in place of latents/ of the run")
    parser.add_argument("--page", action="store_true", help="write the page of the latents, beside the result of a single run, else into "
                        "latents/ of the folder of runs")  # fmt: skip
    add_explain(parser, OWN)
    add_version(parser)
    arguments = parser.parse_intermixed_args()
    try:
        # Before text is read, or after it: while it is read, what is done is saved first.
        with end_if_stopped_or_disk_full("stopped; what was tokenised and saved is kept, the same command goes on from there"):
            show_latents(arguments.arguments, arguments.output, page=arguments.page)
    except ConfigError as error:
        refuse(error.faults)
    except ReportError as error:
        refuse([str(error)])
    except DeviceBroken as error:
        refuse([f"{error}; start the command again, and the pass goes on, on a GPU that works"])
    except Stopped as stop:
        print(f"{stop}; the same command goes on from here", file=sys.stderr)
        sys.exit(128 + stop.number)


def show_latents(arguments: Sequence[str], output: Path | None = None, *, page: bool = False) -> list[LatentsRequest]:
    """Describes the latents of the runs that the arguments name, as far as that is not done, and with `page` writes their page.
    Returns what was asked for, by run.

    Raises ConfigError where there are no coders, where they do not fit the model, and for settings that are wrong; ReportError where the page
    cannot be written.
    """
    paths, wanted, overrides = split_arguments(arguments)
    if not paths:
        raise ConfigError("no run: give the directory of a run, its best/, a snapshot, or a folder of runs")
    requests = latents_requests(paths, wanted, overrides, output, tell)
    tell_notes(request.stored for request in requests)
    page_folder = folder_of_page(paths, requests) if page else None
    missing = []
    for request in requests:
        if request.is_done():
            print(f"done: {request.folder}")
        else:
            missing.append(request)
    if missing:
        from sae_transcoder.latents.one_pass import describe_latents, groups  # imports torch, once the request is known to be valid

        for group in groups(missing):
            describe_latents(group)
            for request in group:
                print(f"written: {request.folder}")
    if page_folder is not None:
        from sae_transcoder.reports.latents_page.page import write_page  # imports pyarrow

        names = titles(request.stored for request in requests)
        print(f"page: {write_page([(title, request.folder) for title, request in zip(names, requests, strict=True)], page_folder)}")
    return requests


def folder_of_page(paths: Sequence[str], requests: Sequence[LatentsRequest]) -> Path:
    """The folder of the page. Raises ConfigError for several runs that no path holds together."""
    if len(requests) == 1:
        return requests[0].folder / PAGE
    if len(paths) > 1:
        raise ConfigError(
            f"--page: of {len(requests)} runs; give the folder that holds them, or use sae-report {' '.join(paths)} --out FOLDER"
        )
    return local_path(paths[0]) / latents_pass.FOLDER


if __name__ == "__main__":
    main()
