"""The command line and the composed config: groups, defaults, presets, and what is refused before torch is imported."""

import ast
import copy
import json
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from helpers.command_line import composed, faults_of, refused
from sae_transcoder import config, train
from sae_transcoder.config import (
    FIELDS,
    GROUPS,
    Config,
    HardwareConfig,
    Optimizer,
    SlurmConfig,
    SweepConfig,
    composition,
    run_name,
    signature,
)
from sae_transcoder.config.checks import AT_LEAST, faults
from sae_transcoder.config.composition import CONF

OPTIMIZER_NAMES = ", ".join(sorted(Optimizer))
CHOICES = {group: sorted(p.stem for p in (CONF / group).glob("*.yaml")) for group in GROUPS}


def test_an_override_means_what_it_says() -> None:
    cfg = composed("model_type=transcoder", "k=16", "lr=1e-3", "optimizer=muon", "architecture=skip", "layers=[1,2]")
    assert (cfg.model_type, cfg.k, cfg.lr, cfg.optimizer, cfg.skip_connection, cfg.layers) == (
        "transcoder",
        16,
        1e-3,
        "muon",
        True,
        [1, 2],
    )


def test_defaults_are_the_dataclasses_but_for_what_the_default_groups_choose() -> None:
    cfg = composed("model_type=sae")
    chosen = {"model_type", "model_name", "dataset_kind", "dataset_name"}
    for field in fields(Config):
        if field.name not in chosen:
            assert getattr(cfg, field.name) == getattr(Config(model_type="sae"), field.name), field.name


@pytest.mark.parametrize(("group", "choice"), [(g, c) for g, cs in CHOICES.items() for c in cs])
def test_every_choice_of_every_group_composes_and_passes_the_checks(group: str, choice: str) -> None:
    needed = ["dataset_name=x"] if choice in ("hub", "local_text", "pretokenized", "memmap", "own_text") else []
    cfg = composed(*([] if group in ("experiment", "model_type") else ["model_type=sae"]), f"{group}={choice}", *needed)
    assert faults(cfg) == []


def test_no_field_is_owned_by_two_groups() -> None:
    owners = defaultdict(set)
    for group, choices in CHOICES.items():
        for choice in choices if group != "experiment" else []:
            for name in yaml.safe_load((CONF / group / f"{choice}.yaml").read_text()) or {}:
                if name != "defaults":
                    owners[name].add(group)
    assert not {name: groups for name, groups in owners.items() if len(groups) > 1}
    assert set(owners) <= set(FIELDS)


