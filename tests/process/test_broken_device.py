"""Too little memory on a GPU, and errors that leave it of no use to a process: what each is taken for, and how runs go on."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from helpers import forked
from helpers.short_runs import lines, short
from helpers.sweeps import SHORT, assert_equal, by, here, run, runs, states
from helpers.torchrun import SHAPE as RANKS
from helpers.torchrun import on_ranks, state
from sae_transcoder.config import run_dir
from sae_transcoder.process import broken_device
from sae_transcoder.process.broken_device import DeviceBroken
from sae_transcoder.process.memory_errors import is_out_of_memory
from sae_transcoder.run_store import status
from sae_transcoder.run_store.status import State
from sae_transcoder.training import engine, pack_loop

SAID = "CUDA error: an illegal memory access was encountered"
# As torch says it, of several lines.
WHOLE = f"{SAID}\nCUDA kernel errors might be asynchronously reported at some other API call"
WHY = f"the GPU failed (AcceleratorError: {SAID})"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
        ),
        MemoryError(),
    ],
    ids=lambda error: str(error)[:40],
)
def test_too_little_memory_is_recognised_however_it_is_said_and_breaks_nothing(error: Exception) -> None:
    assert is_out_of_memory(error)
    broken_device.raise_if_broken(error)


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError(WHOLE),
        torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        RuntimeError("CUDA driver error: unspecified launch failure"),
        RuntimeError("HIP error: an illegal memory access was encountered"),
    ],
    ids=lambda error: str(error)[:40],
)
def test_an_error_that_leaves_the_gpu_of_no_use_is_recognised(error: Exception) -> None:
    assert not is_out_of_memory(error)
    with pytest.raises(DeviceBroken, match=r"the GPU failed \((AcceleratorError|RuntimeError): [^\n]*\)$"):
        broken_device.raise_if_broken(error)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("CUDA error"), OSError()])
def test_other_errors_are_the_runs_own(error: Exception) -> None:
    assert not is_out_of_memory(error)
    broken_device.raise_if_broken(error)


def test_a_pack_whose_gpu_says_out_of_memory_as_an_error_of_cuda_goes_on_in_halves(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    real, most = pack_loop.forward.capture, []

    def tight(*arguments: object) -> object:
        if len(most) == 2:  # the third batch
            most.append(0)
            raise torch.AcceleratorError("CUDA error: out of memory")
        most.append(0)
        return real(*arguments)

    together, alone = (
        [short(cache, tmp_path / name, k, "eval_end_to_end=false") for k in ("k=4", "k=5")] for name in ("together", "alone")
    )
    monkeypatch.setattr(pack_loop.forward, "capture", tight)
    engine.train(together)
    monkeypatch.undo()
    for packed, cfg in zip(together, alone, strict=True):
        engine.train([cfg])
        assert_equal(run_dir(packed), run_dir(cfg))


# `sae-train` where the GPU fails in the sixth step of the run of k=5, as often as TIMES says; whatever its process does on the GPU afterwards
# fails as well.
FAILING = f"""
import os
from pathlib import Path
import torch
from sae_transcoder import train
from sae_transcoder.training import managed_run
tries = Path(__file__).with_suffix(".tries")
broken = False
def gpu(fails=False):
    global broken
    if fails:
        with tries.open("a") as file:
            file.write("x")
    broken = broken or fails
    if broken:
        raise torch.AcceleratorError({WHOLE!r})
def step(self, *arguments, real=managed_run.ManagedRun.after_step):
    gpu(self.cfg.k == 5 and self.trainer.step == 6 and len(tries.read_text()) < int(os.environ["TIMES"]))
    real(self, *arguments)
def begin(self, *arguments, real=managed_run.ManagedRun.__init__):
    gpu()
    real(self, *arguments)
tries.touch()
managed_run.ManagedRun.after_step, managed_run.ManagedRun.__init__ = step, begin
torch.cuda.is_available, torch.cuda.empty_cache = lambda: broken, gpu
if __name__ == "__main__":
    train.main()
"""
SWEEP = ["-m", *SHORT, "eval_end_to_end=false", "k=4,5,6,7", "sweep_name=s", "runs_per_pack=2"]


def failing(folder: Path, times: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `sae-train ARGUMENTS` on a GPU that fails so many times."""
    script = folder / "failing.py"
    script.write_text(FAILING)
    return forked.run([str(script), *arguments], env=os.environ | {"TIMES": str(times)})


