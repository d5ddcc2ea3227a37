"""The entrypoint `sae-train`: refuses what is wrong in the overrides, lets Hydra compose, hands over, and says how it ended.

Everything slow to import is imported after the config is known to be valid.
"""

import errno
import os
import sys

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from sae_transcoder import distributed
from sae_transcoder.config import ConfigError, Hardware, run_dir
from sae_transcoder.config.composition import CONF, explain, fields_of, override_faults, register, split_arguments, typed
from sae_transcoder.distributed import refuse


@hydra.main(version_base="1.3", config_path=str(CONF.resolve()), config_name="config")
def run(composed: DictConfig) -> float | None:
    """Trains the one run that `composed` describes, or submits it; its objective, where it was trained here."""
    cfg = typed(composed)
    if cfg.hardware == Hardware.slurm:
        from rich.console import Console

        from sae_transcoder.launch.slurm.wait import submit_run

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
    except (DiskError, Diverged) as error:  # told here, or Hydra would add to it
        refuse([str(error)])
    evaluation = eval_file.read(run_dir(cfg))
    return evaluation.mean().get(cfg.objective) if evaluation else None


def take_json(command: list[str]) -> None:
    """Puts what `json=FILE` means into the command, and says how the file was read; with --to-yaml prints an experiment file and ends."""
    from sae_transcoder.config import old_json

    _, folders = split_arguments(command[1:])
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
    for note in notes if distributed.rank() == 0 else ():
        print(note, file=sys.stderr)  # what --cfg prints stays YAML


def main() -> None:
    """The command line; exit code 0: done, 1: refused or failed, 128 + n: stopped by signal n, the state saved."""
    register()
    if "--to-yaml" in sys.argv or any(argument.startswith("json=") for argument in sys.argv[1:]):
        take_json(sys.argv)
    overrides, folders = split_arguments(sys.argv[1:])
    if distributed.rank() > 0:  # the first rank writes .hydra and speaks
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        place = sys.argv.index(overrides[0]) if overrides else len(sys.argv)  # Hydra wants them together
        sys.argv.insert(place, "hydra.output_subdir=null")
    completing = "-sc" in sys.argv or "--shell-completion" in sys.argv
    if not completing and (faults := override_faults(overrides, folders)):
        refuse(faults)
    # Hydra then raises instead of printing its own hints, which would advise what is refused here.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        run()
    except ConfigError as error:
        refuse(error.faults)
    except (HydraException, OmegaConfBaseException) as error:
        refuse([explain(error, overrides)])
    except SystemExit:
        raise
    except KeyboardInterrupt:  # before training began: afterwards it saves first
        if distributed.rank() == 0:
            print("stopped before anything was trained; what was tokenised is kept", file=sys.stderr)
        sys.exit(130)
    except BaseException as error:
        # torch is imported by now: a message of our own kinds ends here, anything else is a bug and keeps its traceback.
        from sae_transcoder.launch.sweep import RunFailed
        from sae_transcoder.process.broken_device import DeviceBroken
        from sae_transcoder.process.stop_signal import Stopped

        if isinstance(error, DeviceBroken) or (isinstance(error, distributed.PeerFailed) and error.blameless):
            refuse([f"{error}; the same command goes on from the last save"])
        if isinstance(error, RunFailed | distributed.PeerFailed):
            refuse([str(error)])
        if isinstance(error, Stopped):
            if distributed.rank() == 0:
                print(f"{error}; the same command goes on from here", file=sys.stderr)
            sys.exit(128 + error.number)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            refuse([f"{error.filename or 'the disk'}: {error.strerror}; free space and start the same command again"])
        raise
    finally:
        GlobalHydra.instance().clear()


if __name__ == "__main__":
    main()
