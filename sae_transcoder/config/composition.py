"""From overrides on a command line to a typed config: conf/ and its resolvers, and overrides that are refused."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae_transcoder.config import FIELDS, GROUPS, OPTIMIZERS, Config, ConfigError, run_dir, run_name
from sae_transcoder.config.group_choices import choice_hint
from sae_transcoder.config.paths import expanded
from sae_transcoder.config.presets import CONF
from sae_transcoder.config.type_checks import FLOATS
from sae_transcoder.config.unknown_names import name_fault


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


@contextmanager
def hydra_on_conf() -> Iterator[ConfigLoader]:
    """Hydra's loader; while it is open, Hydra composes from conf/. Restores Hydra's state afterwards, for programs that use Hydra themselves."""
    register()
    current = GlobalHydra.instance()
    before = current.hydra
    current.clear()
    try:
        with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
            yield GlobalHydra.instance().config_loader()
    finally:
        GlobalHydra.instance().hydra = before
