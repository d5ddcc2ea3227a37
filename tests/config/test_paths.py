"""Paths in settings and arguments: `~` and `$NAME` are expanded where they are used, and links that lead nowhere are refused."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.command_line import composed, refused
from helpers.made_up_runs import config, write_run
from sae_transcoder import api, evaluate, export, report
from sae_transcoder.config import PATH_FIELDS, ConfigError, paths, run_dir, signature
from sae_transcoder.config.command_line import quoted, split_arguments
from sae_transcoder.config.paths import instead
from sae_transcoder.data import cache_key, sources
from sae_transcoder.language_model import loading

# Every place that takes a path, and what expands it there. A field that is marked as a path in config/fields and is missing here fails the test.
EXPANDED_BY = {
    "save_dir": "config.naming.save_dir",
    "cache_dir": "data.sources.cache_dir",
    "dataset_name": "data.sources.local_name",
    "model_name": "language_model.loading.model_path",
    "finetune": "coder.stored_coders.coders_dir",
    "json=": "config.old_json.expanded, converted",
    "--config-dir": "config.command_line.split_arguments",
    "sae-eval PATH": "coder.stored_coders.coders_dir",
    "sae-eval --output": "evaluation.request.evaluation_request",
    "sae-export PATH": "exports.source.read_source",
    "out=": "exports.write.export",
    "sae-report DIR": "report.run",
    "sae-report --csv --json --parquet --out": "report.run",
}
DEMO = ["experiment=demo", "max_samples=64", "max_seq_length=32", "eval_samples=8", "dry_run=true"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own; $HERE leads to the same folder, $NOWHERE is not set; the working folder is another."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    for name in ("HOME", "HERE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def command(main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """What a command prints on its way to exit code 1."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert len(printed.splitlines()) == 1, printed
    return printed


def test_the_list_of_paths_names_every_field_that_is_one() -> None:
    assert set(PATH_FIELDS) == {name for name in EXPANDED_BY if name.isidentifier()}


@pytest.mark.parametrize("written", ["~/x", "$HERE/x", "${HERE}/x", "$HERE/../home/x"])
def test_a_path_is_expanded_where_it_is_used_and_the_setting_stays_as_written(written: str, home: Path) -> None:
    cfg = composed("model_type=sae", "model=demo", "dataset=local_text", "dataset_name=x")
    cfg = replace(cfg, **dict.fromkeys(PATH_FIELDS, written))
    before = signature(cfg)
    used = [run_dir(cfg).parent, sources.cache_dir(cfg), sources.local_name(cfg), Path(loading.model_path(cfg))]
    assert [path.resolve() for path in used] == 4 * [home / "x"]
    assert [getattr(cfg, name) for name in PATH_FIELDS] == len(PATH_FIELDS) * [written]
    assert signature(cfg) == before


def test_what_is_no_path_and_what_needs_no_expansion_stays_as_it_is(home: Path) -> None:
    for text in ("EleutherAI/pythia-70m", "gpt2", "./demo", "out", "/a/b~c", "a$", "a$ b", "5$.txt", "data/*.jsonl"):
        assert paths.expanded(text) == text
    assert [paths.is_path(text) for text in ("~/m", "$M", "./m", "/m", "..", "a/$M/b")] == 6 * [True]
    assert [paths.is_path(text) for text in ("gpt2", "EleutherAI/pythia-70m", "m~", "")] == 4 * [False]
    Path("gpt2").mkdir()
    assert paths.is_path("gpt2")


