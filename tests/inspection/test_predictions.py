"""Run.predict: the language model's predictions on a text, as it is and with coders in the place of modules."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from helpers.independent_metrics import Exchanged, dense
from helpers.random_runs import write_random_run
from sae_transcoder.api import Run, load_run
from sae_transcoder.config import ConfigError
from sae_transcoder.language_model.loading import DEMO

TEXT = "import os\n\nclass A:\n    def run"
KINDS = {
    "transcoders with a skip connection": ["model_type=transcoder", "skip_connection=true"],
    "thresholds": ["activation=jumprelu"],
    "one threshold": ["activation=batchtopk", "exclude_tokens=[10,11]"],
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """SAEs of random weights on two layers."""
    return load_run(write_random_run(tmp_path, "layers=[1,2]")[0])


@pytest.fixture
def model() -> nn.Module:
    """The language model, loaded by itself."""
    return AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval().requires_grad_(False)


def replaced(coder: nn.Module, factors: dict[int, float], kept: Callable[[int], bool]) -> Callable[[Tensor, Tensor], Tensor]:
    """What a coder gives in the place of a module, one token at a time, its latents multiplied by the factors."""

    def new(given: Tensor, output: Tensor) -> Tensor:
        rows = output.clone()
        for position in filter(kept, range(len(output))):
            out, acts = dense(coder, given[position] if coder.cfg.transcode else output[position])
            rows[position] = out + sum(
                (factor - 1) * acts[latent] * coder.W_dec[latent].double() for latent, factor in factors.items()
            )
        return rows

    return new


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_with_coders_in_place_equal_those_of_a_model_whose_modules_are_exchanged(
    kind: str, model: nn.Module, tmp_path: Path
) -> None:
    run = load_run(write_random_run(tmp_path, "layers=[1,2]", "exclude_first_tokens=1", *KINDS[kind])[0])
    ids = run.capture(TEXT)[0].ids
    last, before = (tokens[-1].latents for tokens in run.latents(TEXT).values())
    one, other = run.coders
    splice = {one: {last[0]: 0, last[1]: 2.5}, other: {before[-1]: -1}}
    for name, factors in splice.items():
        parent, _, child = name.rpartition(".")
        new = replaced(
            run.coders[name].requires_grad_(False),
            factors,
            lambda position: position > 0 and ids[position] not in run.config.exclude_tokens,
        )
        below = model.model.get_submodule(parent)
        setattr(below, child, Exchanged(below.get_submodule(child), new))
    expected = model(torch.tensor([ids]), use_cache=False).logits[0]
    torch.testing.assert_close(run.predict(TEXT, splice).logits, expected, atol=1e-3, rtol=1e-4)
    assert not torch.allclose(run.predict(TEXT, {one: {}, other: {}}).logits, expected, atol=1e-2)


def test_without_a_splice_the_predictions_are_the_models_own(run: Run, model: nn.Module) -> None:
    found = run.predict(TEXT)
    logits = model(torch.tensor([found.ids])).logits[0]
    torch.testing.assert_close(found.logits, logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        found.losses, F.cross_entropy(logits[:-1].double(), torch.tensor(found.ids[1:]), reduction="none"), rtol=1e-4, atol=1e-4
    )
    assert "".join(found.tokens) == TEXT
    (likeliest, p), (_, second) = found.next_tokens(2, position=0)
    assert (p, second) == pytest.approx(logits[0].softmax(-1).topk(2).values.tolist(), rel=1e-4)
    after = run.predict("import" + likeliest)
    assert after.ids[1] == int(logits[0].argmax())


def test_what_else_is_read_of_a_text_stays_the_same_once_the_whole_model_is_loaded(run: Run) -> None:
    latents, (captured,) = run.latents(TEXT), run.capture(TEXT)
    run.predict(TEXT)
    assert run.latents(TEXT) == latents
    assert run.capture(TEXT)[0].outputs["layers.2"].equal(captured.outputs["layers.2"])


def test_coders_and_latents_that_a_run_does_not_have_are_refused(tmp_path: Path) -> None:
    run = load_run(write_random_run(tmp_path, "layers=[1,2]")[0])
    with pytest.raises(ConfigError) as refused:
        run.predict(TEXT, {"layers.9": {}, "layers.2": {512: 0, -1: 0}})
    for part in (
        "layers.9: the run has no such coder; it has layers.1, layers.2",
        "latent 512 of layers.2: there are 512, 0 to 511",
        "-1",
    ):
        assert part in str(refused.value)
    coder = run.coders["layers.1"]
    object.__setattr__(run, "coders", {"layers.1/seed0": coder, "layers.1/seed1": coder})
    with pytest.raises(ConfigError, match=r"layers.1/seed0, layers.1/seed1: each replaces layers.1; splice one of them"):
        run.predict(TEXT, {"layers.1/seed0": {}, "layers.1/seed1": {}})


def test_a_model_without_a_head_predicts_nothing_and_says_so(run: Run, model: nn.Module, tmp_path: Path) -> None:
    folder = tmp_path / "headless"
    model.model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((DEMO / name).read_bytes())
    headless = load_run(run.directory, f"model_name={folder}")
    assert headless.latents(TEXT) == run.latents(TEXT)
    with pytest.raises(ConfigError, match=r"model_name=.*headless: has no language-modelling head"):
        headless.predict(TEXT)
