"""A run's file that is empty, cut or of another shape leads to one message with its name and the fix, in every command that reads it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.command_line import composed
from helpers.made_up_runs import config, write_run
from helpers.short_runs import arguments, interrupted, short
from helpers.sweeps import here
from sae_transcoder import evaluate, export
from sae_transcoder.coder.stored_coders import coder_settings
from sae_transcoder.config import ConfigError, run_dir
from sae_transcoder.launch.slurm import job_end
from sae_transcoder.launch.sweep_files import MANIFEST, write_manifest
from sae_transcoder.launch.sweep_jobs import SweepJob
from sae_transcoder.run_store import eval_file, job_record, run_files, status
from sae_transcoder.run_store.checked_files import DamagedFile
from sae_transcoder.run_store.job_record import JobRecord
from sae_transcoder.run_store.status import State
from sae_transcoder.trackers import logbook
from sae_transcoder.training import checkpoint

SHAPES = ["", "{", "[]", "null", "3", '"text"', 2000 * "[", b"\xff\xfe"]
READERS: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "status.json": (status.read, ["{}", '{"state": "done", "signature": "x", "total": null}', '{"state": 3, "signature": "x"}']),
    "eval.json": (eval_file.read, ["{}", '{"eval_format": 1, "eval_result_unstructured": []}']),
    ".hydra/config.yaml": (run_files.read_config, ["k: many", "model_name: null", "layers: {a: 1}"]),
    "tracker.json": (lambda run: logbook.read_state(run / "tracker.json"), ["{}", '{"id": "x", "last_steps": {"a": "b"}}']),
    "7.json": (lambda run: job_record.read(run, "7"), ["{}", '{"runs": [3]}', '{"runs": "all"}']),
    "cfg.json": (coder_settings, ["{}", '{"d_in": 4, "k": null, "num_latents": 8}']),
}


@pytest.mark.parametrize(("name", "content"), [(name, text) for name, (_, more) in READERS.items() for text in [*SHAPES, *more]])
def test_a_reader_names_the_file_and_the_fix(name: str, content: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    if name == ".hydra/config.yaml" and content == "{":
        path.write_text("a: [")
    with pytest.raises(DamagedFile) as refused:
        READERS[name][0](tmp_path)
    message = str(refused.value)
    assert message.startswith(f"{path}: cannot be read (")
    assert "; " in message.rpartition(")")[2], message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_is_no_file_is_told_like_a_damaged_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_record, "WAIT", 0.0)
    path = tmp_path / name
    path.mkdir(parents=True)
    with pytest.raises(DamagedFile, match=r"cannot be read \(Is a directory"):
        READERS[name][0](tmp_path)
    path.rmdir()
    path.symlink_to("/nowhere/at/all")
    with pytest.raises(DamagedFile, match="a link to /nowhere/at/all, where nothing is"):
        READERS[name][0](tmp_path)


def done_run(directory: Path) -> Path:
    """A run that says it is done, with a coder's folder whose weights are empty."""
    write_run(directory, config(layers=[2]))
    coder = directory / "coders" / "layers.2"
    coder.mkdir(parents=True)
    (coder / "cfg.json").write_text(json.dumps({"d_in": 4, "k": 1, "num_latents": 8}))
    (coder / "sae.safetensors").write_bytes(b"")
    (directory / ".hydra" / "config.yaml").write_text(json.dumps(vars(composed("experiment=demo"))))
    return directory