@pytest.mark.parametrize("name", PATH_FIELDS)
def test_a_variable_that_is_not_set_is_told_with_field_and_variable(
    name: str, home: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = ["dataset=local_text"] if name == "dataset_name" else []
    message = refused(capsys, monkeypatch, *DEMO, *dataset, f"{name}=$NOWHERE/x")
    assert message == (
        f"error: {name}=$NOWHERE/x: NOWHERE is not set in the environment; set it there, or write the path in full\n"
    )
    assert "there is no user nobody-at-all" in refused(capsys, monkeypatch, *DEMO, *dataset, f"{name}=~nobody-at-all/x")
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("name", PATH_FIELDS)
def test_a_link_that_leads_nowhere_is_told_with_its_target(
    name: str, home: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "link").symlink_to("/nowhere/at/all")
    dataset = ["dataset=local_text"] if name == "dataset_name" else []
    for written in ("~/link", "~/link/below"):
        message = refused(capsys, monkeypatch, *DEMO, *dataset, f"{name}={written}")
        assert message.startswith(
            f"error: {name}={written}: {home}/link is a link to /nowhere/at/all, where nothing is; correct or "
        )
        assert len(message.splitlines()) == 1
    (home / "loop").symlink_to("loop")
    assert f"{home}/loop is a link to loop" in refused(capsys, monkeypatch, *DEMO, *dataset, f"{name}=~/loop")
    assert "File name too long" in refused(capsys, monkeypatch, *DEMO, *dataset, f"{name}=./{300 * 'x'}")


@pytest.mark.parametrize("sweeper", ["grid", "basic"])
def test_a_sweep_is_refused_alike_and_leaves_nothing(
    sweeper: str, home: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for given, part in [("$NOWHERE/x", "NOWHERE is not set"), ("~nobody-at-all/x", "there is no user nobody-at-all")]:
        message = refused(capsys, monkeypatch, "-m", *DEMO, "k=4,8", f"hydra/sweeper={sweeper}", f"save_dir={given}")
        assert message.startswith(f"error: save_dir={given}: ")
        assert part in message
        assert len(message.splitlines()) == 1
    assert list(Path().iterdir()) == []


def test_a_runs_directory_that_is_a_link_to_nowhere_is_refused(
    home: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "run").symlink_to("gone")
    message = refused(capsys, monkeypatch, *DEMO, "save_dir=~", "run_name=run")
    assert message.startswith(f"error: run_name=run: {home}/run is a link to gone, where nothing is")


# {argument of another command: what the command is called with before PATH stands in for it}
ARGUMENTS = {
    "sae-eval PATH": (evaluate.main, "PATH", ""),
    "sae-eval --output": (evaluate.main, "RUN --output PATH", "--output="),
    "sae-export PATH": (export.main, "PATH to=hub out=x", ""),
    "out=": (export.main, "RUN to=hub out=PATH", "out="),
    "sae-report DIR": (report.main, "PATH", ""),
    "sae-report --csv --json --parquet --out": (report.main, "RUN --csv PATH", "--csv="),
}


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_the_other_commands_refuse_such_paths_alike(
    argument: str, home: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    main, template, label = ARGUMENTS[argument]
    write_run(home / "run", config())
    (home / "link").symlink_to("/nowhere/at/all")
    if argument == "sae-eval --output":  # it needs coders
        pytest.importorskip("safetensors")
        coder = home / "run" / "coders" / "layers.6"
        coder.mkdir(parents=True)
        (coder / "cfg.json").write_text(json.dumps({"d_in": 4, "k": 1, "num_latents": 8}))
        (coder / "sae.safetensors").write_bytes(b"")
        settings = vars(composed("experiment=demo"))
        (home / "run" / ".hydra" / "config.yaml").write_text(json.dumps(settings))

    def message(path: str) -> str:
        arguments = [part.replace("PATH", path).replace("RUN", "~/run") for part in template.split()]
        return command(main, monkeypatch, capsys, *arguments)

    assert f"error: {label}$NOWHERE/x: NOWHERE is not set" in message("$NOWHERE/x")
    assert "is a link to /nowhere/at/all, where nothing is" in message("~/link")
    assert list(Path().iterdir()) == []


def test_reports_are_read_and_written_at_home(home: Path, capsys: pytest.CaptureFixture) -> None:
    write_run(home / "runs" / "a", config())
    (home / "runs" / "gone").symlink_to("/nowhere/at/all")
    report.main(["~/runs", "--csv", "$HERE/all.csv", "--json", "~/all.json"])
    printed = capsys.readouterr()
    assert {path.name for path in home.iterdir()} == {"runs", "all.csv", "all.json"}
    assert f"warning: {home}/runs/gone is a link to /nowhere/at/all, where nothing is" in printed.err


def test_a_json_file_and_a_folder_of_configs_are_found_at_home(
    home: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "old.json").write_text('{"model_type": "sae", "k": 7, "save_dir": "$HERE/out"}')
    cfg = api.load_config("json=~/old.json", "model=demo", "dataset=demo")
    assert (cfg.k, cfg.save_dir, run_dir(cfg).parent) == (7, "$HERE/out", home / "out")
    capsys.readouterr()
    with pytest.raises(ConfigError, match=r"json=\$NOWHERE/x: NOWHERE is not set"):
        api.load_config("json=$NOWHERE/x")
    for written in (["--config-dir", "~/c"], ["--config-dir=$HERE/c"], ["-cd", "$HERE/c"]):
        split = split_arguments([*written, "k=3"])
        assert split.config_dirs == [home / "c"]
        assert split.options == [part.replace("~", str(home)).replace("$HERE", str(home)) for part in written]
    assert "--config-dir=$NOWHERE/c: NOWHERE is not set" in refused(capsys, monkeypatch, "--config-dir", "$NOWHERE/c", "k=3")


def test_a_home_that_the_shell_left_is_quoted_as_hydra_wants_it() -> None:
    given = [
        "save_dir=~/x",
        "model_name=~/a,gpt2,~b",
        "finetune=$A/x",
        'cache_dir="~/x"',
        "finetune='~/x,y'",
        "~lr",
        "k=~3",
        "save_dir=",
    ]
    assert quoted(given) == ['save_dir="~/x"', 'model_name="~/a",gpt2,"~b"', *given[2:]]
    assert quoted(quoted(given)) == quoted(given)


def test_the_same_text_named_in_two_ways_counts_as_one(home: Path) -> None:
    assert paths.same_place("~/x", str(home / "x"))
    assert paths.same_place("$HERE/x", "~/x")
    assert not paths.same_place("~/x", "~/y")
    assert not paths.same_place("$NOWHERE/x", "~/x")
    (home / "demo").mkdir()
    assert paths.same_place("demo", "demo")


def test_a_tokenizer_at_home_is_known_by_its_files(home: Path) -> None:
    (home / "m").mkdir()
    (home / "m" / "tokenizer.json").write_text("{}")
    cfg = composed("model_type=sae", "model=demo", "dataset=demo", "model_name=~/m")
    assert cache_key.tokenizer_identity(cfg) == cache_key.tokenizer_identity(replace(cfg, model_name=str(home / "m")))


def test_a_jobs_script_sets_the_variables_that_paths_need(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_transcoder.launch.slurm.script import path_lines

    monkeypatch.setenv("DATA", "/a folder/it's")
    cfg = composed("model_type=sae", "model=demo", "dataset=demo", "save_dir=~/out", "cache_dir=$DATA/c")
    lines = path_lines([[cfg, replace(cfg, finetune="$HERE/x")]])
    assert lines == [f"export DATA={shlex.quote(os.environ['DATA'])}", f"export HERE={home}", f"export HOME={home}"]
    script = "; ".join([*lines, 'echo "$DATA"'])
    assert subprocess.run(["bash", "-c", script], capture_output=True, text=True, env={}).stdout == "/a folder/it's\n"
    assert path_lines([[replace(cfg, save_dir="out", cache_dir=None)]]) == []


def test_a_folder_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    for name in ("my_run", "demo_sweep", ".hidden"):
        (tmp_path / name).mkdir()
    assert instead(tmp_path / "my_rum") == f"; did you mean {tmp_path}/my_run?"
    assert instead(tmp_path / "other") == f"; did you mean {tmp_path}/demo_sweep or {tmp_path}/my_run?"
    assert instead(tmp_path / "none" / "my_run") == ""
