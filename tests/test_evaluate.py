"""sae-eval: runs, sparsify's folders and hub ids, with the numbers of the run itself; what is refused."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from sparsify import SparseCoder

from helpers.device import ON_DEVICE
from helpers.run_directory_page import undocumented
from helpers.short_runs import short
from sae_transcoder import evaluate as command
from sae_transcoder.config import run_dir
from sae_transcoder.evaluation import heldout
from sae_transcoder.run_store import eval_file, run_records
from sae_transcoder.run_store.eval_file import Evaluation
from sae_transcoder.training import engine

pytestmark = pytest.mark.device

USUAL = [
    "model=demo",
    "dataset=demo",
    "max_seq_length=32",
    "eval_samples=16",
    "exclude_first_tokens=1",
    "batch_size=4",
    "threads=1",
    *ON_DEVICE,
]


@pytest.fixture(scope="module")
def trained(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of the command line: transcoders on two layers, with snapshots."""
    folder = tmp_path_factory.mktemp("runs")
    cfg = short(cache, folder, "model_type=transcoder", "layers=[1,2]", "run_name=base", "keep_every=8", "eval_samples=16")
    engine.train([cfg])
    # As Hydra writes it; engine.train alone leaves it to its caller.
    (run_dir(cfg) / ".hydra").mkdir()
    (run_dir(cfg) / ".hydra" / "config.yaml").write_text(json.dumps(vars(cfg)))
    return run_dir(cfg)


