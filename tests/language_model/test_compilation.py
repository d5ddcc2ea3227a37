"""The language model's layers under torch.compile: what they give, how often they are compiled, whether at all, and where that fails."""

import logging
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, Gemma3TextConfig, PreTrainedModel

from helpers.device import DEVICE
from helpers.short_runs import interrupted, short, weights
from helpers.tiny_models import TINY, tiny_causal_model, tiny_config, tiny_model
from sae_transcoder.config import Config, run_dir
from sae_transcoder.language_model import compilation, forward, layers
from sae_transcoder.run_store import status
from sae_transcoder.training import engine

pytestmark = pytest.mark.device
CPU, GPU = torch.device("cpu"), torch.device("cuda")
compiles = pytest.mark.needs("compiler")


@pytest.fixture(autouse=True)
def _nothing_compiled_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "FAILURES", {})
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile fails as where its compiler does."""

    def fails(*_: object, **__: object) -> None:
        raise OSError("no such compiler")

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", fails)


@pytest.fixture
def wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """compile_model=null compiles here, as it does on a GPU."""
    monkeypatch.setattr(layers, "automatic_obstacle", lambda *_: None)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile traces and guards, and leaves out the compiler."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


def graphs() -> int:
    """How often torch has compiled since the test began."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def deep(family: str, kind: type = AutoModel) -> PreTrainedModel:
    """A model of random weights and 30 layers; gemma3's are of two kinds."""
    own = dict(num_key_value_heads=2, head_dim=8, sliding_window=4, pad_token_id=0)
    usual = dict(vocab_size=256, hidden_size=32, intermediate_size=48, num_attention_heads=4, max_position_embeddings=64)
    config = Gemma3TextConfig(**usual, **own) if family == "gemma3" else TINY[family]()
    config.num_hidden_layers = 30
    if family == "gemma3":
        config.layer_types = ["sliding_attention", "full_attention"] * 15
    return kind.from_config(config).eval().requires_grad_(False).to(DEVICE)


def ids(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 12), generator=torch.Generator().manual_seed(count)).to(DEVICE)


@pytest.mark.slow
@compiles
def test_a_compiled_model_gives_what_the_model_gives(cache: Path, tmp_path: Path) -> None:
    settings = ["max_steps=4", "layers=[1]", "eval_samples=4"]
    plain, fast = (short(cache, tmp_path / name, *settings, f"compile_model={name}") for name in ("false", "true"))
    (one,), (other,) = engine.train([plain]), engine.train([fast])
    assert one.evaluation.mean()["fvu"] == pytest.approx(other.evaluation.mean()["fvu"], rel=1e-3)
    assert one.evaluation.mean()["ce_loss_with_sae"] == pytest.approx(other.evaluation.mean()["ce_loss_with_sae"], rel=1e-3)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(("family", "kinds"), [("llama", 1), ("gpt2", 1), ("neox", 1), ("gemma3", 2)])
def test_each_kind_of_layer_is_compiled_once_and_once_more_for_a_batch_of_one(family: str, kinds: int) -> None:
    model = deep(family)
    name, stack = layers.layer_stack(model)
    layers.compile_layers(model, [])
    last = [f"{name}.{len(stack) - 1}"]
    forward.capture(model, last, ids(4))
    assert graphs() == kinds
    for size in (4, 3, 7, 2, 4):  # a last batch that is not full, those of an evaluation, those of a forward_batch_size
        forward.capture(model, last, ids(size))
    assert graphs() == kinds
    for size in (1, 4, 1):
        forward.capture(model, last, ids(size))
    assert graphs() == 2 * kinds


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_kinds_of_layers_with_and_without_gradients_are_not_too_many_for_torch() -> None:
    model = deep("gemma3", AutoModelForCausalLM)
    layers.compile_layers(model, points := ["layers.4", "layers.9"])
    scale = torch.ones((), device=DEVICE, requires_grad=True)
    for size in (3, 1):
        forward.end_to_end_loss(model, ids(size), points, lambda _, seen: seen.output * scale, "kl").backward()
    counted = torch._dynamo.utils.counters["frames"]
    assert counted["ok"] == counted["total"] > 8, "by itself torch gives up after eight"


