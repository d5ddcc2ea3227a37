"""Sweeps that are killed and stopped, on one process and on several: what goes on ends as if nothing had happened."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import HANGS, forked
from helpers.forked import Forked
from helpers.run_directory_page import undocumented
from helpers.short_runs import lines
from helpers.sweeps import SHAPE, assert_all_equal, assert_equal, by, here, living_in, run, runs, start, states
from sae_transcoder.process.stop_signal import StopSignal
from sae_transcoder.run_store import status
from sae_transcoder.run_store.status import State

pytestmark = [pytest.mark.device, pytest.mark.slow]

# Eight runs of two lengths.
EIGHT = ["-m", *SHAPE, "expansion_factor=2", "k=4,5,6,7", "max_samples=240,302", "save_every=7", "sweep_name=s"]


@pytest.fixture(scope="module")
def undisturbed(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of EIGHT, trained in one go."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert here(*EIGHT, f"save_dir={folder}", f"cache_dir={cache}")[0] == 0
    return folder


def wait_for(condition: Callable[[], object], process: Forked) -> None:
    """Returns once the condition holds; the process must live until then."""
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def in_the_middle(folder: Path, count: int) -> bool:
    """Whether so many runs below a folder have logged a few steps and are not done."""
    going = [d for d in runs(folder).values() if status.read(d).state == State.running and (d / "metrics.jsonl").exists()]
    return sum(len(lines_so_far(d)) >= 3 for d in going) >= count


def lines_so_far(directory: Path) -> list[str]:
    return (directory / "metrics.jsonl").read_text().splitlines()


def ends(process: Forked, code: int) -> str:
    """What the process printed until it ended with that code."""
    printed, errors = process.communicate(timeout=HANGS)
    assert process.returncode == code, printed + errors
    assert "Traceback" not in errors, errors
    return printed + errors


def workers_of(process: Forked) -> list[int]:
    """The processes that a sweep trains in."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def assert_nobody_left(folder: Path) -> None:
    """No process still holds a file below the folder, now or after a moment."""
    for _ in range(200):
        if not living_in(folder):
            return
        time.sleep(0.1)
    pytest.fail(f"left behind: {living_in(folder)}")


@pytest.mark.parametrize(
    ("number", "workers"), [(signal.SIGKILL, 1), (signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGKILL, 2), (signal.SIGINT, 2)]
)
def test_a_sweep_that_was_stopped_goes_on_and_ends_as_if_undisturbed(
    cache: Path, tmp_path: Path, undisturbed: Path, number: signal.Signals, workers: int
) -> None:
    arguments = [*EIGHT, f"workers={workers}", f"save_dir={tmp_path}", f"cache_dir={cache}"]
    process = start(*arguments, new_session=True)
    wait_for(lambda: in_the_middle(tmp_path, 8), process)
    if number == signal.SIGINT:  # as a terminal sends it: to parent and workers
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    if number == signal.SIGKILL:
        process.communicate()
    else:
        assert "the same command goes on from here" in ends(process, 128 + number)
    assert_nobody_left(tmp_path)
    stopped = [d for d in runs(tmp_path).values() if status.read(d).state != State.done]
    assert stopped
    if number != signal.SIGKILL or workers == 2:  # workers outlive a parent that was killed until they have saved
        assert {status.read(d).state for d in stopped} == {State.interrupted}
        assert all((d / "resume" / "state.pt").exists() for d in stopped)
    code, printed, _ = here(*arguments)
    assert code == 0, printed
    assert "to go on" in printed
    assert_all_equal(tmp_path, undisturbed)


def test_where_a_workers_process_dies_its_pack_is_split_and_the_results_are_the_same(
    cache: Path, tmp_path: Path, undisturbed: Path
) -> None:
    process = start(*EIGHT, "workers=2", f"save_dir={tmp_path}", f"cache_dir={cache}")
    wait_for(lambda: in_the_middle(tmp_path, 8), process)
    first, second = workers_of(process)
    os.kill(first, signal.SIGKILL)
    printed = ends(process, 0)
    assert "its process ended with SIGKILL" in printed
    assert printed.count("(output: ") == 4, "two packs, one of them split in two"
    assert_all_equal(tmp_path, undisturbed)
    assert_nobody_left(tmp_path)
    logs = {name: (directory / "train.log").read_text() for name, directory in runs(tmp_path).items()}
    assert all(f"'run': '{name}'" in text for name, text in logs.items()), "a worker writes train.log too"
    assert second
    assert sorted(p.name for p in (tmp_path / "s").glob("worker*.log")) == ["worker0.log", "worker1.log"]
    assert undocumented(tmp_path / "s") == []


# Dies by SIGKILL in a run of k=5 whenever it comes to its tenth step.
DEADLY = """
import os, signal
from sae_transcoder import train
from sae_transcoder.training import managed_run
real = managed_run.ManagedRun.after_step
def deadly(self, *arguments):
    if self.cfg.k == 5 and self.trainer.step == 10:
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, *arguments)
managed_run.ManagedRun.after_step = deadly
if __name__ == "__main__":
    train.main()
"""


def test_a_run_that_kills_its_process_fails_with_its_reason_and_the_others_finish(cache: Path, tmp_path: Path) -> None:
    script = tmp_path / "deadly.py"
    script.write_text(DEADLY)
    sweep = [
        "-m",
        *SHAPE,
        "expansion_factor=2",
        "k=4,5,6,7",
        "max_samples=64",
        "save_every=4",
        "sweep_name=s",
        f"cache_dir={cache}",
    ]
    done = forked.run([str(script), *sweep, "workers=2", "resume=never", f"save_dir={tmp_path}/out"])
    assert done.returncode == 1, done.stdout + done.stderr
    directories = by(tmp_path / "out", "k")
    assert {k: str(status.read(d).state) for k, d in directories.items()} == {4: "done", 5: "failed", 6: "done", 7: "done"}
    assert "its process ended with SIGKILL; see" in status.read(directories[5]).why
    assert "its process ended with SIGKILL" in done.stdout[done.stdout.index("\nrun  ") :]
    assert_nobody_left(tmp_path)
    assert run(*sweep, f"save_dir={tmp_path}/out").returncode == 0, "tried again, without the fault"
    assert states(tmp_path / "out") == ["done"] * 4
    assert here(*sweep, f"save_dir={tmp_path}/undisturbed")[0] == 0
    for k, directory in by(tmp_path / "undisturbed", "k").items():
        assert_equal(directory, directories[k])
        assert len(lines(directory)) == len(lines(directories[k]))


def test_two_commands_of_one_sweep_at_once_share_it_without_harm(cache: Path, tmp_path: Path, undisturbed: Path) -> None:
    arguments = [*EIGHT, "runs_per_pack=2", f"save_dir={tmp_path}", f"cache_dir={cache}"]
    both = [start(*arguments), start(*arguments)]
    for process in both:
        ends(process, 0)
    assert states(tmp_path) == ["done"] * 8
    assert_all_equal(tmp_path, undisturbed)
    for directory in runs(tmp_path).values():
        assert (directory / "train.log").read_text().count("'run': ") == 1, "trained by one of them only"


def test_a_second_signal_acts_as_usual_but_in_a_worker_to_which_the_parent_hands_on_the_first() -> None:
    with StopSignal(patient=True) as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        assert stop.number == signal.SIGINT
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
