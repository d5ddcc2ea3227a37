"""Every parameter of the seed's list exists, under its name or the one below, and changing it changes the run."""

import json
from pathlib import Path

import pandas
import pytest
import torch

from helpers.command_line import composed
from helpers.short_runs import lines, short, weights
from sae_transcoder.api import load_coders
from sae_transcoder.coder.sparsify_config import sparsify_configs
from sae_transcoder.config import FIELDS, Config, run_dir
from sae_transcoder.language_model.loading import load
from sae_transcoder.preflight.plan import make_plan
from sae_transcoder.trackers.logbook import Logbook
from sae_transcoder.training import engine
from sae_transcoder.training.coder_trainer import CoderTrainer

# The seed's parameter -> ours, where the name differs.
RENAMED = {
    "experiment_tracker": "tracker", "log_to_wandb": "tracker", "wandb_project": "project", "wandb_entity": "entity",
    "wandb_log_frequency": "log_every",
}  # fmt: skip
# Those that change the trained weights; a base run and one run for each train side by side.
CHANGES_WEIGHTS = {
    "model_type": "model_type=transcoder", "layers": "layers=[1,2]", "hookpoints": "hookpoints=[layers.3]", "layer_stride": "layer_stride=4",
    "expansion_factor": "expansion_factor=3", "num_latents": "num_latents=300", "k": "k=9", "activation": "activation=groupmax",
    "normalize_decoder": "normalize_decoder=false", "multi_topk": "multi_topk=true", "skip_connection": "skip_connection=true",
    "grad_acc_steps": "grad_acc_steps=2", "micro_acc_steps": "micro_acc_steps=3", "optimizer": "optimizer=signum", "lr": "lr=2e-3",
    "lr_warmup_steps": "lr_warmup_steps=9", "weight_decay": "weight_decay=0.5", "auxk_alpha": "auxk_alpha=0.5",
    "dead_feature_threshold": "dead_feature_threshold=300", "k_decay_steps": "k_decay_steps=5", "max_steps": "max_steps=5",
    "init_seeds": "init_seeds=[7]", "exclude_tokens": "exclude_tokens=[264]",
}  # fmt: skip
ONLY_WEIGHTS = ["save_best=false", "eval_end_to_end=false"]
# sparsify's fields that the seed's parameter reaches, by its name there.
REACHES_SPARSIFY = {
    **{n: n for n in ["batch_size", "grad_acc_steps", "micro_acc_steps", "loss_fn", "optimizer", "lr", "lr_warmup_steps", "k_decay_steps"]},
    **{n: n for n in ["auxk_alpha", "dead_feature_threshold", "exclude_tokens", "init_seeds", "save_every", "save_best", "finetune"]},
    **{n: n for n in ["expansion_factor", "num_latents", "k", "activation", "normalize_decoder", "multi_topk", "skip_connection"]},
    "model_type": "transcode", "wandb_log_frequency": "wandb_log_frequency", "distribute_modules": "distribute_modules",
    "run_name": "run_name", "save_dir": "save_dir",
}  # fmt: skip
OTHER_VALUE = {
    "batch_size": "batch_size=3", "loss_fn": "loss_fn=kl", "save_every": "save_every=7", "save_best": "save_best=false", "finetune": "finetune=x",
    "wandb_log_frequency": "log_every=3", "distribute_modules": "distribute_modules=true", "run_name": "run_name=x", "save_dir": "save_dir=x",
}  # fmt: skip
TESTED_BELOW = {
    *("model_name", "dataset_name", "dataset_split", "max_samples", "max_seq_length", "device", "dtype"),
    *("experiment_tracker", "log_to_wandb", "wandb_project", "wandb_entity"),
}
SEED = [
    *(
        "model_type",
        "model_name",
        "dataset_name",
        "dataset_split",
        "max_samples",
        "max_seq_length",
        "expansion_factor",
        "num_latents",
        "k",
    ),
    *(
        "activation",
        "normalize_decoder",
        "multi_topk",
        "skip_connection",
        "batch_size",
        "grad_acc_steps",
        "micro_acc_steps",
        "loss_fn",
    ),
    *(
        "optimizer",
        "lr",
        "lr_warmup_steps",
        "weight_decay",
        "auxk_alpha",
        "dead_feature_threshold",
        "k_decay_steps",
        "layers",
        "layer_stride",
    ),
    *(
        "hookpoints",
        "max_steps",
        "init_seeds",
        "finetune",
        "exclude_tokens",
        "distribute_modules",
        "save_dir",
        "run_name",
        "save_every",
    ),
    *("save_best", "experiment_tracker", "log_to_wandb", "wandb_project", "wandb_entity", "wandb_log_frequency", "device", "dtype"),
]


