"""Sweeps on a real Slurm of one node with four pretend GPUs: submission, training, requeueing, results and messages."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from helpers import HANGS, slurm_cluster
from helpers.run_directory_page import undocumented
from helpers.short_runs import lines
from helpers.slurm_cluster import Cluster
from helpers.slurm_faults import plant
from helpers.sweeps import SHAPE, assert_all_equal, assert_equal, by, command, config, here, run, runs, start
from sae_transcoder import slurm_client, train
from sae_transcoder.config.composition import CONF
from sae_transcoder.process import code_version
from sae_transcoder.run_store import job_record, run_records, status
from sae_transcoder.run_store.status import State

pytestmark = [pytest.mark.needs("slurm"), pytest.mark.slow]

RUN = [*SHAPE, "expansion_factor=2", "max_samples=160", "save_every=7"]
ON_SLURM = ["hardware=slurm", "device=cpu", "cpus=1", "runs_per_pack=1"]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm_cluster.running(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture
def on_cluster(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The cluster, with the environment of its login node."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    return cluster


def logs(folder: Path) -> str:
    """The output of all jobs of a sweep."""
    return "\n".join(path.read_text() for path in sorted((folder / job_record.FOLDER).glob("*_log.out")))


def test_twelve_runs_on_four_gpus_are_one_array_and_end_as_on_this_machine(
    on_cluster: Cluster, cache: Path, tmp_path: Path
) -> None:
    environment = plant(tmp_path / "plant", "print('GPU', os.environ.get('CUDA_VISIBLE_DEVICES'), 'for', cfg.k, flush=True)")
    sweep = [
        "-m",
        *SHAPE,
        "max_samples=64",
        "k=4,5,6",
        "expansion_factor=1,2",
        "lr=1e-2,2e-2",
        "sweep_name=s",
        f"cache_dir={cache}",
    ]
    done = run(*sweep, *ON_SLURM, "runs_per_pack=3", "wait=true", f"save_dir={tmp_path}/slurm", env=os.environ | environment)
    assert done.returncode == 0, done.stdout + done.stderr + logs(tmp_path / "slurm" / "s")
    assert "submitted 4 jobs: array " in done.stdout
    assert "12 done" in done.stdout
    assert here(*sweep, f"save_dir={tmp_path}/local")[0] == 0
    assert_all_equal(tmp_path / "slurm", tmp_path / "local")
    numbers = {status.read(directory).slurm_job for directory in runs(tmp_path / "slurm").values()}
    assert len({number.partition("_")[0] for number in numbers}) == 1
    assert len(numbers) == 4
    printed = logs(tmp_path / "slurm" / "s")
    gpus = [
        {line.split()[1] for line in text.splitlines() if line.startswith("GPU ")} for text in printed.split("Starting with")[1:]
    ]
    assert all(len(visible) == 1 for visible in gpus), "each job sees one GPU"
    assert set.union(*gpus) == {"0", "1", "2", "3"}
    assert undocumented(tmp_path / "slurm" / "s") == []


FAULTS = """
time.sleep(0.5)
if cfg.k == 5 and step == 10:
    raise ValueError("planted")
"""


def begun(folder: Path, k: int) -> status.Status | None:
    """The status of a sweep's run that trains now and has made three steps, else None."""
    directories = by(folder, "k")
    run = status.read(directories[k]) if k in directories else None
    return run if run is not None and run.state == State.running and run.step >= 3 else None


def preempt(cluster: Cluster, folder: Path) -> None:
    """Submits a job that takes all GPUs from the jobs of lower partitions."""
    cluster.ask("sbatch", "--gres=gpu:4", "--wrap=sleep 1", f"--output={folder}/urgent.log")


