"""Names of other programs and slips of a command line: each is answered by what to write here."""

import re
import runpy
import shlex
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

from helpers import ROOT
from helpers.command_line import composed, refused
from helpers.peers import run_in
from sae_transcoder.api import load_config
from sae_transcoder.config import FIELDS, GROUPS, ConfigError
from sae_transcoder.config.command_line import split_arguments
from sae_transcoder.config.other_words import DIFFERENT_HERE, OTHER_WORDS
from sae_transcoder.config.shell_words import NAMES
from sae_transcoder.config.unknown_names import name_hint
from sae_transcoder.language_model import load_errors

COMMANDS = {"to", "push"}  # of sae-export
KNOWN_NAMES = yaml.safe_load((ROOT / "tests" / "helpers" / "names_in_other_programs.yaml").read_text())
WRITTEN_BY_THE_PROGRAM = {"sae_lens_version", "sae_lens_training_version", "library_version", "git_hash", "metadata"}


@pytest.mark.parametrize("word", OTHER_WORDS)
def test_a_word_of_another_program_is_no_name_here_and_its_answer_names_what_is(word: str) -> None:
    assert word not in NAMES
    meaning, fix = OTHER_WORDS[word]
    assert {*re.findall(r"(\w+)=", fix)} <= {*NAMES, *COMMANDS}
    assert re.match("write |leave it out|set ", fix)
    if called := re.match(r"called (\w+) here", meaning):
        assert called[1] in set(FIELDS)


