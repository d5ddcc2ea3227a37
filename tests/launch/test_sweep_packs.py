"""Runs side by side: one forward, results as alone, and what fails fails by itself."""

import fcntl
import os
import subprocess
import sys
import threading
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from helpers import FINDING_TESTS
from helpers.device import ON_DEVICE
from helpers.short_runs import short
from helpers.sweeps import SHAPE, SHORT, assert_equal, by, config, here, runs, states
from sae_transcoder.config import run_dir
from sae_transcoder.launch import packs, worker_pool
from sae_transcoder.preflight.plan import make_plan
from sae_transcoder.preflight.side_by_side import check_shared
from sae_transcoder.run_store import status
from sae_transcoder.training import engine, managed_run, pack_loop, smaller_packs

pytestmark = pytest.mark.device

# Each differs from the others in all that runs of a pack may differ in; the last two cannot share the first one's pack.
VARIANTS = {
    "a": dict(k=4),
    "b": dict(model_type="transcoder", layers=[1, 4], optimizer="muon", eval_every=3),
    "c": dict(grad_acc_steps=3, max_steps=4, exclude_first_tokens=2, layers=[1]),
    "d": dict(optimizer="signum", lr=None, max_samples=50, keep_every=5),
    "e": dict(
        max_samples=38, activation="groupmax", site="attention", init_seeds=[1, 2], exclude_tokens=[5], max_norm_multiple=10.0
    ),
    "f": dict(auxk_alpha=0.03, dead_feature_threshold=300, k_decay_steps=4, micro_acc_steps=2, expansion_factor=4, save_every=4),
    "g": dict(loss_fn="kl", max_samples=8),
    "h": dict(loss_fn="ce", max_samples=8, model_type="transcoder"),
}


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments that make VARIANTS a group, and what its runs have in common."""
    folder = tmp_path_factory.mktemp("conf")
    (folder / "variant").mkdir()
    for name, settings in VARIANTS.items():
        whole = dict(max_samples=64, expansion_factor=2, k=8, tags=[]) | settings
        (folder / "variant" / f"{name}.yaml").write_text("# @package _global_\n" + yaml.safe_dump(whole))
    return ["--config-dir", str(folder), *SHAPE]


@pytest.mark.slow
def test_every_run_of_a_mixed_pack_ends_as_alone_and_the_forward_is_shared(
    cache: Path, tmp_path: Path, variants: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []
    real = pack_loop.forward.capture

    def counting(model: object, points: list[str], tokens: torch.Tensor, *size: int | None) -> object:
        if tokens.shape[1] == 32:  # not the outline's
            counted.append(len(tokens))
        return real(model, points, tokens, *size)

    monkeypatch.setattr(pack_loop.forward, "capture", counting)
    code, printed, _ = here(
        "-m", *variants, f"+variant={','.join(VARIANTS)}", f"save_dir={tmp_path}/together", f"cache_dir={cache}"
    )
    assert code == 0, printed
    assert len(counted) == 16 + 2, "64 samples in 16 batches, and two last batches that are not full"
    assert counted.count(2) == 2
    together = runs(tmp_path / "together")
    assert len(together) == len(VARIANTS)
    for name in VARIANTS:
        assert here(*variants, f"+variant={name}", f"save_dir={tmp_path}/alone", f"cache_dir={cache}")[0] == 0
    alone = runs(tmp_path / "alone")
    assert together.keys() == alone.keys()
    for name, directory in together.items():
        assert_equal(directory, alone[name])
        assert {p.name for p in (directory).iterdir()} == {p.name for p in alone[name].iterdir()}
        mine, others = config(alone[name]), config(directory)
        assert {n: v for n, v in mine.items() if others[n] != v}.keys() == {"save_dir", "sweep_name"}


@pytest.mark.parametrize(
    ("settings", "workers", "sizes"),
    [
        ([["k=4"], ["k=5"], ["k=6"]], 1, [3]),
        ([["k=4"], ["k=5"], ["k=6"]], 2, [2, 1]),
        ([["k=4", "runs_per_pack=2"], ["k=5", "runs_per_pack=2"], ["k=6", "runs_per_pack=2"]], 1, [2, 1]),
        ([["k=4"], ["k=5", "max_seq_length=16"], ["k=6"], ["k=7", "max_seq_length=16"]], 2, [2, 2]),
        ([["batch_size=4"], ["batch_size=8"], ["dtype=bfloat16"], ["shuffle_seed=1"]], 1, [1, 1, 1, 1]),
        ([["loss_fn=ce"], ["k=5"], ["loss_fn=kl"], ["k=6"]], 1, [1, 2, 1]),
    ],
)
def test_packs_are_of_runs_that_share_batches_and_spread_over_workers(
    cache: Path, tmp_path: Path, settings: list[list[str]], workers: int, sizes: list[int]
) -> None:
    plans = [make_plan(short(cache, tmp_path, *own)) for own in settings]
    found = packs.group_into_packs(plans, workers)
    assert [len(pack) for pack in found] == sizes
    assert sorted(i for pack in found for i in pack) == list(range(len(plans)))
    for pack in found:
        check_shared([plans[i].cfg for i in pack])


def test_packs_are_no_larger_than_memory(cache: Path, tmp_path: Path) -> None:
    plans = [make_plan(short(cache, tmp_path, f"k={k}")) for k in range(1, 6)]
    two = int(packs.memory(plans[:2]) / packs.USABLE + 1)
    assert packs.group_into_packs([replace(each, available=two) for each in plans], 1) == [[0, 1], [2, 3], [4]]
    assert packs.group_into_packs([replace(each, available=None) for each in plans], 1) == [[0, 1, 2, 3], [4]], (
        "a cluster's, not known"
    )


@pytest.mark.parametrize(
    ("settings", "sizes"), [([], [4, 2]), (["gpu_memory_gib=80"], [6]), (["gpu_memory_gib=80", "runs_per_pack=5"], [5, 1])]
)
def test_a_job_has_as_many_runs_as_fit_its_gpu_where_that_is_known(
    cache: Path, tmp_path: Path, settings: list[str], sizes: list[int]
) -> None:
    plans = [
        make_plan(short(cache, tmp_path, "hardware=slurm", "device=cuda", f"k={k}", *settings), on_slurm=True) for k in range(1, 7)
    ]
    assert [len(pack) for pack in packs.group_into_packs(plans, 1)] == sizes


@pytest.mark.usefixtures("one_by_one")
def test_a_run_that_diverges_or_breaks_fails_alone_with_its_reason(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = ["-m", *SHORT, "k=8", "lr=1e30,1e-2,2e-2,3e-2", f"cache_dir={cache}", "sweep_name=s"]
    real = managed_run.ManagedRun.after_step

    def breaks(self: managed_run.ManagedRun, *arguments: object) -> None:
        if self.cfg.lr == 2e-2 and self.trainer.step == 7:
            raise RuntimeError("a bug")
        real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(managed_run.ManagedRun, "after_step", breaks)
        code, printed, _ = here(*sweep, f"save_dir={tmp_path}/some")
    assert code == 1
    found = by(tmp_path / "some", "lr")
    told = {lr: status.read(directory) for lr, directory in found.items()}
    assert {lr: str(own.state) for lr, own in told.items()} == {1e30: "failed", 1e-2: "done", 2e-2: "failed", 3e-2: "done"}
    assert "training diverged" in told[1e30].why
    assert told[2e-2].why == "RuntimeError: a bug"
    table = printed[printed.index("\nrun  ") :]
    assert "2 done" in table
    assert "2 failed" in table
    assert "RuntimeError: a bug" in table
    assert "training diverged" in table
    assert "a bug" in (found[2e-2] / "train.log").read_text()
    for lr in (1e-2, 3e-2):
        assert "a bug" not in (found[lr] / "train.log").read_text(), "a log tells of its own run only"
        assert here(*SHORT, "k=8", f"lr={lr}", f"cache_dir={cache}", f"save_dir={tmp_path}/alone")[0] == 0
        assert_equal(found[lr], by(tmp_path / "alone", "lr")[lr])

    code, printed, _ = here(*sweep, f"save_dir={tmp_path}/some")  # fails again, and is mended
    assert code == 1
    assert "4 runs (2 done, 2 to go on)" in printed
    assert states(tmp_path / "some").count("done") == 3


LIMITED = """
import resource, sys
import torch, transformers, sae_transcoder.training.engine, sae_transcoder.preflight.plan, sae_transcoder.language_model.loading as lm
from sae_transcoder import train
from sae_transcoder.config.composer import composed
lm.load(composed(["experiment=demo"]), torch.device("cpu"))
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = now + int(sys.argv.pop(1)) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
train.main()
"""


@pytest.mark.slow
def test_a_pack_that_memory_does_not_suffice_for_is_split_and_goes_on_exactly(cache: Path, tmp_path: Path) -> None:
    sweep = [  # on the CPU, whose memory a process can be denied
        "-m",
        *(setting for setting in SHAPE if setting not in ON_DEVICE),
        "device=cpu",
        "max_samples=24",
        "layers=[1,2]",
        "expansion_factor=16",
        "k=4,5,6,7",
        f"cache_dir={cache}",
        "sweep_name=s",
    ]
    environment = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "210", *sweep, f"save_dir={tmp_path}/tight"],
        capture_output=True,
        text=True,
        env=environment | FINDING_TESTS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "out of memory with 4 runs side by side" in done.stdout
    assert here(*sweep, f"save_dir={tmp_path}/ample")[0] == 0
    found = by(tmp_path / "ample", "k")
    for k, directory in by(tmp_path / "tight", "k").items():
        assert_equal(directory, found[k])


def test_each_run_is_measured_as_it_asks_whichever_comes_first(cache: Path, tmp_path: Path) -> None:
    outcomes = engine.train_pack([short(cache, tmp_path, "k=4", "eval_end_to_end=false"), short(cache, tmp_path, "k=5")])
    assert ["ce_loss_score" in outcome.evaluation.mean() for outcome in outcomes] == [False, True]
    (alone,) = engine.train([short(cache, tmp_path / "alone", "k=5")])
    assert alone.evaluation == outcomes[1].evaluation


@pytest.mark.parametrize("optimizer", ["adam", "muon", "signum"])
def test_a_run_that_is_done_gives_back_its_memory_at_once(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    held: list[weakref.ref] = []
    alive: list[int] = []
    real = managed_run.ManagedRun.after_step

    def watching(self: managed_run.ManagedRun, *arguments: object) -> None:
        if self.cfg.max_steps == 2 and self.trainer.step == 1:
            for coder in self.trainer.coders.values():
                held.extend(weakref.ref(p) for p in coder.parameters())
            for own in self.trainer.optimizers:
                held.extend(weakref.ref(v) for s in own.state.values() for v in s.values() if isinstance(v, torch.Tensor))
        elif self.cfg.max_steps is None and self.trainer.step == 3:
            alive.append(sum(reference() is not None for reference in held))
        real(self, *arguments)

    monkeypatch.setattr(managed_run.ManagedRun, "after_step", watching)
    engine.train([short(cache, tmp_path, f"optimizer={optimizer}", *own) for own in (["max_steps=2"], ["max_samples=20"])])
    assert len(held) >= 8
    assert alive == [0]


def test_a_look_at_whether_a_run_lives_does_not_keep_it_from_starting(cache: Path, tmp_path: Path) -> None:
    cfg = short(cache, tmp_path, "max_steps=1")
    run_dir(cfg).mkdir(parents=True)
    descriptor = os.open(run_dir(cfg) / ".lock", os.O_CREAT | os.O_RDWR)
    real = smaller_packs.claim

    def looking(*arguments: object) -> object:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        threading.Timer(0.2, os.close, [descriptor]).start()
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smaller_packs, "claim", looking)
        engine.train([cfg])


def test_workers_on_a_cpu_see_no_gpu_and_those_on_gpus_one_each(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_pool.gpus(torch.device("cpu")) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,3")
    assert worker_pool.gpus(torch.device("cuda")) == ["GPU-a", "3"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert worker_pool.gpus(torch.device("cuda")) == ["0", "1", "2"]
