"""Held-out metrics of coders with thresholds and of Matryoshka coders, against an independent computation token by token."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.device import DEVICE
from helpers.independent_metrics import Independent
from helpers.tiny_models import VOCABULARY, tiny_causal_model, tiny_config
from sae_transcoder.coder.sparsify_parts import SparseCoder, SparseCoderConfig
from sae_transcoder.coder.stored_coders import coder_faults
from sae_transcoder.coder.trained_coder import TrainedCoder
from sae_transcoder.evaluation import table
from sae_transcoder.evaluation.heldout import CodersToEvaluate, EvalResult, measure
from sae_transcoder.metric_names import LEVEL_METRICS, THRESHOLD_QUANTILES
from sae_transcoder.run_store import eval_file
from sae_transcoder.run_store.checked_files import DamagedFile

pytestmark = pytest.mark.device

LATENTS = 64
WIDTHS = (7, 16, 63, LATENTS)
EACH = 0.1 + 0.02 * torch.arange(LATENTS).flip(0)  # a threshold for each latent
SHARED = torch.tensor([0.8])  # one for all


def coders(model_type: str, threshold: Tensor | None, widths: Sequence[int] | None, **settings: Any) -> CodersToEvaluate:
    """One coder of random weights, as it is once trained."""
    point = "layers.1.mlp" if model_type == "transcoder" else "layers.1"
    cfg = SparseCoderConfig(
        num_latents=LATENTS, k=5, transcode=model_type == "transcoder", skip_connection=model_type == "transcoder"
    )
    coder = SparseCoder(32, cfg)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
        if model_type == "sae":  # the residual stream of a tiny model has entries of 0.02
            coder.encoder.weight.mul_(40)
            coder.b_dec.div_(40)
    trained = TrainedCoder.of(coder, threshold=threshold, matryoshka_widths=widths).to(DEVICE)
    return CodersToEvaluate(tiny_config(model_type, num_latents=LATENTS, **settings), {point: trained})


def measured(one: CodersToEvaluate) -> tuple[EvalResult, Independent, str]:
    """The result, the independent computation, and the coder's name."""
    model = tiny_causal_model("llama")
    ids = torch.randint(0, VOCABULARY, (3, 16), generator=torch.Generator().manual_seed(1)).numpy()
    (found,) = measure(model, [one], ids, all_metrics=True)
    return found, Independent(model, one, ids), next(iter(one.coders))


@pytest.mark.parametrize("model_type", ["sae", "transcoder"])
@pytest.mark.parametrize(("threshold", "widths"), [(EACH, None), (SHARED, WIDTHS), (None, WIDTHS)], ids=["each", "shared", "topk"])
def test_every_metric_and_level_equals_an_independent_computation(
    model_type: str, threshold: Tensor | None, widths: tuple[int, ...] | None
) -> None:
    found, independent, name = measured(coders(model_type, threshold, widths, exclude_first_tokens=1))
    expected, density = independent.own(name, name)
    assert expected["l0"] == pytest.approx(5) if threshold is None else expected["l0"] > 6, "top-k is told from thresholds"
    expected |= independent.behaviour({name: name})
    assert found.coders[name] == pytest.approx(expected, rel=1e-5, abs=1e-5, nan_ok=True)
    np.testing.assert_allclose(found.densities[name], density.numpy())
    assert tuple(level.width for level in found.levels[name]) == (widths or ())
    for level in found.levels[name]:
        of_level, _ = independent.own(name, name, level.width)
        assert (level.fvu, level.l0) == pytest.approx((of_level["fvu"], of_level["l0"]), rel=1e-5)
    if widths:
        whole = found.coders[name]["fvu"], found.coders[name]["l0"]
        assert (found.levels[name][-1].fvu, found.levels[name][-1].l0) == pytest.approx(whole, rel=1e-6)
        assert found.levels[name][0].fvu != pytest.approx(found.levels[name][1].fvu), "the levels differ"


def test_a_level_without_latents_that_fire_is_the_bias_alone() -> None:
    """Its latents, and those of tokens on which nothing fires, add nothing to the decoder's bias."""
    threshold = torch.full([LATENTS], 1e9)
    threshold[40:] = 1.2
    found, independent, name = measured(coders("sae", threshold, WIDTHS))
    level = found.levels[name][0]
    assert level.l0 == 0
    assert level.fvu == pytest.approx(independent.own(name, name, 0)[0]["fvu"], rel=1e-5)
    nothing, independent, name = measured(coders("sae", torch.full([1], 1e9), WIDTHS))
    assert {level.fvu for level in nothing.levels[name]} == {nothing.coders[name]["fvu"]}
    assert nothing.coders[name]["l0"] == 0


def test_thresholds_are_told_by_their_quantiles_or_the_one_that_all_share() -> None:
    each, _, name = measured(coders("sae", EACH, None))
    ordered = sorted(EACH.tolist())
    quantiles = each.thresholds[name]
    assert list(quantiles) == list(THRESHOLD_QUANTILES)
    assert (quantiles["threshold_min"], quantiles["threshold_max"]) == pytest.approx((ordered[0], ordered[-1]))
    assert quantiles["threshold_p50"] == pytest.approx((ordered[31] + ordered[32]) / 2)
    assert quantiles["threshold_p10"] == pytest.approx(ordered[6] + 0.3 * (ordered[7] - ordered[6]))
    shared, _, name = measured(coders("sae", SHARED, None))
    assert shared.thresholds[name] == pytest.approx({"threshold": 0.8})
    plain, _, name = measured(coders("sae", None, None))
    assert (plain.thresholds[name], plain.levels[name]) == ({}, ())


