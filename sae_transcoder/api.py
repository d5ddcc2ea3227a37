"""Runs from Python, by the same code as the commands:

from sae_transcoder.api import describe_latents, load_config, load_run, sweep, train

cfg = load_config("experiment=demo", "k=16")
run = train(cfg)
runs = sweep("experiment=demo", "k=16,32,64")

run = load_run("outputs/my_run")
run.coders["layers.2"]
run.latents("import os")["layers.2"]
run.predict("import os", {"layers.2": {}}).next_tokens()
describe_latents("outputs/my_run")["layers.2"].contexts([7])
"""
# ruff: noqa: F401 - programs import these names from here

import sys
from pathlib import Path

from omegaconf import DictConfig

from sae_transcoder.config import Config, ConfigError, Hardware, composition, old_json, run_dir
from sae_transcoder.config.command_line import quoted
from sae_transcoder.config.composer import composed, from_values
from sae_transcoder.evaluation.request import tell, tell_notes
from sae_transcoder.inspection.run import Run, load_coders, load_run
from sae_transcoder.latents import one_pass
from sae_transcoder.latents.request import latents_requests, split_arguments
from sae_transcoder.launch.endings import RunFailed
from sae_transcoder.launch.sweep import train_jobs
from sae_transcoder.launch.sweep_from_overrides import combinations, load_sweep_config
from sae_transcoder.launch.sweep_jobs import is_grid
from sae_transcoder.preflight.plan import check_settings, make_plan
from sae_transcoder.preflight.plan_cache import PlanCache
from sae_transcoder.run_store import eval_file, latent_files, observed_status, run_files
from sae_transcoder.run_store.latent_files import DescribedLatents
from sae_transcoder.run_store.observed_status import NextAction
from sae_transcoder.training import engine


def load_config(*overrides: str) -> Config:
    """The config that `sae-train OVERRIDES` would train; every field can be read and changed. `json=FILE` is an override too.

    Raises ConfigError with all faults of the overrides.
    """
    return composed(_with_json(overrides))


def train(cfg: Config) -> Run:
    """Trains one run on this machine as `sae-train` does: a stopped run goes on, of a run that is done the result is returned.

    Raises ConfigError for what the command would refuse, before anything is written, and for a run that is trained elsewhere; Stopped
    after Ctrl-C, once the run is saved; DeviceBroken if the GPU fails, which a new process can use again; otherwise the run's error.
    """
    cfg = from_values(vars(cfg))  # a program may have set a field to a value of another type
    _refuse_unless_here(cfg, "train() trains here and now; use the command sae-train")
    check_settings(cfg)
    directory = run_dir(cfg)
    action = observed_status.next_action(observed_status.read(directory))
    if action in (NextAction.running, NextAction.queued):
        raise ConfigError(str(observed_status.nothing_to_do(directory)))
    if action != NextAction.done:
        make_plan(cfg, cache := PlanCache())  # before anything is written
        run_files.write_config(cfg)
        engine.train([cfg], cache)
    return _trained(cfg)


def sweep(*overrides: str) -> list[Run]:
    """Trains every combination of the comma-separated values as `sae-train -m OVERRIDES` does. Returns the runs in their order.

    Raises ConfigError for what the command would refuse, before anything is written, and for a search; RunFailed for the first run that
    failed, once the others are done; Stopped after Ctrl-C, once the runs are saved; DeviceBroken if the GPU of this process fails.
    To use several GPUs, call it below `if __name__ == "__main__":`, since each GPU gets a process of its own.
    """
    expanded = quoted(_with_json(overrides))
    loader, master = load_sweep_config(expanded)
    _refuse_unless_here(master, "sweep() trains here and now; use the command sae-train -m")
    if not is_grid(master):
        raise ConfigError("hydra/sweeper: a search proposes its runs one after the other; use the command sae-train -m")
    jobs = train_jobs(loader, master, combinations(loader, master, expanded), 0)
    for job in jobs:
        if job.error is not None:
            raise RunFailed(f"{run_dir(job.cfg)}: {job.error}")
    return [_trained(job.cfg) for job in jobs]


def describe_latents(path: str | Path, *settings: str) -> dict[str, DescribedLatents]:
    """What each latent of a run's coders stands for, {coder: its latents}, as `sae-latents PATH SETTINGS` finds it, unless that is done.

    Raises ConfigError for what the command would refuse, and for several runs; Stopped after Ctrl-C, once what was read is saved.
    """
    paths, wanted, overrides = split_arguments([str(path), *settings])
    requests = latents_requests(paths, wanted, overrides, None, tell)
    if len(requests) != 1:
        raise ConfigError(
            f"{' '.join([str(path), *settings])}: {len(requests)} runs; give the directory of one, and settings NAME=VALUE"
        )
    (request,) = requests
    tell_notes([request.stored])
    if not request.is_done():
        one_pass.describe_latents([request])
    return latent_files.described(request.folder, str(path))


def _refuse_unless_here(cfg: Config | DictConfig, message: str) -> None:
    """Raises ConfigError for settings with which nothing is trained on this machine."""
    settings = {"hardware=slurm": cfg.hardware == Hardware.slurm, "dry_run=True": cfg.dry_run, "prepare=True": cfg.prepare}
    for setting, elsewhere in settings.items():
        if elsewhere:
            raise ConfigError(f"{setting}: {message}")


def _trained(cfg: Config) -> Run:
    """Reads the result of a run. Raises ConfigError where it has none."""
    directory = run_dir(cfg)
    if eval_file.read(directory) is None:
        raise ConfigError(f"{directory}: {observed_status.nothing_to_do(directory) or 'holds no result'}")
    return Run(directory, cfg, directory / "coders")


def _with_json(overrides: tuple[str, ...]) -> list[str]:
    """The overrides with `json=FILE` replaced by the overrides that it stands for. Prints what the user should know of the file."""
    expanded, notes = old_json.expanded(overrides, lambda group, choice: composition.fields_of(group, choice, []))
    for note in notes:
        print(note, file=sys.stderr)
    return expanded
