"""sae-report where runs' files are missing, damaged or not to be read: each fault is named, the rest is shown."""

import os
import re
from pathlib import Path

import pytest

from helpers.made_up_runs import config, write_run
from helpers.reporting import call
from sae_transcoder.run_store import eval_file


def test_a_folder_that_is_missing_or_holds_no_runs_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, tmp_path / "absent")
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {tmp_path}/absent: does not exist; name ")
    code, _, err = call(capsys, tmp_path)
    assert code == 1
    assert "holds no runs" in err
    (tmp_path / "file").write_text("")
    assert "is not a folder" in call(capsys, tmp_path / "file")[2]


def test_other_folders_are_shown_when_one_has_no_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a" / "run1", config())
    (tmp_path / "empty").mkdir()
    code, out, err = call(capsys, tmp_path / "a", tmp_path / "empty", tmp_path / "absent")
    assert code == 0
    assert "run1" in out
    assert "empty: holds no runs" in err
    assert "absent: does not exist" in err


DAMAGE = {
    "status.json": ["", "{", "[]", "3", "{}", '{"state": "odd"}', '{"state": "done", "signature": "x", "new": 1}',
                    '{"state": "done", "signature": "x", "step": "many"}', '{"state": "done", "signature": "x", "step": 1e400}',
                    '{"state": "running", "signature": "x", "heartbeat": NaN}', b"\xff\xfe"],
    "eval.json": ["", "{", "[]", "{}", '{"eval_format": 99}', b"\xff\xfe"],
    "metrics.jsonl": ["{\n", "[]\n", '{"fvu/a": 1' + 400 * "0" + "}\n", '{"fvu/a": "x"}\n', b"\xff\xfe\n"],
    ".hydra/config.yaml": ["a: [", "- a", "k: many", "k: 1.5", "k: 1" + 400 * "0", "lr: .nan", "layers: 6", "layers: [.nan]", b"\xff\xfe"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "content"), [(name, content) for name, contents in DAMAGE.items() for content in contents])
def test_a_damaged_file_is_named_and_the_rest_is_shown(
    name: str, content: str | bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = write_run(tmp_path / "good", config(), lines=4), write_run(tmp_path / "bad", config(k=4), lines=4)
    (bad / name).write_bytes(content.encode() if isinstance(content, str) else content)
    code, out, err = call(capsys, tmp_path, "--csv", tmp_path / "all.csv", "--failed")
    assert code == 0
    assert "Traceback" not in err
    assert str(bad / name) in err
    assert len(err.splitlines()) == 1
    assert re.search(r"^good ", out, re.MULTILINE)
    assert bool(re.search(r"^bad ", out, re.MULTILINE)) is (name != "status.json")
    assert good.exists()


def test_damage_that_only_pictures_meet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = write_run(tmp_path / "bad", config(), lines=4)
    (bad / eval_file.DENSITIES).write_bytes(b"PK")
    path = bad / "metrics.jsonl"
    path.write_text("odd\n" + 3000 * (path.read_text().splitlines()[0] + "\n"))  # not at the end, where the table looks
    code, out, err = call(capsys, tmp_path, "--out", tmp_path / "out")
    assert code == 0
    assert str(path) in err
    assert eval_file.DENSITIES in err
    assert "pareto.png" in out
    assert not (tmp_path / "out" / "curves.png").exists()
    assert not (tmp_path / "out" / "densities.png").exists()


def test_only_damaged_runs_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (write_run(tmp_path / "bad", config()) / "status.json").write_text("{")
    code, out, err = call(capsys, tmp_path)
    assert (code, out) == (1, "")
    assert "error: " in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "good", config())
    (tmp_path / "closed").mkdir(mode=0)
    code, _, err = call(capsys, tmp_path)
    assert code == 0
    assert "closed: Permission denied" in err
