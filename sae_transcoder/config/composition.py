"""From overrides on a command line to a typed config: conf/ and its resolvers, overrides that are refused, and Hydra's errors in plain words."""

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from sae_transcoder.config import FIELDS, GROUPS, OPTIMIZERS, Config, ConfigError, run_dir, run_name
from sae_transcoder.config.command_line import quoted
from sae_transcoder.config.group_choices import choice_fault, choice_hint
from sae_transcoder.config.other_words import DIFFERENT_HERE
from sae_transcoder.config.paths import expanded
from sae_transcoder.config.presets import CONF
from sae_transcoder.config.shell_words import NAMES
from sae_transcoder.config.type_checks import ANNOTATIONS, FLOATS, element_type
from sae_transcoder.config.unknown_names import as_whole_number, name_fault
from sae_transcoder.config.value_faults import value_fault


def register() -> None:
    """Registers the schema and the resolvers of conf/config.yaml with Hydra."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for optimizer in OPTIMIZERS:
        if not (CONF / "optimizer" / f"{optimizer}.yaml").exists():  # a file there says when to choose it, and may set more
            store.store(group="optimizer", name=optimizer, node={"optimizer": str(optimizer)}, package="_global_")
    resolvers: dict[str, Callable[..., str]] = {
        "run_dir": lambda *, _root_: str(run_dir(typed(_root_))),
        "expanded": lambda text: expanded(text, "save_dir"),
        "run_name": lambda *, _root_: run_name(typed(_root_)),
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def typed(composed: DictConfig) -> Config:
    """The composed config as a `Config`, without Hydra's own node.

    Raises ConfigError for a field without a value (`model_type` is the only one that the groups leave open).
    """
    missing = [name for name in FIELDS if OmegaConf.is_missing(composed, name)]
    if missing:
        raise ConfigError(*map(missing_fault, missing))
    settings = composed if tuple(composed) == FIELDS else OmegaConf.masked_copy(composed, list(FIELDS))
    config = OmegaConf.to_object(settings)
    config = config if isinstance(config, Config) else Config(**config)  # type: ignore[arg-type]
    for name in FLOATS:  # OmegaConf converts no whole number of a field that may also be a word
        if type(value := getattr(config, name)) is int:
            setattr(config, name, float(value))
    return config


def missing_fault(name: str) -> str:
    """The message for a field that has no value."""
    if name == "model_type":
        return "model_type is missing: add model_type=sae or model_type=transcoder; sae-train --help shows how to begin"
    return f"{name} is missing: add {name}=VALUE"


def override_faults(overrides: Sequence[str], config_dirs: Sequence[Path]) -> list[str]:
    """Overrides that name no field or group, that bypass the schema, or one of which would do nothing."""
    user_groups = {p.name for d in config_dirs if d.is_dir() for p in d.iterdir() if p.is_dir()}
    groups = {*GROUPS, *user_groups}
    known_names = [*FIELDS, *groups]
    faults = []
    for override in overrides:
        match = re.fullmatch(r"(~|\+\+?)?([^=]*)(=.*)?", override, re.DOTALL)
        prefix, key, value = match.groups() if match else ("", override, None)
        name = key.split("@")[0].lstrip("/")
        if name in ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"):
            faults.append(f"{override}: a run's directory is save_dir/run_name; set these")
            continue
        if name == "hydra" or name.startswith(("hydra.", "hydra/")):
            continue
        if name in groups and prefix in (None, "+") and value:
            continue
        if prefix:
            fix = "leave it out" if prefix == "~" else f"write {key}{value or ''}" if name in FIELDS else "check its name"
            faults.append(
                f"{override}: {prefix} would step around the typed config; {fix} (only +GROUP=CHOICE of a --config-dir is allowed)"
            )
        elif name not in known_names:
            choice = None if value else choice_hint(name, config_dirs)
            faults.append(choice or name_fault(override, name, (value or "=")[1:], known_names))
        elif not value:
            faults.append(f"{override}: needs a value, as in {name}=VALUE")
    given = dict(override.split("=", 1) for override in overrides if "=" in override)
    if "expansion_factor" in given and "0" not in given.get("num_latents", "0").split(","):
        sizes = [f"{name}={given[name]}" for name in ("expansion_factor", "num_latents")]
        faults.append(f"{' with '.join(sizes)}: num_latents takes its place; leave one of them out")
    return faults


def fields_of(group: str, choices: str, config_dirs: Sequence[Path]) -> set[str]:
    """The fields that a group's choices set, with those of the choices in their `defaults`. choices: one, or a sweep's, comma-separated."""
    names: set[str] = set()
    for choice in choices.split(","):
        path = next((p for d in (*config_dirs, CONF) if (p := d / group / f"{choice}.yaml").is_file()), None)
        if path is None:
            continue
        try:
            content = OmegaConf.to_container(OmegaConf.load(path))
        except (yaml.YAMLError, OmegaConfBaseException):  # Hydra will report it
            continue
        assert isinstance(content, dict)
        names |= {name for name in FIELDS if name in content}
        for entry in content.get("defaults", []):
            bases = {group: entry} if isinstance(entry, str) else {key.split("/")[-1]: base for key, base in entry.items()}
            for base_group, base in bases.items():
                if base not in (None, "_self_"):
                    names |= fields_of(base_group, str(base), config_dirs)
    return names


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """Hydra's or OmegaConf's error about a value or a choice, in one line where that is possible."""
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        return choice_fault(error.missing_cfg_file, error.options)
    if isinstance(error, OverrideParseException):
        reason = str(error).splitlines()[0]
        return f"{error.override}: cannot be read ({reason}); quote what is special: 'name=\"a value\"', 'name=[1,2]'"
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        name, _, value = next((o for o in overrides if o.startswith(f"{cause.full_key}=")), "").partition("=")
        if "could not be converted to Integer" in str(cause.msg) and (whole := as_whole_number(value)) != value:
            return f"{name}={value}: must be a whole number; write {name}={whole}"
        if "is not Optional" in str(cause.msg):
            return f"{cause.full_key}: null is not possible; give a value or leave it out"
        reason, of_resolver = str(cause.msg or cause).splitlines()[0], "ConfigError raised while resolving interpolation: "
        if reason.startswith(of_resolver):
            return reason.removeprefix(of_resolver)
        fault = value_fault(cause.full_key, value, reason) or f"{cause.full_key}: {reason}"
        return fault + (f"; {DIFFERENT_HERE[cause.full_key]}" if cause.full_key in DIFFERENT_HERE else "")
    if match := re.match(r"In '(.*)': .*\n\s*Key '(.*)' not in 'Config'", str(error)):
        return name_fault(f"{match[1]}.yaml, {match[2]}", match[2], None, NAMES)
    if "does not support sweep type" in str(error):
        which = next((o for o in overrides if "interval(" in o), "interval(...)")
        return f"{which}: only a sweeper that searches takes an interval; add hydra/sweeper=optuna (extra `search`), or list values, as 1e-3,1e-2"
    if match := re.match(
        r"(?:Ambiguous value for argument|Sweep parameters) '(.*)'(?: requires --multirun|\n1\. )", str(error), re.DOTALL
    ):
        name, _, values = match[1].partition("=")
        one = (
            f"write '{name}=[{values}]' for one list"
            if element_type(ANNOTATIONS.get(name)) and "[" not in values
            else "give one value"
        )
        return f"{match[1]}: several values are a sweep; add -m, or {one}"
    noise = ("Config search path", "provider=", "full_key", "object_type", "Set the environment")
    lines = [line.strip() for line in str(error).splitlines()]
    return "\n  ".join(line for line in lines if line and not line.startswith(noise))


@contextmanager
def hydra_on_conf() -> Iterator[None]:
    """While it is open, Hydra composes from conf/. Restores Hydra's state afterwards, for programs that use Hydra themselves."""
    register()
    current = GlobalHydra.instance()
    before = current.hydra
    current.clear()
    try:
        with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = before


