"""What a sweep is made of before anything trains: its jobs, its name, its faults; and what lies on disk afterwards."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobStatus
from hydra.types import RunMode
from omegaconf import DictConfig

from helpers.sweeps import SHORT, assert_equal, by, config, here, runs, states
from sae_transcoder.config import Optimizer, composition, run_name
from sae_transcoder.config.composition import CONF, typed
from sae_transcoder.launch import sweep, worker_pool
from sae_transcoder.launch.sweep_jobs import compose_sweep
from sae_transcoder.run_store import status
from sae_transcoder.training import engine


@contextmanager
def hydra(*overrides: str) -> Iterator[tuple[ConfigLoader, DictConfig]]:
    """Hydra's loader and the config of a sweep, as a launcher gets them."""
    composition.register()
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        yield loader, loader.load_configuration("config", list(overrides), run_mode=RunMode.MULTIRUN)


def name(*overrides: str) -> str:
    """The default name of a sweep of these values."""
    with hydra(*overrides) as (loader, master):
        keys = [o.partition("=") for o in overrides]
        jobs = [[f"{key}={value.split(',')[i % (value.count(',') + 1)]}" for key, _, value in keys] for i in range(2)]
        return compose_sweep(loader, master, jobs, 0)[0].cfg.sweep_name or ""