@pytest.mark.parametrize("experiment", CHOICES["experiment"])
def test_every_field_that_a_preset_sets_arrives(experiment: str) -> None:
    cfg = composed(f"experiment={experiment}", *(["dataset_name=x"] if experiment == "own_text" else []))
    for name, value in OmegaConf.to_container(OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml")).items():
        if name not in ("defaults", "hydra"):
            assert getattr(cfg, name) == value, name


@pytest.mark.parametrize(
    "arguments",
    [
        ["experiment=demo", "--cfg", "job", "k=16"],
        ["--cfg", "job", "experiment=demo", "k=16"],
        ["experiment=demo", "k=16", "--cfg=job"],
        ["experiment=demo", "-c", "job", "k=16"],
    ],
)
def test_options_may_stand_anywhere_between_overrides(
    arguments: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["sae-train", *arguments])
    train.main()
    assert yaml.safe_load(capsys.readouterr().out)["k"] == 16


def test_a_folder_of_configs_and_a_multirun_may_stand_between_overrides(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ndefaults: [demo]\nmax_samples: 16\n")
    command = ["experiment=mine", "--config-dir", str(tmp_path), "k=4,8", "-m", "dry_run=true", f"save_dir={tmp_path}/out"]
    monkeypatch.setattr(sys, "argv", ["sae-train", *command])
    with pytest.raises(SystemExit) as end:
        train.main()
    assert end.value.code == 0
    assert "2 runs (2 new)" in capsys.readouterr().out


def test_an_optimizer_without_a_file_in_conf_is_chosen_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = Path(shutil.copytree(CONF, tmp_path / "conf"))
    (conf / "optimizer" / "muon.yaml").unlink()
    monkeypatch.setattr(composition, "CONF", conf)
    monkeypatch.setattr(ConfigStore.instance(), "repo", copy.deepcopy(ConfigStore.instance().repo))
    assert composed("model_type=sae", "optimizer=muon", "k=16").optimizer == "muon"


@pytest.mark.parametrize("path", sorted(CONF.glob("*/*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_choice_says_when_to_choose_it_with_a_command_that_composes(path: Path) -> None:
    package, line = path.read_text().splitlines()[:2]
    assert package == "# @package _global_"
    _, command = line.split("   sae-train ")
    composed(*(argument for argument in shlex.split(command) if argument != "-m"))


def test_the_full_preset_names_every_field_that_groups_do_not_choose() -> None:
    written = set(yaml.safe_load((CONF / "experiment" / "advanced_full.yaml").read_text()))
    by_groups = {
        "model_type",
        "model_name",
        "dataset_kind",
        "dataset_name",
        "activation",
        "optimizer",
        "tracker",
        "hardware",
        "device",
    }
    elsewhere = {"run_name", "cache_dir", "tracker_mode", "tokens_column", "tokens_dtype"} | {f.name for f in fields(SweepConfig)}
    elsewhere |= {f.name for f in fields(SlurmConfig)} - {f.name for f in fields(HardwareConfig)}
    assert set(FIELDS) - written == by_groups | elsewhere


def test_every_field_has_a_docstring() -> None:
    documented = []
    for path in (Path(config.__file__).parent / "fields").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
                for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
                    if isinstance(statement, ast.AnnAssign):
                        assert isinstance(following, ast.Expr), f"{node.name}.{statement.target.id}"
                        documented.append(statement.target.id)
    assert sorted(documented) == sorted(FIELDS)


def test_lower_bounds_are_of_fields_that_exist() -> None:
    assert set(AT_LEAST) <= set(FIELDS)
    assert {"k", "lr_warmup_steps", "save_every", "signal_delay"} <= set(AT_LEAST)


def test_the_signature_covers_what_changes_the_result_and_nothing_else() -> None:
    base = composed("model_type=sae")
    for override, same in [
        ("k=9", False), ("lr=0.1", False), ("dtype=bfloat16", False), ("corrections=false", False), ("max_samples=999", False),
        ("save_dir=elsewhere", True), ("run_name=x", True), ("device=cpu", True), ("tracker=wandb", True), ("log_every=3", True),
        ("threads=1", True), ("save_every=5", True), ("hardware=cpu", True), ("cache_dir=x", True),
    ]:  # fmt: skip
        assert (signature(composed("model_type=sae", override)) == signature(base)) == same, override


def test_a_composed_run_name_fits_a_file_system_however_many_layers_and_whatever_the_models_name() -> None:
    layers = ",".join(map(str, range(80)))
    cfg = composed("model_type=transcoder", f"layers=[{layers}]", "k=16")
    assert run_name(cfg) == f"transcoder-smollm2_135m-L0..79-mlp-k16-x8-{signature(cfg)}"
    assert run_name(composed("model_type=transcoder", f"layers=[{layers.replace(',40,', ',')}]", "k=16")) != run_name(cfg)
    long = composed("model_type=sae", f"model_name={'m' * 300}", f"layers=[{layers}]")
    assert len(run_name(long)) <= 200
    few = composed("model_type=sae", "layers=[0,1,2,3,4,5,6,7,8,9,10,11]")
    assert "-L0.1.2.3.4.5.6.7.8.9.10.11-" in run_name(few), "as before where it fits"


def test_the_default_run_name_is_readable_and_differs_with_any_setting() -> None:
    cfg = composed("model_type=transcoder", "layers=[6,12]", "k=16")
    assert run_name(cfg) == f"transcoder-smollm2_135m-L6.12-mlp-k16-x8-{signature(cfg)}"
    assert run_name(composed("model_type=transcoder", "layers=[6,12]", "k=16", "lr=1e-3")) != run_name(cfg)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["activation=groupmax"], "residual-k16"),
        (["activation=batchtopk"], "residual-batchtopk-k16"),
        (["activation=jumprelu"], "residual-jumprelu-k16"),
        (["matryoshka_widths=[8,64]"], "residual-matryoshka-k16"),
        (["activation=batchtopk", "matryoshka_widths=[8,64]"], "residual-matryoshka-batchtopk-k16"),
    ],
)
def test_the_default_run_name_tells_kinds_of_coders_that_are_not_sparsifys(overrides: list[str], words: str) -> None:
    cfg = composed("model_type=sae", "layers=[6]", "k=16", "num_latents=64", *overrides)
    assert run_name(cfg) == f"sae-smollm2_135m-L6-{words}-n64-{signature(cfg)}"


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["model_type=sae", "expansion_facto=8"], ["expansion_facto=8", "did you mean expansion_factor"]),
        (["model_type=sae", "learning_rate=1"], ["learning_rate=1: called lr here; write lr=1"]),
        (["model_type=sae", "k=many"], ["k=many: must be a whole number"]),
        (["model_type=sae", "k=1.5"], ["k=1.5: must be a whole number"]),
        (["model_type=sae", "layers=6"], ["layers=6", "write 'layers=[6]'"]),
        (["model_type=sae", "layers=[a]"], ["layers[0]=a: must be a whole number"]),
        (["model_type=sae", "layers=a"], ["layers=a: must be a list, each of its elements a whole number, such as [1,2], or null"]),
        (["model_type=sae", "device=[1]"], ["device=[1]: must be a text"]),
        (["model_type=sae", "eval_end_to_end=maybe"], ["eval_end_to_end=maybe: must be true or false"]),
        (["model_type=sae", "resume=true"], ["resume=true: must be one of", "here auto (the default), must or never"]),
        (["model_type=sae", "site=resid_post"], ["site=resid_post: must be one of residual, mlp", "; write site=residual"]),
        (["model_type=sae", "site=hook_resid_pre"], ["; write site=residual, and each of the layers one lower"]),
        (["model_type=sae", "activation=batch_topk"], ["activation=batch_topk: must be one of", "did you mean batchtopk?"]),
        (["demo"], ["demo: write experiment=demo, or model=demo, or dataset=demo"]),
        (["gpt2", "model_type=sae"], ["gpt2: write model=gpt2"]),
        (["model_type=sae", "layers=6,7"], ["layers=6,7: several values are a sweep; add -m, or write 'layers=[6,7]'"]),
        (["model_type=sae", "optimizer=adamw"], ["optimizer=adamw", OPTIMIZER_NAMES]),
        (
            ["model_type=sae", "expansion_factor=4", "num_latents=4096"],
            ["expansion_factor=4 with num_latents=4096", "leave one of them out"],
        ),
        (["model_type=sae", "site=mpl"], ["site=mpl: must be one of residual, mlp, attention, or null; did you mean mlp?"]),
        (["model_type=vae"], ["model_type=vae", "sae, transcoder"]),
        (["model_type=sae", "k"], ["k", "k=VALUE"]),
        ([], ["model_type is missing", "model_type=sae or model_type=transcoder"]),
        (["model_type=sae", "dataset=hub"], ["dataset_name is missing"]),
        (["model_type=sae", "+k=3"], ["+k=3", "write k=3"]),
        (["model_type=sae", "++new=3"], ["++new=3", "typed config"]),
        (["model_type=sae", "~lr"], ["~lr", "leave it out"]),
        (["model_type=sae", "k=0"], ["k=0", "at least 1"]),
        (["model_type=sae", "layers=[1]", "layer_stride=2"], ["layers=[1] and layer_stride=2"]),
        (["model_type=sae", "layers=[1]", "hookpoints=[h.1]"], ["layers=[1] and hookpoints=['h.1']"]),
        (["model_type=sae", "layers=[-1]"], ["layers=[-1]", "counted from 0"]),
        (["model_type=sae", "layers=[]"], ["layers=[]", "at least one"]),
        (["model_type=sae", "site=mlp", "hookpoints=[h.1]"], ["site=mlp and hookpoints"]),
        (["model_type=sae", "optimizer=signum", "weight_decay=0.1"], ["weight_decay=0.1 with optimizer=signum"]),
        (["model_type=sae", "optimizer=signum", "lr_warmup_steps=5"], ["lr_warmup_steps=5 with optimizer=signum"]),
        (["model_type=sae", "max_samples=null"], ["max_samples=null", "set max_samples, max_tokens or max_steps"]),
        (["model_type=transcoder", "normalize_decoder=true"], ["normalize_decoder=True with model_type=transcoder"]),
        (["model_type=sae", "activation=groupmax", "multi_topk=true"], ["multi_topk=True with activation=groupmax"]),
        (["model_type=sae", "lr=-1"], ["lr=-1.0", "above 0"]),
        (["model_type=sae", "init_seeds=[1,1]"], ["init_seeds=[1, 1]", "none twice"]),
        (["model_type=sae", "run_name=a/b"], ["run_name='a/b'", "save_dir"]),
        (["model_type=sae", "dataset=demo", "dataset_split=test"], ["dataset_split=test with dataset_kind=demo", "read by hub"]),
        (["model_type=sae", "dataset=demo", "tokens_dtype=uint16"], ["tokens_dtype=uint16", "read by memmap"]),
        (["model_type=sae", "model=demo", "revision=main"], ["revision=main with model_name=demo"]),
        (["model_type=sae", "project=mine"], ["project=mine with tracker=none"]),
        (["model_type=sae", "hardware=cpu", "device=cuda"], ["device=cuda with hardware=cpu"]),
        (["model_type=sae", "lr=inf"], ["lr=inf", "finite"]),
        (["model_type=sae", "auxk_alpha=nan"], ["auxk_alpha=nan"]),
        (["model_type=sae", "threads=100000"], ["threads=100000", "at most 1,024"]),
        (["model_type=sae", "init_seeds=[99999999999999999999999]"], ["init_seeds", "64 bits"]),
        (["model_type=sae", "k=null"], ["k: null is not possible"]),
        (["model_type=sae", "hydra.run.dir=/tmp/x"], ["hydra.run.dir=/tmp/x", "save_dir/run_name"]),
        (["model_type=sae", f"run_name={'r' * 260}"], ["run_name=rrrr", "has 260 bytes", "may have 200"]),
        (["model_type=sae", f"sweep_name={'s' * 201}"], ["sweep_name=ssss", "has 201 bytes"]),
        (["model_type=sae", "run_name=ünï✓"], ["run_name=ünï✓: cannot be read", "quote"]),
        (["model_type=sae", "layers=[2"], ["layers=[2: cannot be read"]),
        (
            ["model_type=sae", "layers=[[1],[2]]"],
            ["layers=[[1], [2]]: must be a list, each of its elements a whole number, such as [1,2], or null"],
        ),
        (["model_type=sae", "init_seeds=[[1]]"], ["init_seeds=[[1]]: must be a list, each of its elements a whole number"]),
        (["model_type=sae", "exclude_tokens=[[1]]", "k=0"], ["exclude_tokens=[[1]]: must be a list"]),
        (
            ["model_type=sae", 'hookpoints=[["layers.1"]]'],
            ["hookpoints=[['layers.1']]: must be a list, each of its elements a text"],
        ),
        (["model_type=sae", "tags=[[a]]", "tracker=wandb"], ["tags=[['a']]: must be a list"]),
        (["model_type=sae", "dataset=demo", "dataset_name=mine"], ["dataset_name=mine with dataset_kind=demo"]),
        (["model_type=sae", "group=x"], ["group=x with tracker=none"]),
        (["model_type=sae", "tracker=trackio", "entity=me"], ["entity=me with tracker=trackio", "tracker_mode=online"]),
        (["model_type=sae", "tracker=trackio", "tracker_mode=online"], ["set entity"]),
        (["model_type=sae", "loss_fn=ce", "micro_acc_steps=2"], ["micro_acc_steps=2 with loss_fn=ce", "grad_acc_steps"]),
        (["model_type=sae", "partition=gpu"], ["partition=gpu with hardware=auto", "set hardware=slurm"]),
        (["model_type=sae", "wait=true"], ["wait=True with hardware=auto"]),
        (["model_type=sae", "hardware=slurm", "time=soon"], ["time=soon", "4:00:00"]),
        (["model_type=sae", "hardware=slurm", "time=1"], ["signal_delay=120 with time=1"]),
        (["model_type=sae", "hardware=slurm", "memory=lots"], ["memory=lots", "32G"]),
        (
            ["model_type=sae", "hardware=slurm", "memory=1.5G"],
            ["memory=1.5G: write a whole number of MiB, or one with K, M, G or T"],
        ),
        (["model_type=sae", "hardware=slurm", "memory=32GiB"], ["memory=32GiB: write"]),
        (["model_type=sae", "hardware=slurm", "memory=''"], ["memory=: write"]),
        (["model_type=sae", "lr=interval(1e-3,1e-2)"], ["lr=interval(1e-3,1e-2): several values are a sweep; add -m, or give one"]),
        (["model_type=sae", "k=range(1,3)"], ["k=range(1,3): several values are a sweep; add -m"]),
        (["model_type=sae", "hardware=slurm", "gres=null"], ["gres=null with device=cuda", "set gres=gpu:1"]),
        (["model_type=sae", "hardware=slurm", "tasks_per_node=2"], ["gres=gpu:1 with tasks_per_node=2", "gres=gpu:2"]),
        (["model_type=sae", "hardware=slurm", "workers=2"], ["workers=2 with hardware=slurm", "runs_per_pack"]),
        (["model_type=sae", "hardware=slurm", 'sbatch=["exclusive"]'], ["sbatch=exclusive", "--name=value"]),
        (["model_type=sae", "hardware=slurm", 'sbatch=["--time=3"]'], ["sbatch=--time=3", "set time instead"]),
        (["model_type=sae", "hardware=slurm", 'sbatch=["--no-requeue"]'], ["sbatch=--no-requeue", "leave it out"]),
        (
            ["model_type=sae", "loss_fn=kl", "distribute_modules=true"],
            ["distribute_modules=True with loss_fn=kl", "leave distribute_modules out"],
        ),
        (["model_type=sae", "hardware=gpu", "device=cpu"], ["device=cpu with hardware=gpu"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_a_wrong_setting_is_refused_with_field_value_and_fix(overrides: list[str], parts: list[str], tmp_path: Path) -> None:
    message = faults_of(*overrides, *([f"save_dir={tmp_path}"] if overrides else []))
    for part in parts:
        assert part in message
    assert not list(tmp_path.iterdir()), "a refused run leaves nothing behind"


def test_memory_is_written_as_sbatch_takes_it() -> None:
    for memory in ("500", "2048K", "3g", "32G", "32GB", "32gb", "1T", "0"):
        assert faults(composed("model_type=sae", "hardware=slurm", f"memory='{memory}'")) == []


def test_all_faults_are_listed_at_once(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    message = refused(capsys, monkeypatch, "model_type=sae", "k=0", "batch_size=0", "lr=-1")
    assert message.count("error: ") == 3


def test_a_group_of_the_users_own_config_dir_is_allowed(tmp_path: Path) -> None:
    for group, field in [("model", "model_name: mine"), ("sparsity", "k: 77")]:
        (tmp_path / group).mkdir()
        (tmp_path / group / "mine.yaml").write_text(f"# @package _global_\n{field}\n")
    command = [
        sys.executable,
        "-m",
        "sae_transcoder.train",
        "--config-dir",
        str(tmp_path),
        "model_type=sae",
        "model=mine",
        "+sparsity=mine",
    ]
    done = subprocess.run([*command, "--cfg", "job"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = yaml.safe_load(done.stdout)
    assert (shown["model_name"], shown["k"]) == ("mine", 77)


def test_help_and_cfg_show_the_config_without_torch() -> None:
    code = (
        "import sys; from sae_transcoder.train import main\ntry:\n  main()\nfinally:\n  assert 'torch' not in sys.modules, 'torch'"
    )
    for arguments, expected in [(["--help"], "\n  experiment  "), (["model_type=sae", "--cfg", "job"], "k: 8")]:
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
    done = subprocess.run([sys.executable, "-c", code, "model_type=sae", "k=0"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: k=0")


def test_bash_completion_offers_fields_and_choices() -> None:
    environment = {"COMP_LINE": "sae-train optimizer=", "COMP_POINT": "20", "PATH": str(Path(sys.executable).parent)}
    done = subprocess.run(
        [sys.executable, "-m", "sae_transcoder.train", "-sc", "query=bash"], capture_output=True, text=True, env=environment
    )
    assert done.stdout.split() == [f"optimizer={name}" for name in sorted(Optimizer)]


def test_the_composed_config_holds_plain_values_only() -> None:
    OmegaConf.to_yaml(OmegaConf.structured(composed("experiment=advanced_full")))
    json.dumps(config.summary(composed("model_type=sae")))