def composed(overrides: Sequence[str], config_name: str = "config") -> Config:
    """The config that these overrides compose to, as on the command line. Raises ConfigError for overrides that do not compose."""
    if faults := override_faults(overrides, []):
        raise ConfigError(*faults)
    try:
        with hydra_on_conf():
            return typed(compose(config_name, quoted(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, overrides)) from error


class JobComposer:
    """Composes the configs of a sweep's jobs, each equal to what Hydra composes (tested).

    Hydra takes about 55 ms for each job; this composes each set of groups once and merges the values into copies.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig):
        """loader, master: Hydra's, and its config of the whole sweep."""
        self.loader, self.master = loader, master
        self.parser = OverridesParser.create(config_loader=loader)
        self.parsed: dict[str, Override] = {}
        self.groups: dict[str, list[str]] = {}  # {folder of conf/ and other sources: the folders in it}
        self.bases: dict[tuple[str, ...], DictConfig] = {}  # {overrides other than plain ones: what they compose to}

    def compose(self, job: Sequence[str]) -> Config:
        """The config of a job, from its overrides. Raises ConfigError for overrides that do not compose."""
        try:
            for text in job:
                if text not in self.parsed:
                    self.parsed[text] = self.parser.parse_override(text)
            plain = {text for text in job if self.is_plain(self.parsed[text])}
            names = [{self.parsed[text].key_or_group for text in texts} for texts in (plain, set(job) - plain)]
            mixed = not names[0].isdisjoint(names[1])  # a field set in both ways: the order matters
            structure = tuple(text for text in job if mixed or text not in plain)
            if structure not in self.bases:
                base = self.loader.load_sweep_config(self.master, list(structure))
                with open_dict(base):
                    del base["hydra"]  # a masked copy would lose the fields' types
                self.bases[structure] = base
            cfg = copy.deepcopy(self.bases[structure])
            for text in job:
                if text not in structure and not self.parsed[text].key_or_group.startswith("hydra."):
                    OmegaConf.update(cfg, self.parsed[text].key_or_group, self.parsed[text].value(), merge=True)
            return typed(cfg)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(explain(error, job)) from error

    def is_plain(self, override: Override) -> bool:
        """Whether an override only sets a field to a value: no group, no package, no interpolation."""
        folder, _, name = override.key_or_group.rpartition("/")
        if folder not in self.groups:
            self.groups[folder] = self.loader.list_groups(folder)
        simple = override.type == OverrideType.CHANGE and override.package is None and "${" not in (override.input_line or "")
        return simple and name not in self.groups[folder]


def compose_jobs(loader: ConfigLoader, master: DictConfig, jobs: Sequence[Sequence[str]]) -> list[Config | ConfigError]:
    """The config of each job of a sweep, or the error why it has none."""
    composer = JobComposer(loader, master)
    configs: list[Config | ConfigError] = []
    for job in jobs:
        try:
            configs.append(composer.compose(job))
        except ConfigError as error:
            configs.append(error)
    return configs