@pytest.mark.parametrize("name", SEED)
def test_each_parameter_exists_and_is_tested(name: str) -> None:
    assert RENAMED.get(name, name) in FIELDS
    assert name in CHANGES_WEIGHTS.keys() | REACHES_SPARSIFY.keys() | TESTED_BELOW


def test_each_parameter_of_training_changes_the_trained_weights(cache: Path, tmp_path: Path) -> None:
    variants = {}
    for name, override in {"base": "k=8", **CHANGES_WEIGHTS}.items():
        extra = {
            "lr_warmup_steps": ["lr=1e-2"], "hookpoints": ["layers=null"], "layer_stride": ["layers=null"],
            "auxk_alpha": ["dead_feature_threshold=300"], "dead_feature_threshold": ["auxk_alpha=0.03125"], "weight_decay": ["lr=1e-2"],
        }.get(name, [])  # fmt: skip
        variants[name] = short(cache, tmp_path, override, *extra, *ONLY_WEIGHTS, f"run_name={name}")
    variants["aux_base"] = short(cache, tmp_path, "dead_feature_threshold=300", *ONLY_WEIGHTS, "run_name=aux_base")
    engine.train(list(variants.values()))
    for name in CHANGES_WEIGHTS:
        base = weights(run_dir(variants["aux_base" if name == "auxk_alpha" else "base"]) / "coders")
        changed = weights(run_dir(variants[name]) / "coders")
        if changed.keys() == base.keys() and all(changed[k].shape == v.shape for k, v in base.items()):
            difference = max(float((changed[k] - v).abs().max()) for k, v in base.items())
            # Pieces of a batch add up to it, but for rounding.
            assert (difference < 1e-2) if name == "micro_acc_steps" else (difference > 1e-4), f"{name}: {difference}"


@pytest.mark.parametrize("name", list(REACHES_SPARSIFY))
def test_each_parameter_that_sparsify_knows_reaches_its_config_and_only_its_field(name: str) -> None:
    override = OTHER_VALUE.get(name) or CHANGES_WEIGHTS[name]
    base = composed("experiment=demo", "run_name=r", "save_dir=d", "lr_warmup_steps=2")
    changed = composed(*dict.fromkeys(["experiment=demo", "run_name=r", "save_dir=d", "lr_warmup_steps=2", override]))
    before, after = (
        {**vars(train), **vars(coder), "sae": None}
        for coder, train in (sparsify_configs(c, ["layers.2"], 500) for c in (base, changed))
    )
    differing = {field for field in before if before[field] != after[field]}
    also = {"run_name": {"save_dir"}, "model_type": {"normalize_decoder"}}.get(name, set())
    assert differing == {REACHES_SPARSIFY[name]} | also


def test_no_field_of_sparsify_is_left_to_its_own_default() -> None:
    import ast
    import inspect

    from sparsify import SparseCoderConfig, TrainConfig

    given = {
        k.arg
        for call in ast.walk(ast.parse(inspect.getsource(sparsify_configs)))
        if isinstance(call, ast.Call)
        for k in call.keywords
    }
    # Hookpoints are resolved before; these two would name them a second time.
    assert {*TrainConfig.__dataclass_fields__, *SparseCoderConfig.__dataclass_fields__} - given == {"sae", "layers", "layer_stride"}


