"""What a process sets before it uses a device: on a GPU in name only, whole runs of our own code from the choice of the device on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers import FINDING_TESTS, forked, pretend_gpu
from helpers.short_runs import short
from helpers.sweeps import SHORT, states
from helpers.torchrun import ON_RANKS, torchrun
from sae_transcoder.process import device_settings
from sae_transcoder.run_store import job_record
from sae_transcoder.training import engine

PRETEND = str(Path(pretend_gpu.__file__))
RUN = [*SHORT, "compile_model=false", "eval_end_to_end=false"]
GROWING = {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}


def on_gpus(words: list[str], folder: Path, gpus: int, fork: bool = False, **environment: str) -> list[dict]:
    """Runs `python WORDS` where there are so many GPUs in name only; what its processes asked of the driver before the first tensor, in order.
    fork: of a process that has imported torch already."""
    notes = folder / "notes"
    usual = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES" and "ALLOC_CONF" not in k}
    env = usual | {"PRETEND_GPUS": str(gpus), "PRETEND_NOTES": str(notes)} | FINDING_TESTS | environment
    done = forked.run(words, env) if fork else subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in notes.read_text().splitlines()]


def asked(notes: list[dict], what: str) -> list[tuple[int, str | None]]:
    """The devices of calls of one kind, each with what the process that asked could see."""
    return sorted((note["index"], note["visible"]) for note in notes if note["asked"] == what)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "gpus", "index"),
    [
        (["device=null"], 1, 0),
        (["device=cuda"], 1, 0),
        (["hardware=gpu"], 1, 0),
        (["device=cuda:0"], 1, 0),
        (["device=cuda:1"], 2, 1),
        (["device=null"], 2, 0),
    ],
)
def test_a_run_on_a_gpu_makes_it_the_current_one_before_the_first_tensor(
    cache: Path, tmp_path: Path, settings: list[str], gpus: int, index: int
) -> None:
    words = [PRETEND, *RUN, *settings, f"save_dir={tmp_path}/out", f"cache_dir={cache}"]
    notes = on_gpus(words, tmp_path, gpus, fork=True)
    assert [note["asked"] for note in notes if note["asked"] != "properties"] == ["set device", "first tensor"]
    assert asked(notes, "set device") == asked(notes, "first tensor") == [(index, None)]
    assert states(tmp_path / "out") == ["done"]


@pytest.mark.slow
def test_how_memory_grows_is_known_before_the_driver_is_first_asked(cache: Path, tmp_path: Path) -> None:
    notes = on_gpus([PRETEND, *RUN, "device=null", f"save_dir={tmp_path}/out", f"cache_dir={cache}"], tmp_path, 1)
    assert {note["asked"] for note in notes} == {"properties", "set device", "first tensor"}
    assert all(note | GROWING == note for note in notes)


@pytest.mark.slow
def test_each_of_a_sweeps_workers_uses_the_one_gpu_that_it_sees(cache: Path, tmp_path: Path) -> None:
    words = [PRETEND, "-m", *RUN, "device=null", "k=4,5", "sweep_name=s"]
    notes = on_gpus([*words, f"save_dir={tmp_path}/out", f"cache_dir={cache}"], tmp_path, 2)
    assert asked(notes, "set device") == asked(notes, "first tensor") == [(0, "0"), (0, "1")]
    assert all(note | GROWING == note for note in notes)
    assert states(tmp_path / "out") == ["done", "done"]


IN_A_JOB = """
import sys
from helpers import pretend_gpu
pretend_gpu.install()
if __name__ == "__main__":
    from sae_transcoder.process import code_version
    from sae_transcoder.config.composer import composed
    from sae_transcoder.launch.slurm.job import PackTask
    PackTask([composed(sys.argv[1:])], code_version.current().digest)()
