"""The same runs from Python, by the same code as the commands:

from sae_transcoder.api import load_config, sweep, train

cfg = load_config("experiment=demo", "k=16")
run = train(cfg)
run.saes["layers.2"]

runs = sweep("experiment=demo", "k=16,32,64")
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from hydra_plugins.sae_transcoder_local import GridSweeper
from sae_transcoder import composition, engine, eval_file, preflight, run_files, standing, stored_coders
from sae_transcoder import sweep as sweeps
from sae_transcoder.config import Config, ConfigError, Hardware, run_dir
from sae_transcoder.eval_file import Evaluation
from sae_transcoder.upstream import SparseCoder


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
        folders = stored_coders.find(self.directory / "coders")
        return {name: SparseCoder.load_from_disk(folder, device="cpu") for name, folder in folders.items()}


def load_config(*overrides: str) -> Config:
    """The config that `sae-train OVERRIDES` would train, `json=FILE` among them; every field can then be read and changed.

    Raises ConfigError with all faults of the overrides.
    """
    return composition.composed(_with_json(overrides))


def train(cfg: Config) -> TrainedRun:
    """Trains one run on this machine, goes on with it where it was stopped, or takes its result where it is done, as `sae-train` does.

    Raises ConfigError for what the command would refuse, before anything is written; Stopped after Ctrl-C, the run saved; what the run
    failed of otherwise.
    """
    if cfg.hardware == Hardware.slurm or cfg.dry_run:
        what = "hardware=slurm" if cfg.hardware == Hardware.slurm else "dry_run=True"
        raise ConfigError(f"{what}: train() trains here and now; use the command sae-train")
    preflight.check_settings(cfg)
    if standing.to_do(standing.read(run_dir(cfg))) != "done":
        preflight.plan(cfg)  # before anything is written
        run_files.write_config(cfg)
        engine.train([cfg])
    return _trained(cfg)


def sweep(*overrides: str) -> list[TrainedRun]:
    """Trains every combination of the comma-separated values, as `sae-train -m OVERRIDES` does, in the order of the combinations.

    Raises ConfigError for what the command would refuse, before anything is written; RunFailed for the first run that failed, once the
    others are done; Stopped after Ctrl-C, the runs saved.
    """
    given = _with_json(overrides)
    composition.register()
    if faults := composition.override_faults(given, []):
        raise ConfigError(*faults)
    try:
        with initialize_config_dir(str(composition.CONF.resolve()), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            master = loader.load_configuration("config", given, RunMode.MULTIRUN)
            combinations = GridSweeper.split_arguments(OverridesParser.create(loader).parse_overrides(given), None)
            if master.hardware == Hardware.slurm or master.dry_run:
                raise ConfigError("hardware=slurm, dry_run=True: sweep() trains here and now; use the command sae-train -m")
            jobs = sweeps.train(loader, master, [job for batch in combinations for job in batch], 0)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(composition.explain(error, given)) from error
    for job in jobs:
        if job.error is not None:
            raise sweeps.RunFailed(f"{run_dir(job.cfg)}: {job.error}")
    return [_trained(job.cfg) for job in jobs]


def _trained(cfg: Config) -> TrainedRun:
    directory = run_dir(cfg)
    evaluation = eval_file.read(directory)
    if evaluation is None:
        raise ConfigError(f"{directory}: {standing.nothing_to_do(directory) or 'holds no result'}")
    return TrainedRun(cfg, directory, evaluation)


def _with_json(overrides: tuple[str, ...]) -> list[str]:
    """The overrides with what `json=FILE` means in its place."""
    from sae_transcoder import seed_json

    given, notes = seed_json.expanded(overrides, lambda group, choice: composition.fields_of(group, choice, []))
    for note in notes:
        print(note)
    return given
