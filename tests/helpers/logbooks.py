"""Configs that send numbers to a tracker, and logbooks with known numbers."""

import json
from pathlib import Path
from typing import Any

from sae_transcoder.config import Config, DatasetKind, ModelType, Tracker, TrackerMode
from sae_transcoder.trackers.logbook import Logbook

DEMO = dict(model_type=ModelType.sae, model_name="demo", dataset_kind=DatasetKind.demo, dataset_name="demo")


def config(tracker: str, **settings: Any) -> Config:
    """A config that sends its numbers to `tracker`."""
    if tracker != "trackio":
        settings = {"tracker_mode": TrackerMode.offline} | settings
    return Config(**(DEMO | dict(tracker=Tracker(tracker), project="study", group="g", tags=["t1", "t2"]) | settings))  # type: ignore[arg-type]


def fill(cfg: Config, directory: Path, steps: list[int], step: int = 0, scale: float = 1.0, finish: bool = True) -> Logbook:
    """Logs `steps`, each with FVU = scale / step, as a run that starts or continues after `step`."""
    directory.mkdir(exist_ok=True)
    book = Logbook(cfg, directory, step)
    for at in steps:
        book.log(at, {"tokens": 100 * at, "fvu/layers.1": scale / at})
    if finish:
        book.finish(0)
    return book


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
