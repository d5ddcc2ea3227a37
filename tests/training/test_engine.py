"""Whole runs on the bundled model: what lies in the run's directory, packs, repetition, stopping and going on."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from sparsify import Sae, SparseCoder, TrainConfig
from transformers import AutoConfig, AutoModel

from helpers import forked
from helpers.device import DEVICE, ON_GPU, by_device
from helpers.short_runs import arguments, assert_same, interrupted, lines, short, weights
from sae_transcoder.config import Config, ConfigError, run_dir, signature
from sae_transcoder.evaluation import heldout
from sae_transcoder.language_model.forward import capture
from sae_transcoder.language_model.loading import DEMO, load
from sae_transcoder.preflight.plan import make_plan
from sae_transcoder.run_store import eval_file, status
from sae_transcoder.training import checkpoint, engine
from sae_transcoder.training.managed_run import ManagedRun

pytestmark = pytest.mark.device


@pytest.mark.parametrize(("model_type", "point"), [("sae", "layers.2"), ("transcoder", "layers.2.mlp")])
def test_sparsify_loads_the_result_and_reproduces_the_logged_fvu(cache: Path, tmp_path: Path, model_type: str, point: str) -> None:
    cfg = short(cache, tmp_path, f"model_type={model_type}", "k_decay_steps=4", "optimizer=signum")
    (result,) = engine.train([cfg])
    by_name = Sae.load_many(str(result.directory / "coders"), local=True)
    alone = SparseCoder.load_from_disk(result.directory / "coders" / point, DEVICE)
    assert list(by_name) == [point]
    read_back = TrainConfig.load_json(result.directory / "coders" / "config.json")
    assert (read_back.hookpoints, read_back.sae.k, read_back.optimizer) == ([point], 8, "signum")
    assert alone.cfg.k == 8
    planned = make_plan(Config(**vars(cfg) | {"save_dir": str(tmp_path / "other")}))
    model = load(cfg, DEVICE)
    error = square = 0.0
    targets = []
    for row in planned.tokens.heldout[:]:
        seen = capture(model, [point], torch.from_numpy(row)[None].to(DEVICE))[point]
        x, y = (t[0, 1:] for t in ((seen.input if model_type == "transcoder" else seen.output), seen.output))
        error += (y - alone(x=x, y=y).sae_out).double().pow(2).sum().item()
        targets.append(y.double())
    y = torch.cat(targets)
    square = (y - y.mean(0)).pow(2).sum().item()
    logged = lines(result.directory)[-1]
    assert logged["step"] == 16
    assert logged[f"heldout/fvu/{point}"] == pytest.approx(
        error / square,
        rel=by_device(cpu=1e-6, gpu=1e-2),  # there sparsify's forward is under autocast to bfloat16, evaluations are in float32
    )
    assert {c.coder: c.metrics["fvu"] for c in result.evaluation.coders} == {point: logged[f"heldout/fvu/{point}"]}


def test_a_run_of_the_command_line_leaves_its_record_and_done_runs_are_not_repeated(cache: Path, tmp_path: Path) -> None:
    cfg = short(cache, tmp_path)
    directory = run_dir(cfg)
    first = forked.run(arguments(cfg))
    assert first.returncode == 0, first.stderr
    assert "held-out FVU" in first.stdout
    assert "layers.2" in first.stdout
    assert "\x1b" not in first.stdout, "plain lines where there is no terminal"
    assert {p.name for p in directory.iterdir()} == {
        ".hydra",
        ".lock",
        "best",
        "coders",
        "eval.json",
        "data.json",
        "feature_density.npz",
        "metrics.jsonl",
        "status.json",
        "train.log",
    }
    status = json.loads((directory / "status.json").read_text())
    assert (status["state"], status["step"], status["total"], status["signature"]) == ("done", 16, 16, signature(cfg))
    assert yaml.safe_load((directory / ".hydra" / "config.yaml").read_text())["k"] == 8
    assert [line["step"] for line in lines(directory)] == [5, 10, 15, 16]
    before = {p: p.stat().st_mtime_ns for p in directory.rglob("*")}
    again = forked.run([*arguments(cfg), "log_every=7"])
    assert again.returncode == 0
    assert "already done" in again.stdout
    assert {p: p.stat().st_mtime_ns for p in directory.rglob("*")} == before
    other = forked.run([*arguments(cfg), "k=9", f"run_name={directory.name}"])
    assert other.returncode == 1
    assert "holds a run of other settings" in other.stderr
    assert "(k: 8 there, 9 here)" in other.stderr
    assert {p: p.stat().st_mtime_ns for p in directory.rglob("*")} == before


@pytest.mark.slow
@pytest.mark.usefixtures("one_by_one")
def test_a_run_in_a_pack_is_identical_to_itself_alone(cache: Path, tmp_path: Path) -> None:
    variants = [
        ["k=4"],
        ["model_type=transcoder", "layers=[1,4]", "optimizer=muon"],
        ["grad_acc_steps=3", "max_steps=4"],
        ["optimizer=signum"],
    ]
    together = [short(cache, tmp_path / "pack", *v) for v in variants]
    engine.train(together)
    for variant, packed in zip(variants, together, strict=True):
        alone = short(cache, tmp_path / "alone", *variant)
        engine.train([alone])
        assert_same(run_dir(packed), run_dir(alone))


@pytest.mark.skipif(not ON_GPU, reason="on a CPU every test has its defaults")
def test_a_run_with_a_gpus_defaults_ends_near_one_in_float32(cache: Path, tmp_path: Path) -> None:
    """bfloat16 weights, compiled layers, kernels that sum in any order."""
    exact = short(cache, tmp_path / "exact", "max_samples=256")
    usual = short(cache, tmp_path / "usual", "max_samples=256", "dtype=null", "deterministic=false")
    torch.use_deterministic_algorithms(False)
    (fast,), (slow,) = engine.train([usual]), engine.train([exact])
    assert fast.evaluation.mean()["fvu"] == pytest.approx(slow.evaluation.mean()["fvu"], rel=0.05)


def test_runs_of_different_batches_are_refused_as_a_pack(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size=4, 8"):
        engine.train([short(cache, tmp_path), short(cache, tmp_path, "batch_size=8", "max_samples=64")])


@pytest.fixture(scope="module")
def undisturbed(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of 64 steps that nothing stopped."""
    cfg = short(cache, tmp_path_factory.mktemp("undisturbed"), "max_samples=256")
    engine.train([cfg])
    return run_dir(cfg)


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM, pytest.param(signal.SIGUSR2, marks=pytest.mark.slow)],
)
def test_a_signal_saves_the_state_and_the_same_command_goes_on_bit_for_bit(
    cache: Path, tmp_path: Path, undisturbed: Path, number: int
) -> None:
    cfg = short(cache, tmp_path, "max_samples=256")
    process = forked.start(arguments(cfg))
    metrics = run_dir(cfg) / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    status = json.loads((run_dir(cfg) / "status.json").read_text())
    assert status["state"] == "interrupted"
    assert 10 <= status["step"] < 64
    done = forked.run(arguments(cfg))
    assert done.returncode == 0, done.stderr
    assert f"continues after step {status['step']}" in done.stdout
    assert_same(undisturbed, run_dir(cfg))
    assert not (run_dir(cfg) / "resume").exists()


