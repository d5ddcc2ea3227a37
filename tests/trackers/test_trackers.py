"""What is logged stands in metrics.jsonl and at the tracker, once per step; real wandb (offline) and real trackio (local)."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers import HANGS, TESTS
from helpers.logbooks import config, fill, lines
from sae_transcoder.config import ConfigError, TrackerMode, run_name, signature
from sae_transcoder.trackers.logbook import Logbook, truncate_metrics
from sae_transcoder.trackers.open_tracker import tracker_faults


def expected(steps: list[int], scale: float = 1.0) -> list[dict[str, float]]:
    return [{"step": at, "tokens": 100 * at, "fvu/layers.1": scale / at} for at in steps]


def fresh_python(body: str, directory: Path, **env: str) -> Any:
    """Runs `body` in a process of its own with `d` as its directory; the JSON that it prints last, None if nothing.

    trackio reads TRACKIO_DIR when it is imported, and a process that dies without finishing cannot be pytest's.
    """
    code = f"import json, os, sys, time\nfrom pathlib import Path\nsys.path.insert(0, {str(TESTS)!r})\n"
    code += "from sae_transcoder.trackers.open_tracker import tracker_faults\n"
    code += f"from helpers.logbooks import *\nd = Path({str(directory)!r})\n{body}"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("TRACKIO_", "WANDB_"))} | env
    env |= {"TRACKIO_DIR": str(directory / "trackio"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=HANGS)
    if "os._exit" not in body:
        assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if done.stdout else None


TRACKIO_RUNS = """
from trackio import Api
from trackio.sqlite_storage import SQLiteStorage
runs = []
for run in Api().runs("study"):
    rows = SQLiteStorage.get_logs("study", run.name, run_id=run.id)
    for row in rows:
        del row["timestamp"]
    runs.append(dict(name=run.name, config=run.config, rows=rows))
