"""Sweeps on a real Slurm of one node and four pretend GPUs: what is submitted, what runs, what comes back, what the table says."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_cluster
from slurm_cluster import Cluster
from slurm_faults import plant
from sweeps import SHAPE, assert_all_equal, assert_equal, by, command, here, runs

from sae_transcoder import slurm_record, status
from sae_transcoder.status import State

if lacking := slurm_cluster.missing():
    pytest.skip(f"no Slurm here ({', '.join(lacking)}): install munge slurmctld slurmd slurm-client", allow_module_level=True)

RUN = [*SHAPE, "expansion_factor=2", "max_samples=160", "save_every=7"]
ON_SLURM = ["hardware=slurm", "device=cpu", "cpus=1", "runs_per_pack=1"]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm_cluster.running(tmp_path_factory.mktemp("slurm")) as found:
        yield found


@pytest.fixture
def on_cluster(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The cluster, with this process on its login node."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return cluster


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def logs(folder: Path) -> str:
    """What all jobs of a sweep printed."""
    return "\n".join(path.read_text() for path in sorted((folder / slurm_record.FOLDER).glob("*_log.out")))


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
    done = subprocess.run(
        command(*sweep, *ON_SLURM, "runs_per_pack=3", "wait=true", f"save_dir={tmp_path}/slurm"),
        capture_output=True, text=True, env=os.environ | environment,
    )  # fmt: skip
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
    assert all(len(own) == 1 for own in gpus), "each job sees one GPU"
    assert set.union(*gpus) == {"0", "1", "2", "3"}


FAULTS = """
time.sleep({9: 2.2}.get(cfg.k, 0.5))
if cfg.k == 5 and step == 10:
    raise ValueError("planted")
"""


def test_raising_killed_preempted_requeued_and_timed_out_runs_end_as_they_should(
    on_cluster: Cluster, cache: Path, tmp_path: Path
) -> None:
    sweep = ["-m", *RUN, "k=4,5,6,7,8,9", "sweep_name=s", f"cache_dir={cache}"]
    client = subprocess.Popen(
        command(
            *sweep, *ON_SLURM, "partition=low", "time=2", "signal_delay=60", "wait=true", f"save_dir={tmp_path}/slurm", 'sbatch=["--nice=0"]'
        ),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | plant(tmp_path / "plant", FAULTS),
    )  # fmt: skip
    folder = tmp_path / "slurm" / "s"

    def found(k: int) -> status.Status | None:
        own = by(folder, "k")
        return status.read(own[k]) if k in own else None

    def begun(k: int) -> bool:
        seen = found(k)
        return seen is not None and seen.state == State.running and seen.step >= 3

    on_cluster.wait(lambda: begun(6))
    os.kill(found(6).pid, signal.SIGKILL)
    on_cluster.wait(lambda: begun(7) or found(7).state == State.done)
    on_cluster.ask("scontrol", "requeue", found(7).slurm_job)
    on_cluster.wait(lambda: begun(8))
    supervisor = int(Path(f"/proc/{found(8).pid}/stat").read_text().split()[3])
    os.kill(supervisor, signal.SIGKILL)
    on_cluster.ask("sbatch", "--gres=gpu:4", "--wrap=sleep 1", f"--output={tmp_path}/urgent.log")  # preempts whatever runs
    on_cluster.wait(lambda: client.poll() is not None, seconds=400)
    printed, errors = client.communicate()
    print(printed, errors, logs(folder))
    assert client.returncode == 1, errors
    assert "Traceback" not in errors
    assert {k: str(status.read(d).state) for k, d in by(folder, "k").items()} == {5: "failed"} | dict.fromkeys(
        (4, 6, 7, 8, 9), "done"
    )
    assert "5 done, 1 failed" in " ".join(printed.split()) or "1 failed, 5 done" in " ".join(printed.split())
    assert "ValueError: planted" in printed
    assert (by(folder, "k")[5] / "slurm.log").exists()
    assert here(*sweep, f"save_dir={tmp_path}/local")[0] == 0
    for k, directory in by(tmp_path / "local", "k").items():
        if k != 5:
            assert_equal(directory, by(folder, "k")[k])
    record = slurm_record.read(folder / slurm_record.FOLDER, found(9).slurm_job)
    assert record.timeouts >= 2
