"""The command `sae-train`: lets Hydra compose the config, hands it over. Slow imports wait until the config is valid."""

import os
import sys

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from sae_transcoder.config import Config, Hardware, run_dir
from sae_transcoder.config.command_help import help_text
from sae_transcoder.config.command_line import asks_about_machine, split_arguments
from sae_transcoder.config.completion import completions
from sae_transcoder.config.composition import CONF, fields_of, override_faults, register, typed
from sae_transcoder.config.explain_field import explain, names_to_explain, print_text
from sae_transcoder.config.run_mode import composed_once
from sae_transcoder.distributed import rank, refuse
from sae_transcoder.launch.endings import end_with_message
from sae_transcoder.process import version_option


@hydra.main(version_base="1.3", config_path=str(CONF.resolve()), config_name="config")
def run(composed: DictConfig) -> float | None:
    """Trains or submits the run that `composed` describes. Returns its objective if it was trained here."""
    with end_with_message([]):  # ends the program here: Hydra would put a line of its own before the message
        return train_or_submit(typed(composed))


def train_or_submit(cfg: Config) -> float | None:
    """Trains a run here, or submits it. Returns its objective if it was trained here."""
    if cfg.hardware == Hardware.slurm:
        from rich.console import Console

        from sae_transcoder.launch.slurm.submit_and_wait import submit_run

        submit_run(cfg, Console(highlight=False))
        return None
    from sae_transcoder.launch.before_run import BeforeTheRun
    from sae_transcoder.run_store import eval_file
    from sae_transcoder.training import engine
    from sae_transcoder.training.managed_run import RunClaimed

    try:
        engine.train([cfg], BeforeTheRun.cache)
    except RunClaimed as note:
        print(note)
    evaluation = eval_file.read(run_dir(cfg))
    return evaluation.mean().get(cfg.objective) if evaluation else None


def take_json(command: list[str]) -> None:
    """Replaces `json=FILE` in the command by the overrides that it stands for; with --to-yaml prints an experiment file and exits.

    Raises ConfigError where the file cannot be read.
    """
    from sae_transcoder.config import old_json

    folders = split_arguments(command[1:]).config_dirs
    if "--to-yaml" in command:
        text, notes = old_json.converted([argument for argument in command[1:] if argument != "--to-yaml"])
        for note in notes:
            print(note, file=sys.stderr)
        print(text, end="")
        sys.exit(0)
    command[1:], notes = old_json.expanded(command[1:], lambda group, choice: fields_of(group, choice, folders))
    for note in notes if rank() == 0 else ():
        print(note, file=sys.stderr)  # what --cfg prints stays YAML


def main() -> None:
    """Runs the command. Exit code 0: done, 1: refused or failed, 128 + n: stopped by signal n after saving its state."""
    if version_option.OPTION in sys.argv[1:]:
        print(version_option.version_line("sae-train"))
        sys.exit()
    register()
    with end_with_message(sys.argv[1:]):
        if (names := names_to_explain(sys.argv[1:])) is not None:
            explain(names)
        if asks_about_machine(sys.argv[1:]):
            from sae_transcoder.preflight.machine_info import print_info  # imports torch

            print_info()
            sys.exit()
        if {"-h", "--help"} & {*sys.argv[1:]}:
            print_text(help_text(split_arguments(sys.argv[1:]).config_dirs))
            sys.exit()
        if "--to-yaml" in sys.argv or any(argument.startswith("json=") for argument in sys.argv[1:]):
            take_json(sys.argv)
        overrides, options, folders, faults = split_arguments(sys.argv[1:])
        if {"-sc", "--shell-completion"} & {*options}:
            if (
                any(o.startswith("query=") for o in overrides)
                and (words := completions(os.environ.get("COMP_LINE", ""))) is not None
            ):
                print("\n".join(words))
                sys.exit()
        else:
            if faults := faults + override_faults(overrides, folders):
                refuse(faults)
            sys.argv[1:] = [*overrides, *options]  # Hydra wants overrides together
        if rank() > 0:  # rank 0 writes .hydra and prints
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            sys.argv.insert(1, "hydra.output_subdir=null")
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises; the hints that it would print advise what is refused here
        try:
            with composed_once(overrides, folders):
                run()
        finally:
            GlobalHydra.instance().clear()


if __name__ == "__main__":
    main()
