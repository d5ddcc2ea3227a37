"""The help of every command: it fits a screen, and sae-train's has every choice that Hydra would take."""

import shlex
import sys
from pathlib import Path

import pytest
from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from helpers.command_line import composed
from sae_transcoder import evaluate, export, report, show_latents, train
from sae_transcoder.config.checks import faults
from sae_transcoder.config.command_help import help_text
from sae_transcoder.config.composition import hydra_on_conf
from sae_transcoder.config.presets import by_family, choices, default_choices, model_size

COMMANDS = {"sae-train": train, "sae-eval": evaluate, "sae-latents": show_latents, "sae-report": report, "sae-export": export}


def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, *arguments: str) -> str:
    """What a command prints on its way to exit code 0."""
    monkeypatch.setattr(sys, "argv", [command, *arguments])
    with pytest.raises(SystemExit) as stop:
        COMMANDS[command].main()
    assert not stop.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_fits_40_lines_of_100_characters(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = printed(capsys, monkeypatch, command, "--help").splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert sum(line.strip().startswith(command) for line in lines) >= 3, "examples"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["-h", "k=3"], ["experiment=demo", "--help"], ["--help", "-m", "json=missing.json"]]
)
def test_the_help_is_the_same_whatever_stands_beside_it(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert printed(capsys, monkeypatch, "sae-train", *arguments) == help_text() + "\n"


def test_every_choice_and_default_is_hydras() -> None:
    with hydra_on_conf() as loader:
        for group, names in choices().items():
            assert names == loader.get_group_options(group)
        chosen = compose("config", ["model_type=sae"], return_hydra_config=True).hydra.runtime.choices
    assert default_choices() == {group: chosen[group] for group in choices() if chosen[group] not in (None, "sae")}
    words = help_text().replace(",", " ").split()
    assert all(name in words for names in choices().values() for name in names)


def test_choices_of_ones_own_stand_in_the_help(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for group, choice in (("experiment", "mine"), ("model", "my_model"), ("extra", "other")):
        (tmp_path / group).mkdir()
        (tmp_path / group / f"{choice}.yaml").write_text("# @package _global_\n")
    text = printed(capsys, monkeypatch, "sae-train", "--config-dir", str(tmp_path), "--help")
    assert {"mine", "my_model", "other"} <= {*text.replace(",", " ").split()}
    assert "  extra         other\n" in text


def test_models_stand_by_family_from_small_to_large() -> None:
    families = by_family(choices()["model"])
    assert ["gpt2", "gpt2_medium", "gpt2_large", "gpt2_xl"] in families
    assert [family[0].split("_")[0] for family in families] == sorted({name.split("_")[0] for name in choices()["model"]})
    for family in families:
        assert [model_size(name) for name in family] == sorted(model_size(name) for name in family)
        assert all(model_size(name) > 0 for name in family)


def test_the_examples_of_the_help_compose_without_a_fault() -> None:
    examples = [line.strip().partition("   ")[0] for line in help_text().splitlines() if line.startswith("  sae-train ")]
    assert len(examples) == 3
    for example in examples:
        given = OverridesParser.create().parse_overrides([word for word in shlex.split(example)[1:] if word != "-m"])
        (jobs,) = BasicSweeper.split_arguments(given, None)
        assert jobs
        assert all(faults(composed(*job)) == [] for job in jobs)


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("sae-export outputs/x --to sae_lens", "--to: there is no such option; write to=sae_lens"),
        ("sae-latents outputs --tokens 5", "--tokens: there is no such option; write tokens=5"),
        ("sae-export outputs/x --to=sae_lens", "--to: there is no such option; write to=sae_lens"),
        ("sae-eval outputs/x --max-samples", "--max-samples: there is no such option; write max_samples=VALUE"),
        ("sae-report outputs --metric fvu", "--metric: there is no such option; did you mean --metrics?"),
        ("sae-eval outputs/x --frobnicate", "--frobnicate: there is no such option; see sae-eval --help"),
        ("sae-report --watch=x", "argument --watch: invalid float value: 'x'; see sae-report --help"),
        ("sae-export outputs/x", "the following arguments are required: settings; see sae-export --help"),
    ],
    ids=str,
)
def test_a_wrong_option_ends_a_command_in_one_line_that_says_what_to_write(
    command: str, error: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = command.split()
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        COMMANDS[words[0]].main()
    assert stop.value.code == 1
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_command_explains_its_own_settings(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sae-latents", "--explain", "tokens", "k"])
    with pytest.raises(SystemExit) as stop:
        COMMANDS["sae-latents"].main()
    printed = capsys.readouterr().out
    assert not stop.value.code
    assert printed.startswith("tokens: of the text for training")
    assert "\nk: a whole number" in printed