def test_best_holds_the_coder_of_the_lowest_heldout_fvu(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.5, 0.3, 0.4, 0.6])
    monkeypatch.setattr(heldout.EvalResult, "loss", lambda self, _: dict.fromkeys(self.coders, next(scores)))
    cfg = short(cache, tmp_path, "save_every=4", "keep_every=4")
    engine.train([cfg])
    kept = {p.name: weights(p) for p in (run_dir(cfg) / "snapshots").iterdir()}
    assert sorted(kept) == [f"step{s}_tokens{s * 128}" for s in (12, 16, 4, 8)]
    best = weights(run_dir(cfg) / "best")
    assert all(torch.equal(best[name], value) for name, value in kept["step8_tokens1024"].items())
    assert Sae.load_many(str(run_dir(cfg) / "best"), local=True).keys() == {"layers.2"}
    for folder in (run_dir(cfg) / "snapshots").iterdir():
        assert Sae.load_many(str(folder), local=True)["layers.2"].cfg.k == 8


def test_a_run_is_evaluated_every_so_often_and_at_its_end(cache: Path, tmp_path: Path) -> None:
    cfgs = [short(cache, tmp_path, "layers=[1,3]", "eval_every=6"), short(cache, tmp_path, "save_every=4", "k=4")]
    results = engine.train(cfgs)
    for result, evaluated in zip(results, ([6, 12, 16], [16]), strict=True):
        point = result.evaluation.coders[0].coder
        rows = lines(result.directory)
        assert [row["step"] for row in rows if f"heldout/ce_loss_score/{point}" in row] == evaluated
        kept = eval_file.read(result.directory)
        assert kept == result.evaluation
        assert (kept.step, kept.tokens, kept.config["eval_samples"]) == (16, 64 * 32, 4)
        assert {f"heldout/{name}/{point}": kept.coders[0].metrics[name] for name in eval_file.NAMES}.items() <= rows[-1].items()
        assert eval_file.read_densities(result.directory).keys() == {c.coder for c in kept.coders}
    assert rows[0].keys() & {"heldout/fvu/layers.2", "heldout/ce_loss_score/layers.2"} == {"heldout/fvu/layers.2"}
    assert "heldout/ce_loss_score/together" in lines(results[0].directory)[-1]