@pytest.mark.kill
def test_raising_killed_preempted_and_requeued_runs_end_as_they_should(on_cluster: Cluster, cache: Path, tmp_path: Path) -> None:
    sweep = ["-m", *RUN, "k=4,5,6,7,8", "sweep_name=s", f"cache_dir={cache}"]
    client = start(
        *sweep, *ON_SLURM, "partition=low", "wait=true", f"save_dir={tmp_path}/slurm", 'sbatch=["--nice=0"]',
        env=os.environ | plant(tmp_path / "plant", FAULTS),
    )  # fmt: skip
    folder = tmp_path / "slurm" / "s"
    os.kill(on_cluster.wait(lambda: begun(folder, 6)).pid, signal.SIGKILL)
    on_cluster.ask("scontrol", "requeue", on_cluster.wait(lambda: begun(folder, 7)).slurm_job)
    process = on_cluster.wait(lambda: begun(folder, 8)).pid
    supervisor = int(Path(f"/proc/{process}/stat").read_text().split()[3])
    os.kill(supervisor, signal.SIGKILL)
    preempt(on_cluster, tmp_path)
    on_cluster.wait(lambda: client.poll() is not None)
    printed, errors = client.communicate()
    print(printed, errors, logs(folder))
    assert client.returncode == 1, errors
    assert "Traceback" not in errors
    states = {k: str(status.read(directory).state) for k, directory in by(folder, "k").items()}
    assert states == {5: "failed"} | dict.fromkeys((4, 6, 7, 8), "done")
    assert "4 done, 1 failed" in " ".join(printed.split()) or "1 failed, 4 done" in " ".join(printed.split())
    assert "ValueError: planted" in printed
    assert (by(folder, "k")[5] / "slurm.log").exists()
    assert here(*sweep, f"save_dir={tmp_path}/local")[0] == 0
    for k, directory in by(tmp_path / "local", "k").items():
        if k != 5:
            assert_equal(directory, by(folder, "k")[k])


@pytest.mark.kill
def test_a_run_that_is_preempted_and_then_out_of_time_goes_on_until_it_is_done(
    on_cluster: Cluster, cache: Path, tmp_path: Path
) -> None:
    sweep = ["-m", *RUN, "k=9", "sweep_name=s", f"cache_dir={cache}"]
    client = start(
        *sweep, *ON_SLURM, "partition=low", "time=2", "signal_delay=60", "wait=true", f"save_dir={tmp_path}/slurm",
        env=os.environ | plant(tmp_path / "plant", "time.sleep(2.5)  # 40 steps: longer than a preempted job and the minute of the next"),
    )  # fmt: skip
    folder = tmp_path / "slurm" / "s"
    on_cluster.wait(lambda: begun(folder, 9))
    preempt(on_cluster, tmp_path)
    on_cluster.wait(lambda: client.poll() is not None)
    printed, errors = client.communicate()
    assert client.returncode == 0, printed + errors + logs(folder)
    timeouts = job_record.read(folder / job_record.FOLDER, status.read(by(folder, "k")[9]).slurm_job).timeouts
    assert timeouts >= 1
    assert logs(folder).count("Starting with JobEnvironment") >= timeouts + 2, (
        "once anew after each time limit, and once after the preemption"
    )
    assert here(*sweep, f"save_dir={tmp_path}/local")[0] == 0
    assert_all_equal(tmp_path / "local", tmp_path / "slurm")


PRINT_ENVIRONMENT = """
names = ("HF_HOME", "HF_HUB_OFFLINE", "HF_DATASETS_CACHE", "XDG_CACHE_HOME")
print("found", [os.environ.get(name) for name in names], flush=True)
"""


def test_a_command_that_does_not_wait_says_which_jobs_and_the_same_command_finds_them(
    on_cluster: Cluster, cache: Path, tmp_path: Path
) -> None:
    sweep = ["-m", *RUN, "k=4,5", "sweep_name=s", f"cache_dir={cache}", f"save_dir={tmp_path}", *ON_SLURM, 'sbatch=["--hold"]']
    code, printed, _ = here(*sweep)
    assert code == 0
    number = re.search(r"submitted 2 jobs: array (\d+)\n", printed)[1]
    assert f"watch: sae-report {tmp_path}/s --watch\ncancel: scancel {number}\n" in printed
    assert f"code: {code_version.current()}\n" in printed
    assert report(tmp_path) == {"queued": 2}
    code, printed, _ = here(*sweep)
    assert (code, "2 runs (2 queued)" in printed, "submitted" in printed) == (0, True, False)
    on_cluster.ask("scancel", number)
    assert report(tmp_path) == {"cancelled": 2}
    code, printed, _ = here(*sweep)
    assert (code, "submitted 2 jobs" in printed) == (0, True), "tried again"


