"""What SLURM's answers mean for runs, tested without SLURM: every end of a job, and what its script decides."""

import os
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.tiny_models import tiny_model
from sae_transcoder import slurm_client
from sae_transcoder.config import ConfigError
from sae_transcoder.config.composer import composed
from sae_transcoder.config.slurm_checks import slurm_faults
from sae_transcoder.language_model.loading import fetch
from sae_transcoder.launch.slurm.job_end import JobEndDecision, decide_requeue
from sae_transcoder.preflight.device_memory import on_cluster
from sae_transcoder.run_store import job_record, observed_status, status
from sae_transcoder.run_store.job_record import JobRecord
from sae_transcoder.run_store.status import State, Status
from sae_transcoder.slurm_client import SlurmJob


def a_status(state: State, **values: object) -> Status:
    return Status(state, "1a2b3c4d", **({"slurm_job": "7_1", "host": "node1", "heartbeat": time.time()} | values))


@pytest.mark.parametrize(
    ("state", "job", "observed", "reason", "goes_on"),
    [
        ("queued", SlurmJob("PENDING", "Resources"), "queued", "waits in the queue (Resources)", True),
        ("queued", SlurmJob("RUNNING"), "queued", None, True),
        ("queued", SlurmJob("CANCELLED"), "cancelled", "never started: SLURM job 7_1 was cancelled", False),
        ("queued", SlurmJob("FAILED"), "failed", "never started: SLURM job 7_1 has ended (FAILED)", False),
        ("queued", SlurmJob("COMPLETED"), "failed", "never started: SLURM job 7_1 has ended (COMPLETED)", False),
        ("queued", None, "cancelled", "never started: SLURM does not know job 7_1 any more", False),
        ("running", SlurmJob("RUNNING"), "running", None, True),
        ("running", SlurmJob("PENDING", "BeginTime"), "preempted", "waits in the queue again (BeginTime)", True),
        ("running", SlurmJob("OUT_OF_MEMORY"), "failed", "want of memory; raise memory", False),
        ("running", SlurmJob("TIMEOUT"), "failed", "raise signal_delay or time", False),
        ("running", SlurmJob("NODE_FAIL"), "interrupted", "the node of SLURM job 7_1 failed", False),
        ("running", SlurmJob("CANCELLED"), "cancelled", "was cancelled", False),
        ("running", SlurmJob("COMPLETED"), "interrupted", "has ended (COMPLETED)", False),
        ("running", None, "interrupted", "SLURM does not know job 7_1 any more", False),
        ("preempted", SlurmJob("PENDING"), "preempted", "waits in the queue again", True),
        ("preempted", SlurmJob("RUNNING"), "preempted", None, True),
        ("preempted", SlurmJob("CANCELLED"), "cancelled", "was cancelled", False),
        ("preempted", None, "interrupted", "does not know job 7_1", False),
        ("interrupted", SlurmJob("RUNNING"), "interrupted", None, False),
        ("done", None, "done", None, False),
        ("failed", SlurmJob("PENDING"), "failed", None, False),
    ],
)
def test_a_run_of_a_job_is_what_slurm_and_its_own_words_make_it(
    tmp_path: Path, state: str, job: SlurmJob | None, observed: str, reason: str | None, goes_on: bool
) -> None:
    run = observed_status.observe(tmp_path, a_status(State(state)), {"7_1": job} if job else {})
    assert (run.status.state, run.goes_on) == (observed, goes_on)
    if reason:
        assert reason in run.status.why


def test_what_a_run_said_of_its_end_is_kept_where_slurm_says_less(tmp_path: Path) -> None:
    run = observed_status.observe(tmp_path, a_status(State.preempted, why="stopped by SIGTERM"), {})
    assert run.status.why == "stopped by SIGTERM"


def test_where_slurm_cannot_be_asked_the_heartbeat_tells(tmp_path: Path) -> None:
    assert observed_status.observe(tmp_path, a_status(State.running), None).goes_on
    old = observed_status.observe(tmp_path, a_status(State.running, heartbeat=time.time() - 1000), None)
    assert (old.status.state, old.goes_on) == (State.interrupted, False)


def test_a_process_of_this_machine_that_holds_the_lock_runs_whatever_slurm_says(tmp_path: Path) -> None:
    own = a_status(State.running, host=socket.gethostname(), pid=os.getpid())
    with status.lock(tmp_path):
        assert observed_status.observe(tmp_path, own, {}).goes_on
    assert observed_status.observe(tmp_path, own, {}).status.state == State.interrupted