def test_a_model_saved_without_its_head_is_evaluated_without_it(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "headless"
    shutil.copytree(DEMO, folder)
    (folder / "model.safetensors").unlink()
    config = AutoConfig.from_pretrained(DEMO)
    config.tie_word_embeddings = False
    AutoModel.from_config(config).save_pretrained(folder)
    (result,) = engine.train([short(cache, tmp_path, f"model_name={folder}")])
    assert "fvu" in result.evaluation.mean()
    assert "ce_loss_score" not in result.evaluation.mean(), "a head of random numbers predicts nothing"
    with pytest.raises(ConfigError, match=r"loss_fn=ce with model_name=.*: its weights lack lm_head.weight"):
        engine.train([short(cache, tmp_path, f"model_name={folder}", "loss_fn=ce")])


def test_several_seeds_lie_in_folders_that_load_many_reads(cache: Path, tmp_path: Path) -> None:
    cfg = short(cache, tmp_path, "init_seeds=[1,2]", "layers=[1,2]")
    engine.train([cfg])
    for seed in (1, 2):
        assert list(Sae.load_many(str(run_dir(cfg) / "coders" / f"seed{seed}"), local=True)) == ["layers.1", "layers.2"]
    assert {name for name in lines(run_dir(cfg))[-1] if name.startswith("heldout/fvu/")} == {
        f"heldout/fvu/layers.{i}/seed{s}" for i in (1, 2) for s in (1, 2)
    }


def test_a_truncated_or_foreign_state_is_refused_with_its_path_and_the_fix(cache: Path, tmp_path: Path) -> None:
    cfg = short(cache, tmp_path, "save_every=4")
    path = interrupted(cfg)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"not a state"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=f"{path}: truncated, or no training state.*remove {path.parent}"):
            engine.train([cfg])
    other = short(cache, tmp_path, "save_every=4", "k=7")
    foreign = interrupted(other)
    path.write_bytes(foreign.read_bytes())
    with pytest.raises(ConfigError, match="of a run with other settings"):
        engine.train([cfg])


def test_resume_never_refuses_a_directory_that_holds_a_run_and_deletes_nothing(cache: Path, tmp_path: Path) -> None:
    cfg = short(cache, tmp_path, "save_every=4")
    path = interrupted(cfg)
    never = Config(**vars(cfg) | {"resume": "never"})
    with pytest.raises(ConfigError, match="resume=never"):
        engine.train([never])
    assert path.exists()