def test_layers_that_hold_a_hookpoint_are_not_compiled() -> None:
    model = tiny_model("llama")
    before = [layer.forward for layer in model.layers]
    layers.compile_layers(model, ["layers.1.mlp", "layers.2"])
    assert [layer.forward == own for layer, own in zip(model.layers, before, strict=True)] == [False, True, False, False]


@compiles
@pytest.mark.usefixtures("broken", "wanted")
def test_a_compilation_that_fails_is_told_once_and_the_run_goes_on_as_without(
    cache: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain, tried = (short(cache, tmp_path / name, "max_steps=3", f"compile_model={name}") for name in ("false", "null"))
    caplog.set_level(logging.INFO)  # as in sae-train
    engine.train([plain])
    engine.train([tried])
    (told,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    for part in ("compile_model=false", "BackendCompilerFailed", "no such compiler"):
        assert part in told
    assert "Traceback" in (run_dir(tried) / "train.log").read_text()
    one, other = (weights(run_dir(cfg) / "coders") for cfg in (plain, tried))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.usefixtures("broken")
def test_after_a_failure_no_layer_of_the_model_is_compiled() -> None:
    model, plain = tiny_model("llama"), tiny_model("llama")
    told: list[Exception] = []
    layers.compile_layers(model, [], told.append)
    for size in (2, 1):
        one, other = (forward.capture(m, ["layers.3"], ids(size))["layers.3"].output for m in (model, plain))
        assert torch.equal(one, other)
    assert len(told) == 1
    assert [layer.forward for layer in model.layers] == [type(layer).forward.__get__(layer) for layer in model.layers]


def test_a_python_that_torch_cannot_compile_is_a_failure_like_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(_: object) -> None:
        raise RuntimeError("torch.compile is not supported on Python 4")

    monkeypatch.setattr(torch, "compile", refuses)
    told: list[Exception] = []
    layers.compile_layers(tiny_model("llama"), [], told.append)
    assert [str(error) for error in told] == ["torch.compile is not supported on Python 4"]
    with pytest.raises(RuntimeError, match="Python 4"):
        layers.compile_layers(tiny_model("llama"), [])


@compiles
@pytest.mark.usefixtures("broken")
def test_a_compilation_that_was_asked_for_and_fails_is_the_runs_failure(cache: Path, tmp_path: Path) -> None:
    cfg = short(cache, tmp_path, "compile_model=true")
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="no such compiler"):
        engine.train([cfg])
    assert status.read(run_dir(cfg)).state == "failed"


@pytest.mark.usefixtures("broken")
def test_later_packs_of_the_process_do_not_try_again_and_say_why() -> None:
    cfg = tiny_config("sae", deterministic=False)
    compilation.FAILURES[cfg.model_name, cfg.revision] = "OSError: no such compiler"
    why = layers.compile_obstacle(cfg, tiny_causal_model("llama"), [], None, GPU)
    assert str(why) == "torch.compile failed before: OSError: no such compiler"


@pytest.mark.usefixtures("wanted", "traced")
def test_a_state_says_whether_layers_were_compiled_and_going_on_otherwise_warns(
    cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    cfg = short(cache, tmp_path, "save_every=4", "layers=[1]", "eval_end_to_end=false")
    kept = torch.load(interrupted(cfg), weights_only=True)["settings"]
    assert kept["compile_model"] is True, "null as it took effect"
    capsys.readouterr()
    engine.train([Config(**vars(cfg) | {"compile_model": False})])
    assert "compile_model=False, the run was begun with compile_model=True" in capsys.readouterr().out


@compiles
@pytest.mark.usefixtures("wanted", "broken")
def test_a_state_of_a_run_whose_compilation_failed_says_that_it_is_not_compiled(
    cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    cfg = short(cache, tmp_path, "save_every=4")
    assert torch.load(interrupted(cfg), weights_only=True)["settings"]["compile_model"] is False
    engine.train([Config(**vars(cfg) | {"compile_model": False})])
    assert "was begun with" not in capsys.readouterr().out


def test_a_state_without_the_setting_was_not_compiled(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cfg = short(cache, tmp_path, "save_every=4")
    path = interrupted(cfg)
    state = torch.load(path, weights_only=True)
    del state["settings"]["compile_model"]
    torch.save(state, path)
    engine.train([cfg])
    assert "was begun with" not in capsys.readouterr().out
