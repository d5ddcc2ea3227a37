"""Short runs on the bundled model: their configs, the command that trains them, the files in their directories."""

import json
from pathlib import Path

import pytest
import torch

from helpers.command_line import composed
from helpers.device import ON_DEVICE
from sae_transcoder.config import Config, run_dir
from sae_transcoder.training import checkpoint, engine
from sae_transcoder.training.managed_run import ManagedRun


def short(cache: Path, folder: Path, *overrides: str) -> Config:
    """A run of 16 steps on the bundled model."""
    settings = [
        "experiment=demo",
        "max_samples=64",
        "batch_size=4",
        "max_seq_length=32",
        "eval_samples=4",
        "k=8",
        *([] if any(override.startswith("num_latents=") for override in overrides) else ["expansion_factor=2"]),
        *ON_DEVICE,
    ]
    return composed(*settings, "threads=1", "log_every=5", f"save_dir={folder}", f"cache_dir={cache}", *overrides)


def arguments(cfg: Config) -> list[str]:
    """What stands behind `python` in the command that trains `cfg`."""
    values = [
        "experiment=demo",
        *(f"{name}={getattr(cfg, name)}" for name in ("max_samples", "batch_size", "max_seq_length", "eval_samples")),
    ]
    values += [
        f"{name}={getattr(cfg, name)}"
        for name in ("k", "expansion_factor", "threads", "log_every", "save_dir", "cache_dir", "save_every")
    ]
    return ["-m", "sae_transcoder.train", *values, *ON_DEVICE]


def lines(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {
        f"{p.parent.name}.{k}": v
        for p in sorted([*directory.rglob("sae.safetensors"), *directory.rglob("threshold.safetensors")])
        for k, v in load_file(p).items()
    }


def assert_same(one: Path, other: Path) -> None:
    """Two runs' coders and metrics are identical."""
    first, second = weights(one / "coders"), weights(other / "coders")
    assert first.keys() == second.keys()
    assert first
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


def interrupted(cfg: Config) -> Path:
    """Trains `cfg` until it has saved for the first time; returns the path of its training state."""

    def stop(self: ManagedRun) -> None:
        real(self)
        raise KeyboardInterrupt

    real = ManagedRun.save_state
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ManagedRun, "save_state", stop)
        with pytest.raises(KeyboardInterrupt):
            engine.train([cfg])
    return checkpoint.state_path(run_dir(cfg))