def test_the_default_name_depends_on_all_settings_but_swept_values() -> None:
    base = name("model_type=sae", "k=4,8")
    assert base.startswith("sae-k-")
    assert name("model_type=sae", "k=4,8,16") == name("model_type=sae", "k=2,3") == base
    assert name("model_type=sae", "k=4,8", "threads=1", "save_every=7", "tracker=wandb", "tags=[x]") == base
    assert len({base, *(name("model_type=sae", "k=4,8", other) for other in ("lr=0.1", "max_samples=9", "optimizer=muon"))}) == 4
    types = name("model_type=sae,transcoder", "k=4,8")
    assert types.startswith("runs-k.model_type-")
    assert name("model_type=transcoder,sae", "k=4,9") == types
    optimizers = name("model_type=sae", "optimizer=adam,muon")
    assert name("model_type=sae", "optimizer=muon,signum") == optimizers
    rates = [name("model_type=sae", "optimizer=adam,muon", f"lr={lr}") for lr in ("1e-2", "1e-3")]
    assert len({optimizers, *rates}) == 3, "a rate that is set for all of them is one of the settings"
    presets = name("experiment=demo,sae_basic", "k=4,8")
    assert name("experiment=demo,transcoder_layers", "k=4,8") == presets
    others = [name("experiment=demo,sae_basic", "k=4,8", other) for other in ("max_samples=9", "lr=1", "optimizer=muon")]
    assert len({presets, *others}) == 4
    assert name("experiment=demo", "k=4,8").startswith("demo-k-")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["k=16,x32"], ["k=x32: must be a whole number", "[job 2 of 2]"]),
        (["k=4,8", "layers=[6],[99],[2]"], ["layers=[6]: demo has layers 0 to 5", "layers=[99]", "[jobs 1, 4 of 6]", "[jobs 2, 5 of 6]"]),
        (["optimizer=adam,adamm"], ["optimizer=adamm", ", ".join(sorted(Optimizer)), "[job 2 of 2]"]),
        (["k=100", "expansion_factor=1,2", "num_latents=0,50"], ["k=100 with num_latents=50", "[jobs 2, 4 of 4]"]),
        (["k=range(1,7)", "batch_size=4,100"], ["batch_size=100", "[jobs 2, 4, 6, 8, 10, 12 of 12]"]),
        (["k=0,4,4000", "lr=-1,1e-2"], ["k=0: must be at least 1 [jobs 1-2 of 6]", "k=4000", "lr=-1.0", "[jobs 1, 3, 5 of 6]"]),
        (["k=4,4"], ["jobs 1, 2 would share", "named twice"]),
        (["k=4,8", "save_every=5,6"], ["jobs 1, 2 would share", "jobs 3, 4 would share"]),
        (["k=4,8", "run_name=mine"], ["run_name=mine: jobs 1, 2 would share", "leave run_name out and set sweep_name"]),
        (["threads=1,2"], ["threads=1,2: cannot differ within a sweep"]),
        (["hardware=auto,cpu"], ["hardware=auto,cpu: cannot differ"]),
        (["k=4,8", "device=cpu,cuda"], ["device=cpu,cuda: cannot differ"]),
        (["k=glob(*)"], ["the sweep has no jobs"]),
        (["k=4,8", "hydra/launcher=basic"], ["hydra/launcher=basic", "trains no sweep"]),
        (["k=4,8", "expansion_facto=2"], ["did you mean expansion_factor"]),
        ([f"sweep_name={'s' * 260}", "k=4,8"], ["sweep_name=ssss", "has 260 bytes"]),
        (["k=4,,8"], ["k=4,,8: cannot be read"]),
        (["lr=interval(1e-3,1e-2)"], ["lr=interval(1e-3,1e-2): only a sweeper that searches takes an interval", "hydra/sweeper=optuna"]),
        (["lr=interval(1e-3,1e-2)", "hydra/sweeper=basic"], ["lr=interval(1e-3,1e-2): only a sweeper that searches"]),
        (["+hydra.sweeper.params.lr='interval(1e-3,1e-2)'"], ["only a sweeper that searches takes an interval"]),
        (["k=4,8", "sweep_name=a/b"], ["sweep_name='a/b'"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)  # fmt: skip
def test_a_sweep_with_any_fault_starts_nothing_and_says_all(
    cache: Path, tmp_path: Path, arguments: list[str], parts: list[str]
) -> None:
    names = {a.split("=")[0] for a in arguments}
    settings = [a for a in SHORT if a.split("=")[0] not in names]
    with patch.object(worker_pool, "run", side_effect=AssertionError):
        code, _, errors = here("-m", *settings, *arguments, f"save_dir={tmp_path}/out", f"cache_dir={cache}")
    assert code == 1
    for part in parts:
        assert part in errors
    assert all(line.startswith(("error: ", "  ")) for line in errors.splitlines())
    assert not list(tmp_path.iterdir())


def test_folders_of_something_else_are_refused_and_left_alone(cache: Path, tmp_path: Path) -> None:
    settings = [*SHORT, "k=4,8", f"save_dir={tmp_path}", f"cache_dir={cache}"]
    (tmp_path / "text").write_text("mine")
    (tmp_path / "run").mkdir()
    status.write(tmp_path / "run", status.Status(status.State.done, "0"))
    for sweep_name, what in [("text", "is a file"), ("run", "is a run's directory")]:
        code, _, errors = here("-m", *settings, f"sweep_name={sweep_name}")
        assert (code, what in errors) == (1, True)
    with hydra(*SHORT) as (loader, master):
        cfg = typed(loader.load_sweep_config(master, [*SHORT, "k=8", f"cache_dir={cache}"]))
    clash = tmp_path / "s" / run_name(cfg)
    clash.mkdir(parents=True)
    (clash / "thesis.tex").write_text("precious")
    code, _, errors = here("-m", *settings, "sweep_name=s")
    assert code == 1
    assert f"{clash} holds files but no run" in errors
    assert "[job 2 of 2]" in errors
    assert [p.name for p in clash.parent.iterdir()] == [clash.name]


def test_a_dry_run_shows_the_packs_and_leaves_nothing(cache: Path, tmp_path: Path) -> None:
    settings = [*SHORT, f"save_dir={tmp_path}/out", f"cache_dir={cache}", "dry_run=true"]
    code, printed, _ = here("-m", *settings, "k=4,8", "batch_size=4,8", "workers=2")
    assert code == 0
    assert [line.split(",")[0] for line in printed.splitlines() if line.startswith("pack")] == [
        "pack 1: 2 runs on cpu", "pack 2: 2 runs on cpu"
    ]  # fmt: skip
    assert printed.count("  sae-demo-L2-residual-k4-x2-") == 2
    code, printed, _ = here(*settings, "k=4")
    assert code == 0
    assert "dry run: nothing was started" in printed
    assert not list(tmp_path.iterdir())


def hydra_file(directory: Path, name: str) -> object:
    return yaml.safe_load((directory / ".hydra" / f"{name}.yaml").read_text())


def test_each_run_has_its_own_record_and_the_same_command_again_only_does_what_is_missing(cache: Path, tmp_path: Path) -> None:
    save = [f"save_dir={tmp_path}/out", f"cache_dir={cache}"]
    code, printed, _ = here("-m", *SHORT, *save, "k=4,8", "optimizer=adam,signum")
    assert code == 0
    assert "4 done" in printed
    (folder,) = (tmp_path / "out").iterdir()
    directories = runs(folder)
    assert len(directories) == 4
    for directory in directories.values():
        cfg = config(directory)
        swept = [f"{name}={cfg[name]}" for name in ("k", "optimizer")]
        alone = [*SHORT, f"save_dir={tmp_path}/alone", f"cache_dir={cache}", *swept]
        with hydra() as (loader, master):
            assert typed(loader.load_sweep_config(master, [*SHORT, *save, *swept, f"sweep_name={folder.name}"])) == typed(
                DictConfig(cfg)
            )
        assert hydra_file(directory, "overrides") == [*SHORT, *save, *swept]
        if cfg["k"] == 8 and cfg["optimizer"] == "signum":
            assert here(*alone)[0] == 0
            (single,) = runs(tmp_path / "alone").values()
            assert_equal(single, directory)
            mine, theirs = config(directory), config(single)
            assert list(mine) == list(theirs)
            assert {n for n in mine if mine[n] != theirs[n]} == {"save_dir", "sweep_name"}
            mine, theirs = hydra_file(directory, "hydra")["hydra"], hydra_file(single, "hydra")["hydra"]
            assert mine["runtime"] == theirs["runtime"] | {"output_dir": str(directory)}
            assert mine["job"]["num"] == 3
            assert {n for n in mine if mine[n] != theirs[n]} == {"job", "mode", "overrides", "runtime", "sweep"}
        assert run_name(typed(DictConfig(cfg))) == directory.name
        others = "\n".join(name for name in directories if name != directory.name)
        text = (directory / "train.log").read_text()
        assert text.count("'run': ") == 1
        assert directory.name in text
        assert not any(name in text for name in others.splitlines())
    manifest = json.loads((folder / "sweep.json").read_text())
    assert manifest["runs"].keys() == directories.keys()

    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    code, printed, _ = here("-m", *SHORT, *save, "k=4,8", "optimizer=adam,signum")
    assert (code, "4 runs (4 done)" in printed) == (0, True)
    code, printed, _ = here("-m", *SHORT, *save, "k=4,8,16", "optimizer=adam,signum")
    assert (code, "6 runs (4 done, 2 new)" in printed) == (0, True)
    assert list((tmp_path / "out").iterdir()) == [folder]
    assert states(folder) == ["done"] * 6
    after = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    assert {p.name for p, when in before.items() if after[p] != when} <= {"sweep.json", ".sweep.json.lock", ".lock"}
    assert json.loads((folder / "sweep.json").read_text())["runs"].keys() == runs(folder).keys()


def test_a_run_that_lives_or_that_another_command_took_is_left_to_it(cache: Path, tmp_path: Path) -> None:
    sweep_of = ["-m", *SHORT, "k=4,8", f"cache_dir={cache}", f"save_dir={tmp_path}", "sweep_name=s"]
    assert here(*sweep_of)[0] == 0
    alive = by(tmp_path, "k")[8]
    run = status.read(alive)
    run.state = status.State.running
    status.write(alive, run)
    with status.lock(alive):
        code, printed, _ = here(*sweep_of)
        assert code == 0
        assert "2 runs (1 done, 1 running)" in printed
    run.state = status.State.interrupted
    status.write(alive, run)
    real = engine.make_plan

    def late(*arguments: object, **options: object) -> object:  # the other command starts it once this one has begun
        lock.acquire()
        return real(*arguments, **options)

    lock = status.lock(alive)
    with patch.object(engine, "make_plan", late):
        code, printed, _ = here(*sweep_of)
    lock.release()
    assert code == 0
    assert "another process has just started this run" in printed


def test_a_search_gets_objectives_batch_by_batch_and_repeats_train_once(cache: Path, tmp_path: Path) -> None:
    base = [*SHORT, f"save_dir={tmp_path}", f"cache_dir={cache}", "objective=ce_loss_score"]
    results = []
    with hydra(*base, "k=choice(4,8)", "lr=1e-2,1e30") as (loader, master):
        master.hydra.sweeper._target_ = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"
        for first, batch in [(0, [("4", "1e-2"), ("8", "1e-2"), ("4", "1e-2")]), (3, [("8", "1e-2"), ("8", "1e30")])]:
            results += sweep.launch(loader, master, [[*base, f"k={k}", f"lr={lr}"] for k, lr in batch], first)
    assert [result.status for result in results] == [JobStatus.COMPLETED] * 4 + [JobStatus.FAILED]
    values = [result.return_value for result in results[:4]]
    assert values[0] == values[2] != values[1] == values[3]
    assert all(0 < value < 1 for value in values)
    with pytest.raises(sweep.RunFailed, match="diverged"):
        _ = results[4].return_value
    (folder,) = tmp_path.iterdir()
    assert sorted(states(folder)) == ["done", "done", "failed"]


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_each_run_of_a_sweep_is_one_run_at_the_tracker(cache: Path, tmp_path: Path, tracker: str) -> None:
    settings = [f"tracker={tracker}", "tracker_mode=offline", "project=mine", f"save_dir={tmp_path}/out", f"cache_dir={cache}"]
    code, printed, errors = here("-m", *SHORT, *settings, "k=4,8", "sweep_name=s")
    assert code == 0, printed + errors
    directories = runs(tmp_path / "out")
    assert len({json.loads((d / "tracker.json").read_text())["id"] for d in directories.values()}) == 2
    for directory in directories.values():
        journal = json.loads((directory / "tracker.json").read_text())
        assert list(journal["last_steps"].values()) == [16]
        if tracker == "wandb":
            (offline,) = (directory / "wandb").glob("offline-run-*")
            assert journal["id"] in offline.name
