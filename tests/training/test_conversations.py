"""Runs on conversations: coders see the assistant's positions alone, in training and in evaluation, by each loss."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.sweeps import SHORT
from sae_transcoder.api import Run, load_config, train
from sae_transcoder.coder.positions import PositionFilter
from sae_transcoder.config import ConfigError, checks
from sae_transcoder.language_model.forward import ids_of
from sae_transcoder.language_model.loading import DEMO
from sae_transcoder.preflight.plan import make_plan
from sae_transcoder.training.divergence import Diverged

TEMPLATE = "{% for m in messages %}# {{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}# assistant\n{% endif %}"


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of runs on conversations, by the demo model with a chat template."""
    folder = tmp_path_factory.mktemp("chat")
    shutil.copytree(DEMO, folder / "model")
    settings = folder / "model" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"chat_template": TEMPLATE}))
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"import {i}"},
                {"role": "assistant", "content": f"def value_{i}(self):\n    return {i}"},
            ]
        }
        for i in range(400)
    ]
    (folder / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        *SHORT, "model=demo", f"model_name={folder}/model", "dataset=local_text", f"dataset_name={folder}/talks.jsonl",
        "messages_column=messages", f"cache_dir={folder}/cache", "k=4", "max_steps=4",
    ]  # fmt: skip


def run(talks: list[str], tmp_path: Path, *settings: str) -> Run:
    return train(load_config(*talks, f"save_dir={tmp_path}", *settings))


@pytest.mark.parametrize("loss", ["fvu", "ce", "kl"])
def test_a_run_on_the_assistants_words_counts_its_positions_alone(talks: list[str], tmp_path: Path, loss: str) -> None:
    cfg = load_config(*talks, f"save_dir={tmp_path}", "train_on=assistant", f"loss_fn={loss}")
    heldout = torch.from_numpy(make_plan(cfg).tokens.heldout[:])
    trained = train(cfg)
    counted = PositionFilter.of(cfg).by_token(heldout)
    assert counted is not None
    kept = int((heldout >= 0).flatten().logical_and(counted).sum())
    assert 0 < kept == int(counted.sum()) < heldout.numel()
    assert trained.evaluation.mean()["total_tokens_eval_reconstruction"] == kept
    assert trained.evaluation.mean()["ce_loss_without_sae"] < 12


def test_leaving_positions_out_by_role_is_as_leaving_them_out_by_hand(talks: list[str], tmp_path: Path) -> None:
    marked, whole = (load_config(*talks, f"save_dir={tmp_path}", f"train_on={of}") for of in ("assistant", "all"))
    ids, clean = (torch.from_numpy(make_plan(cfg).tokens.train[:8]) for cfg in (marked, whole))
    assert torch.equal(ids_of(ids), clean)
    mask = PositionFilter.of(marked).by_token(ids)
    by_hand = (ids >= 0).flatten()
    by_hand.view(ids.shape)[:, : marked.exclude_first_tokens] = False
    assert torch.equal(mask, by_hand)


def test_a_run_on_all_positions_is_another_run(talks: list[str], tmp_path: Path) -> None:
    losses = {
        of: run(talks, tmp_path, f"train_on={of}").evaluation.mean()["total_tokens_eval_reconstruction"]
        for of in ("all", "assistant")
    }
    assert losses["all"] > losses["assistant"] > 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (dict(train_on="assistant"), "train_on=assistant: only conversations have roles; set messages_column"),
        (dict(messages_column="m", text_column="t"), "messages_column=m and text_column=t: each names what is read"),
    ],
)
def test_settings_of_conversations_that_contradict_each_other_are_refused(given: dict[str, Any], said: str) -> None:
    cfg = load_config("model_type=sae", "dataset=local_text", "dataset_name=x")
    for name, value in given.items():
        setattr(cfg, name, value)
    with pytest.raises(ConfigError, match=said):
        raise ConfigError(*checks.faults(cfg))


@pytest.mark.parametrize("loss", ["fvu", "ce"])
def test_a_batch_with_one_counted_position_is_left_out(talks: list[str], tmp_path: Path, loss: str) -> None:
    answers = ["A", "def value(self): return self"]
    rows = [
        {"messages": [{"role": "user", "content": "import os " * 12 + str(i)}, {"role": "assistant", "content": answers[i % 2]}]}
        for i in range(400)
    ]
    (tmp_path / "short.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [
        "train_on=assistant",
        "batch_size=1",
        "max_steps=40",
        "log_every=1",
        "eval_samples=8",
        f"dataset_name={tmp_path}/short.jsonl",
    ]
    cfg = load_config(*talks, *settings, f"save_dir={tmp_path}", f"loss_fn={loss}")
    kept = (make_plan(cfg).tokens.train[:40][:, 1:] >= 0).sum(1).tolist()
    assert {0, 1} < set(kept)
    trained = train(cfg)
    lines = [json.loads(line) for line in (trained.directory / "metrics.jsonl").read_text().splitlines()]
    fvus = [value for line in lines for name, value in line.items() if name.startswith("fvu/")]
    assert len(fvus) == sum(count > 1 for count in kept)
    assert all(0 < value < 1e4 for value in fvus)


def test_a_run_that_counts_no_position_fails_and_says_so(talks: list[str], tmp_path: Path) -> None:
    cfg = load_config(*talks, f"save_dir={tmp_path}")
    cfg.exclude_tokens = list(range(4096))
    with pytest.raises(Diverged, match="no batch had two positions that count"):
        train(cfg)


def test_activations_that_are_not_finite_are_told_as_a_cause(talks: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(DEMO, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Diverged, match="where no rate helps, see whether the model's weights are"):
        train(
            load_config(
                *SHORT, "k=4", "max_steps=4", f"save_dir={tmp_path}/runs", f"cache_dir={tmp_path}/cache", f"model_name={folder}"
            )
        )