def test_model_dataset_and_lengths_change_what_is_read(cache: Path, tmp_path: Path, tiny_folder: dict[str, Path]) -> None:
    for split, words in [("train", "alpha beta gamma"), ("validation", "delta epsilon")]:
        for corpus in ("one", "two"):
            (tmp_path / corpus).mkdir(exist_ok=True)
            pandas.DataFrame({"text": [f"{corpus} {words} {i}" for i in range(900)]}).to_json(
                tmp_path / corpus / f"{split}.jsonl", orient="records", lines=True
            )
    hub = ["dataset=hub", f"dataset_name={tmp_path / 'one'}"]
    base = make_plan(short(cache, tmp_path / "runs", *hub))
    for override in ["dataset_split=validation", f"dataset_name={tmp_path / 'two'}", "max_seq_length=16"]:
        changed = make_plan(short(cache, tmp_path / "runs", *hub, override))
        first, other = changed.tokens.train[:4], base.tokens.train[:4]
        assert first.shape != other.shape or (first != other).any(), override
    assert make_plan(short(cache, tmp_path / "runs", *hub, "max_samples=20")).length.samples == 20
    other_model = make_plan(
        short(cache, tmp_path / "runs", "max_samples=8", f"model_name={save_with_tokenizer(tiny_folder['llama'])}")
    )
    assert other_model.widths == {"layers.2": 32}


def save_with_tokenizer(folder: Path) -> Path:
    """The tiny model with the bundled vocabulary and tokenizer, in a folder beside."""
    from transformers import AutoModel

    from helpers.tiny_models import TINY, demo_tokenizer

    beside = folder.with_name(folder.name + "-4096")
    config = TINY["llama"]()
    config.vocab_size = 4096
    AutoModel.from_config(config).save_pretrained(beside)
    demo_tokenizer().save_pretrained(beside)
    return beside


def test_device_and_dtype_change_where_and_in_what_the_model_runs(cache: Path, tmp_path: Path) -> None:
    assert make_plan(short(cache, tmp_path, "device=cpu")).device == torch.device("cpu")
    for dtype in ("float32", "bfloat16", "float16"):
        assert load(short(cache, tmp_path, f"dtype={dtype}"), torch.device("cpu")).dtype == getattr(torch, dtype)


def test_a_bfloat16_model_trains_float32_coders_on_a_cpu(cache: Path, tmp_path: Path) -> None:
    (result,) = engine.train([short(cache, tmp_path, "dtype=bfloat16", "model_type=transcoder", "eval_samples=8")])
    assert load_coders(result.directory)["layers.2.mlp"].dtype == torch.float32
    assert result.evaluation.mean()["fvu"] < 1


def test_saving_and_logging_fields_change_what_is_written(cache: Path, tmp_path: Path) -> None:
    engine.train([short(cache, tmp_path, "save_best=false", "log_every=4", "run_name=plain", "keep_every=5")])
    assert not (tmp_path / "plain" / "best").exists()
    assert [line["step"] for line in lines(tmp_path / "plain")] == [4, 8, 12, 16]
    assert len(list((tmp_path / "plain" / "snapshots").iterdir())) == 3


def test_tracker_project_and_entity_change_where_numbers_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    destinations = set()
    for number, overrides in enumerate([["project=one"], ["project=two"], ["project=one", "entity=us"]]):
        cfg = composed("experiment=demo", "tracker=wandb", "tracker_mode=offline", *overrides)
        folder = tmp_path / str(number)
        folder.mkdir()
        book = Logbook(cfg, folder)
        assert book.tracker is not None
        destinations.add(book.tracker.destination)
        book.finish(0)
    assert len(destinations) == 3
    (tmp_path / "none").mkdir()
    assert Logbook(composed("experiment=demo"), tmp_path / "none").tracker is None


def test_weight_decay_and_seeds_are_those_of_the_config() -> None:
    cfg: Config = composed("experiment=demo", "weight_decay=0.25", "init_seeds=[1,2]")
    run = CoderTrainer(cfg, {"layers.2": 16}, 100, torch.device("cpu"))
    assert run.optimizers[0].param_groups[0]["weight_decay"] == 0.25
    assert list(run.coders) == ["layers.2/seed1", "layers.2/seed2"]
    json.dumps(run.train_config.to_dict())