"""


@pytest.mark.slow
def test_the_run_of_a_slurm_job_uses_the_gpu_that_the_job_has(cache: Path, tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(IN_A_JOB)
    folder = tmp_path / "jobs"
    folder.mkdir()
    settings = [*RUN, "hardware=slurm", f"save_dir={tmp_path}/out", f"cache_dir={cache}"]
    job_record.write(folder, "7", job_record.JobRecord(["a"], "1:00:00", None, 120, None, "0.1.0"))
    job = {"SLURM_JOB_ID": "7", "SLURM_JOBID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    job |= {"SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0", "SUBMITIT_FOLDER": str(folder), "SUBMITIT_EXECUTOR": "slurm"}
    notes = on_gpus([str(script), *settings], tmp_path, 1, CUDA_VISIBLE_DEVICES="3", **job)
    assert asked(notes, "set device") == asked(notes, "first tensor") == [(0, "3")]
    assert all(note | GROWING == note for note in notes)
    assert states(tmp_path / "out") == ["done"]


@pytest.mark.slow
def test_each_of_several_ranks_makes_its_own_gpu_the_current_one(cache: Path, tmp_path: Path) -> None:
    runs = [[*RUN, "device=null", f"save_dir={tmp_path}/out", f"cache_dir={cache}"]]
    (tmp_path / "packs.json").write_text(json.dumps([{"runs": runs}]))
    notes = on_gpus(torchrun(str(ON_RANKS), str(tmp_path / "packs.json"))[1:], tmp_path, 2)
    assert asked(notes, "set device") == asked(notes, "first tensor") == [(0, None), (1, None)]
    assert all(note | GROWING == note for note in notes)
    assert states(tmp_path / "out") == ["done"]


# Says how memory is to be handed out at the moment when torch begins to be imported, and ends.
WATCHED = """
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(*(os.environ.get(n) for n in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Finder())
import sae_transcoder.{module}
"""


@pytest.mark.parametrize(
    ("module", "own"),
    [
        *((module, {}) for module in ("training.engine", "api", "launch.slurm.job", "launch.worker_pool")),
        *(("api", {name: "x"}) for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")),
    ],
)
def test_before_torch_is_imported_memory_is_to_grow_in_segments_unless_the_environment_says_otherwise(
    module: str, own: dict[str, str]
) -> None:
    usual = {name: value for name, value in os.environ.items() if "ALLOC_CONF" not in name}
    code = WATCHED.replace("{module}", module) + "import torch"
    done = subprocess.run([sys.executable, "-c", code], env=usual | own, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [(own or GROWING).get(name, "None") for name in GROWING]


@pytest.mark.parametrize("workspace", [None, ":16:8"])
def test_what_one_pack_sets_for_the_process_does_not_reach_the_next_one(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workspace: str | None
) -> None:
    seen = []

    def watching(*_: object) -> dict[int, Exception]:
        threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
        seen.append((threads, deterministic, os.environ.get(device_settings.CUBLAS)))
        return {0: ValueError("not trained")}

    monkeypatch.setattr(engine, "train_plans", watching)
    monkeypatch.delenv(device_settings.CUBLAS, raising=False)
    if workspace:
        monkeypatch.setenv(device_settings.CUBLAS, workspace)
    for settings in (["deterministic=true", "threads=2"], ["threads=null"], ["deterministic=true", "threads=null"], ["threads=1"]):
        engine.train_pack([short(cache, tmp_path, *settings)])
    expected = workspace or ":4096:8"
    assert seen == [(2, True, expected), (1, False, workspace), (1, True, expected), (1, False, workspace)]
    assert not torch.are_deterministic_algorithms_enabled()
    assert os.environ.get(device_settings.CUBLAS) == workspace


def test_what_was_set_ends_with_a_pack_that_fails(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(device_settings.CUBLAS, raising=False)
    monkeypatch.setattr(engine, "train_plans", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.train_pack([short(cache, tmp_path, "deterministic=true")])
    assert not torch.are_deterministic_algorithms_enabled()
    assert device_settings.CUBLAS not in os.environ


@pytest.mark.parametrize(
    ("given", "policy"), [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active"), ({"GOMP_SPINCOUNT": "10000"}, None)]
)
def test_waiting_threads_sleep_unless_the_environment_says_how_they_wait(given: dict[str, str], policy: str | None) -> None:
    code = "import os, sys, sae_transcoder; print(os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules)"
    usual = {name: value for name, value in os.environ.items() if name not in device_settings.WAITING}
    done = subprocess.run([sys.executable, "-c", code], env=usual | given, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(policy), "False"]