@pytest.mark.parametrize(("main", "more"), [(evaluate.main, []), (export.main, ["to=sae_lens", "out=x"])], ids=["eval", "export"])
@pytest.mark.parametrize(
    "name", ["status.json", ".hydra/config.yaml", "coders/layers.2/cfg.json", "coders/layers.2/sae.safetensors"]
)
@pytest.mark.parametrize("content", ["", "{}", "[]", '{"a'])
def test_evaluation_and_export_end_with_one_message(
    main: Callable[[], None], more: list[str], name: str, content: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    directory = done_run(tmp_path / "run")
    (directory / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["command", str(directory), *more])
    with pytest.raises(SystemExit) as stop:
        main()
    printed = capsys.readouterr().err
    assert stop.value.code == 1
    assert str((directory / name).parent) in printed
    assert printed.startswith("error: ")
    assert len(printed.splitlines()) == 1, printed
    assert not (tmp_path / "x").exists()


@pytest.fixture(scope="module")
def begun(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, bytes]:
    """The files, {path: content}, of a run that was stopped after it had saved its state."""
    cfg = short(cache, tmp_path_factory.mktemp("begun"), "save_every=4", "run_name=run")
    interrupted(cfg)
    status.write(run_dir(cfg), status.Status(State.interrupted, status.read(run_dir(cfg)).signature, 4, 16))
    return {path.relative_to(run_dir(cfg)): path.read_bytes() for path in run_dir(cfg).rglob("*") if path.is_file()}


def odd_state(content: bytes, folder: Path, **changes: Any) -> bytes:
    """A training state with some of its parts replaced; None: removed."""
    (folder / "state").write_bytes(content)
    state = torch.load(folder / "state", weights_only=True) | changes
    torch.save({name: value for name, value in state.items() if value is not None}, folder / "state")
    return (folder / "state").read_bytes()


@pytest.mark.parametrize(
    ("name", "damage", "part"),
    [
        ("status.json", b"", "cannot be read (empty); restore it from a copy, or choose another run_name or save_dir"),
        ("metrics.jsonl", b'[]\n{"step": 4}\n', "line 1 is not of metrics"),
        ("metrics.jsonl", b'{"fvu/a": 1}\n{"step": 4}\n', "line 1 is not of metrics"),
        ("metrics.jsonl", b'\xff\xfe\n{"step": 4}\n', "cannot be read (no text"),
        ("tracker.json", b"{}", "no identity at a tracker"),
        ("resume/state.pt", b"", "truncated, or no training state"),
        ("resume/state.pt", {"run": None}, "not a training state of this version"),
        ("resume/state.pt", {"run": {}}, "not a training state of this version"),
        ("resume/state.pt", {"settings": {}}, "not a training state of this version"),
        ("resume/state.pt", {"signature": None}, "not a training state of this version"),
    ],
)
def test_a_run_that_would_go_on_is_refused_with_one_message(
    name: str, damage: bytes | dict[str, Any], part: str, begun: dict[Path, bytes], cache: Path, tmp_path: Path
) -> None:
    cfg = short(cache, tmp_path, "save_every=4", "run_name=run")
    for path, content in begun.items():
        (run_dir(cfg) / path).parent.mkdir(parents=True, exist_ok=True)
        (run_dir(cfg) / path).write_bytes(content)
    path = run_dir(cfg) / name
    path.write_bytes(damage if isinstance(damage, bytes) else odd_state(path.read_bytes(), tmp_path, **damage))
    code, _, errors = here(*arguments(cfg)[2:], "run_name=run")  # which asserts that there is no traceback
    assert code == 1
    assert errors.startswith(f"error: {path}: ")
    assert part in errors
    assert len(errors.splitlines()) == 1, errors
    assert (run_dir(cfg) / "resume" / "state.pt").exists()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"runs": []}', '{"runs'])
def test_a_sweeps_list_of_runs_that_cannot_be_read_is_told_and_left_alone(content: str, tmp_path: Path) -> None:
    cfg = composed("experiment=demo", f"save_dir={tmp_path}", "sweep_name=s")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / MANIFEST).write_text(content)
    with pytest.raises(DamagedFile, match=r"sweep\.json: cannot be read .*; remove it"):
        write_manifest([SweepJob(0, [], cfg)])
    assert (tmp_path / "s" / MANIFEST).read_text() == content


def test_the_end_of_a_job_looks_after_the_other_runs_where_one_cannot_be_read(tmp_path: Path, monkeypatch, capsys) -> None:
    for name in ("bad", "good"):
        (tmp_path / name).mkdir()
        status.write(tmp_path / name, status.Status(State.running, "x", 1, 4))
    (tmp_path / "bad" / "status.json").write_text("")
    job_record.write(tmp_path, "7", JobRecord([str(tmp_path / "bad"), str(tmp_path / "good")], "1", None, 1, None, "code"))
    monkeypatch.setattr(job_end.slurm_client, "seconds_left", lambda number: None)
    assert job_end.handle_job_end(tmp_path, "7", 3) == 3
    assert status.read(tmp_path / "good").state == State.failed
    assert f"{tmp_path}/bad/status.json: cannot be read (empty)" in capsys.readouterr().out
    (tmp_path / "7.json").write_text("{}")
    monkeypatch.setattr(job_end.slurm_client, "current_job", lambda: "7")
    monkeypatch.setattr(sys, "argv", ["job_end", str(tmp_path), "0"])
    with pytest.raises(SystemExit, match=r"7\.json: cannot be read .*start the same command again"):
        job_end.main()


def test_a_ranks_part_of_another_shape_is_refused(tmp_path: Path) -> None:
    (tmp_path / "resume").mkdir()
    checkpoint.save_rank_state(tmp_path, "x", 1, 4, {"run": []})
    with pytest.raises(ConfigError, match="not a training state of this version"):
        checkpoint.load_rank_state(tmp_path, "x", 1, 4)
