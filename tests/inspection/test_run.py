"""load_run: a run from its directory alone, its files, and what its language model and coders do on a text."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.device import DEVICE, ON_DEVICE, ON_GPU, by_device
from helpers.pages import PYTHON
from helpers.run_directory_page import undocumented
from helpers.short_runs import lines
from helpers.sweeps import SHORT
from sae_transcoder.api import Run, load_coders, load_config, load_run, train
from sae_transcoder.config import ConfigError
from sae_transcoder.language_model.loading import DEMO
from sae_transcoder.run_store import eval_file, status
from sae_transcoder.run_store.status import State

pytestmark = pytest.mark.device
TEXT = "import os, sys\n\nclass A:\n    def run(self): <|endoftext|>"


@pytest.fixture(scope="module")
def run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Transcoders on two layers, trained behind a begin token that does not count, as loaded from their directory."""
    settings = ["model_type=transcoder", "layers=[1,2]", "k=4", "prepend_bos=true", "exclude_first_tokens=1", "keep_every=8"]
    cfg = load_config(*SHORT, *settings, f"save_dir={tmp_path_factory.mktemp('runs')}", f"cache_dir={cache}", "run_name=run")
    return load_run(train(cfg).directory)


def test_all_that_is_in_its_directory_can_be_read(run: Run) -> None:
    directory = run.directory
    assert (run.state, run.status.step, run.config.k) == (State.done, 16, 4)
    assert run.evaluation == eval_file.read(directory)
    assert [row["step"] for row in run.metrics] == [row["step"] for row in lines(directory)]
    assert run.metrics[0].keys() == lines(directory)[0].keys()
    assert list(run.coders) == ["layers.1.mlp", "layers.2.mlp"]
    assert run.coders["layers.1.mlp"].W_dec.equal(load_coders(directory / "coders")["layers.1.mlp"].W_dec)
    assert run.other_evaluations == {}
    assert "run.py" not in repr(run)
    early = load_run(directory / "snapshots" / "step8_tokens1024")
    assert early.evaluation is None
    assert not early.coders["layers.1.mlp"].W_dec.equal(run.coders["layers.1.mlp"].W_dec)
    assert load_run(directory / "coders").evaluation == run.evaluation
    assert undocumented(directory) == []


def test_latents_on_a_text_equal_those_of_the_model_and_the_coder_written_out(run: Run) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    # The special token inside the text is text, as in training.
    ids = [tokenizer.bos_token_id, *tokenizer(TEXT, add_special_tokens=False, split_special_tokens=True)["input_ids"]]
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()
    seen: dict[str, torch.Tensor] = {}
    module = model.model.layers[2].mlp
    module.register_forward_hook(lambda module, args, result: seen.update(input=args[0][0], output=result[0]))
    with torch.no_grad():
        model(torch.tensor([ids]))
    (captured,) = run.capture(TEXT)
    assert captured.ids == ids
    assert "".join(captured.tokens[1:]) == TEXT
    near = by_device(cpu=1e-4, gpu=5e-2)  # a run's products are in TF32 there, which keeps 10 bits: 0.026 apart on an H100
    for ours, own in ((captured.inputs, seen["input"]), (captured.outputs, seen["output"])):
        torch.testing.assert_close(ours["layers.2.mlp"].float(), own, atol=near, rtol=near)

    first, *tokens = run.latents(TEXT)["layers.2.mlp"]
    assert (first.counts, first.latents, first.id) == (False, [], tokenizer.bos_token_id)
    assert [token.id for token in tokens] == ids[1:]
    coder = run.coders["layers.2.mlp"]
    rounding = by_device(cpu=1e-4, gpu=5e-2)  # coders' products are in bfloat16 there, which keeps 8 bits
    acts = (seen["input"] @ coder.encoder.weight.T + coder.encoder.bias).relu()
    for token, own in zip(tokens, acts[1:], strict=True):
        values, latents = own.topk(4)
        assert token.counts
        assert ON_GPU or token.latents == latents[values > 0].tolist()  # where values are near each other rounding decides
        assert token.activations == pytest.approx(values[values > 0].tolist(), rel=rounding)
        assert token.activations == pytest.approx(own[token.latents].tolist(), rel=rounding)


def test_each_text_is_read_by_itself_and_the_model_is_loaded_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.capture("a")
    monkeypatch.setattr("sae_transcoder.language_model.loading.load", None)
    short_text, long_text = run.capture(["x = 1", "def f(x):\n    return x"])
    assert len(short_text.ids) < len(long_text.ids)
    assert run.capture("x = 1")[0].outputs["layers.1.mlp"].equal(short_text.outputs["layers.1.mlp"])


@pytest.mark.parametrize(
    ("text", "part"),
    [("", "a text without tokens"), ("a b " * 40, r"has 8\d tokens.*max_seq_length=32; give it in pieces"), (["a"], "list: a text is")],
)  # fmt: skip
def test_texts_that_no_sequence_holds_are_refused(run: Run, text: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        run.latents(text)


def test_a_run_that_was_interrupted_is_loaded_and_says_that_it_has_no_coders_yet(run: Run, tmp_path: Path) -> None:
    begun = load_run(shutil.copytree(run.directory, tmp_path / "begun"))
    shutil.rmtree(begun.directory / "coders")
    (begun.directory / "eval.json").unlink()
    status.write(begun.directory, replace(run.status, state=State.interrupted, step=3))
    assert begun.state == State.interrupted
    assert begun.evaluation is None
    with pytest.raises(ConfigError, match=r"no coders yet, the run is interrupted at step 3 of 16 .*save_every=1000"):
        begun.latents("a")
    assert begun.capture("a")[0].outputs["layers.2.mlp"].shape == (2, 256)


def test_what_is_missing_is_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, part in [
        (tmp_path / "nowhere", "no such folder"),
        (tmp_path, "is no run, it lacks status.json"),
        (run.directory.parent, "is a folder of 1 runs, such as"),
        (run.directory / "snapshots", "holds no coders; give the directory of the run"),
    ]:
        with pytest.raises(ConfigError, match=part):
            load_run(path)
    for override, part in [("k=5", "k is not read"), ("devise=cpu", "did you mean device")]:
        with pytest.raises(ConfigError, match=part):
            load_run(run.directory, override)
    with pytest.raises(ConfigError, match=r"model_name=/nowhere: its .* cannot be loaded"):
        load_run(run.directory, "model_name=/nowhere").latents("a")
    shutil.copytree(DEMO, tmp_path / "moved")
    moved = load_run(run.directory, f"model_name={tmp_path / 'moved'}", *ON_DEVICE)
    assert moved.latents("a b") == run.latents("a b")
    assert moved._reader.model.device.type == DEVICE.type
    (run.directory / "status.json").rename(tmp_path / "status.json")
    with pytest.raises(ConfigError, match=r"has no status.json any more"):
        print(run.state)
    (tmp_path / "status.json").rename(run.directory / "status.json")


def test_the_examples_of_the_pages_run(
    run: Run, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(run.directory, tmp_path / "outputs" / "my_run")
    monkeypatch.chdir(tmp_path)
    short = ", ".join(map(repr, [*SHORT, f"cache_dir={cache}"]))
    for example in [block for block in PYTHON if 'load_run("outputs/my_run")' in block]:
        exec(example.replace("layers.2", "layers.2.mlp").replace('"experiment=demo"', short), {})
    printed = capsys.readouterr().out
    assert re.search(r"^ os \[\d+", printed, re.MULTILINE)
