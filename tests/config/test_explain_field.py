"""`--explain k` and `k --help`, and the values that tab completion offers."""

import sys

import pytest

from helpers.sweeps import here
from sae_transcoder import evaluate, report, show_latents
from sae_transcoder.config import FIELDS, GROUPS, Activation, Optimizer
from sae_transcoder.config.completion import completions
from sae_transcoder.config.explain_field import explanation
from sae_transcoder.config.field_meanings import meanings
from sae_transcoder.config.presets import preset_files, when_to_choose


@pytest.mark.parametrize(
    "arguments", [["--explain", "k"], ["--explain=k"], ["k", "--help"], ["--help", "k"], ["--explain", "k=16"]]
)
def test_one_field_is_printed_by_itself(arguments: list[str]) -> None:
    code, text, errors = here(*arguments)
    assert (code, errors) == (0, "")
    lines = text.splitlines()
    assert lines[0] == "k: a whole number, at least 1"
    assert "Latents active per token" in lines[1]
    assert "  default: 8" in lines
    assert "  group: architecture" in lines
    assert "  set to: 8 by experiment=sae_basic" in lines
    assert any(line.startswith("  set to: 32 by experiment=") and "demo_batchtopk" in line for line in lines), "by its base, demo"


def test_every_field_has_a_default_and_its_docstring_and_every_group_its_choices() -> None:
    texts = {name: text for of_group in meanings().values() for name, text in of_group.items()}
    for name in FIELDS:
        text = explanation([name])
        assert "\n  default: " in text
        assert texts[name].split()[0] in text
        assert "set to" in text or name not in ("k", "lr", "model_name", "activation")
    for group, choice, path in preset_files():
        assert when_to_choose(path)
        assert f"  {group}={choice}: {when_to_choose(path)}" in explanation([group])
    assert {group for group, _, _ in preset_files()} == set(GROUPS)


def test_types_bounds_and_lists_are_shown_as_they_are_written() -> None:
    assert explanation(["activation"]).startswith(f"activation: one of {', '.join(Activation)}\n")
    assert "at most 1,048,576" in explanation(["expansion_factor"])
    assert "  written as: 'layers=[1,2]'" in explanation(["layers"])
    assert "  elsewhere: learning_rate" in explanation(["lr"])


def test_what_is_no_field_is_refused() -> None:
    assert here("--explain", "kk") == (1, "", "error: kk: there is no field or group kk; did you mean k?\n")
    assert here("--explain", "learning_rate") == (1, "", "error: learning_rate: called lr here; write lr=VALUE\n")
    assert here("--explain")[0] == 1


@pytest.mark.parametrize(
    ("name", "main"), [("sae-eval", evaluate.main), ("sae-latents", show_latents.main), ("sae-report", report.main)]
)
def test_the_other_commands_explain_fields_too(
    name: str, main: object, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for field, code, message in (("k", 0, "k: a whole number"), ("kk", 1, "error: kk: there is no field")):
        monkeypatch.setattr(sys, "argv", [name, "--explain", field])
        with pytest.raises(SystemExit) as stop:
            main()  # type: ignore[operator]
        printed = capsys.readouterr()
        assert ((stop.value.code or 0), message in printed.out + printed.err) == (code, True)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("sae-train model_type=sae activation=", [f"activation={value}" for value in Activation]),
        ("sae-train site=", ["site=residual", "site=mlp", "site=attention", "site=null"]),
        ("sae-train jumprelu_loss=", ["jumprelu_loss=quadratic", "jumprelu_loss=step", "jumprelu_loss=tanh"]),
        ("sae-train multi_topk=", ["multi_topk=true", "multi_topk=false"]),
        ("sae-train compile_model=n", ["compile_model=null"]),
        ("sae-train -m activation=topk,b", ["activation=topk,batchtopk"]),
        ("sae-train objective=ce_loss_s", ["objective=ce_loss_score", "objective=ce_loss_score_mean_ablation"]),
        ("sae-train --explain save_e", ["save_every"]),
        ("sae-train k=", None),
        ("sae-train model=", None),
        ("sae-train ", None),
    ],
)
def test_every_value_of_a_field_that_has_few_is_offered(line: str, offered: list[str] | None) -> None:
    assert completions(line) == offered


def test_the_shell_is_answered_by_the_field_or_by_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    for typed, offered in (("activation=", [f"activation={value}" for value in Activation]),
                           ("optimizer=", [f"optimizer={name}" for name in sorted(Optimizer)])):  # fmt: skip
        monkeypatch.setenv("COMP_LINE", f"sae-train {typed}")
        code, text, _ = here("-sc", "query=bash")
        assert (code, text.split()) == (0, offered)
