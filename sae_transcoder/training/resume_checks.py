"""Whether a saved run can continue here: what its result depends on beside its config."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sae_transcoder.config import Config, ConfigError
from sae_transcoder.distributed import Ranks
from sae_transcoder.preflight.plan import Plan

# Settings that change no more than the last digits of the result; and their values in saved states that lack them.
ROUNDING: dict[str, Any] = {"threads": None, "forward_batch_size": None, "compile_model": False}


def current_settings(plan: Plan, dtype: torch.dtype, ranks: Ranks) -> dict[str, Any]:
    """What is saved with the training state and compared when the run continues, as it took effect."""
    return {
        "dtype": str(dtype),
        "threads": torch.get_num_threads(),
        "forward_batch_size": plan.cfg.forward_batch_size,
        "compile_model": plan.compile_obstacle is None,
        "data": fingerprint(plan),
        "ranks": ranks.size,
        "hookpoints": list(plan.widths),
    }


def fingerprint(plan: Plan) -> str:
    """A hash of the run's first and last eight training sequences and of the first eight held out."""
    train, heldout = plan.tokens.train, plan.tokens.heldout
    samples = [train[:8], train[max(0, plan.length.samples - 8) : plan.length.samples], heldout[:8]]
    return hashlib.sha256(b"".join(rows.tobytes() for rows in samples)).hexdigest()[:16]


def check_settings(directory: Path, cfg: Config, saved: Mapping[str, Any], current: Mapping[str, Any]) -> str | None:
    """Raises ConfigError where the run cannot continue with the current settings. Returns a warning where only its last digits will differ."""
    if saved.get("ranks", 1) != current["ranks"]:
        raise ConfigError(
            f"{directory} was begun on {saved.get('ranks', 1)} ranks, here are {current['ranks']}: start it with as many "
            f"(torchrun --nproc-per-node, tasks), or remove {directory / 'resume'} to train it from its start"
        )
    if saved["dtype"] != current["dtype"]:
        raise ConfigError(
            f"dtype={cfg.dtype}: {directory} was begun with {saved['dtype']} on another device, "
            f"here it would be {current['dtype']}; set device as it was, or begin a new run with dtype set"
        )
    if saved["data"] != current["data"]:
        raise ConfigError(
            f"dataset_name={cfg.dataset_name}: its tokens are not those that {directory} was begun with; "
            "restore the data as it was (files, Python version, hub revision), or begin a new run"
        )
    if (points := saved.get("hookpoints", current["hookpoints"])) != current["hookpoints"]:  # older states lack them
        raise ConfigError(
            f"eval_end_to_end={cfg.eval_end_to_end}: {directory} was begun with coders on {', '.join(points)}, here they would be on "
            f"{', '.join(current['hookpoints'])}; set eval_end_to_end as it was, which decides the model's class"
        )
    before = ROUNDING | {name: saved[name] for name in ROUNDING if name in saved}
    if changed := [name for name in ROUNDING if before[name] != current[name]]:
        now, then = (", ".join(f"{name}={values[name]}" for name in changed) for values in (current, before))
        return f"{now}, the run was begun with {then}: it goes on, but not bit for bit as if it had never stopped"
    return None