def test_a_job_is_the_script_that_a_dry_run_shows_and_finds_what_was_downloaded_though_slurm_exports_nothing(
    on_cluster: Cluster, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        "HF_HOME": f"{tmp_path}/a home",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": f"{tmp_path}/sets",
        "XDG_CACHE_HOME": str(cache),
    }
    for name, value in (given | {"SBATCH_EXPORT": "NONE"} | plant(tmp_path / "plant", PRINT_ENVIRONMENT)).items():
        monkeypatch.setenv(name, value)
    one = [*RUN, "max_samples=16", "k=4", *ON_SLURM, f"save_dir={tmp_path}/out"]  # cache_dir=null: in XDG_CACHE_HOME
    shown = here(*one, "dry_run=true")[1]
    code, _, errors = here(*one, 'sbatch=["--hold"]')
    assert code == 0, errors
    (directory,) = runs(tmp_path / "out").values()
    (script,) = (tmp_path / "out" / job_record.FOLDER).glob("*_submission.sh")
    submitted = [line for line in script.read_text().splitlines() if line != "#SBATCH --hold"]
    assert "\n".join(submitted).strip() in shown
    on_cluster.ask("scontrol", "release", status.read(directory).slurm_job)
    on_cluster.wait(lambda: status.read(directory).state == State.done)
    log = (directory / "slurm.log").read_text()
    assert [line for line in log.splitlines() if line.startswith("found ")][:1] == [f"found {[*given.values()]}"]
    assert "tokenising" not in log


def report(folder: Path) -> dict[str, int]:
    """How many runs below a folder are in each state, as sae-report sees it."""
    return Counter(str(record.status.state) for record in run_records.read_all([folder], pytest.fail))


def test_a_single_run_is_submitted_rather_than_trained_here_and_waited_for_if_asked(
    on_cluster: Cluster, cache: Path, tmp_path: Path
) -> None:
    one = [*RUN, "max_samples=64", "k=4", f"cache_dir={cache}", *ON_SLURM]
    done = run(*one, f"save_dir={tmp_path}/slurm", "wait=true")
    assert done.returncode == 0, done.stdout + done.stderr + logs(tmp_path / "slurm")
    assert "submitted 1 job: job " in done.stdout
    assert "1 done" in done.stdout
    assert here(*RUN, "max_samples=64", "k=4", f"cache_dir={cache}", f"save_dir={tmp_path}/local")[0] == 0
    assert_all_equal(tmp_path / "slurm", tmp_path / "local")
    (directory,) = runs(tmp_path / "slurm").values()
    assert "Job completed successfully" in (directory / "slurm.log").read_text()
    code, printed, _ = here(*one, f"save_dir={tmp_path}/slurm")
    assert (code, "already done" in printed) == (0, True)


def test_ctrl_c_leaves_the_jobs_and_says_how_to_cancel_them(on_cluster: Cluster, cache: Path, tmp_path: Path) -> None:
    client = start("-m", *RUN, "k=4,5", f"cache_dir={cache}", f"save_dir={tmp_path}", *ON_SLURM, "wait=true", 'sbatch=["--hold"]')
    on_cluster.wait(lambda: any(status.read(directory).slurm_job for directory in runs(tmp_path).values()))
    client.send_signal(signal.SIGINT)
    printed, errors = client.communicate(timeout=HANGS)
    assert (client.returncode, errors) == (130, "")
    number = re.search(r"the jobs go on; .*; cancel them: scancel (\d+)\n", printed)[1]
    assert on_cluster.ask("squeue", "--noheader", "--array", f"--jobs={number}").count("\n") == 1
    on_cluster.ask("scancel", number)