print(json.dumps(runs))
"""


def wandb_runs(directory: Path) -> list[dict[str, Any]]:
    """The runs in a directory's offline files, oldest first: the run's record and its rows.

    wandb 0.31 has no reader of its own left in Python. The files are LevelDB logs of protobuf records: after 7 bytes of
    header, fragments of (checksum 4, length 2, type 1: whole, first, middle, last) in blocks of 32 KiB.
    """
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # waits for wandb-core, which goes on writing when a run has been finished
    runs = []
    for file in sorted(directory.glob("wandb/offline-run-*/*.wandb")):
        data, at, record, run = file.read_bytes(), 7, b"", {"rows": []}
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
            record += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):
                message, record = Record.FromString(record), b""
                if message.HasField("run"):
                    run |= dict(id=message.run.run_id, name=message.run.display_name, group=message.run.run_group)
                    run |= dict(tags=list(message.run.tags), project=message.run.project)
                    run["config"] = {item.key: json.loads(item.value_json) for item in message.run.config.update}
                if message.HasField("history"):
                    items = {"".join(item.nested_key) or item.key: json.loads(item.value_json) for item in message.history.item}
                    shown = {name: value for name, value in items.items() if not name.startswith("_")}
                    run["rows"].append({"step": message.history.step.num} | shown)
        runs.append(run)
    return runs


@pytest.fixture
def wandb_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """wandb without any login or setting of the machine, its state in this process forgotten before and after."""
    import wandb

    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    wandb.teardown()
    yield monkeypatch
    wandb.teardown()


def test_without_a_tracker_numbers_are_in_metrics_jsonl_at_full_precision_and_nothing_else_is_written(tmp_path: Path) -> None:
    book = fill(config("none", tracker_mode=None, tags=[], group=None), tmp_path, [1, 3, 7])
    assert lines(tmp_path) == expected([1, 3, 7])
    assert book.where is None
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_line_is_in_the_file_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    fill(config("none"), tmp_path, [1, 2], finish=False)
    assert lines(tmp_path) == expected([1, 2])


def test_numbers_that_are_not_finite_are_null_in_metrics_jsonl(tmp_path: Path) -> None:
    Logbook(config("none"), tmp_path).log(1, {"a": math.nan, "b": math.inf, "c": 0.1})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "a": null, "b": null, "c": 0.1}\n'


def test_resuming_cuts_a_torn_line_and_all_lines_above_the_step(tmp_path: Path) -> None:
    fill(config("none"), tmp_path, [10, 20, 30])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 40, "tok')
    assert truncate_metrics(path, 20) == expected([10, 20]) == lines(tmp_path)
    fill(config("none"), tmp_path, [30], step=20)
    assert lines(tmp_path) == expected([10, 20, 30])


def test_cutting_leaves_a_whole_file_alone_and_refuses_a_broken_line_in_its_middle(tmp_path: Path) -> None:
    assert truncate_metrics(tmp_path / "metrics.jsonl", 5) == []
    fill(config("none"), tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    before = path.stat().st_mtime_ns, path.stat().st_ino
    truncate_metrics(path, 2)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ConfigError, match="line 2"):
        truncate_metrics(path, 3)


def test_a_run_started_afresh_in_a_used_directory_drops_the_lines_of_the_earlier_attempt(tmp_path: Path) -> None:
    fill(config("none"), tmp_path, [1, 2])
    fill(config("none"), tmp_path, [1])
    assert lines(tmp_path) == expected([1])


def test_interleaved_wandb_runs_of_one_process_hold_their_own_numbers_names_and_configs(tmp_path: Path, wandb_env: Any) -> None:
    cfgs = {name: config("wandb", k=k) for name, k in (("a", 4), ("b", 16))}
    for name in cfgs:
        (tmp_path / name).mkdir()
    books = {name: Logbook(cfg, tmp_path / name) for name, cfg in cfgs.items()}
    for at in (10, 20, 30):
        for scale, book in enumerate(books.values(), 1):
            book.log(at, {"tokens": 100 * at, "fvu/layers.1": scale / at})
    books["a"].finish(0)
    books["b"].log(40, {"tokens": 4000, "fvu/layers.1": 2 / 40})
    books["b"].finish(1)
    for name, steps, scale in (("a", [10, 20, 30], 1.0), ("b", [10, 20, 30, 40], 2.0)):
        cfg, (run,) = cfgs[name], wandb_runs(tmp_path / name)
        assert run["rows"] == expected(steps, scale) == lines(tmp_path / name)
        assert (run["name"], run["project"], run["group"], run["tags"]) == (run_name(cfg), "study", "g", ["t1", "t2"])
        assert {"k": cfg.k, "model_type": "sae", "signature": signature(cfg), "lr": None}.items() <= run["config"].items()
        assert "wandb sync" in str(books[name].where)


def test_a_wandb_run_killed_and_resumed_has_one_row_per_step_under_one_id(tmp_path: Path, wandb_env: Any) -> None:
    body = "fill(config('wandb'), d, [10, 20, 30], finish=False)\n"
    body += "(file,) = d.glob('wandb/offline-run-*/*.wandb')\n"
    body += "while b'0.0333' not in file.read_bytes(): time.sleep(0.1)\n"  # wandb's file lags behind by half a second
    fresh_python(body + "os._exit(9)", tmp_path, HOME=str(tmp_path))
    fill(config("wandb"), tmp_path, [30, 40], step=20)
    runs = wandb_runs(tmp_path)
    assert [row for run in runs for row in run["rows"]] == expected([10, 20, 30, 40]) == lines(tmp_path)
    assert len({run["id"] for run in runs}) == 1


def test_a_tracker_chosen_late_receives_the_lines_from_before(tmp_path: Path, wandb_env: Any) -> None:
    fill(config("none"), tmp_path, [10, 20])
    fill(config("wandb"), tmp_path, [30], step=20)
    assert wandb_runs(tmp_path)[0]["rows"] == expected([10, 20, 30])


def test_a_null_tracker_mode_obeys_the_environment(tmp_path: Path, wandb_env: Any) -> None:
    wandb_env.setenv("WANDB_MODE", "offline")
    cfg = config("wandb", tracker_mode=None)
    assert tracker_faults(cfg) == []
    fill(cfg, tmp_path, [1])
    assert wandb_runs(tmp_path)[0]["rows"] == expected([1])


def test_interleaved_trackio_runs_of_one_process_hold_their_own_numbers_names_and_configs(tmp_path: Path) -> None:
    # Both carry the same set name: the identity, not the name, keeps them apart.
    body = """
books = []
for k in (4, 16):
    (d / str(k)).mkdir()
    books.append(Logbook(config("trackio", k=k, run_name="same"), d / str(k)))
for at in (10, 20, 30):
    for scale, book in enumerate(books, 1):
        book.log(at, {"tokens": 100 * at, "fvu/layers.1": scale / at})
