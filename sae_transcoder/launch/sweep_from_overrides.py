"""From a sweep's overrides to its jobs, without Hydra's command line."""

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae_transcoder.config import ConfigError, composition
from sae_transcoder.config.errors import raise_faults
from sae_transcoder.config.hydra_errors import explain


def load_sweep_config(overrides: Sequence[str]) -> tuple[ConfigLoader, DictConfig]:
    """Hydra's loader, and the config that all jobs of the sweep have in common, with its `hydra` node. Raises ConfigError."""
    raise_faults(composition.override_faults(overrides, []))
    try:
        with composition.hydra_on_conf() as loader:
            return loader, loader.load_configuration("config", list(overrides), RunMode.MULTIRUN)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, overrides)) from error


def combinations(loader: ConfigLoader, master: DictConfig, overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job: every combination of the comma-separated values and of hydra.sweeper.params, in order.

    Raises ConfigError for values that are no list.
    """
    params = OmegaConf.select(master, "hydra.sweeper.params") or {}
    texts = [*(f"{name}={values}" for name, values in params.items()), *overrides]
    try:
        parsed = OverridesParser.create(loader).parse_overrides(texts)
        return [job for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
    except HydraException as error:
        raise ConfigError(explain(error, texts)) from error
