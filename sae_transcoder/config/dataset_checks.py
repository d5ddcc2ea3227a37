"""Faults in the fields of the data set, before any of it is looked at."""

import math

from sae_transcoder.config import DEFAULTS, Config, DatasetKind, TrainOn

# Fields of the data set, and the kinds that read them; other kinds would ignore what was set.
READ_BY = {
    "dataset_config": {DatasetKind.hub, DatasetKind.pretokenized},
    "dataset_split": {DatasetKind.hub, DatasetKind.pretokenized},
    "dataset_weights": {DatasetKind.hub, DatasetKind.local_text, DatasetKind.pretokenized},
    "text_column": {DatasetKind.hub, DatasetKind.local_text},
    "messages_column": {DatasetKind.hub, DatasetKind.local_text},
    "special_tokens_in_text": {DatasetKind.hub, DatasetKind.local_text, DatasetKind.demo},
    "tokens_column": {DatasetKind.pretokenized},
    "tokens_dtype": {DatasetKind.memmap},
    "shuffle_buffer": {DatasetKind.hub, DatasetKind.pretokenized},
}


def dataset_faults(cfg: Config) -> list[str]:
    """Faults of the data set's fields, and fields that this kind of data set does not read."""
    faults = [
        f"{name}={getattr(cfg, name)} with dataset_kind={cfg.dataset_kind}: read by {', '.join(sorted(kinds))} only; leave it out"
        for name, kinds in READ_BY.items()
        if getattr(cfg, name) != DEFAULTS[name] and cfg.dataset_kind not in kinds
    ]
    if cfg.dataset_kind == DatasetKind.demo and cfg.dataset_name != "demo":
        faults.append(
            f"dataset_name={cfg.dataset_name} with dataset_kind=demo: it has one text only; choose dataset=local_text or hub for another"
        )
    if cfg.dataset_kind == DatasetKind.hub and all(limit is None for limit in (cfg.max_samples, cfg.max_tokens, cfg.max_steps)):
        faults.append("max_samples=null with dataset_kind=hub: a stream has no known end; set max_samples, max_tokens or max_steps")
    if cfg.eval_split is not None and cfg.dataset_kind not in (DatasetKind.hub, DatasetKind.pretokenized):
        faults.append(
            f"eval_split={cfg.eval_split} with dataset_kind={cfg.dataset_kind}: only hub data sets have splits; leave it out"
        )
    if cfg.separator is not None and cfg.separator != "none" and not cfg.separator.isdecimal():
        faults.append(f"separator={cfg.separator}: must be a token id, none, or null")
    if cfg.messages_column is not None and cfg.text_column != DEFAULTS["text_column"]:
        faults.append(
            f"messages_column={cfg.messages_column} and text_column={cfg.text_column}: each names what is read; set one of them"
        )
    if cfg.messages_column is None and cfg.train_on != TrainOn.all:
        faults.append(f"train_on={cfg.train_on}: only conversations have roles; set messages_column")
    faults += mixture_faults(cfg)
    if min(cfg.exclude_tokens, default=0) < 0:
        faults.append(f"exclude_tokens={cfg.exclude_tokens}: token ids are 0 or above")
    if cfg.exclude_first_tokens >= cfg.max_seq_length:
        faults.append(
            f"exclude_first_tokens={cfg.exclude_first_tokens} with max_seq_length={cfg.max_seq_length}: no position is left"
        )
    return faults


def mixture_faults(cfg: Config) -> list[str]:
    """Faults of data sets of several parts."""
    lists = {name: value for name in ("dataset_name", "dataset_config") if isinstance(value := getattr(cfg, name), list)}
    if not lists:
        wants_none = cfg.dataset_weights is not None
        return [f"dataset_weights={cfg.dataset_weights}: {cfg.dataset_name} is no mixture; leave it out"] if wants_none else []
    faults = []
    if len(lists) == 1 and len(set(names := lists.get("dataset_name", []))) < len(names):
        faults.append(f"dataset_name={names}: names a part twice; raise its weight instead")
    if cfg.dataset_kind in (DatasetKind.memmap, DatasetKind.demo):
        faults.append(f"dataset_name={cfg.dataset_name} with dataset_kind={cfg.dataset_kind}: it has one part; give one name")
    count = len(next(iter(lists.values())))
    if count < 2 or len({len(value) for value in lists.values()}) > 1:
        given = ", ".join(f"{name}={value}" for name, value in lists.items())
        return [*faults, f"{given}: a mixture has two parts or more, as many in each list"]
    weights = cfg.dataset_weights
    if weights is not None and (len(weights) != count or not all(0 < weight < math.inf for weight in weights)):
        faults.append(f"dataset_weights={weights}: must be {count} numbers above 0, one for each part of the mixture")
    return faults
