"""Runs that are killed at random moments, saves among them, end as if nothing had happened; full disks lose nothing."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import forked
from helpers.killed import train_and_die
from helpers.short_runs import arguments, assert_same, lines, short
from sae_transcoder.config import run_dir
from sae_transcoder.training import checkpoint, engine

KILLS = 10
KINDS = {
    "adam": ["optimizer=adam", "lr_warmup_steps=5", "k_decay_steps=9"],
    "signum": ["optimizer=signum", "k_decay_steps=9"],
    "matryoshka with muon": ["optimizer=muon", "lr_warmup_steps=5", "activation=batchtopk", "matryoshka_widths=[]"],
    "jumprelu": [
        "activation=jumprelu",
        "normalize_activations=mean_norm",
        "jumprelu_init_threshold=1",
        "lr_schedule=cosine",
        "grad_clip_norm=1",
    ],
}


@pytest.mark.kill
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_ten_times_ends_identical_to_an_undisturbed_one(cache: Path, tmp_path: Path, kind: str) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    settings = [
        *KINDS[kind], "max_samples=640", "grad_acc_steps=2", "save_every=3", "keep_every=10", "log_every=4", "init_seeds=[1,2]",
        "dead_feature_threshold=500", "auxk_alpha=0.03", "max_norm_multiple=20", "eval_samples=4",
    ]  # fmt: skip
    undisturbed, cfg = (short(cache, tmp_path / name, *settings) for name in ("undisturbed", "killed"))
    start = time.monotonic()
    engine.train([undisturbed])
    duration = time.monotonic() - start
    kills, in_saves, steps = 0, 0, []
    for _ in range(100):
        # A state is saved every 6 batches; an attempt of 17 moves it on by at most 12 of the 160, so that ten fit on every machine.
        file_change = chance.randrange(1, 120) if kills < KILLS and chance.random() < 0.5 else None
        batch = None if kills >= KILLS else 17 if file_change else chance.randrange(18)
        process = forked.process(train_and_die, cfg, file_change, batch, chance.uniform(0, duration / 160))
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        in_saves += file_change is not None
        steps.append(lines(run_dir(cfg))[-1]["step"] if (run_dir(cfg) / "metrics.jsonl").exists() and lines(run_dir(cfg)) else 0)
    print(f"{kills} kills, {in_saves} armed for saves, last logged steps {steps}")
    assert process.exitcode == 0
    assert kills >= KILLS
    assert len(set(steps)) > 2, "killed at different moments"
    assert_same(run_dir(undisturbed), run_dir(cfg))
    assert {p.name for p in run_dir(cfg).iterdir()} == {p.name for p in run_dir(undisturbed).iterdir()}
    for kept in (run_dir(undisturbed) / "snapshots").iterdir():
        assert (run_dir(cfg) / "snapshots" / kept.name).is_dir()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 40 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("a disk of its own needs the right to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.kill
@pytest.mark.parametrize("left", [0, 1_000_000, 2_000_000, 3_000_000])
def test_on_a_full_disk_the_error_says_so_and_the_state_before_goes_on(
    cache: Path,
    tmp_path: Path,
    small_disk: Path,
    left: int,
) -> None:
    settings = ["max_samples=256", "save_every=20"]
    undisturbed, cfg = short(cache, tmp_path / "a", *settings), short(cache, small_disk, *settings)
    engine.train([undisturbed])
    process = forked.start(arguments(cfg))
    state = checkpoint.state_path(run_dir(cfg))
    while not state.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)
    kept = state.read_bytes()
    free = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(b"\0" * (free.f_bavail * free.f_frsize - left))
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert "free space and start the same command again" in errors
    assert str(small_disk) in errors or left == 0
    assert state.read_bytes() == kept
    (small_disk / "filler").unlink()
    done = forked.run(arguments(cfg))
    assert done.returncode == 0, done.stderr
    assert "continues after step 20" in done.stdout
    assert_same(run_dir(undisturbed), run_dir(cfg))
