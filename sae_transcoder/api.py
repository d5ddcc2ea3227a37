"""Runs from Python, by the same code as the commands:

from sae_transcoder.api import load_config, sweep, train

cfg = load_config("experiment=demo", "k=16")
run = train(cfg)
run.saes["layers.2"]

runs = sweep("experiment=demo", "k=16,32,64")
"""

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae_transcoder.coder import stored as stored_coders
from sae_transcoder.coder.corrected_coder import SparseCoder
from sae_transcoder.config import Config, ConfigError, Hardware, composition, old_json, run_dir, typed
from sae_transcoder.launch import sweep as sweeps
from sae_transcoder.launch.compose_sweep import combinations, compose_sweep
from sae_transcoder.preflight import plan as preflight
from sae_transcoder.run_store import eval_file, files, observed_status
from sae_transcoder.run_store.eval_file import Evaluation
from sae_transcoder.training import engine


@dataclass(frozen=True)
class TrainedRun:
    """A run that is done: its settings, its directory, and its held-out metrics (names and units: metric_names.py)."""

    cfg: Config
    directory: Path
    evaluation: Evaluation

    @cached_property
    def saes(self) -> dict[str, SparseCoder]:
        """The trained coders, SAEs or transcoders, float32 on the CPU: {hookpoint: coder}, with several seeds {hookpoint/seed<N>: coder}.

        Each is sparsify's: called with x [token, d_in] it gives `sae_out` [token, d_in], `latent_acts` and `latent_indices` [token, k];
        `encoder.weight` and `W_dec` are [latent, d_in].
        """
        coder_dirs = stored_coders.find(self.directory / "coders").items()
        return {name: SparseCoder.load_from_disk(coder_dir, device="cpu") for name, coder_dir in coder_dirs}


def load_config(*overrides: str) -> Config:
    """The config that `sae-train OVERRIDES` would train; every field can be read and changed. `json=FILE` is an override too.

    Raises ConfigError with all faults of the overrides.
    """
    return composition.composed(_with_json(overrides))


def train(cfg: Config) -> TrainedRun:
    """Trains one run on this machine as `sae-train` does: a stopped run goes on, of a run that is done the result is returned.

    Raises ConfigError for what the command would refuse, before anything is written, and for a run that is trained elsewhere; Stopped
    after Ctrl-C, once the run is saved; DeviceBroken if the GPU fails, which a new process can use again; otherwise the run's error.
    """
    try:
        cfg = typed(OmegaConf.structured(cfg))  # converts each value to its field's type
    except OmegaConfBaseException as error:
        raise ConfigError(composition.explain(error, [])) from error
    _refuse_unless_here(cfg, "train() trains here and now; use the command sae-train")
    preflight.check_settings(cfg)
    directory = run_dir(cfg)
    what = observed_status.to_do(observed_status.read(directory))
    if what in ("running", "queued"):
        raise ConfigError(str(observed_status.nothing_to_do(directory)))
    if what != "done":
        preflight.plan(cfg)  # before anything is written
        files.write_config(cfg)
        engine.train([cfg])
    return _trained(cfg)


def sweep(*overrides: str) -> list[TrainedRun]:
    """Trains every combination of the comma-separated values as `sae-train -m OVERRIDES` does. Returns the runs in their order.

    Raises ConfigError for what the command would refuse, before anything is written, and for a search; RunFailed for the first run that
    failed, once the others are done; Stopped after Ctrl-C, once the runs are saved; DeviceBroken if the GPU of this process fails.
    To use several GPUs, call it below `if __name__ == "__main__":`, since each GPU gets a process of its own.
    """
    expanded = _with_json(overrides)
    loader, master = compose_sweep(expanded)
    _refuse_unless_here(master, "sweep() trains here and now; use the command sae-train -m")
    if not sweeps.is_grid(master):
        raise ConfigError("hydra/sweeper: a search proposes its runs one after the other; use the command sae-train -m")
    jobs = sweeps.train(loader, master, combinations(loader, master, expanded), 0)
    for job in jobs:
        if job.error is not None:
            raise sweeps.RunFailed(f"{run_dir(job.cfg)}: {job.error}")
    return [_trained(job.cfg) for job in jobs]


def _refuse_unless_here(cfg: Config | DictConfig, message: str) -> None:
    """Raises ConfigError for settings with which nothing is trained on this machine."""
    if cfg.hardware == Hardware.slurm or cfg.dry_run:
        raise ConfigError(f"{'hardware=slurm' if cfg.hardware == Hardware.slurm else 'dry_run=True'}: {message}")


def _trained(cfg: Config) -> TrainedRun:
    """Reads the result of a run. Raises ConfigError where it has none."""
    directory = run_dir(cfg)
    if (evaluation := eval_file.read(directory)) is None:
        raise ConfigError(f"{directory}: {observed_status.nothing_to_do(directory) or 'holds no result'}")
    return TrainedRun(cfg, directory, evaluation)


def _with_json(overrides: tuple[str, ...]) -> list[str]:
    """The overrides with `json=FILE` replaced by the overrides that it stands for. Prints what the user should know of the file."""
    expanded, notes = old_json.expanded(overrides, lambda group, choice: composition.fields_of(group, choice, []))
    for note in notes:
        print(note, file=sys.stderr)
    return expanded