def test_a_grid_larger_than_the_clusters_arrays_is_split(on_cluster: Cluster, cache: Path, tmp_path: Path) -> None:
    code, printed, _ = here(
        "-m", *RUN, "k=4,5,6,7,8,9,10", "array_parallelism=3", f"cache_dir={cache}", f"save_dir={tmp_path}", *ON_SLURM, 'sbatch=["--hold"]'
    )  # fmt: skip
    assert code == 0
    first, second = re.search(r"submitted 7 jobs: arrays (\d+), (\d+)\n", printed).groups()
    assert [on_cluster.job(number)["ArrayTaskId"] for number in (first, second)] == ["0-4%1", "0-1%1"]
    on_cluster.ask("scancel", first, second)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (["partition=nowhere"], ["partition=nowhere: SLURM refuses", "choose one of gpu, low, grace"]),
        (["gres=gpu:9", "device=cuda"], ["gres=gpu:9", "the nodes have", "gres gpu:4"]),
        (["cpus=1000"], ["cpus=1000", "8 CPUs"]),
        (["memory=900G"], ["memory=900G", "16000 MB"]),
        (["constraint=h100"], ["constraint=h100: SLURM refuses", "the nodes have"]),
        (['sbatch=["--nonsense"]'], ["sbatch=['--nonsense']: SLURM refuses", "unrecognized option"]),
    ],
)
@pytest.mark.parametrize("many", [True, False])
def test_what_the_cluster_does_not_have_is_refused_before_anything_is_written(
    on_cluster: Cluster, cache: Path, tmp_path: Path, settings: list[str], parts: list[str], many: bool
) -> None:
    shape = ["-m", "k=4,5"] if many else ["k=4"]
    code, _, errors = here(*shape, *RUN, f"cache_dir={cache}", f"save_dir={tmp_path}", *ON_SLURM, *settings)
    assert code == 1
    for part in parts:
        assert part in errors
    assert not list(tmp_path.iterdir())


def test_without_sbatch_or_without_an_answer_it_is_said_where_to_run(
    on_cluster: Cluster, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = [*RUN, f"cache_dir={cache}", f"save_dir={tmp_path}", *ON_SLURM]
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "none.conf"))
    monkeypatch.setattr(slurm_client, "COMMAND_TIMEOUT", 3.0)
    assert "SLURM does not answer" in here(*one)[2]
    code, printed, errors = here(*one, "dry_run=true")
    assert (code, "#SBATCH" in printed) == (0, True), errors
    assert "SLURM does not answer on this machine: no cluster was asked whether it would accept this" in printed
    monkeypatch.setenv("PATH", "/nonexistent")
    code, _, errors = here(*one)
    assert (code, "there is no sbatch on this machine; run the command on a login node" in errors) == (1, True)


def test_a_search_must_wait(on_cluster: Cluster, cache: Path, tmp_path: Path) -> None:
    code, _, errors = here("-m", "experiment=demo_search", f"cache_dir={cache}", f"save_dir={tmp_path}", *ON_SLURM)
    assert code == 1
    assert "wait=false with a sweeper that searches" in errors


