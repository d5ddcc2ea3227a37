"""`--explain k` and `k --help`, and the values that tab completion offers."""

import re
import sys

import pytest

from helpers.command_line import composed
from helpers.sweeps import here
from sae_transcoder import evaluate, report, show_latents
from sae_transcoder.config import FIELDS, GROUPS, Activation, Optimizer
from sae_transcoder.config.checks import faults
from sae_transcoder.config.completion import completions
from sae_transcoder.config.explain_field import OPEN_RANGES, default_of, explanation
from sae_transcoder.config.explain_group import further_names
from sae_transcoder.config.field_meanings import meanings, shown
from sae_transcoder.config.presets import preset_files, when_to_choose
from sae_transcoder.config.shell_words import NAMES
from sae_transcoder.metric_names import RUN_COLUMNS


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
        text = explanation(name)
        assert "\n  default: " in text
        assert texts[name].split()[0] in text
        assert "set to" in text or name not in ("k", "lr", "model_name", "activation")
    for group, choice, path in preset_files():
        assert when_to_choose(path)
        assert f" {choice} {when_to_choose(path)}" in " ".join(explanation(group).split())
        assert when_to_choose(path) in " ".join(explanation(f"{group}={choice}").split())
    assert {group for group, _, _ in preset_files()} == set(GROUPS)


def test_no_explanation_is_wider_than_100_characters() -> None:
    for name in (*NAMES, *further_names()):
        assert max(map(len, explanation(name).splitlines())) <= 100, name


def test_the_default_of_a_field_is_what_composes() -> None:
    cfg = composed("model_type=sae")
    for name in FIELDS:
        value, _, _ = default_of(name).partition(", by ")
        assert value == ("required" if name == "model_type" else shown(getattr(cfg, name))), name
    assert "  default: HuggingFaceTB/SmolLM2-135M, by model=smollm2_135m" in explanation("model_name")


def test_a_group_whose_choices_give_a_field_many_values_stands_for_them() -> None:
    text = explanation("model_name")
    assert "  set to: a value of its own by each model=CHOICE (--explain model)" in text
    assert "google/gemma" not in text
    assert "  set to: EleutherAI/pythia-160m-deduped by experiment=saebench_pythia_160m" in text


def test_a_choice_is_told_with_what_it_sets() -> None:
    for asked in (["--explain", "gpt2"], ["--explain", "model=gpt2"], ["gpt2", "--help"]):
        code, text, _ = here(*asked)
        assert (code, text.splitlines()[0]) == (0, "model=gpt2: a choice of the group model")
        assert "  sets: model_name=openai-community/gpt2\n" in text
        assert "  as in: sae-train model_type=sae model=gpt2 'layers=[6]'\n" in text
    of_demo = explanation("demo")
    assert [line.partition(":")[0] for line in of_demo.splitlines() if "a choice of" in line] == [
        "model=demo",
        "dataset=demo",
        "experiment=demo",
    ]
    assert "k=32" in of_demo
    assert explanation("adam").startswith("optimizer=adam: a choice of the group optimizer, the default\n")
    assert here("--explain", "model=gpt3")[2].startswith("error: model=gpt3: there is no such choice; did you mean gpt2?")


def test_a_metric_is_told_with_its_formula() -> None:
    assert "1 - fvu" in explanation("explained_variance")
    assert explanation("l0").startswith("l0: a held-out metric"), "not the k of other programs"


def test_columns_of_the_table_are_told_as_their_heads_have_them() -> None:
    assert "1 - frac_alive" in explanation("never_fired")
    assert [explanation(name) for name in ("L0", "FVU")] == [explanation(name) for name in ("l0", "fvu")]
    assert all(explanation(name) for name in RUN_COLUMNS)


def test_what_is_known_is_told_beside_a_name_that_is_none() -> None:
    code, text, errors = here("--explain", "kk", "k")
    assert code == 1
    assert text.startswith("k: a whole number")
    assert errors == "error: kk: there is no field or group kk; did you mean k?\n"


def test_without_a_name_every_field_stands_in_one_line() -> None:
    code, text, errors = here("--explain")
    assert (code, errors) == (0, "")
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(FIELDS)
    assert any(line.split()[:3] == ["max_seq_length", "256", "Tokens"] for line in lines)
    assert any(line.split()[:3] == ["model_name", "by", "model"] for line in lines), "the default is that of the group"


@pytest.mark.parametrize(
    ("name", "outside"),
    [("lr", "0"), ("grad_clip_norm", "0"), ("jumprelu_bandwidth", "0"), ("decoder_init_norm", "0"), ("threshold_beta", "1"),
     ("adam_betas", "[0.9,1]"), ("adam_betas", "[0.9]"), ("layers", "[-1]")],
)  # fmt: skip
def test_a_range_that_is_shown_is_refused_outside(name: str, outside: str) -> None:
    kind = {"threshold_beta": ["architecture=batchtopk"], "jumprelu_bandwidth": ["architecture=jumprelu"],
            "decoder_init_norm": ["normalize_decoder=false"]}  # fmt: skip
    assert name in OPEN_RANGES
    (fault,) = faults(composed("model_type=sae", f"{name}={outside}", *kind.get(name, [])))
    assert fault.startswith(f"{name}=")


def test_types_bounds_and_lists_are_shown_as_they_are_written() -> None:
    assert explanation("activation").startswith(f"activation: one of {', '.join(Activation)}\n")
    assert "at most 1,048,576" in explanation("expansion_factor")
    assert "  written as: 'layers=[1,2]'" in explanation("layers")
    for name in ("adam_betas", "layers", "hookpoints", "init_seeds", "exclude_tokens", "matryoshka_widths"):
        (example,) = re.findall(r"written as: '(.*)'", explanation(name))
        assert faults(composed("model_type=sae", example)) == [], name
    assert "  elsewhere: learning_rate" in explanation("lr")
    assert "  elsewhere: d_sae, dict_size" in explanation("num_latents")
    assert "  differs: in SAELens the share of tokens" in explanation("dead_feature_threshold")
    assert explanation("lr").startswith("lr: a number, or the word sparsify, or null; above 0\n")
    assert "  documented: docs/fields.md#k" in explanation("k")


def test_what_is_no_field_is_refused() -> None:
    assert here("--explain", "kk") == (1, "", "error: kk: there is no field or group kk; did you mean k?\n")
    assert here("--explain", "learning_rate") == (1, "", "error: learning_rate: called lr here; write lr=VALUE\n")
    assert here("learning_rate", "--help") == (1, "", "error: learning_rate: called lr here; write lr=VALUE\n")
    assert here("--explain", "kk", "k", "zzzz")[2].splitlines() == [
        "error: kk: there is no field or group kk; did you mean k?",
        "error: zzzz: there is no field or group zzzz; see sae-train --explain for all fields",
    ]


@pytest.mark.parametrize(
    ("name", "main"), [("sae-eval", evaluate.main), ("sae-latents", show_latents.main), ("sae-report", report.main)]
)
def test_the_other_commands_explain_fields_too(
    name: str, main: object, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = ((["k"], 0, "k: a whole number"), (["kk"], 1, "error: kk: there is no field"), ([], 0, "  max_seq_length "))
    for names, code, message in cases:
        monkeypatch.setattr(sys, "argv", [name, "--explain", *names])
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
        ("sae-train --explain smoll", ["smollm2_135m", "smollm2_135m_10b", "smollm2_1_7b", "smollm2_360m"]),
        ("sae-train --ver", ["--version"]),
        ("sae-train --info k=1 --e", ["--experimental-rerun", "--explain"]),
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