def test_what_an_answer_says_to_write_composes() -> None:
    literal = r"(\w+)=(\[[^\]{]*\]|[a-z0-9._-]+)"
    settings = {f"{name}={value}" for _, fix in OTHER_WORDS.values() for name, value in re.findall(literal, fix) if name in NAMES}
    assert {
        "model_type=transcoder",
        "tracker=wandb",
        "adam_betas=[0.9,0.999]",
        "quantization=nf4",
        "dataset=pretokenized",
    } <= settings
    settings.discard("model_type=transcoder")
    while settings:  # as many at once as name different fields
        together = {setting.partition("=")[0]: setting for setting in sorted(settings)}
        cfg = composed(*({"model_type": "model_type=sae", "dataset_name": "dataset_name=mine"} | together).values())
        assert cfg.model_type == "sae"
        settings -= set(together.values())


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("learning_rate=1e-3", "learning_rate=1e-3: called lr here; write lr=1e-3"),
        ("d_sae=4096", "d_sae=4096: called num_latents here; write num_latents=4096, or expansion_factor=8"),
        ("hook_name=blocks.6.hook_resid_post", "write 'layers=[6]' site=residual"),
        ("hook_name=blocks.6.hook_resid_pre", "write 'layers=[5]' site=residual"),
        ("hook_name=blocks.0.hook_resid_pre", "write 'layers=[6]' and site=residual, mlp or attention"),
        ("hook_name=blocks.2.hook_mlp_out", "write 'layers=[2]' site=mlp"),
        ("training_tokens=1e6", "training_tokens=1e6: called max_tokens here; write max_tokens=1000000"),
        ("l1_coefficient=5", "l1_coefficient=5: no L1 penalty; k is the number of active latents per token; write k=32"),
        ("batch_size_tokens=4096", "batch_size x grad_acc_steps x max_seq_length tokens; set these to 4096 together"),
        ("layer=3", "write 'layers=[3]'"),
        ("sae.k=16", "sae.k=16: the config is flat; write k=16"),
        ("+learning_rate=1e-3", "+ would step around the typed config"),
        ("kk=3", "kk=3: there is no field or group kk; did you mean k?"),
        ("max_samples=1e4", "max_samples=1e4: must be a whole number; write max_samples=10000"),
        (
            "model=EleutherAI/pythia-70m",
            "model=EleutherAI/pythia-70m: there is no such preset; write model=pythia_70m, or model_name=",
        ),
        ("model=gpt2-small", "model=gpt2-small: there is no such preset; write model=gpt2"),
        ("model=pythia-70m", "model=pythia-70m: there is no such preset; write model=pythia_70m"),
        (
            "dead_feature_threshold=1e-8",
            "in SAELens the share of tokens below which a latent counts as dead; here, as in sparsify, tokens",
        ),
        ("normalize_activations=expected_average_only_in", "in dictionary_learning are mean_norm here"),
        ("n_heads=4", "there is no temporal SAE here; write architecture="),
        ("architecture=gated", "no loss here has an L1 penalty; write architecture=jumprelu jumprelu_loss=step l0_coefficient="),
        ("architecture=matryoshka_batchtopk", "write architecture=matryoshka"),
        ("architecture=batch_top_k", "did you mean batchtopk?"),
        ("model=my/llama", "there is no such preset; write model_name=my/llama"),
        ("model=pythia_70", "did you mean pythia_70m? choose one of demo, "),
        ("dataset=mine.jsonl", "dataset=mine.jsonl: there is no such preset; write dataset=local_text dataset_name=mine.jsonl"),
        ("dataset=~/mine.txt.gz", "write dataset=local_text 'dataset_name=~/mine.txt.gz'"),
        ("dataset=corpus/*.csv", "write dataset=local_text 'dataset_name=\"corpus/*.csv\"'"),
        ("dataset=ids.bin", "write dataset=memmap dataset_name=ids.bin"),
        ("dataset=roneneldan/TinyStories", "write dataset=hub dataset_name=roneneldan/TinyStories"),
        ("dataset=pile", "choose one of demo, hub, local_text, memmap, pretokenized"),
        ("k=16,32", "k=16,32: several values are a sweep; add -m, or give one value"),
        ("layers=1,3", "layers=1,3: several values are a sweep; add -m, or write 'layers=[1,3]' for one list"),
        ("layers=[1],[3]", "layers=[1],[3]: several values are a sweep; add -m, or give one value"),
    ],
)
def test_one_message_says_what_to_write(
    written: str, message: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    errors = refused(capsys, monkeypatch, "model_type=sae", written, f"save_dir={tmp_path}")
    assert message in errors
    assert errors.count("error: ") == len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model_type sae", "--model_type sae: fields are written without dashes; write model_type=sae"),
        ("--k=16", "--k=16: fields are written without dashes; write k=16"),
        ("-k 16", "-k 16: fields are written without dashes; write k=16"),
        ("--experiment demo", "write experiment=demo"),
        ("--multi-topk k=3", "--multi-topk: fields are written without dashes; write multi_topk=true"),
        ("--learning-rate 1e-3", "--learning-rate 1e-3: called lr here; write lr=1e-3"),
        ("--layers 1 2 k=3", "--layers 1 2: fields are written without dashes; write 'layers=[1,2]'"),
        ("--hookpoints layers.*.mlp", "write 'hookpoints=[layers.*.mlp]'"),
        ("--dataset_name mine", "write 'dataset_name=[mine]'"),
        ("--nothing", "--nothing: there is no such option; fields are written as NAME=VALUE"),
        ("layers=[1, 3]", "layers=[1, 3]: a space ends an argument; write 'layers=[1,3]'"),
        ("layers=[1, 3 ]", "write 'layers=[1,3]'"),
        ("k=16, 32 ,64", "write k=16,32,64"),
        ("k 16", "k 16: a space ends an argument; write k=16"),
        ("k = 16", "write k=16"),
        ("k =16", "write k=16"),
        ("k= 16", "write k=16"),
        ("dataset_name=my own file.txt k=3", "write 'dataset_name=my own file.txt'"),
    ],
)
def test_a_slip_of_the_shell_is_told_with_the_right_line(words: str, message: str) -> None:
    (fault,) = split_arguments(words.split(" ")).faults
    assert message in fault


@pytest.mark.parametrize(
    "words",
    [
        "-m k=16,32 lr=1e-3",
        "--multirun k=1",
        "--multi k=1",
        "k=1 -c job",
        "--cfg job --resolve --package a k=1",
        "--info defaults k=1",
        "-sc query=bash",
        "k site=mlp",
        "k lr",
        "tags=[a k=3",
        "dataset_name= model_type",
        "--hydra-help",
    ],
)
def test_what_hydra_reads_is_no_slip(words: str) -> None:
    split = split_arguments(words.split(" "))
    assert split.faults == []
    assert sorted([*split.overrides, *split.options]) == sorted(words.split(" "))


