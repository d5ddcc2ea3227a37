"""The flat JSON files of the program that this one replaces: read as they are, each difference told, mistakes refused."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.command_line import composed
from helpers.model_configs import config_only
from helpers.sweeps import here
from sae_transcoder.coder.stored_coders import find_coders
from sae_transcoder.config import Config, ConfigError, old_json
from sae_transcoder.config.checks import faults
from sae_transcoder.config.composition import fields_of
from sae_transcoder.config.old_json import expanded, literal, read
from sae_transcoder.language_model import model_checks
from sae_transcoder.preflight.plan import make_plan

# The examples of that program's document, and its parameter list with the defaults that it gives.
EXAMPLES: dict[str, dict[str, Any]] = {
    "minimal": {"model_type": "sae"},
    "hookpoints": {"model_type": "sae", "hookpoints": ["h.*.attn", "h.*.mlp.act"]},
    "basic": {"model_type": "sae", "max_samples": 1000, "expansion_factor": 8, "k": 8, "run_name": "my_sae_experiment"},
    "transcoder": {
        "model_type": "transcoder", "layers": [6, 7, 8], "expansion_factor": 16, "k": 16, "batch_size": 2,
        "run_name": "transcoder_layers_6_7_8",
    },
    "custom_hookpoints": {
        "model_type": "sae", "model_name": "gpt2", "hookpoints": ["h.*.attn", "h.*.mlp.act"], "expansion_factor": 32, "k": 32,
        "run_name": "custom_hookpoints",
    },
    "trackio": {
        "model_type": "sae", "experiment_tracker": "trackio", "log_to_wandb": True, "wandb_project": "my_local_experiments",
        "wandb_entity": "your_hf_username", "run_name": "trackio_experiment",
    },
    "everything": {
        "model_type": "sae", "model_name": "HuggingFaceTB/SmolLM2-135M", "dataset_name": "EleutherAI/SmolLM2-135M-10B",
        "dataset_split": "train", "max_samples": 1000, "max_seq_length": 256, "expansion_factor": 8, "num_latents": 0, "k": 8,
        "activation": "topk", "normalize_decoder": True, "multi_topk": False, "skip_connection": False, "batch_size": 2,
        "grad_acc_steps": 8, "micro_acc_steps": 1, "loss_fn": "fvu", "optimizer": "adam", "lr": None, "lr_warmup_steps": 1000,
        "weight_decay": 0.0, "auxk_alpha": 0.03125, "dead_feature_threshold": 5000000, "k_decay_steps": 20000, "layers": None,
        "layer_stride": 1, "hookpoints": None, "max_steps": None, "init_seeds": [42], "finetune": False, "exclude_tokens": [],
        "distribute_modules": False, "save_dir": "./checkpoints", "run_name": "unified_experiment", "save_every": 1000,
        "save_best": True, "experiment_tracker": "wandb", "log_to_wandb": False, "wandb_project": "sae-transcoder-unified",
        "wandb_entity": None, "wandb_log_frequency": 100, "device": "cuda:1", "dtype": "bfloat16",
    },
}  # fmt: skip


def written(folder: Path, values: Any) -> Path:
    path = folder / "config.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return path


def config_of(path: Path, *rest: str) -> tuple[Config, list[str]]:
    arguments, notes = expanded([f"json={path}", *rest], lambda group, choice: fields_of(group, choice, []))
    return composed(*arguments), notes


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_composes_to_what_it_says(name: str, tmp_path: Path) -> None:
    cfg, notes = config_of(written(tmp_path, EXAMPLES[name]))
    assert faults(cfg) == []
    for field, value in EXAMPLES[name].items():
        if field in Config.__dataclass_fields__ and not any(f" {field}=" in note and "replaced" in note for note in notes):
            assert getattr(cfg, field) == value, field


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "hookpoints"])
def test_every_example_passes_preflight_on_the_config_of_the_model_that_it_means(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_checks, "stored_weight_faults", lambda *_: [])  # the model's folder holds its config alone
    asked, _ = config_of(written(tmp_path, EXAMPLES[name]))
    folder = config_only({"gpt2": "openai-community/gpt2"}.get(asked.model_name, asked.model_name), tmp_path)
    np.random.default_rng(0).integers(0, 40_000, 1300 * 256, dtype=np.uint16).tofile(tmp_path / "ids")
    data = ["dataset=memmap", f"dataset_name={tmp_path}/ids", "tokens_dtype=uint16"]
    cfg, _ = config_of(tmp_path / "config.json", f"model_name={folder}", *data, "tracker=none", f"save_dir={tmp_path}/out")
    planned = make_plan(cfg, on_slurm=True)  # on another machine, for all that one example needs 115 GB
    assert len(planned.widths) == {"transcoder": 3, "custom_hookpoints": 24}.get(name, 30)
    assert planned.length.samples == 1044  # all of the file but what is held out


def test_an_example_that_names_no_model_and_modules_of_gpt2_is_told_those_of_the_default_model(tmp_path: Path) -> None:
    path = written(tmp_path, EXAMPLES["hookpoints"])
    cfg, _ = config_of(path, f"model_name={config_only('HuggingFaceTB/SmolLM2-135M', tmp_path)}", f"save_dir={tmp_path}/out")
    with pytest.raises(ConfigError, match=r"h\.\*\.attn matches no module; LlamaForCausalLM has .*layers\.\*\.self_attn"):
        make_plan(cfg, on_slurm=True)


def test_the_whole_list_of_defaults_describes_a_transcoder_too(tmp_path: Path) -> None:
    cfg, notes = config_of(written(tmp_path, EXAMPLES["everything"] | {"model_type": "transcoder"}))
    assert faults(cfg) == []
    assert cfg.normalize_decoder is None
    assert any("normalize_decoder=true" in note and "starts at zero" in note for note in notes)


def test_the_project_is_that_of_the_tracker_that_the_command_line_chooses(tmp_path: Path) -> None:
    path = written(tmp_path, {"model_type": "sae", "wandb_project": "mine", "wandb_entity": "us"})
    cfg, _ = config_of(path, "tracker=wandb")
    assert (cfg.tracker, cfg.project, cfg.entity) == ("wandb", "mine", "us")
    cfg, notes = config_of(written(tmp_path, EXAMPLES["trackio"]), "tracker=none")
    assert (cfg.project, cfg.entity) == (Config().project, None)
    assert sum("left out: nothing is logged" in note for note in notes) == 2


def test_an_experiment_on_the_command_line_comes_before_the_file_with_all_that_it_builds_on(tmp_path: Path) -> None:
    path = written(tmp_path, {"model_type": "sae", "model_name": "gpt2", "dataset_name": "x", "k": 3, "micro_acc_steps": 2})
    cfg, _ = config_of(path, "experiment=demo")
    assert (cfg.model_name, cfg.dataset_kind, cfg.k, cfg.micro_acc_steps) == ("demo", "demo", 32, 2)


def test_all_defaults_of_the_list_give_this_projects_where_they_are_faults(tmp_path: Path) -> None:
    cfg, notes = config_of(written(tmp_path, EXAMPLES["everything"]))
    usual = Config()
    for name in ("device", "k_decay_steps", "lr_warmup_steps", "finetune", "weight_decay"):
        assert getattr(cfg, name) == getattr(usual, name), name
        assert sum(f" {name}=" in note and "replaced by" in note for note in notes) == 1, name
    assert (cfg.project, cfg.log_every, cfg.entity, cfg.tracker) == (usual.project, 100, None, "none")
    assert any('project="sae-transcoder-unified" is left out' in note for note in notes)
    assert sum("is now" in note for note in notes) == 4  # three names, and the tracker
    assert any("save_dir" in note and "was rewritten" in note for note in notes)


def test_settings_that_the_old_program_dropped_are_told(tmp_path: Path) -> None:
    values = {
        "model_type": "transcoder",
        "max_steps": 5,
        "weight_decay": 0.1,
        "batch_size": 4,
        "grad_acc_steps": 2,
        "loss_fn": "kl",
    }
    cfg, notes = config_of(written(tmp_path, values))
    assert (cfg.max_steps, cfg.weight_decay, cfg.batch_size, cfg.grad_acc_steps, cfg.loss_fn) == (5, 0.1, 4, 2, "kl")
    for name in values.keys() - {"model_type"}:
        assert sum(f" {name}=" in note and "obeyed now" in note for note in notes) == 1, name
    _, notes = config_of(written(tmp_path, values | {"model_type": "sae"}))
    assert not any("batch_size" in note or "loss_fn" in note for note in notes)


def test_other_values_of_fields_with_faulty_defaults_are_obeyed(tmp_path: Path) -> None:
    values = {"model_type": "sae", "device": "cpu", "k_decay_steps": 0, "lr_warmup_steps": 10, "finetune": "outputs/x"}
    cfg, _ = config_of(written(tmp_path, values))
    assert (cfg.device, cfg.k_decay_steps, cfg.lr_warmup_steps, cfg.finetune) == ("cpu", 0, 10, "outputs/x")


def test_fields_that_the_old_program_did_not_have_are_read_from_a_file_too(tmp_path: Path) -> None:
    values = {
        "model_type": "sae", "activation": "batchtopk", "matryoshka_widths": [64, 512], "threshold_beta": 0.99, "num_latents": 512,
        "lr_schedule": "cosine", "adam_betas": [0.9, 0.95], "normalize_activations": "mean_norm",
    }  # fmt: skip
    cfg, notes = config_of(written(tmp_path, values))
    assert ({name: getattr(cfg, name) for name in values}, notes) == (values, [])
    for wrong in ({"matryoshka_widths": 512}, {"lr_schedule": "wsd"}, {"adam_betas": ["0.9"]}):
        ((name, value),) = wrong.items()
        with pytest.raises(ConfigError, match=f"{name} is .*, and must be"):
            read(written(tmp_path, {"model_type": "sae", name: value}))


def test_trackio_is_chosen_and_its_entity_left_out(tmp_path: Path) -> None:
    cfg, notes = config_of(written(tmp_path, EXAMPLES["trackio"]))
    assert (cfg.tracker, cfg.entity, cfg.project) == ("trackio", None, "my_local_experiments")
    assert any("your_hf_username" in note and "left out" in note for note in notes)


def test_the_command_line_comes_before_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, EXAMPLES["custom_hookpoints"] | {"model_type": "sae"})
    cfg, notes = config_of(path, "k=4", "model=demo", "model_type=transcoder", "hookpoints=[layers.1.mlp]")
    assert (cfg.k, cfg.model_name, cfg.model_type, cfg.hookpoints) == (4, "demo", "transcoder", ["layers.1.mlp"])
    assert any("model_name" in note and "model=demo" in note for note in notes)
    assert cfg.expansion_factor == 32


@pytest.mark.parametrize(
    "text", ["plain", 'a"b', "a\\b", "ends\\", 'mixed\\"', "${x}", "a\\${x}", "it's", "a=b,c [d] {e}: #f", "", " spaced ", "line\n"]
)
def test_any_text_survives_hydras_grammar(text: str, tmp_path: Path) -> None:
    cfg = composed("model_type=sae", f"project={literal(text)}", f"tags={literal([text, 'other'])}")
    assert (cfg.project, cfg.tags) == (text, [text, "other"])


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"model_type": "sae", "expansion_facto": 8}, ["there is no field expansion_facto", "did you mean expansion_factor"]),
        ({"model_type": "sae", "zzz": 8}, ["there is no field zzz", "see sae-train --explain for all fields"]),
        ({"model_type": "sae", "d_sae": 4096}, ["d_sae: called num_latents here; write num_latents=4096"]),
        ({"model_type": "sae", "hook_name": "blocks.6.hook_resid_post"}, ["write 'layers=[6]' site=residual"]),
        ({"model_type": "sae", "k": "16"}, ['k is "16"', "a whole number"]),
        ({"model_type": "sae", "k": True}, ["k is true", "a whole number"]),
        ({"model_type": "sae", "k": 1.5}, ["k is 1.5", "a whole number"]),
        ({"model_type": "sae", "layers": 6}, ["layers is 6", "a list, each of it a whole number or null"]),
        ({"model_type": "sae", "layers": ["6"]}, ['layers is ["6"]']),
        ({"model_type": "crosscoder"}, ["crosscoder", '"sae", "transcoder"']),
        ({"model_type": "sae", "finetune": True}, ["finetune is true", "a string or null"]),
        ({"model_type": "sae", "experiment_tracker": "mlflow"}, ["experiment_tracker", '"trackio"']),
        ("{\n  'model_type': 'sae'\n}", ["no JSON", "line 2, column 3"]),
        ('{"model_type": "sae",\n "k": 8,}', ["no JSON", "line 2"]),
        ('{"model_type": "sae", "k": 8, "k": 9}', ["k stands there twice"]),
        ('{"model_type": "sae", "lr": NaN}', ["NaN is no JSON number"]),
        ("[1]", ["holds no object"]),
        ("", ["no JSON", "line 1, column 1"]),
    ],
)
def test_a_wrong_file_is_refused_with_the_fix(content: Any, parts: list[str], tmp_path: Path) -> None:
    code, _out, errors = here(f"json={written(tmp_path, content)}", f"save_dir={tmp_path}/none")
    assert code == 1
    assert all(part in errors for part in parts), errors
    assert "config.json" in errors
    assert not (tmp_path / "none").exists()


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path / "none.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="no JSON"):
        read(tmp_path / "binary.json")
    for arguments in (["json="], [f"json={tmp_path}/a", f"json={tmp_path}/b"]):
        with pytest.raises(ConfigError, match="json="):
            expanded(arguments, lambda *_: set())


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_trains_on_the_demo_with_model_data_and_hookpoints_replaced(name: str, cache: Path, tmp_path: Path) -> None:
    path = written(tmp_path, EXAMPLES[name])
    demo = [
        "model=demo",
        "dataset=demo",
        "max_samples=16",
        "max_seq_length=32",
        "eval_samples=4",
        "eval_end_to_end=false",
        "threads=1",
        "run_name=mine",
    ]
    where = "hookpoints=[layers.1.mlp]" if "hookpoints" in EXAMPLES[name] and EXAMPLES[name]["hookpoints"] else "layers=[1]"
    code, _, errors = here(f"json={path}", *demo, where, f"save_dir={tmp_path}/out", f"cache_dir={cache}")
    assert code == 0, errors
    (coder,) = find_coders(tmp_path / "out" / "mine" / "coders").values()
    made = json.loads((coder / "cfg.json").read_text())
    usual = Config()
    assert made["k"] == EXAMPLES[name].get("k", usual.k)
    assert made["expansion_factor"] == EXAMPLES[name].get("expansion_factor", usual.expansion_factor)
    assert made["transcode"] == (EXAMPLES[name]["model_type"] == "transcoder")
    if name == "transcoder":
        assert "batch_size=2 was rewritten for transcoders by the old program, and is obeyed now" in errors
    if name == "trackio":
        assert Path(os.environ["TRACKIO_DIR"], "my_local_experiments.db").exists()


def test_the_yaml_of_a_file_is_an_experiment_that_composes_to_the_same(tmp_path: Path) -> None:
    path = written(tmp_path, EXAMPLES["everything"] | {"run_name": "a name: with 'quotes'"})
    code, out, errors = here(f"json={path}", "--to-yaml")
    assert code == 0, errors
    assert "wandb_project is now project" in errors
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(out)
    code, shown, errors = here("--config-dir", str(tmp_path / "mine"), "experiment=config", "--cfg", "job")
    assert code == 0, errors
    code, direct, errors = here(f"json={path}", "--cfg", "job")
    assert code == 0, errors
    assert direct == shown


def test_converting_takes_the_file_alone(tmp_path: Path) -> None:
    path = written(tmp_path, EXAMPLES["minimal"])
    code, _, errors = here(f"json={path}", "k=8", "--to-yaml")
    assert code == 1
    assert "--to-yaml with k=8" in errors
    code, _, errors = here("model_type=sae", "--to-yaml")
    assert code == 1
    assert "write json=FILE --to-yaml" in errors


def test_no_key_is_both_renamed_and_a_field() -> None:
    assert not set(old_json.RENAMED) & set(Config.__dataclass_fields__)