books[0].finish(0)
books[1].log(40, {"tokens": 4000, "fvu/layers.1": 2 / 40})
books[1].finish(1)
"""
    runs = {run["config"]["k"]: run for run in fresh_python(body + TRACKIO_RUNS, tmp_path)}
    assert len(runs) == 2
    for k, steps, scale in ((4, [10, 20, 30], 1.0), (16, [10, 20, 30, 40], 2.0)):
        run = runs[k]
        assert run["rows"] == expected(steps, scale) == lines(tmp_path / str(k))
        wanted = {"model_type": "sae", "signature": signature(config("trackio", k=k)), "tags": ["t1", "t2"], "_Group": "g"}
        assert run["name"] == "same"
        assert wanted.items() <= run["config"].items()


@pytest.mark.parametrize("storage", ["sqlite", "jsonl"])
def test_a_trackio_run_resumed_has_one_row_per_step_under_one_name(tmp_path: Path, storage: str) -> None:
    fresh_python("fill(config('trackio'), d, [10, 20, 30])", tmp_path, TRACKIO_STORAGE_MODE=storage)
    body = "fill(config('trackio'), d, [30, 40], step=20)\n"
    if storage == "jsonl":  # what the dashboard does when it opens
        body += "from trackio.fragments import import_inbox_dir\nimport_inbox_dir()\n"
    (run,) = fresh_python(body + TRACKIO_RUNS, tmp_path, TRACKIO_STORAGE_MODE=storage)
    assert run["rows"] == expected([10, 20, 30, 40]) == lines(tmp_path)
    assert run["name"] == run_name(config("trackio"))


def test_rows_that_trackio_lost_when_the_process_died_are_handed_over_on_resume(tmp_path: Path) -> None:
    # trackio writes every half second from a thread; a process that dies at once loses the rows in between.
    fresh_python("fill(config('trackio'), d, [10, 20, 30], finish=False); os._exit(9)", tmp_path)
    (run,) = fresh_python("fill(config('trackio'), d, [40], step=30)\n" + TRACKIO_RUNS, tmp_path)
    assert run["rows"] == expected([10, 20, 30, 40])


def test_trackio_prints_nothing_and_leaves_no_process_behind(tmp_path: Path) -> None:
    body = "fill(config('trackio'), d, [1])\nimport subprocess\n"
    body += "children = subprocess.run(['ps', '--ppid', str(os.getpid()), '-o', 'comm='], capture_output=True, text=True).stdout\n"
    body += "print(json.dumps(children.split()))"
    assert fresh_python(body, tmp_path) == ["ps"]


def test_a_tracker_that_fails_ends_neither_the_run_nor_metrics_jsonl(
    tmp_path: Path, wandb_env: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")
    book = fill(config("wandb"), tmp_path, [1], finish=False)
    assert book.tracker is not None
    book.tracker.finish(0)  # wandb refuses to log to a finished run
    book.log(2, {"tokens": 200, "fvu/layers.1": 1 / 2})
    book.finish(0)
    assert lines(tmp_path) == expected([1, 2])
    assert "takes no more numbers from step 2" in caplog.text


def test_wandb_online_without_a_login_is_refused_with_the_fix(wandb_env: Any) -> None:
    for mode, shown in ((None, "null"), (TrackerMode.online, "online")):
        (fault,) = tracker_faults(config("wandb", tracker_mode=mode))
        assert all(part in fault for part in ("tracker=wandb", f"tracker_mode={shown}", "wandb login", "tracker_mode=offline"))


def test_wandb_is_accepted_offline_or_with_a_key_in_the_environment_or_in_netrc(tmp_path: Path, wandb_env: Any) -> None:
    import wandb
    from wandb.sdk import wandb_setup

    online = config("wandb", tracker_mode=TrackerMode.online)
    assert tracker_faults(config("wandb")) == []
    host = wandb_setup.singleton().settings.base_url.removeprefix("https://")
    (tmp_path / "home").mkdir(exist_ok=True)
    netrc = tmp_path / "home" / "netrc"
    netrc.write_text(f"machine {host}\n  login user\n  password {'0' * 40}\n")
    assert tracker_faults(online) == []
    netrc.unlink()
    wandb.teardown()
    wandb_env.setenv("WANDB_API_KEY", "0" * 40)
    assert tracker_faults(online) == []


def test_names_that_a_tracker_would_refuse_are_refused_before_it_is_opened(wandb_env: Any) -> None:
    (fault,) = tracker_faults(config("wandb", project="a/b"))
    assert "project=a/b" in fault
    (fault,) = tracker_faults(config("wandb", tags=["x" * 65]))
    assert "tags=" in fault
    (fault,) = tracker_faults(config("trackio", project="registry-x"))
    assert "project=registry-x" in fault


def test_trackio_online_without_a_token_is_refused_with_the_fix(tmp_path: Path) -> None:
    body = "print(json.dumps(tracker_faults(config('trackio', tracker_mode=TrackerMode.online, entity='me'))))"
    (fault,) = fresh_python(body, tmp_path, HF_HOME=str(tmp_path), HF_TOKEN="")
    assert all(part in fault for part in ("tracker=trackio", "tracker_mode=online", "hf auth login", "tracker_mode=offline"))
    assert fresh_python(body, tmp_path, HF_HOME=str(tmp_path), HF_TOKEN="hf_x") == []


@pytest.mark.parametrize("name", ["TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"])
def test_a_local_trackio_run_is_refused_where_the_environment_would_send_it_away(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracker_faults(config("trackio")) == []
    monkeypatch.setenv(name, "me/space")
    (fault,) = tracker_faults(config("trackio"))
    assert f"{name}=me/space" in fault
    assert "tracker_mode=null" in fault


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_package_is_refused_with_the_fix(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    (fault,) = tracker_faults(config(name))
    assert all(part in fault for part in (f"tracker={name}", f"pip install {name}", "tracker=none"))


def test_no_tracker_is_imported_unless_it_is_chosen(tmp_path: Path) -> None:
    body = "assert tracker_faults(config('none')) == []; fill(config('none'), d, [1])\n"
    assert fresh_python(body + "print(json.dumps([m for m in ('wandb', 'trackio') if m in sys.modules]))", tmp_path) == []
