"""What is refused once the model's outline and the data are known, before weights load and before anything is written."""

import sys
from pathlib import Path

import pytest

from helpers import FINDING_TESTS
from helpers.command_line import faults_of, refused
from sae_transcoder.config import ConfigError
from sae_transcoder.language_model import hookpoints, loading

DEMO = ["experiment=demo", "max_samples=64", "max_seq_length=32"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(loading, "load", lambda *_: pytest.fail("weights were loaded"))
    return tmp_path


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["layers=[2,9]"], ["layers=[2, 9]", "layers 0 to 5", "leave out [9]"]),
        (["layers=null", "hookpoints=[h.*.attn]"], ["h.*.attn matches no module", "layers.*.self_attn"]),
        (["layers=null", "hookpoints=[layers.*.self_attn.q_proj]", "model_type=transcoder", "hookpoints=[layers.1.mlp.up_proj]"],
         ["model_type=transcoder", "layers.1.mlp.up_proj", "256 to 688"]),
        (["layers=null", "hookpoints=[rotary_emb]"], ["rotary_emb"]),
        (["layers=null", "hookpoints=[layers]"], ["layers is not called"]),
        (["k=3000"], ["k=3000", "2048 latents", "expansion_factor=8"]),
        (["k=40", "num_latents=39"], ["k=40", "num_latents=39"]),
        (["architecture=groupmax", "k=30"], ["k=30", "groupmax", "2048", "divisor"]),
        (["architecture=multi_topk", "k=600"], ["k=600", "4k = 2400"]),
        (["architecture=matryoshka", "matryoshka_widths=[256,1024]"],
         ["matryoshka_widths=[256, 1024] with expansion_factor=8", "2048 latents", "write matryoshka_widths=[256, 1024, 2048]", "num_latents=1024"]),
        (["architecture=matryoshka", "num_latents=7", "k=2"], ["matryoshka_widths=[] with num_latents=7", "the last of which is 7"]),
        (["batch_size=100"], ["batch_size=100 with max_samples=64"]),
        (["lr_warmup_steps=100"], ["lr_warmup_steps=100", "8 optimizer steps", "64 samples"]),
        (["k_decay_steps=8"], ["k_decay_steps=8", "8 optimizer steps"]),
        (["l0_warmup_steps=8", "architecture=jumprelu"], ["l0_warmup_steps=8", "8 optimizer steps"]),
        (["lr_decay_steps=6", "lr_warmup_steps=3"], ["lr_decay_steps=6", "8 optimizer steps", "3 are its warmup", "at most 5"]),
        (["max_samples=640", "lr_decay_steps=77"], ["lr_decay_steps=77", "4 are its warmup, a twentieth of the run", "at most 76"]),
        (["max_seq_length=1000"], ["max_seq_length=1000", "256 positions"]),
        (["exclude_tokens=[5,4096]"], ["exclude_tokens=[5, 4096]", "below 4096", "leave out [4096]"]),
        (["device=cuda:3"], ["device=cuda:3", "not present", "no GPU"]),
        (["hardware=gpu"], ["hardware=gpu", "no GPU"]),
        (["device=tpu9"], ["device=tpu9", "no such device"]),
        (["model_name=/nowhere/at/all"], ["model_name=/nowhere/at/all", "cannot be loaded"]),
        (["model=gpt2"], ["model_name=openai-community/gpt2", "cannot be loaded", "HF_HUB_OFFLINE=1"]),
        (["dataset=local_text", "dataset_name=/nowhere/*.txt"], ["/nowhere/*.txt", "no such file"]),
        (["corrections=false", "grad_acc_steps=9"], ["grad_acc_steps=9 with 8 batches", "not one optimizer step"]),
        (["num_latents=999999999"], ["num_latents=999999999", "GB", "cpu has"]),
        (["device=''"], ["device="]),
        (["save_dir=/proc/x"], ["save_dir=/proc/x", "cannot be written to"]),
        (["save_dir=/etc/passwd"], ["save_dir=/etc/passwd", "cannot be written to"]),
        (["cache_dir=/etc/passwd"], ["cache_dir=/etc/passwd", "cannot be written to"]),
        (["finetune=''"], ["finetune=: no such folder"]),
        (["max_steps=9"], ["max_steps=9", "max_samples=64", "8 optimizer steps"]),
        (["tracker=wandb"], ["tracker=wandb", "no login", "tracker_mode=offline"]),
        (["resume=must"], ["resume=must", "holds no training state"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)  # fmt: skip
def test_a_run_that_cannot_be_is_refused_before_weights_load(
    overrides: list[str], parts: list[str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(here))
    message = faults_of(*DEMO, *overrides)
    for part in parts:
        assert part in message
    assert not (here / "outputs").exists(), "a refused run leaves nothing behind"


def test_a_directory_of_something_else_is_refused_and_left_alone(
    here: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = here / "outputs" / "mine"
    mine.mkdir(parents=True)
    (mine / "thesis.tex").write_text("precious")
    assert "holds files but no run" in refused(capsys, monkeypatch, *DEMO, "run_name=mine")
    (mine / "status.json").write_text('{"state": "do')
    assert f"{mine.relative_to(here)}/status.json: cannot be read" in refused(capsys, monkeypatch, *DEMO, "run_name=mine")
    assert sorted(p.name for p in mine.iterdir()) == ["status.json", "thesis.tex"]


def test_every_site_resolves_in_every_family(tiny_folder: dict[str, Path]) -> None:
    from helpers.tiny_models import tiny_config

    expected = {
        "llama": ("layers.1", "layers.1.mlp", "layers.1.self_attn"),
        "gpt2": ("h.1", "h.1.mlp", "h.1.attn"),
        "neox": ("layers.1", "layers.1.mlp", "layers.1.attention"),
        "bert": ("encoder.layer.1", None, "encoder.layer.1.attention"),
    }
    for family, names in expected.items():
        for site, name in zip(("residual", "mlp", "attention"), names, strict=True):
            cfg = tiny_config("transcoder", model_name=str(tiny_folder[family]), layers=[1], site=site)
            outline = loading.outline(cfg)
            if name is None:
                with pytest.raises(ConfigError, match="attention, intermediate, output"):
                    hookpoints.hookpoint_names(cfg, outline)
                continue
            assert hookpoints.hookpoint_names(cfg, outline) == [name]
            assert hookpoints.widths(cfg, outline, [name]) == {name: 32}


@pytest.mark.parametrize(
    ("patterns", "stride", "expected"),
    [
        (["layers.*"], 1, ["layers.0", "layers.1", "layers.2", "layers.3"]),
        (["layers.[0-2].mlp"], 1, ["layers.0.mlp", "layers.1.mlp", "layers.2.mlp"]),
        (["layers.[13].mlp", "layers.0"], 1, ["layers.0", "layers.1.mlp", "layers.3.mlp"]),
        (["layers.*.mlp"], 2, ["layers.0.mlp", "layers.2.mlp"]),
        (["**.act_fn"], 1, [f"layers.{i}.mlp.act_fn" for i in range(4)]),
        (["layers.2.**"], 4, None),
    ],
)
def test_patterns_stay_within_one_part_and_double_stars_cross(
    patterns: list[str], stride: int, expected: list[str] | None, tiny_folder: dict[str, Path]
) -> None:
    from helpers.tiny_models import tiny_config

    cfg = tiny_config("sae", model_name=str(tiny_folder["llama"]), hookpoints=patterns, layer_stride=stride)
    found = hookpoints.hookpoint_names(cfg, loading.outline(cfg))
    if expected is None:
        assert all(name == "layers.2" or name.startswith("layers.2.") for name in found)
        assert len(found) > 2
    else:
        assert found == expected


def test_the_header_warns_of_an_auxk_that_cannot_act(cache: Path, tmp_path: Path) -> None:
    from helpers.command_line import composed
    from sae_transcoder.preflight.plan import make_plan

    notes = " ".join(make_plan(composed(*DEMO, "auxk_alpha=0.1", f"cache_dir={cache}", f"save_dir={tmp_path}")).warnings)
    assert "AuxK never acts" in notes
    quiet = make_plan(composed(*DEMO, "auxk_alpha=0.1", "dead_feature_threshold=500", f"cache_dir={cache}", f"save_dir={tmp_path}"))
    assert quiet.warnings == []


@pytest.mark.parametrize(
    ("overrides", "coders", "optimizer"),
    [
        (["k=8"], "2,048 latents, k 8", "adam, lr 0.01, 1 warmup steps"),
        (["architecture=batchtopk", "k=8", "lr_schedule=constant"], "k 8 by batchtopk", "1 warmup steps, then constant"),
        (["architecture=jumprelu", "k=8", "lr_schedule=cosine"], "k 8 as the target of jumprelu", "1 warmup steps, cosine to 0"),
        (["architecture=matryoshka_topk", "k=8", "lr_decay_steps=4"], "k 8, nested 256 in 512 in 1,024 in 2,048",
         "1 warmup steps, linear to 0 over the last 4 steps"),
        (["architecture=jumprelu", "jumprelu_loss=step", "k=8"], "k 8 not aimed at by jumprelu with jumprelu_loss=step", "1 warmup steps"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)  # fmt: skip
def test_the_header_tells_the_kind_of_the_coders_and_how_the_rate_falls(
    overrides: list[str], coders: str, optimizer: str, cache: Path, tmp_path: Path
) -> None:
    from helpers.command_line import composed
    from sae_transcoder.preflight import header
    from sae_transcoder.preflight.plan import make_plan

    facts = header.facts(make_plan(composed(*DEMO, "max_samples=160", *overrides, f"cache_dir={cache}", f"save_dir={tmp_path}")))
    assert facts["coders"].endswith(coders)
    assert ("activations" in facts) == ("architecture=jumprelu" in overrides), "that choice scales activations"
    assert facts["optimizer"].endswith(optimizer)


def test_the_header_of_a_pack_tells_which_runs_scale_activations(cache: Path, tmp_path: Path, capsys) -> None:
    from rich.console import Console

    from helpers.command_line import composed
    from sae_transcoder.preflight import header
    from sae_transcoder.preflight.plan import make_plan

    usual = [*DEMO, "max_samples=160", "architecture=batchtopk", f"cache_dir={cache}", f"save_dir={tmp_path}"]
    plans = [make_plan(composed(*usual, f"normalize_activations={how}")) for how in ("mean_norm", "none")]
    for order in (plans, plans[::-1]):
        header.print_header(order, Console(width=1000))
        told = [line for line in capsys.readouterr().out.splitlines() if "scaled to a mean norm" in line]
        assert len(told) == 1
        assert told[0].startswith("run ")


@pytest.mark.slow
def test_the_bundled_model_needs_no_network_even_where_offline_is_not_set(tmp_path: Path) -> None:
    import subprocess

    code = """
import socket
def refuse(*a, **k): raise AssertionError("network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from helpers.command_line import composed
from sae_transcoder.training.engine import train
train([composed("experiment=demo", "max_samples=16", "max_seq_length=16", "eval_samples=4")])
"""
    import os

    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {"XDG_CACHE_HOME": str(tmp_path)}
    environment |= FINDING_TESTS
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "held-out FVU" in done.stdout
