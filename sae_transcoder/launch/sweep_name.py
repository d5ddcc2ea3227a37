"""The default name of a sweep."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from sae_transcoder.config import FIELDS, GROUPS, Config
from sae_transcoder.config.naming import MAX_NAME, result_settings, settings_hash


def default_sweep_name(loader: ConfigLoader, master: DictConfig, cfgs: Sequence[Config]) -> str:
    """The experiment or model_type, the swept keys, and a hash of the settings that change the result and are not swept.

    `-m model_type=sae k=4,8 lr=1e-2` gives `sae-k-1a2b3c4d`. So does `k=4,8,16`, whose additional run joins the same sweep; another lr gives
    another name. loader, master: Hydra's; cfgs: the configs of all jobs.
    """
    swept, fixed = swept_fields(loader, master)
    label = fixed.get("experiment") or ("runs" if swept & {"model_type", "experiment"} else str(cfgs[0].model_type))
    return "-".join([label, *([shortened(".".join(sorted(swept)))] if swept else []), unswept_hash(cfgs, swept, fixed)])


def shortened(keys: str) -> str:
    """The joined names of the swept keys; those of very many end in a hash of all."""
    return keys if len(keys) <= MAX_NAME // 2 else f"{keys[: MAX_NAME // 2]}.{hashlib.sha256(keys.encode()).hexdigest()[:8]}"


def swept_fields(loader: ConfigLoader, master: DictConfig) -> tuple[set[str], dict[str, str]]:
    """The fields and groups that a sweep varies, and {field or group: value} of the overrides that are the same in all jobs."""
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(list(master.hydra.overrides.task))
    params = OmegaConf.select(master, "hydra.sweeper.params") or {}
    swept = {o.key_or_group for o in overrides if o.is_sweep_override()} | {str(name) for name in params}
    fixed = {o.key_or_group: str(o.value()) for o in overrides if not o.is_sweep_override() and o.key_or_group not in swept}
    return swept, fixed


def fields_set_by_groups(groups: Collection[str]) -> set[str]:
    """The fields that these groups may set; an experiment, or a group of the user's own, may set any field."""
    return {f.name for group in groups for f in fields(GROUPS.get(group, Config))}


def unswept_hash(cfgs: Sequence[Config], swept: set[str], fixed: Mapping[str, str]) -> str:
    """Eight hex digits of the settings that change the result and that neither the sweep nor a swept group varies."""
    groups = swept - set(FIELDS) | swept & set(GROUPS)
    varied = swept | (fields_set_by_groups(groups) - fixed.keys())
    values = {
        name: value
        for name, value in result_settings(cfgs[0]).items()
        if name not in varied and len({str(getattr(cfg, name)) for cfg in cfgs}) == 1
    }
    if any(GROUPS.get(group, Config) is Config for group in groups):  # such a group may choose other groups
        values |= {key: value for key, value in fixed.items() if key in GROUPS}
    return settings_hash(values)
