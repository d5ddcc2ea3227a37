"""Whether the language model's layers are compiled, and why not."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.command_line import composed
from helpers.short_runs import short
from helpers.tiny_models import tiny_config, tiny_model
from sae_transcoder.config import ConfigError
from sae_transcoder.language_model import compilation, layers
from sae_transcoder.preflight import header
from sae_transcoder.preflight.plan import make_plan

pytestmark = pytest.mark.device


CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _nothing_compiled_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "FAILURES", {})
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, None),
        ({"compile_model": True}, None),
        ({"compile_model": False}, "compile_model=false"),
        ({"deterministic": True}, "deterministic=true"),
        ({"deterministic": True, "compile_model": True}, None),
        ({"quantization": "nf4"}, "its weights are quantized"),
        ({"hookpoints": [f"layers.{i}.mlp" for i in range(4)]}, "a hookpoint lies inside each of its layers"),
    ],
    ids=str,
)
def test_a_gpu_compiles_by_itself_what_it_can(
    settings: dict[str, object], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, model = tiny_config("sae", **{"hookpoints": ["layers.1.mlp"], "deterministic": False} | settings), tiny_model("llama")
    monkeypatch.setattr(compilation, "machine_obstacle", lambda _: None)
    why = layers.compile_obstacle(cfg, model, cfg.hookpoints, None, GPU)
    assert why is None if reason is None else str(why).startswith(reason)


def test_a_gpu_compiles_nothing_where_the_layers_that_are_loaded_all_hold_hookpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, model = tiny_config("sae", deterministic=False), tiny_model("llama")
    monkeypatch.setattr(compilation, "machine_obstacle", lambda _: None)
    assert layers.compile_obstacle(cfg, model, ["layers.0.mlp", "layers.1.mlp"], 2, GPU) is not None
    assert layers.compile_obstacle(cfg, model, ["layers.0.mlp", "layers.1.mlp"], 3, GPU) is None


def test_a_cpu_compiles_only_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "machine_obstacle", lambda _: None)
    for asked, compiled in [(None, False), (False, False), (True, True)]:
        why = layers.compile_obstacle(tiny_config("sae", compile_model=asked), tiny_model("llama"), [], None, CPU)
        assert (why is None) == compiled


@pytest.mark.parametrize(
    ("lacks", "says"),
    [
        ("triton", "needs Triton, which is not installed; install triton"),
        ("gcc", "needs a C compiler, and there is no gcc or clang; install gcc"),
        ("Python.h", "needs Python's headers, which are not there; install python3-dev"),
        (None, None),
    ],
)
def test_what_a_machine_with_a_gpu_lacks_is_named_with_what_to_install(
    lacks: str | None, says: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Python.h").touch()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(compilation, "find_spec", lambda name: None if name == lacks else name)
    monkeypatch.setattr(compilation.shutil, "which", lambda name: None if lacks == "gcc" else name)
    monkeypatch.setattr(compilation.sysconfig, "get_path", lambda *_: str(tmp_path / "none" if lacks == "Python.h" else tmp_path))
    why = compilation.machine_obstacle(GPU)
    assert why is None if says is None else str(why).endswith(says)


def test_compiling_is_refused_on_a_cpu_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler.*install g\+\+, or leave it out"):
        make_plan(composed("experiment=demo", "device=cpu", "compile_model=true", "max_samples=16"))


def test_compiling_is_refused_where_nothing_is_left_to_compile() -> None:
    with pytest.raises(ConfigError, match="compile_model=True: a hookpoint lies inside each of its layers; leave it out"):
        make_plan(composed("experiment=demo", "compile_model=true", "max_samples=16", "layers=null", "site=mlp"))


def test_the_header_says_whether_the_model_is_compiled_and_on_a_gpu_why_not(cache: Path, tmp_path: Path) -> None:
    usual = ["hardware=slurm", f"cache_dir={cache}", f"save_dir={tmp_path}", "experiment=demo", "max_samples=16"]

    def shown(*overrides: str) -> str:
        return header.facts(make_plan(composed(*usual, *overrides), on_slurm=True))["model"]

    assert shown().endswith("on cuda, compiled")
    assert shown("compile_model=false").endswith("on cuda")
    assert "on cuda, not compiled (deterministic=true: a compiled layer rounds otherwise; " in shown("deterministic=true")
    here = replace(make_plan(short(cache, tmp_path)), device=CPU)
    assert header.facts(here)["model"].endswith("on cpu")
    assert header.facts(replace(here, compile_obstacle=None))["model"].endswith("on cpu, compiled")