def statuses(folder: Path) -> dict[int, status.Status]:
    """{k: status} of the runs below a folder."""
    return {k: status.read(directory) for k, directory in by(folder, "k").items()}


@pytest.fixture(scope="module")
def undisturbed(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of SWEEP, trained in one go."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert here(*SWEEP, f"save_dir={folder}", f"cache_dir={cache}")[0] == 0
    return folder


@pytest.mark.slow
def test_a_sweep_whose_worker_loses_its_gpu_twice_ends_done(cache: Path, tmp_path: Path, undisturbed: Path) -> None:
    done = failing(tmp_path, 2, *SWEEP, "workers=2", f"save_dir={tmp_path}/out", f"cache_dir={cache}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(f"its process ended with exit code 134: {WHY}; see ") == 2
    assert states(tmp_path / "out") == ["done"] * 4
    for k, directory in by(undisturbed, "k").items():
        assert_equal(by(tmp_path / "out", "k")[k], directory)


@pytest.mark.slow
def test_a_run_on_which_the_gpu_fails_three_times_without_coming_further_has_failed_alone(cache: Path, tmp_path: Path) -> None:
    done = failing(tmp_path, 9, *SWEEP, "workers=2", f"save_dir={tmp_path}/out", f"cache_dir={cache}")
    assert done.returncode == 1, done.stdout + done.stderr
    assert {k: seen.state for k, seen in statuses(tmp_path / "out").items()} == {4: "done", 5: "failed", 6: "done", 7: "done"}
    assert WHY in statuses(tmp_path / "out")[5].why
    assert (tmp_path / "failing.tries").read_text() == "xxx"


@pytest.mark.slow
def test_in_one_process_a_failed_gpu_ends_the_command_which_goes_on_when_it_is_repeated(
    cache: Path, tmp_path: Path, undisturbed: Path
) -> None:
    sweep = [*SWEEP, "workers=1", f"save_dir={tmp_path}/out", f"cache_dir={cache}"]
    done = failing(tmp_path, 1, *sweep)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.strip() == f"error: {WHY}; the same command goes on from the last save"
    assert "Traceback" not in done.stdout
    seen = {k: (own.state, own.why) for k, own in statuses(tmp_path / "out").items()}
    interrupted, waiting = (State.interrupted, WHY), (State.queued, None)
    assert seen == {4: interrupted, 5: interrupted, 6: waiting, 7: waiting}
    assert failing(tmp_path, 1, *sweep).returncode == 0
    for k, directory in by(undisturbed, "k").items():
        assert_equal(by(tmp_path / "out", "k")[k], directory)


@pytest.mark.slow
def test_a_single_run_whose_gpu_fails_is_interrupted_and_goes_on_from_its_save(cache: Path, tmp_path: Path) -> None:
    arguments = [*SHORT, "k=5", "save_every=4", "eval_end_to_end=false", f"save_dir={tmp_path}/out", f"cache_dir={cache}"]
    done = failing(tmp_path, 1, *arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.strip() == f"error: {WHY}; the same command goes on from the last save"
    assert "Traceback" not in done.stdout
    ((_, directory),) = runs(tmp_path / "out").items()
    seen = status.read(directory)
    assert (seen.state, seen.why) == (State.interrupted, WHY)
    assert "Traceback" in (directory / "train.log").read_text()
    again = run(*arguments)
    assert "continues after step 4" in again.stdout
    assert status.read(directory).state == State.done
    assert [row["step"] for row in lines(directory)] == [4, 5, 8, 10, 12, 15, 16]


@pytest.mark.slow
def test_a_rank_whose_gpu_fails_leaves_the_run_interrupted(cache: Path, tmp_path: Path) -> None:
    own = [*RANKS, "batch_size=4", "max_samples=64", f"save_dir={tmp_path}/out", f"cache_dir={cache}", "run_name=r", "save_every=2"]
    code, said, printed = on_ranks(tmp_path / "launch", [{"runs": [own], "fault": [1, 3, "AcceleratorError"]}])
    assert (code, said) == (1, [[], []]), printed
    seen = state(tmp_path / "out" / "r")
    assert (seen["state"], seen["step"]) == ("interrupted", 3)
    assert seen["why"] == "rank 1: the GPU failed (AcceleratorError: broken on purpose)"