def test_trackers_get_levels_and_thresholds_by_names_of_their_own() -> None:
    found, _, name = measured(coders("sae", SHARED, WIDTHS))
    values = found.values()
    for level in found.levels[name]:
        for metric in LEVEL_METRICS:
            assert values[f"heldout/{metric}_width_{level.width}/{name}"] == getattr(level, metric)
    assert values[f"heldout/threshold/{name}"] == pytest.approx(0.8)
    assert len(values) == len(found.coders[name]) + 2 * len(WIDTHS) + 1


@pytest.mark.parametrize(("threshold", "widths"), [(EACH, None), (SHARED, WIDTHS), (None, WIDTHS), (None, None)])
def test_what_is_read_back_is_what_was_written(threshold: Tensor | None, widths: tuple[int, ...] | None, tmp_path: Path) -> None:
    one = coders("sae", threshold, widths)
    evaluation = measured(one)[0].evaluation(one)
    eval_file.write(tmp_path, evaluation)
    assert eval_file.read(tmp_path) == evaluation
    (entry,) = json.loads((tmp_path / "eval.json").read_text())["eval_result_unstructured"]["coders"]
    assert ("levels" in entry, "thresholds" in entry) == (widths is not None, threshold is not None)


@pytest.mark.parametrize(
    "odd",
    [
        {"levels": None},
        {"levels": [{"width": 7.5, "fvu": 0.1, "l0": 1.0}]},
        {"levels": [{"width": 7, "fvu": "0.1", "l0": 1.0}]},
        {"levels": [{"width": 7, "fvu": 0.1}]},
        {"thresholds": {"threshold_min": 0.1}},
        {"thresholds": {"threshold": "0.1"}},
        {"thresholds": [0.1]},
    ],
)
def test_levels_and_thresholds_of_another_shape_are_refused(odd: dict[str, Any], tmp_path: Path) -> None:
    one = coders("sae", SHARED, WIDTHS)
    eval_file.write(tmp_path, measured(one)[0].evaluation(one))
    path = tmp_path / "eval.json"
    values = json.loads(path.read_text())
    values["eval_result_unstructured"]["coders"][0] |= odd
    path.write_text(json.dumps(values))
    with pytest.raises(DamagedFile, match=r"sae-eval .*measures again"):
        eval_file.read(tmp_path)


def test_without_a_token_that_counts_the_levels_are_null_in_the_file(tmp_path: Path) -> None:
    one = coders("sae", SHARED, WIDTHS, exclude_tokens=list(range(VOCABULARY)))
    found, _, name = measured(one)
    assert all(np.isnan(level.fvu) for level in found.levels[name])
    eval_file.write(tmp_path, found.evaluation(one))
    (entry,) = json.loads((tmp_path / "eval.json").read_text())["eval_result_unstructured"]["coders"]
    assert entry["levels"][0] == {"width": 7, "fvu": None, "l0": None}
    assert np.isnan(eval_file.read(tmp_path).coders[0].levels[0].fvu)


def test_the_table_has_l0_beside_k_a_line_for_each_smaller_dictionary_and_the_thresholds(tmp_path: Path, capsys) -> None:
    one = coders("sae", SHARED, WIDTHS)
    found, _, name = measured(one)
    evaluation = found.evaluation(one)
    table.print_table([table.Measured("run", evaluation, tmp_path / "eval.json")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:5] == ["coder", "latents", "k", "L0", "FVU"]
    assert lines[1].split()[:4] == [name, "64", "5", f"{found.coders[name]['l0']:.4f}"]
    for line, level in zip(lines[2:5], found.levels[name], strict=False):
        assert line.split()[-3:] == [str(level.width), f"{level.l0:.4f}", f"{level.fvu:.4f}"]
    assert lines[5] == f"latents of {name} fire above 0.8"
    one = coders("sae", EACH, None)
    table.print_table([table.Measured("run", measured(one)[0].evaluation(one), tmp_path / "eval.json")])
    assert "fire above min 0.1, 10 % 0.226, 25 % 0.415, 50 % 0.73, 75 % 1.045, 90 % 1.234, max 1.36\n" in capsys.readouterr().out


@pytest.mark.parametrize("widths", [[], [8, 8, 64], [64, 8], [0, 64], [8, 16], [8.0, 64]])
def test_a_stored_coder_whose_dictionaries_do_not_rise_to_all_latents_is_refused(widths: list[Any], tmp_path: Path) -> None:
    coder = next(iter(coders("sae", SHARED, WIDTHS).coders.values())).cpu()
    coder.save_to_disk(tmp_path)
    assert coder_faults(tmp_path) == []
    written = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(written | {"matryoshka_widths": widths}))
    (fault,) = coder_faults(tmp_path)
    assert "rise to its 64 latents" in fault


def test_a_file_of_the_version_before_reads_and_is_written_again_in_its_layout(tmp_path: Path) -> None:
    """Of a coder that has neither levels nor thresholds, the file is as it was."""
    directory = next(path.parent for path in (Path(__file__).parents[1] / "kept_runs" / "runs" / "done").glob("*/eval.json"))
    evaluation = eval_file.read(directory)
    assert [(coder.levels, coder.thresholds) for coder in evaluation.coders] == [((), {})] * len(evaluation.coders)
    eval_file.write(tmp_path, evaluation)
    before, after = (json.loads((folder / "eval.json").read_text()) for folder in (directory, tmp_path))
    assert before["eval_result_unstructured"]["coders"] == after["eval_result_unstructured"]["coders"]
    assert before["eval_format"] == after["eval_format"]