RECORD = JobRecord(["a", "b", "c", "d"], "4:00:00", "8G", 120, None, "0.1.0")
LEFT = {Path(run): a_status(State.running if run == "a" else State.queued) for run in "abcd"}
USR2, KILLED = 128 + signal.SIGUSR2, 128 + signal.SIGKILL


def decide(
    record: JobRecord = RECORD,
    code: int = KILLED,
    *,
    timed_out: bool = False,
    output: str = "",
    steps: int = 10,
    saved: float = 1.0,
    left=LEFT,
) -> JobEndDecision:
    return decide_requeue(record, left, {"a": saved}, steps, code, timed_out, output)


def test_a_time_limit_sends_a_job_back_as_long_as_it_makes_progress() -> None:
    first = decide(code=USR2, timed_out=True)
    assert first.goes_on == "ran out of time=4:00:00, 1 times so far; goes on in the queue"
    second = decide(first.record, USR2, timed_out=True, steps=20)
    assert (second.record.timeouts, second.failed) == (2, {})
    stuck = decide(second.record, USR2, timed_out=True, steps=20)
    assert stuck.goes_on is None
    assert set(stuck.failed.values()) == {"time=4:00:00 does not suffice for one step more; raise time"}


def test_max_timeouts_ends_a_job_for_good() -> None:
    first = decide(replace(RECORD, max_timeouts=1), USR2, timed_out=True)
    last = decide(first.record, USR2, timed_out=True, steps=99)
    assert "ran out of time=4:00:00 2 times, with max_timeouts=1" in last.failed[Path("a")]


def test_preemption_counts_as_no_timeout() -> None:
    for code in (USR2, 128 + signal.SIGTERM):
        decision = decide(code=code)
        assert (decision.goes_on, decision.record, decision.failed) == ("preempted; goes on in the queue", RECORD, {})


def test_a_death_sends_a_job_back_until_it_dies_three_times_without_a_save() -> None:
    decision = decide(output="srun: error: node1: task 0: Killed")
    assert decision.goes_on == "the job died (node1: task 0: Killed); goes on in the queue"
    decision = decide(decide(decision.record, saved=2.0).record, saved=3.0)
    assert decision.record.deaths == 1, "it came further each time"
    decision = decide(decide(decision.record, saved=3.0).record, saved=3.0)
    assert decision.goes_on is None
    assert "died 3 times without coming further (exit code 137)" in decision.failed[Path("a")]


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("task 1: Exited with exit code 134", "task 1: Exited with exit code 134"),
        ("task 1: Killed", "task 1: Killed"),
        ("tasks 1-3: Aborted (core dumped)", "tasks 1-3: Aborted (core dumped)"),
    ],
)
def test_a_job_died_where_its_first_task_did_though_srun_then_terminates_the_others(end: str, message: str) -> None:
    output = (
        f"srun: error: node1: {end}\nslurmstepd: error: *** STEP 7.0 ON node1 CANCELLED ***\nsrun: error: node1: task 0: Terminated"
    )
    decision = decide(code=128 + signal.SIGTERM, output=output)
    assert (decision.goes_on, decision.record.deaths) == (f"the job died (node1: {message}); goes on in the queue", 1)
    for by_signal in ("tasks 0-1: Exited with exit code 140", "task 0: User defined signal 2", "task 0: Terminated"):
        assert decide(code=USR2, output=f"srun: error: node1: {by_signal}").goes_on == "preempted; goes on in the queue"
    assert (
        decide(
            code=KILLED, output="srun: error: node1: task 0: Exited with exit code 1\nsrun: error: node1: task 1: Killed"
        ).goes_on
        is None
    )


@pytest.mark.parametrize(
    "output",
    [
        "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.",
        "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0 cgroup.",
        "srun: error: node1: task 0: Out Of Memory",
        "slurmstepd: error: StepId=7.0 exceeded memory limit (763654144 > 524288000), being killed",
    ],
)
def test_want_of_memory_splits_the_pack_until_one_run_is_to_blame(output: str) -> None:
    record, pieces = RECORD, []
    for _ in range(2):
        decision = decide(record, output=output)
        assert decision.failed == {}
        record = decision.record
        pieces.append(record.pieces)
    assert pieces == [2, 4]
    last = decide(record, output=output)
    assert last.failed == {Path("a"): "out of memory: the job was killed with memory=8G; raise memory"}
    assert last.goes_on, "the others do"
    alone = decide(output=output, left={Path("a"): LEFT[Path("a")]})
    assert alone.goes_on is None