def test_what_a_slip_says_to_write_is_read_as_it_was_meant() -> None:
    (fault,) = split_arguments(["layers=[1,", "3]"]).faults
    (override,) = shlex.split(fault.partition("write ")[2])
    assert composed("model_type=sae", override).layers == [1, 3]


def test_a_word_in_a_preset_of_ones_own_is_told_too(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nmodel_type: sae\nlearning_rate: 1e-3\n")
    assert "error: experiment/mine.yaml, learning_rate: called lr here; write lr=VALUE" in refused(
        capsys, monkeypatch, "--config-dir", str(tmp_path), "experiment=mine"
    )


def test_python_refuses_a_field_that_there_is_not_with_the_nearest_name() -> None:
    cfg = load_config("model_type=sae")
    cfg.k = 3
    for kind in (ConfigError, AttributeError):
        with pytest.raises(kind, match=r"^kk=3: there is no field kk; did you mean k\?$"):
            cfg.kk = 3  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"^learning_rate=0\.1: called lr here; write lr=0\.1$"):
        cfg.learning_rate = 0.1  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"^model='gpt2': there is no field model; did you mean"):
        cfg.model = "gpt2"  # type: ignore[attr-defined]
    assert cfg.k == 3
    assert not hasattr(cfg, "kk")


def test_a_wrong_word_in_python_overrides_is_told_as_at_the_terminal() -> None:
    with pytest.raises(ConfigError, match="called max_seq_length here; write max_seq_length=64"):
        load_config("model_type=sae", "ctx_len=64")


@pytest.mark.parametrize("program", KNOWN_NAMES)
def test_every_setting_of_another_program_is_answered(program: str) -> None:
    names = {*KNOWN_NAMES[program].split()} - WRITTEN_BY_THE_PROGRAM
    assert len(names) > 50
    assert names - {*NAMES, *OTHER_WORDS} == set()


def test_every_setting_of_sparsify_is_answered() -> None:
    from sparsify.__main__ import RunConfig
    from sparsify.config import SparseCoderConfig

    names = {field.name for config in (RunConfig, SparseCoderConfig) for field in fields(config)}
    assert len(names) > 40
    assert names - {*NAMES, *OTHER_WORDS} == set()


@pytest.mark.peers
@pytest.mark.parametrize("program", KNOWN_NAMES)
def test_the_names_that_are_kept_are_those_of_the_other_programs(program: str) -> None:
    done = run_in(program, ROOT / "tests" / "helpers" / "names_in_other_programs.py", program)
    assert done.stdout.split("\n")[-2].split() == KNOWN_NAMES[program].split(), done.stderr


def test_a_models_name_without_its_owner_is_answered_by_its_preset() -> None:
    for name, preset in (("gpt2-small", "gpt2"), ("pythia-70m", "pythia_70m"), ("gemma-2-2b", "gemma2_2b")):
        cfg = replace(load_config("model_type=sae"), model_name=name)
        assert load_errors.fix(cfg, OSError("no such model")) == f"write model={preset}, or the hub's whole name"
    assert "model=" not in load_errors.fix(replace(cfg, model_name="mine"), OSError("no")).replace("model=demo", "")


def test_what_a_name_means_elsewhere_is_told_of_fields_alone() -> None:
    assert set(DIFFERENT_HERE) <= set(FIELDS)
    assert not set(DIFFERENT_HERE) & set(OTHER_WORDS)


def test_the_glossary_has_the_names_that_the_program_answers() -> None:
    glossary = runpy.run_path(str(ROOT / "docs" / "scripts" / "glossary_page.py"))
    text = glossary["PAGE"].read_text()
    assert glossary["placed"](text) == text, "python docs/scripts/glossary_page.py"
    assert all(f"`{word}`" in text for word in OTHER_WORDS)


def test_hints_are_for_names_of_other_programs_alone() -> None:
    assert all(name_hint(name, "1", NAMES) is None for name in (*FIELDS, *GROUPS, "nothing"))
    assert set(GROUPS) <= set(NAMES)