def test_queued_jobs_run_the_configs_and_the_code_of_their_submission(on_cluster: Cluster, cache: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(Path(train.__file__).parent, source / "sae_transcoder", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(CONF, source / "conf")
    environment = os.environ | {"PYTHONPATH": str(source)}
    for name, snapshot in [("copied", "true"), ("live", "false")]:
        done = subprocess.run(
            command(
                "-m", *RUN, "max_samples=64", "k=4", f"sweep_name={name}", f"snapshot={snapshot}", f"cache_dir={cache}",
                f"save_dir={tmp_path}/out", *ON_SLURM, 'sbatch=["--hold"]',
            ),
            capture_output=True, text=True, env=environment, cwd=source,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    (source / "conf" / "experiment" / "demo.yaml").write_text("# @package _global_\nk: 99\n")
    (source / "sae_transcoder" / "training" / "engine.py").write_text("raise RuntimeError('edited after submission')\n")
    numbers = {name: status.read(*runs(tmp_path / "out" / name).values()).slurm_job for name in ("copied", "live")}
    on_cluster.ask("scontrol", "release", *numbers.values())
    on_cluster.wait(lambda: all(job.ended for job in slurm_client.jobs(numbers.values()).values()))
    (copied,), (live,) = (runs(tmp_path / "out" / name).values() for name in ("copied", "live"))
    assert status.read(copied).state == State.done, logs(tmp_path / "out" / "copied")
    assert config(copied)["k"] == 4
    assert status.read(live).state == State.failed
    assert "the program has changed since the job was submitted" in status.read(live).why
    assert on_cluster.job(numbers["live"])["JobState"] == "FAILED"


def test_a_pack_without_enough_memory_is_split_and_the_run_to_blame_named(on_cluster: Cluster, cache: Path, tmp_path: Path) -> None:
    greedy = """
    if cfg.k == 5 and step == 10:
        import numpy
        held = numpy.ones(400_000_000)
        time.sleep(60)
    """
    sweep = ["-m", *RUN, "max_samples=64", "k=4,5", "sweep_name=s", f"cache_dir={cache}"]
    client = start(
        *sweep, *ON_SLURM, "runs_per_pack=2", "memory=1500M", "wait=true", f"save_dir={tmp_path}",
        env=os.environ | plant(tmp_path / "plant", greedy),
    )  # fmt: skip
    on_cluster.wait(lambda: client.poll() is not None)
    printed, errors = client.communicate()
    assert client.returncode == 1, errors
    statuses = {k: status.read(directory) for k, directory in by(tmp_path, "k").items()}
    assert {k: str(run.state) for k, run in statuses.items()} == {4: "done", 5: "failed"}, printed + logs(tmp_path / "s")
    assert statuses[5].why == "out of memory: the job was killed with memory=1500M; raise memory"
    assert "out of memory: the job was killed with memory=1500M; raise memory" in printed
    assert here(*sweep, f"save_dir={tmp_path}/local")[0] == 0
    assert_equal(by(tmp_path / "local", "k")[4], by(tmp_path / "s", "k")[4])


@pytest.mark.kill
def test_a_preempted_run_comes_back_from_its_grace_time_and_a_cancelled_one_does_not(
    on_cluster: Cluster, cache: Path, tmp_path: Path
) -> None:
    sweep = ["-m", *RUN, "k=4,5", "sweep_name=s", f"cache_dir={cache}"]
    slow = os.environ | plant(tmp_path / "plant", "time.sleep(0.3)")
    arguments = [*sweep, *ON_SLURM, "partition=grace", f"save_dir={tmp_path}/slurm"]
    assert run(*arguments, env=slow).returncode == 0
    directories = by(tmp_path / "slurm", "k")

    def stepped(directory: Path) -> bool:
        return status.read(directory).state == State.running and (directory / "metrics.jsonl").exists()

    on_cluster.wait(lambda: stepped(directories[4]) and stepped(directories[5]))
    on_cluster.ask("scancel", status.read(directories[5]).slurm_job)
    preempt(on_cluster, tmp_path)
    on_cluster.wait(lambda: status.read(directories[4]).state == State.done)
    assert "preempted; goes on in the queue" in (directories[4] / "slurm.log").read_text()
    assert report(tmp_path / "slurm") == {"done": 1, "cancelled": 1}
    on_cluster.wait(lambda: status.read(directories[5]).state == State.cancelled)
    assert run(*arguments, "wait=true").returncode == 0
    assert here(*sweep, f"save_dir={tmp_path}/local")[0] == 0
    assert_all_equal(tmp_path / "local", tmp_path / "slurm")


TWO_RANKS = [*ON_SLURM, "tasks_per_node=2", "gres=gpu:2"]


def losses(folder: Path) -> dict[int, float]:
    """{step: training FVU} of the one run below a folder."""
    (directory,) = runs(folder).values()
    return {row["step"]: row["fvu/layers.2"] for row in lines(directory) if "fvu/layers.2" in row}


def test_two_tasks_of_a_job_train_one_run_together_as_one_process_with_twice_the_batch(
    on_cluster: Cluster, cache: Path, tmp_path: Path
) -> None:
    one = [*RUN, "max_samples=90", "k=4", f"cache_dir={cache}"]
    done = run(*one, *TWO_RANKS, f"save_dir={tmp_path}/slurm", "batch_size=4", "wait=true")
    assert done.returncode == 0, done.stdout + done.stderr + logs(tmp_path / "slurm")
    assert here(*one, f"save_dir={tmp_path}/local", "batch_size=8")[0] == 0
    together, alone = losses(tmp_path / "slurm"), losses(tmp_path / "local")
    assert together.keys() == alone.keys()
    assert all(abs(together[step] - alone[step]) < 1e-4 for step in alone)
    printed = sorted((tmp_path / "slurm" / job_record.FOLDER).glob("*_log.out"))
    assert len(printed) == 2, "a log for each task"


def test_two_tasks_share_the_hookpoints_of_a_sweeps_runs_and_come_back_when_one_is_killed(
    on_cluster: Cluster, cache: Path, tmp_path: Path
) -> None:
    sweep = ["-m", *RUN, "max_samples=90", "k=4,5", "layers=[1,3]", "distribute_modules=true", "sweep_name=s", f"cache_dir={cache}"]
    client = start(
        *sweep, *TWO_RANKS, "runs_per_pack=2", f"save_dir={tmp_path}/slurm", "wait=true",
        env=os.environ | plant(tmp_path / "plant", "time.sleep(0.1)"),
    )  # fmt: skip
    folder = tmp_path / "slurm" / "s"
    on_cluster.wait(lambda: any((directory / "resume" / "state.pt").exists() for directory in runs(folder).values()))
    first = status.read(next(iter(runs(folder).values()))).pid
    tasks = Path(f"/proc/{Path(f'/proc/{first}/stat').read_text().split()[3]}/task").glob("*/children")
    others = {int(pid) for children in tasks for pid in children.read_text().split()} - {first}
    assert len(others) == 1
    os.kill(others.pop(), signal.SIGKILL)
    on_cluster.wait(lambda: client.poll() is not None)
    printed, errors = client.communicate()
    assert client.returncode == 0, printed + errors + logs(folder)
    assert "the job died" in logs(folder)
    assert here(*sweep, f"save_dir={tmp_path}/local")[0] == 0
    assert_all_equal(tmp_path / "local", tmp_path / "slurm")


# The second rank's GPU fails once.
GPU_FAILS = """
import torch
from pathlib import Path
once = Path(cfg.save_dir) / "failed"
if os.environ["RANK"] == "1" and step == 10 and not once.exists():
    once.touch()
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
"""


def test_a_job_one_of_whose_ranks_loses_its_gpu_comes_back(on_cluster: Cluster, cache: Path, tmp_path: Path) -> None:
    settings = [*RUN, *TWO_RANKS, "batch_size=4", f"save_dir={tmp_path}/slurm", f"cache_dir={cache}", "wait=true"]
    client = start(*settings, env=os.environ | plant(tmp_path / "plant", GPU_FAILS))
    on_cluster.wait(lambda: client.poll() is not None)
    printed, errors = client.communicate()
    assert client.returncode == 0, printed + errors + logs(tmp_path / "slurm")
    # Both ranks end with that code; srun names the one that ends first, or both.
    assert re.search(r"tasks? [01-]+: Exited with exit code 134\); goes on in the queue", logs(tmp_path / "slurm"))
    (directory,) = runs(tmp_path / "slurm").values()
    assert status.read(directory).state == State.done
    assert "rank 1: the GPU failed (AcceleratorError: CUDA error: an illegal memory access" in (directory / "train.log").read_text()


@pytest.mark.kill
def test_a_run_whose_node_fails_comes_back_from_its_last_save(on_cluster: Cluster, cache: Path, tmp_path: Path) -> None:
    one = [*RUN, "k=4", f"cache_dir={cache}"]
    slow = os.environ | plant(tmp_path / "plant", "time.sleep(0.2)")
    assert run(*one, *ON_SLURM, f"save_dir={tmp_path}/slurm", env=slow).returncode == 0
    (directory,) = runs(tmp_path / "slurm").values()
    on_cluster.wait((directory / "resume" / "state.pt").exists)
    node = on_cluster.ask("sinfo", "--noheader", "--format=%n", "--partition=gpu")
    on_cluster.ask("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    on_cluster.wait(lambda: report(tmp_path / "slurm") == {"preempted": 1}, hurry=False)
    time.sleep(10)  # the node is rid of the job's processes
    on_cluster.ask("scontrol", "update", f"NodeName={node}", "State=RESUME")
    on_cluster.wait(lambda: status.read(directory).state == State.done)
    assert here(*one, f"save_dir={tmp_path}/local")[0] == 0
    assert_all_equal(tmp_path / "local", tmp_path / "slurm")


def test_a_job_that_sees_no_gpu_fails_and_names_its_node(on_cluster: Cluster, cache: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = run(*RUN, f"cache_dir={cache}", f"save_dir={tmp_path}", "dtype=float32", *ON_SLURM, "device=cuda", "wait=true")
    assert done.returncode == 1, done.stderr
    run_status = status.read(*runs(tmp_path).values())
    assert run_status.state == State.failed
    assert re.fullmatch(
        rf"hardware=slurm, device=cuda: not present; \S+, the node of SLURM job {run_status.slurm_job}, has no GPU; .*",
        run_status.why,
    )
    assert run_status.why in done.stdout
