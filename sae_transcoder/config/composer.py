"""Composes many configs, each equal to what Hydra composes: the jobs of a sweep, the configs of a program, those of evaluations."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Self

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from sae_transcoder.config import GROUPS, Config, ConfigError
from sae_transcoder.config.command_line import quoted
from sae_transcoder.config.composition import hydra_on_conf, override_faults, typed
from sae_transcoder.config.errors import raise_faults
from sae_transcoder.config.hydra_errors import explain
from sae_transcoder.config.presets import CONF


@cache
def schema() -> DictConfig:
    """Every field with its type and default. OmegaConf takes longer to build it than to merge a run's settings into a copy of it."""
    return OmegaConf.structured(Config)


class Composer:
    """Composes configs, each equal to what Hydra composes (tested).

    Hydra takes about 55 ms for each; this has it compose each set of groups once and merges the values into copies.
    """

    def __init__(self, loader: ConfigLoader, load: Callable[[list[str]], DictConfig]):
        """loader: Hydra's. load: the config of some overrides, by Hydra."""
        self.loader, self.load = loader, load
        self.parser = OverridesParser.create(config_loader=loader)
        self.parsed: dict[str, Override] = {}
        self.groups: dict[str, list[str]] = {}  # {folder of conf/ and other sources: the folders in it}
        self.bases: dict[tuple[str, ...], DictConfig] = {}  # {overrides other than plain ones: what they compose to}

    def of_others(self, load: Callable[[list[str]], DictConfig]) -> Self:
        """One that composes what `load` loads, with what is known of groups and overrides."""
        other = copy.copy(self)
        other.load, other.bases = load, {}
        return other

    def compose(self, overrides: Sequence[str]) -> Config:
        """The config of these overrides. Raises ConfigError where they do not compose."""
        try:
            for text in overrides:
                if text not in self.parsed:
                    (self.parsed[text],) = self.parser.parse_overrides([text])  # whose error holds the text
            plain = {text for text in overrides if self.is_plain(self.parsed[text])}
            names = [{self.parsed[text].key_or_group for text in texts} for texts in (plain, set(overrides) - plain)]
            mixed = not names[0].isdisjoint(names[1])  # a field set in both ways: the order matters
            structure = tuple(text for text in overrides if mixed or text not in plain)
            if structure not in self.bases:
                base = self.load(list(structure))
                with open_dict(base):
                    base.pop("hydra", None)  # a masked copy would lose the fields' types
                self.bases[structure] = base
            cfg = copy.deepcopy(self.bases[structure])
            for text in overrides:
                if text not in structure and not self.parsed[text].key_or_group.startswith("hydra."):
                    OmegaConf.update(cfg, self.parsed[text].key_or_group, self.parsed[text].value(), merge=True)
            return typed(cfg)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(explain(error, overrides)) from error

    def is_plain(self, override: Override) -> bool:
        """Whether an override only sets a field to one value: no group, no package, no interpolation."""
        folder, _, name = override.key_or_group.rpartition("/")
        if folder not in self.groups:
            self.groups[folder] = self.loader.list_groups(folder)
        simple = override.type == OverrideType.CHANGE and override.package is None and "${" not in (override.input_line or "")
        return simple and not override.is_sweep_override() and name not in self.groups[folder]


def compose_jobs(loader: ConfigLoader, master: DictConfig, jobs: Sequence[Sequence[str]]) -> list[Config | ConfigError]:
    """The config of each job of a sweep, or the error why it has none. master: Hydra's config of the whole sweep."""
    composer = Composer(loader, partial(loader.load_sweep_config, master))
    configs: list[Config | ConfigError] = []
    for job in jobs:
        try:
            configs.append(composer.compose(job))
        except ConfigError as error:
            configs.append(error)
    return configs


def composed(overrides: Sequence[str]) -> Config:
    """The config that these overrides compose to, as on the command line. Raises ConfigError where they do not compose."""
    raise_faults(override_faults(overrides, []))
    return _of_commands(_files()).compose(quoted(overrides))


def composed_on(base: Mapping[str, Any], overrides: Sequence[str]) -> Config:
    """`base`, values of fields, with overrides: groups first, then fields. Raises ConfigError where they do not compose."""
    if not overrides:
        return from_values(base)
    raise_faults(override_faults(overrides, []))
    composer = _of_commands(_files())

    def load(groups: list[str]) -> DictConfig:
        ConfigStore.instance().store(name="base", node={"defaults": ["schema", "_self_"], **base})
        return composer.loader.load_configuration("base", groups, RunMode.RUN) if groups else _on_schema(base)

    return composer.of_others(load).compose(quoted([f"+{o}" if o.split("=")[0] in GROUPS else o for o in overrides]))


def from_values(values: Mapping[str, Any]) -> Config:
    """A config of these values, each converted to its field's type. Raises ConfigError for one that cannot be."""
    try:
        return typed(_on_schema(values))
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error, [])) from error


def _on_schema(values: Mapping[str, Any]) -> DictConfig:
    """The schema with these values."""
    merged = OmegaConf.merge(schema(), values)
    assert isinstance(merged, DictConfig)
    return merged


@cache
def _of_commands(files: tuple[tuple[Path, int], ...]) -> Composer:
    """Composes what commands do. files: those of conf/, each with its time of change."""
    with hydra_on_conf() as loader:
        return Composer(loader, partial(loader.load_configuration, "config", run_mode=RunMode.RUN))


def _files() -> tuple[tuple[Path, int], ...]:
    """The files of conf/, each with its time of change in nanoseconds."""
    return tuple((path, path.stat().st_mtime_ns) for path in sorted(CONF.rglob("*.yaml")))
