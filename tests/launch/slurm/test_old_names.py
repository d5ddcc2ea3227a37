"""Jobs that were queued before the modules moved into packages: what they ask for by its old name is there, and is the new code."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.short_runs import short
from sae_transcoder.config import run_dir
from sae_transcoder.launch.slurm.job import PackTask
from sae_transcoder.process import code_version
from sae_transcoder.run_store import job_record, status
from sae_transcoder.run_store.job_record import JobRecord
from sae_transcoder.run_store.status import State, Status

pytestmark = pytest.mark.slow


def test_a_pack_that_was_pickled_by_its_old_name_trains(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = short(cache, tmp_path, "hardware=slurm", "device=cpu", "max_steps=2")
    text = pickle.dumps(PackTask([cfg], code_version.current().digest), protocol=0)  # names are lines of their own in it
    old = text.replace(b"csae_transcoder.launch.slurm.job\nPackTask\n", b"csae_transcoder.slurm_job\nPack\n")
    old = re.sub(rb"csae_transcoder\.config\.[\w.]+\n", b"csae_transcoder.config\n", old)
    names = re.findall(rb"csae_transcoder\.([\w.]+)\n(\w+)\n", old)
    assert {module for module, _ in names} == {b"slurm_job", b"config"}
    job_record.write(tmp_path, "7", JobRecord([str(run_dir(cfg))], "1:00:00", None, 120, None, "0.1.0"))
    job = {"SLURM_JOB_ID": "7", "SLURM_JOBID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    job |= {"SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0", "SUBMITIT_FOLDER": str(tmp_path), "SUBMITIT_EXECUTOR": "slurm"}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    pack = pickle.loads(old)
    assert type(pack) is PackTask
    pack()
    run = status.read(run_dir(cfg))
    assert (run.state, run.step, run.slurm_job) == (State.done, 2, "7")


def test_the_script_of_a_queued_job_ends_it_by_the_old_name(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    status.write(run, Status(State.running, "1a2b3c4d", step=3, total=9, host="node1", slurm_job="7"))
    job_record.write(tmp_path, "7", JobRecord([str(run)], "1:00:00", None, 120, None, "0.1.0"))
    environment = {"PYTHONPATH": str(code_version.PACKAGE.parent), "PATH": "/nonexistent", "SLURM_JOB_ID": "7"}  # no scontrol
    done = subprocess.run(
        [sys.executable, "-m", "sae_transcoder.slurm_after", str(tmp_path), "137"],
        env={name: value for name, value in os.environ.items() if not name.startswith("SLURM")} | environment,
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (137, "7: the job died (exit code 137); goes on in the queue\n"), done.stderr
    ended = status.read(run)
    assert ended.state == State.interrupted
    assert "the job died (exit code 137); goes on in the queue, but SLURM did not put the job back" in ended.why
    assert job_record.read(tmp_path, "7").deaths == 1
