"""How long a pack of runs will take, from how long others took on this machine.

Each pack that ends leaves two records in `timings.jsonl` in the cache: what its training and its evaluation computed (work.py), and in how many
seconds. An estimate takes the record nearest to it, of the same language model on the same machine, and assumes as much work a second.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from sae_transcoder.config import Config, Hardware, LossFn
from sae_transcoder.data.sources import cache_dir
from sae_transcoder.preflight.work import Work, evaluation_work, evaluations, reconstruction_work, training_work
from sae_transcoder.process.atomic_files import replace_text
from sae_transcoder.run_store.observed_status import duration

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from sae_transcoder.preflight.plan import Plan

NAME = "timings.jsonl"
KEPT, SHORTENED = 1_000, 2**20  # records that are kept once the file has so many bytes
AT_LEAST = {"training": 2.0, "evaluation": 0.5}  # seconds; less says little
FARTHEST = 4.0  # times as much work a token, or as little, as in the record, beyond which nothing is estimated
OTHER_SETTING = (
    0.2  # what each setting of `Like` that differs adds to a record's distance, beside the logarithm of the ratio of work a token
)


@dataclass(frozen=True)
class Estimate:
    """Seconds that training and all evaluations will take; None for what is not known."""

    training: float | None
    evaluation: float | None

    @property
    def total(self) -> float | None:
        """Both; None where one is not known."""
        return None if self.training is None or self.evaluation is None else self.training + self.evaluation

    def __str__(self) -> str:
        """In words."""
        parts = {"training": self.training, "evaluation": self.evaluation}
        listed = ", ".join(f"{name} {'unknown' if value is None else in_words(value)}" for name, value in parts.items())
        return listed if self.total is None else f"about {in_words(self.total)}: {listed}"


def in_words(seconds: float) -> str:
    """A time for a person."""
    return f"{seconds:.0f} s" if seconds < 100 else duration(seconds)


def estimate(plans: Sequence[Plan]) -> Estimate | None:
    """How long runs side by side will take, from the start of training; None where no record is near enough."""
    try:
        lines = records_path(plans[0].cfg).read_text().splitlines()
    except OSError:
        return None
    records = [record for line in lines if (record := parsed(line)) is not None]
    speed = nearest_speed(records, "evaluation", plans, evaluation_work(plans))
    full, quick = max(evaluations(plan)[0] for plan in plans), max(evaluations(plan)[1] for plan in plans)
    work = training_work(plans)
    training = nearest_speed(records, "training", plans, work)
    found = Estimate(
        training=None if training is None else work.total / training,
        evaluation=None if speed is None else (full * evaluation_work(plans).total + quick * reconstruction_work(plans)) / speed,
    )
    return None if found == Estimate(None, None) else found


def add_training(plans: Sequence[Plan], seconds: float) -> None:
    """Records how long the runs trained, all from their first step to their last."""
    add(plans, "training", training_work(plans), seconds)


def add_evaluation(plans: Sequence[Plan], seconds: float) -> None:
    """Records how long it took to measure the runs once, with all metrics that they ask for."""
    add(plans, "evaluation", evaluation_work(plans), seconds)


def add(plans: Sequence[Plan], kind: str, work: Work, seconds: float) -> None:
    """Adds a record. A cache that cannot be written to has none."""
    if seconds < AT_LEAST[kind]:
        return
    record = {"kind": kind, "at": round(time.time()), "seconds": round(seconds, 2), **asdict(work)}
    record |= {"same": same(plans), "like": like(plans)}
    path = records_path(plans[0].cfg)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if path.stat().st_size > SHORTENED:
            replace_text(path, "".join(f"{line}\n" for line in path.read_text().splitlines()[-KEPT:]))


def nearest_speed(records: Sequence[dict], kind: str, plans: Sequence[Plan], work: Work) -> float | None:
    """Operations a second in the record that is nearest to the runs, the latest of equals; None where none is near enough."""
    fixed, settings = same(plans), like(plans)

    def distance(record: dict) -> float:
        others = sum(settings[name] != record["like"].get(name) for name in settings)
        return abs(math.log(record["per_token"] / work.per_token)) + OTHER_SETTING * others

    near = [
        record
        for record in reversed(records)
        if (record["kind"], record["same"]) == (kind, fixed) and 1 / FARTHEST <= record["per_token"] / work.per_token <= FARTHEST
    ]
    nearest = min(near, key=distance, default=None)
    return None if nearest is None else nearest["total"] / nearest["seconds"]


def parsed(line: str) -> dict | None:
    """A record; None for a line that is none."""
    try:
        record = json.loads(line)
        numbers = [float(record[name]) for name in ("seconds", "total", "per_token")]
        is_record = min(numbers) > 0 and isinstance(record["like"], dict) and {"kind", "same"} <= record.keys()
    except (ValueError, KeyError, TypeError):
        return None
    return record if is_record else None


def same(plans: Sequence[Plan]) -> dict:
    """What a record must agree in."""
    cfg = plans[0].cfg
    return {
        "machine": machine(cfg, plans[0].device),
        "model": [cfg.model_name, cfg.revision],
        "dtype": cfg.dtype,
        "quantization": cfg.quantization,
        "trains_end_to_end": cfg.loss_fn != LossFn.fvu,
        "ranks": [plans[0].ranks, cfg.distribute_modules],
    }


def like(plans: Sequence[Plan]) -> dict:
    """What makes a difference that the work does not count."""
    cfg = plans[0].cfg
    of_runs = ("optimizer", "activation", "corrections", "micro_acc_steps", "multi_topk")
    return {
        "batch": [cfg.batch_size, cfg.max_seq_length, cfg.forward_batch_size],
        "compiled": plans[0].compile_obstacle is None,
        "auxk": sorted({plan.cfg.auxk_alpha > 0 for plan in plans}),
        **{name: sorted({str(getattr(plan.cfg, name)) for plan in plans}) for name in of_runs},
    }


def machine(cfg: Config, device: torch.device) -> str:
    """Where a run computes: on a cluster what a job asks for, else the GPU, or this machine with so many threads."""
    if cfg.hardware == Hardware.slurm:
        asked = {name: getattr(cfg, name) for name in ("partition", "constraint", "gres", "cpus", "threads")}
        return f"slurm {device.type}, " + ", ".join(f"{name} {value}" for name, value in asked.items())
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{socket.gethostname()}, {cfg.threads or torch.get_num_threads()} of {os.cpu_count()} CPUs"


def records_path(cfg: Config) -> Path:
    """The file of the records."""
    return cache_dir(cfg) / NAME