def refused(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """What `sae-eval ARGUMENTS` prints on its way to exit code 1."""
    monkeypatch.setattr(sys, "argv", ["sae-eval", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 1
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    return printed


def evaluate(path: object, overrides: Sequence[str] = (), output: Path | None = None) -> Evaluation:
    """The evaluation of one run."""
    (evaluation,) = command.evaluate([str(path)], overrides, output)
    return evaluation


def numbers(evaluation: Evaluation) -> dict:
    return {c.coder: dict(c.metrics) for c in evaluation.coders}


def test_a_run_gets_the_numbers_of_its_own_end(trained: Path, capsys: pytest.CaptureFixture) -> None:
    before = (trained / "eval.json").read_text()
    evaluation = evaluate(str(trained))
    after = json.loads((trained / "eval.json").read_text())
    assert after.pop("eval_id") != json.loads(before)["eval_id"]
    same = ("eval_result_metrics", "eval_config", "eval_result_unstructured")
    assert {name: after[name] for name in same} == {name: json.loads(before)[name] for name in same}
    assert evaluation.step == 16
    shown = capsys.readouterr().out
    assert f"{evaluation.coders[0].metrics['fvu']:.4f}" in shown
    assert "together: 2" in shown
    assert str(trained / "eval.json") in shown


def test_snapshots_best_and_a_single_coder_are_measured_where_they_lie(trained: Path, tmp_path: Path) -> None:
    early, late = (evaluate(str(trained / "snapshots" / f"step{s}_tokens{s * 128}")) for s in (8, 16))
    assert (early.step, early.tokens) == (8, 1024)
    assert early.mean()["fvu"] > late.mean()["fvu"]
    assert numbers(late) == numbers(eval_file.read(trained))
    assert eval_file.read(trained / "snapshots" / "step8_tokens1024") == early
    best = evaluate(str(trained / "best"), output=tmp_path / "here")
    assert (tmp_path / "here" / "eval.json").is_file()
    assert not (trained / "best" / "eval.json").exists()
    one = evaluate(str(trained / "best" / "layers.2.mlp"), output=tmp_path / "one")
    assert numbers(one) == {"layers.2.mlp": numbers(best)["layers.2.mlp"]}


def test_overrides_measure_something_else_and_leave_the_runs_own_file_alone(trained: Path, tmp_path: Path) -> None:
    before = (trained / "eval.json").read_bytes()
    (tmp_path / "other.txt").write_text("once upon a time there was a language model " * 200)
    few = evaluate(str(trained), ["eval_samples=8", "layers=[2]", f"save_dir={tmp_path}"])
    other = evaluate(
        str(trained), ["dataset=local_text", f"dataset_name={tmp_path}/other.txt", "eval_samples=4", f"save_dir={tmp_path}"]
    )
    assert (trained / "eval.json").read_bytes() == before
    assert [c.coder for c in few.coders] == ["layers.2.mlp"]
    assert few.coders[0].metrics["total_tokens_eval_sparsity_variance"] == 8 * 31
    assert other.config["dataset_kind"] == "local_text"
    assert len(list((tmp_path / "evals").glob("base-*/eval.json"))) == 2
    assert evaluate(str(trained), ["eval_end_to_end=false", f"save_dir={tmp_path}"]).mean().keys() & {"ce_loss_score", "fvu"} == {
        "fvu"
    }


@pytest.fixture
def sweep(trained: Path, tmp_path: Path) -> Path:
    """A folder of the run, of another with the coders that it had half way and fewer positions, and of one without coders yet."""
    for name in ("late", "early", "begun"):
        shutil.copytree(trained, tmp_path / "sweep" / name)
    early = tmp_path / "sweep" / "early"
    shutil.rmtree(early / "coders")
    shutil.copytree(trained / "snapshots" / "step8_tokens1024", early / "coders")
    config = json.loads((early / ".hydra" / "config.yaml").read_text())
    (early / ".hydra" / "config.yaml").write_text(json.dumps(config | {"exclude_first_tokens": 3, "k": 7}))
    shutil.rmtree(tmp_path / "sweep" / "begun" / "coders")
    return tmp_path / "sweep"


def test_a_folder_of_runs_is_measured_on_one_forward_and_each_as_by_itself(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other.txt").write_text("once upon a time there was a language model " * 200)
    other = ["dataset=local_text", f"dataset_name={tmp_path}/other.txt", "eval_samples=4"]
    own = {name: (sweep / name / "eval.json").read_bytes() for name in ("late", "early")}
    forwards = []
    capture = heldout.capture
    monkeypatch.setattr(heldout, "capture", lambda *arguments: forwards.append(1) or capture(*arguments))
    together = command.evaluate([str(sweep), f"{sweep}/late/"], other)
    assert len(forwards) == 1
    printed = capsys.readouterr()
    assert "note: " in printed.err
    assert "1 of its 3 runs has no coders yet; left out" in printed.err
    assert [name in printed.out for name in ("early", "late", "begun")] == [True, True, False]
    for name, evaluation in zip(("early", "late"), together, strict=True):
        (kept,) = (sweep / name / "evals" / "coders").glob("other.txt-*/eval.json")
        assert eval_file.read(kept.parent) == evaluation
        assert numbers(evaluate(sweep / name, other, tmp_path / "alone")) == numbers(evaluation)
        assert (sweep / name / "eval.json").read_bytes() == own[name]
    assert together[0].mean()["frac_tokens_excluded"] > together[1].mean()["frac_tokens_excluded"]
    evaluate(sweep / "late", ["threads=1"])  # measures what the run itself did
    assert (sweep / "late" / "eval.json").read_bytes() != own["late"]
    (record,) = run_records.read_all([sweep / "late"], pytest.fail)
    assert record.others["other.txt"].evaluation == together[1]
    assert undocumented(sweep) == []


def test_where_memory_does_not_suffice_for_all_runs_they_are_measured_in_halves(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, sizes = heldout.measure, []

    def limited(model: object, runs: list, *arguments: object, **settings: object) -> list:
        sizes.append(len(runs))
        if len(runs) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return measure(model, runs, *arguments, **settings)

    monkeypatch.setattr(heldout, "measure", limited)
    early, late = command.evaluate([str(sweep)], ["eval_samples=4", "eval_end_to_end=false"])
    assert sizes == [2, 1, 1]
    assert early.mean()["fvu"] > late.mean()["fvu"]


def test_several_runs_have_no_common_output(capsys, monkeypatch, sweep: Path, tmp_path: Path) -> None:
    assert "--output" in refused(capsys, monkeypatch, sweep, "--output", tmp_path / "x")
    assert "no coders: give the directory of a run" in refused(capsys, monkeypatch, "eval_samples=3")
    shutil.rmtree(sweep / "late")
    shutil.rmtree(sweep / "early")
    assert "none of its 1 runs has coders yet" in refused(capsys, monkeypatch, sweep)


def test_sparsifys_own_folder_and_a_hub_id_are_measured_alike(
    cache: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = tmp_path / "plain"
    for coder in (trained / "coders").glob("*/"):
        SparseCoder.load_from_disk(coder).save_to_disk(plain / coder.name)
    kept = {"model": "demo", "dataset": "anybody/anything", "split": "train", "ctx_len": 32, "exclude_tokens": []}
    (plain / "config.json").write_text(json.dumps(kept))  # the names of sparsify's command line
    settings = [o for o in USUAL if not o.startswith(("model=", "max_seq_length="))]
    settings += [f"cache_dir={cache}", f"save_dir={tmp_path / 'outputs'}"]
    expected = numbers(evaluate(str(trained), output=tmp_path / "x"))
    assert numbers(evaluate(str(plain), settings)) == expected

    # A hub id, as it lies in the hub's cache.
    hub = tmp_path / "hub" / "models--somebody--coders"
    shutil.copytree(plain, hub / "snapshots" / "0123456789abcdef0123456789abcdef01234567")
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("0123456789abcdef0123456789abcdef01234567")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    evaluate("somebody/coders", settings)
    (file,) = (tmp_path / "outputs" / "evals").glob("coders-*/eval.json")
    assert numbers(eval_file.read(file.parent)) == expected


def test_what_an_evaluation_does_not_read_and_what_is_misspelt_is_refused(capsys, monkeypatch, trained: Path) -> None:
    message = refused(capsys, monkeypatch, trained, "k=4", "eval_sample=3", "lr=1")
    assert "k=4: k is not read" in message
    assert "eval_sample=3: there is no field eval_sample here; did you mean eval_samples" in message
    assert message.count("error: ") == 3
    assert "eval_samples=0: must be at least 1" in refused(capsys, monkeypatch, trained, "eval_samples=0")
    assert "no coders for layers.3.mlp; it holds layers.1.mlp, layers.2.mlp" in refused(capsys, monkeypatch, trained, "layers=[3]")


def test_folders_without_coders_and_damaged_ones_are_refused(capsys, monkeypatch, trained: Path, tmp_path: Path) -> None:
    assert "no such folder" in refused(capsys, monkeypatch, "/nowhere/run")
    assert "neither a folder nor to be had from the hub" in refused(capsys, monkeypatch, "nobody/nothing")
    assert "holds no coders" in refused(capsys, monkeypatch, tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(trained / "coders", copy)
    assert "model_name is not known from the coders' files: add model=CHOICE" in refused(capsys, monkeypatch, copy)
    (copy / "layers.2.mlp" / "sae.safetensors").write_bytes(b"torn")
    message = refused(capsys, monkeypatch, copy, *USUAL, "--output", tmp_path / "out")
    assert f"{copy}/layers.2.mlp: cannot be read" in message
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / ".hydra" / "config.yaml").write_text("k: [1,")
    assert ".hydra/config.yaml: cannot be read" in refused(capsys, monkeypatch, tmp_path / "run")
    assert "--output=/proc/x: cannot be written to" in refused(capsys, monkeypatch, trained, "--output", "/proc/x")


def test_a_gpu_that_fails_ends_an_evaluation_with_one_message(capsys, monkeypatch, trained: Path, tmp_path: Path) -> None:
    def fails(*_: object, **__: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(heldout, "measure", fails)
    message = refused(capsys, monkeypatch, trained, "--output", tmp_path)
    assert (
        "the GPU failed (AcceleratorError: CUDA error: an illegal memory access was encountered); start the command again"
        in message
    )


def test_coders_of_another_model_are_refused(
    capsys, monkeypatch, trained: Path, tmp_path: Path, tiny_folder: dict[str, Path]
) -> None:
    settings = [o for o in USUAL if o != "model=demo"]
    where = ["--output", tmp_path]
    llama, gpt2 = (f"model_name={tiny_folder[family]}" for family in ("llama", "gpt2"))
    assert "a coder of width 256, layers.1.mlp of model_name=" in refused(capsys, monkeypatch, trained, llama, *settings, *where)
    message = refused(capsys, monkeypatch, trained, gpt2, *settings, *where)
    assert "coders on layers.1.mlp, layers.2.mlp, which model_name=" in message
    assert "it has wte, wpe, drop, h, h.*" in message


def test_sequences_that_may_have_been_trained_on_are_refused(cache, capsys, monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n".join(f"{i} plus {i} is {2 * i}, and that is all" for i in range(2000)))
    settings = ["dataset=local_text", f"dataset_name={tmp_path}/text.txt", "run_name=own"]
    cfg = short(cache, tmp_path / "runs", *settings)
    engine.train([cfg])
    (run_dir(cfg) / ".hydra").mkdir()
    (run_dir(cfg) / ".hydra" / "config.yaml").write_text(json.dumps(vars(cfg)))
    for change in ("eval_samples=17", "max_seq_length=16", "shuffle_seed=1"):
        message = refused(capsys, monkeypatch, run_dir(cfg), change)
        assert f"{change} (in training" in message
        assert "set eval_split or another dataset" in message
    assert evaluate(str(run_dir(cfg)), ["eval_samples=4", f"save_dir={tmp_path}"])