def test_ctrl_c_and_plain_failures_are_no_reason_to_go_on() -> None:
    assert decide(code=128 + signal.SIGINT).goes_on is None
    assert decide(code=128 + signal.SIGINT).failed == {}
    assert "exit code 1 before the run did" in decide(code=1).failed[Path("b")]


def test_the_record_of_a_job_is_kept_whole(tmp_path: Path) -> None:
    job_record.write(tmp_path, "7_1", replace(RECORD, saved={"a": 1.5}))
    assert job_record.read(tmp_path, "7_1") == replace(RECORD, saved={"a": 1.5})


def test_spans_of_time_and_amounts_of_memory_as_sbatch_has_them() -> None:
    spans = {"90": 5400, "5:30": 330, "4:00:00": 14_400, "1-12": 129_600, "2-03:30": 185_400, "1-00:00:01": 86_401}
    assert {text: slurm_client.seconds(text) for text in spans} == spans
    for text in ("", "soon", "1:2:3:4", "-5", "UNLIMITED"):
        with pytest.raises(ValueError, match="not a span"):
            slurm_client.seconds(text)
    assert [slurm_client.mebibytes(text) for text in ("500", "2048K", "3G", "1T", "32GB")] == [500, 2, 3072, 2**20, 32 * 1024]


def test_the_memory_of_a_clusters_device_is_what_the_settings_say() -> None:
    import torch

    cfg = composed(["model_type=sae", "hardware=slurm", "memory=32G"])
    assert on_cluster(cfg, torch.device("cuda")) is None
    assert on_cluster(replace(cfg, gpu_memory_gib=80.0), torch.device("cuda")) == 80 * 2**30
    assert on_cluster(replace(cfg, tasks_per_node=2), torch.device("cpu")) == 16 * 2**30


@pytest.mark.parametrize("gres", ["gpu", "gpu:1", "gpu:a100:1", "gpu:a100:2(S:0-1)", "lustre:1,gpu:h100:4"])
def test_gpus_are_found_in_gres(gres: str) -> None:
    cfg = composed(["model_type=sae", "hardware=slurm"])
    assert slurm_faults(replace(cfg, gres=gres)) == []
    assert slurm_faults(replace(cfg, gres=gres, tasks_per_node=5))
    assert slurm_faults(replace(cfg, gres="lustre:1"))
    assert not slurm_faults(replace(cfg, gres="lustre:1", sbatch=["--gpus-per-task=1"]))


def test_accounting_gives_the_last_of_a_requeued_jobs_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"squeue": "12_1|PENDING|BeginTime", "sacct": "12_0|NODE_FAIL\n12_0|CANCELLED by 1000\n12_2|OUT_OF_MEMORY"}
    monkeypatch.setattr(slurm_client, "ask", lambda program, *_: answers[program])
    monkeypatch.setattr(slurm_client.shutil, "which", lambda program: program)
    assert slurm_client.jobs(["12_0", "12_1", "12_2", "9"]) == {
        "12_0": SlurmJob("CANCELLED"),
        "12_1": SlurmJob("PENDING", "BeginTime"),
        "12_2": SlurmJob("OUT_OF_MEMORY"),
    }


def test_what_jobs_would_download_is_there_before_they_are_submitted_or_is_named(
    tmp_path: Path, tiny_folder: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "models--mine--tiny" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--mine--tiny" / "refs").mkdir()
    (tmp_path / "models--mine--tiny" / "refs" / "main").write_text("abc")
    tiny_model("llama").save_pretrained(snapshot, max_shard_size="20KB")
    shards = sorted(snapshot.glob("model-*.safetensors"))
    assert len(shards) > 1

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("mine/tiny", "demo", str(tiny_folder["llama"])):
        fetch(composed(["model_type=sae", f"model_name={name}"]))
    shards[1].unlink()
    with pytest.raises(ConfigError, match="model_name=mine/tiny: its weights cannot be loaded"):
        fetch(composed(["model_type=sae", "model_name=mine/tiny"]))