def test_going_on_at_another_thread_count_warns_and_with_another_dtype_is_refused(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    cfg = short(cache, tmp_path, "save_every=4")
    path = interrupted(cfg)
    state = torch.load(path, weights_only=True)
    torch.save(state | {"settings": state["settings"] | {"dtype": "torch.bfloat16"}}, path)
    with pytest.raises(ConfigError, match=r"begun with torch.bfloat16"):
        engine.train([cfg])
    torch.save(state, path)
    engine.train([Config(**vars(cfg) | {"threads": 2})])
    assert "threads=2, the run was begun with threads=1" in capsys.readouterr().out


def test_a_failure_is_told_in_status_json_and_the_same_command_tries_again(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = short(cache, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(heldout, "measure", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.train([cfg])
    status = json.loads((run_dir(cfg) / "status.json").read_text())
    assert (status["state"], status["why"]) == ("failed", "ZeroDivisionError: division by zero")
    engine.train([cfg])
    assert json.loads((run_dir(cfg) / "status.json").read_text())["state"] == "done"


def test_a_run_killed_before_its_first_status_starts_again(cache: Path, tmp_path: Path) -> None:
    cfg = short(cache, tmp_path)
    for name in (".hydra", "train.log", ".lock", ".status.json.new"):
        (run_dir(cfg) / name).mkdir(parents=True) if name == ".hydra" else (run_dir(cfg) / name).touch()
    engine.train([cfg])


def test_a_run_that_lives_is_not_started_a_second_time(cache: Path, tmp_path: Path) -> None:
    cfg = short(cache, tmp_path)
    directory = run_dir(cfg)
    directory.mkdir(parents=True)
    alive = {"state": "running", "signature": signature(cfg), "step": 3, "total": 16, "pid": os.getpid()}
    (directory / "status.json").write_text(json.dumps(alive))
    with status.lock(directory):
        done = forked.run(arguments(cfg))
    assert done.returncode == 0
    assert f"runs now (process {os.getpid()}" in done.stdout
    assert {p.name for p in directory.iterdir()} == {"status.json", ".lock"}
    with status.lock(directory), pytest.raises(ConfigError, match="another process has just started this run"):
        engine.train([cfg])
    engine.train([cfg])  # the process that the status names no longer holds the lock
    assert status.read(directory).state == "done"


def test_the_others_of_a_pack_go_on_where_one_fails_or_cannot_go_on(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = short(cache, tmp_path, "max_steps=4"), short(cache, tmp_path, "k=9")
    real = ManagedRun.after_step

    def fails(self: ManagedRun, *args: object) -> None:
        if self.cfg is second and self.trainer.step == 6:
            raise RuntimeError("boom")
        real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(ManagedRun, "after_step", fails)
        with pytest.raises(RuntimeError, match="boom"):
            engine.train([first, second])
    assert [status.read(run_dir(cfg)).state for cfg in (first, second)] == ["done", "failed"]

    broken = short(cache, tmp_path, "k=10")
    checkpoint.state_path(run_dir(broken)).parent.mkdir(parents=True)
    checkpoint.state_path(run_dir(broken)).write_bytes(b"torn")
    status.write(run_dir(broken), status.Status(status.State.interrupted, signature(broken)))
    whole = short(cache, tmp_path, "k=11")
    outcomes = engine.train_pack([whole, broken])
    assert isinstance(outcomes[0], engine.TrainedRun)
    assert isinstance(outcomes[1], ConfigError)
    assert "truncated" in str(outcomes[1])
    assert [status.read(run_dir(cfg)).state for cfg in (whole, broken)] == ["done", "interrupted"]
    with pytest.raises(ConfigError, match="truncated"):
        engine.train([broken])


def test_with_corrections_off_batches_that_make_no_step_do_not_lose_the_run(cache: Path, tmp_path: Path) -> None:
    cfg = short(cache, tmp_path, "corrections=false", "grad_acc_steps=3")
    engine.train([cfg])
    assert lines(run_dir(cfg))[-1]["step"] == 5
    assert weights(run_dir(cfg) / "coders")


def test_tokens_that_changed_since_the_stop_are_refused(cache: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    text = " ".join(f"word{i}" for i in range(6000))
    corpus.write_text(text)
    cfg = short(cache, tmp_path / "runs", "save_every=4", "dataset=local_text", f"dataset_name={corpus}")
    interrupted(cfg)
    corpus.write_text(text.replace("word", "other"))
    with pytest.raises(ConfigError, match="its tokens are not those"):
        engine.train([cfg])


@pytest.mark.parametrize("kind", ["local_text", "hub", "pretokenized", "memmap"])
def test_every_kind_of_data_goes_on_where_it_stopped(cache: Path, tmp_path: Path, kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 4096, (300, 32), generator=generator)
    folder = tmp_path / "data"
    folder.mkdir()
    if kind == "memmap":
        ids.numpy().astype("uint16").tofile(folder / "ids.bin")
    else:
        rows = [{"input_ids": row} if kind == "pretokenized" else {"text": " ".join(map(str, row))} for row in ids.tolist()]
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    name = folder / {"memmap": "ids.bin", "hub": ""}.get(kind, "train.jsonl")
    settings = [f"dataset={kind}", f"dataset_name={name}", "save_every=6", *(["tokens_dtype=uint16"] if kind == "memmap" else [])]
    undisturbed, cfg = (short(cache, tmp_path / name, *settings) for name in ("a", "b"))
    engine.train([undisturbed])
    interrupted(cfg)
    engine.train([cfg])
    assert_same(run_dir(undisturbed), run_dir(cfg))
