"""The command `sae-train`: lets Hydra compose the config, hands it over, reports the end. Slow imports wait until the config is valid."""

import errno
import os
import sys

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from sae_transcoder.config import ConfigError, Hardware, run_dir
from sae_transcoder.config.composition import CONF, explain, fields_of, override_faults, register, split_arguments, typed
from sae_transcoder.distributed import PeerFailed, rank, refuse
from sae_transcoder.process.broken_device import DeviceBroken
from sae_transcoder.process.stop_signal import Stopped

GOES_ON = "the same command goes on from"


@hydra.main(version_base="1.3", config_path=str(CONF.resolve()), config_name="config")
def run(composed: DictConfig) -> float | None:
    """Trains or submits the run that `composed` describes. Returns its objective if it was trained here."""
    cfg = typed(composed)
    if cfg.hardware == Hardware.slurm:
        from rich.console import Console

        from sae_transcoder.launch.slurm.submit_and_wait import submit_run

        submit_run(cfg, Console(highlight=False))
        return None
    from sae_transcoder.run_store import eval_file
    from sae_transcoder.training import engine
    from sae_transcoder.training.checkpoint import DiskError
    from sae_transcoder.training.divergence import Diverged
    from sae_transcoder.training.managed_run import RunClaimed

    try:
        engine.train([cfg])
    except RunClaimed as note:
        print(note)
    except (DiskError, Diverged) as error:  # refused here, or Hydra would add to the message
        refuse([str(error)])
    evaluation = eval_file.read(run_dir(cfg))
    return evaluation.mean().get(cfg.objective) if evaluation else None


def take_json(command: list[str]) -> None:
    """Replaces `json=FILE` in the command by the overrides that it stands for; with --to-yaml prints an experiment file and exits."""
    from sae_transcoder.config import old_json

    folders = split_arguments(command[1:]).config_dirs
    try:
        if "--to-yaml" in command:
            text, notes = old_json.converted([argument for argument in command[1:] if argument != "--to-yaml"])
            for note in notes:
                print(note, file=sys.stderr)
            print(text, end="")
            sys.exit(0)
        command[1:], notes = old_json.expanded(command[1:], lambda group, choice: fields_of(group, choice, folders))
    except ConfigError as error:
        refuse(error.faults)
    for note in notes if rank() == 0 else ():
        print(note, file=sys.stderr)  # what --cfg prints stays YAML


def main() -> None:
    """Runs the command. Exit code 0: done, 1: refused or failed, 128 + n: stopped by signal n after saving its state."""
    register()
    if "--to-yaml" in sys.argv or any(argument.startswith("json=") for argument in sys.argv[1:]):
        take_json(sys.argv)
    overrides, options, folders = split_arguments(sys.argv[1:])
    if not {"-sc", "--shell-completion"} & {*options}:
        if faults := override_faults(overrides, folders):
            refuse(faults)
        sys.argv[1:] = [*overrides, *options]  # Hydra wants overrides together
    if rank() > 0:  # rank 0 writes .hydra and prints
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        sys.argv.insert(1, "hydra.output_subdir=null")
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises; the hints that it would print advise what is refused here
    try:
        if sys.argv[1:] in (["--help"], ["-h"]):
            from sae_transcoder.config.command_help import help_text

            print(help_text())
            sys.exit()
        run()
    except ConfigError as error:
        refuse(error.faults)
    except (HydraException, OmegaConfBaseException) as error:
        refuse([explain(error, overrides)])
    except KeyboardInterrupt:  # before training began: once it has, it saves first
        if rank() == 0:
            print("stopped before anything was trained; what was tokenised is kept", file=sys.stderr)
        sys.exit(130)
    except Stopped as error:
        if rank() == 0:
            print(f"{error}; {GOES_ON} here", file=sys.stderr)
        sys.exit(128 + error.number)
    except (DeviceBroken, PeerFailed) as error:
        resumable = isinstance(error, DeviceBroken) or error.is_resumable
        refuse([f"{error}; {GOES_ON} the last save" if resumable else str(error)])
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        refuse([f"{error.filename or 'the disk'}: {error.strerror}; free space and start the same command again"])
    except Exception as error:
        from sae_transcoder.launch.sweep import RunFailed  # imports torch, which is imported by now

        if not isinstance(error, RunFailed):  # then it is a bug and keeps its traceback
            raise
        refuse([str(error)])
    finally:
        GlobalHydra.instance().clear()


if __name__ == "__main__":
    main()
