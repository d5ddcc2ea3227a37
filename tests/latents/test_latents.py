"""sae-latents: what it keeps equals a reading by brute force; it goes on where it was stopped; what is refused."""

import errno
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.device import ON_DEVICE
from helpers.run_directory_page import undocumented
from helpers.short_runs import short
from ourselves.latents_exact import differences
from sae_transcoder import show_latents as command
from sae_transcoder.api import describe_latents, load_coders, load_run
from sae_transcoder.config import ConfigError, run_dir
from sae_transcoder.data.sequences import Sequences
from sae_transcoder.language_model import forward
from sae_transcoder.latents import one_pass, partial
from sae_transcoder.latents.batch import Batch
from sae_transcoder.latents.request import Wanted, latents_requests
from sae_transcoder.process.stop_signal import Stopped
from sae_transcoder.run_store import latent_files, latents_pass, run_files
from sae_transcoder.show_latents import show_latents
from sae_transcoder.training import engine

KINDS = {
    "topk": ["model_type=transcoder", "skip_connection=true", "layers=[1,2]"],
    "batchtopk": ["activation=batchtopk", "matryoshka_widths=[64,512]", "init_seeds=[0,1]", "exclude_tokens=[10,11]"],
    "jumprelu": ["activation=jumprelu", "jumprelu_init_threshold=1", "jumprelu_bandwidth=1"],
    "groupmax": ["activation=groupmax"],
}


@pytest.fixture(scope="module")
def trained(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs, one of each kind."""
    folder = tmp_path_factory.mktemp("runs")
    cfgs = [
        short(cache, folder, f"run_name={kind}", "eval_samples=16", "eval_end_to_end=false", *settings)
        for kind, settings in KINDS.items()
    ]
    for cfg in cfgs:
        engine.train([cfg])
        run_files.write_config(cfg)
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """A copy of them."""
    return Path(shutil.copytree(trained, tmp_path / "runs"))


@pytest.fixture
def in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text is read in batches of four sequences."""
    monkeypatch.setattr(one_pass, "POSITIONS", dict.fromkeys(one_pass.POSITIONS, 4 * 32))


def folder_of(run: Path) -> Path:
    return run / latents_pass.FOLDER / "coders"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*")) if path.is_file()}


def test_all_runs_of_a_folder_are_read_in_one_pass_and_equal_brute_force(
    runs: Path, in_small_batches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwards = []
    capture = forward.capture
    monkeypatch.setattr(one_pass, "capture", lambda *arguments: forwards.append(1) or capture(*arguments))
    (runs / "batchtopk").rename(runs.parent / "batchtopk")  # it excludes tokens, so it is another pass
    show_latents([str(runs)])
    assert len(forwards) == 4
    show_latents([str(runs.parent / "batchtopk")])
    for run in (*runs.iterdir(), runs.parent / "batchtopk"):
        assert differences(folder_of(run), str(run), 512) == []
        assert undocumented(run) == []


@pytest.mark.parametrize("settings", [["tokens=1900"], ["latents=3-9,400", "top=3"]])
def test_text_for_training_and_some_of_the_latents_equal_brute_force(
    runs: Path, in_small_batches: None, settings: list[str]
) -> None:
    show_latents([str(runs / "topk"), *settings])
    assert differences(folder_of(runs / "topk"), str(runs / "topk"), 512) == []
    about = latents_pass.read_pass(folder_of(runs / "topk"))
    table = latent_files.read_table(folder_of(runs / "topk") / "layers.1.mlp" / "latents.parquet")
    if settings[0] == "tokens=1900":
        assert (about.text, about.sequences) == ("training", 60)
    else:
        assert table["latent"].to_pylist() == [*range(3, 10), 400]
        assert about.latents == [*range(3, 10), 400]


def test_brute_force_tells_a_changed_file(runs: Path) -> None:
    show_latents([str(runs / "jumprelu")])
    path = folder_of(runs / "jumprelu") / "layers.2" / "contexts.parquet"
    contexts = latent_files.read_table(path)
    latent_files.write_table(path, contexts.slice(1))
    assert differences(folder_of(runs / "jumprelu"), str(runs / "jumprelu"), 512) != []


def stop_at(sequences: int, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begins a pass over the run, and stops it where so many sequences are read; passes save after each batch from then on."""
    read = one_pass.read_batch

    def read_or_stop(text: Sequences, start: int, stop: int, device: torch.device) -> Batch:
        if start >= sequences:
            raise Stopped(2)
        return read(text, start, stop, device)

    monkeypatch.setattr(one_pass, "SAVE_EVERY", -1.0)
    with monkeypatch.context() as patch:
        patch.setattr(one_pass, "read_batch", read_or_stop)
        with pytest.raises(Stopped):
            show_latents([str(run)])


def test_a_pass_that_is_stopped_goes_on_to_the_same_files(
    runs: Path, in_small_batches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs / "topk"
    show_latents([str(run)])
    undisturbed = files(folder_of(run))
    shutil.rmtree(folder_of(run))
    capture = one_pass.capture
    stop_at(8, run, monkeypatch)
    assert not (folder_of(run) / latents_pass.PASS).exists()
    forwards = []
    monkeypatch.setattr(one_pass, "capture", lambda *arguments: forwards.append(1) or capture(*arguments))
    show_latents([str(run)])
    assert len(forwards) == 2
    assert files(folder_of(run)) == undisturbed
    assert not (folder_of(run) / partial.FOLDER).exists()


def test_what_a_killed_pass_wrote_after_it_was_saved_is_dropped(
    runs: Path, in_small_batches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs / "jumprelu"
    show_latents([str(run)])
    undisturbed = files(folder_of(run))
    shutil.rmtree(folder_of(run))
    stop_at(8, run, monkeypatch)
    for log in (folder_of(run) / partial.FOLDER).rglob("*.bin"):
        log.write_bytes(log.read_bytes() + b"torn")
    show_latents([str(run)])
    assert files(folder_of(run)) == undisturbed


def test_runs_that_were_saved_at_different_places_each_go_on_from_their_own(
    runs: Path, in_small_batches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("topk", "jumprelu")
    show_latents([str(runs / name) for name in names])
    undisturbed = [files(folder_of(runs / name)) for name in names]
    for name, sequences in zip(names, (4, 8), strict=True):
        shutil.rmtree(folder_of(runs / name))
        stop_at(sequences, runs / name, monkeypatch)
    monkeypatch.setattr(one_pass, "POSITIONS", dict.fromkeys(one_pass.POSITIONS, 16 * 32))
    show_latents([str(runs / name) for name in names])
    for name, before in zip(names, undisturbed, strict=True):
        now = files(folder_of(runs / name))
        assert now.keys() == before.keys()
        assert differences(folder_of(runs / name), str(runs / name), 512) == []


def test_the_same_command_again_does_nothing_and_other_settings_replace_it(runs: Path, capsys: pytest.CaptureFixture) -> None:
    run = runs / "topk"
    show_latents([str(run), "top=2"])
    before = {path: path.stat().st_mtime_ns for path in folder_of(run).rglob("*.parquet")}
    show_latents([str(run), "top=2"])
    assert "done" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in folder_of(run).rglob("*.parquet")}
    show_latents([str(run), "top=3"])
    assert latents_pass.read_pass(folder_of(run)).top == 3


def test_directions_equal_what_the_model_computes(runs: Path) -> None:
    run = runs / "topk"
    show_latents([str(run)])
    coder = load_coders(run)["layers.1.mlp"]
    model = transformers_model()
    row = latent_files.read_table(folder_of(run) / "layers.1.mlp" / "latents.parquet").slice(17, 1).to_pylist()[0]
    with torch.no_grad():
        logits = model.lm_head(model.model.norm(coder.W_dec[17]))
        reads = model.model.layers[1].post_attention_layernorm(model.model.embed_tokens.weight) @ coder.encoder.weight[17]
    assert row["raised"] == logits.topk(10).indices.tolist()
    assert row["lowered"] == logits.topk(10, largest=False).indices.tolist()
    assert np.allclose(row["raised_logits"], logits.topk(10).values, atol=1e-5)
    assert row["read"] == reads.topk(10).indices.tolist()
    cosines = torch.nn.functional.cosine_similarity(coder.W_dec, coder.W_dec[17:18])
    assert row["nearest"] == cosines.topk(11).indices.tolist()[1:]


def transformers_model() -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    from sae_transcoder.config.composer import composed
    from sae_transcoder.language_model.loading import model_path

    return AutoModelForCausalLM.from_pretrained(model_path(composed(["experiment=demo"])), dtype=torch.float32).eval()


def test_where_a_module_does_not_write_into_the_residual_stream_nothing_is_said_to_be_raised(cache: Path, tmp_path: Path) -> None:
    cfg = short(
        cache, tmp_path, "run_name=inner", "layers=null", "hookpoints=[layers.0.mlp.gate_proj,layers.0.mlp.down_proj,layers.1]"
    )
    engine.train([cfg])
    run_files.write_config(cfg)
    show_latents([str(run_dir(cfg))])
    folder = folder_of(run_dir(cfg))
    shown = {}
    for point in ("layers.0.mlp.gate_proj", "layers.0.mlp.down_proj", "layers.1"):
        table = latent_files.read_table(folder / point / "latents.parquet")
        shown[point] = (table["raised"].null_count == 0, table["read"].null_count == 0)
    assert shown == {
        "layers.0.mlp.gate_proj": (False, False),
        "layers.0.mlp.down_proj": (True, False),  # what it writes goes into the stream, what its coder reads is not the stream
        "layers.1": (True, True),
    }


def test_levels_seeds_and_latents_that_fire_together(runs: Path) -> None:
    run = runs / "batchtopk"
    show_latents([str(run)])
    coders = load_coders(run)
    table = latent_files.read_table(folder_of(run) / "seed0" / "layers.2" / "latents.parquet")
    assert table["level"].to_pylist() == [0] * 64 + [1] * 448
    assert table["other_seed"].to_pylist() == ["seed1"] * 512
    one, other = coders["layers.2/seed0"], coders["layers.2/seed1"]
    cosine = torch.nn.functional.cosine_similarity
    both = torch.minimum(
        cosine(one.W_dec[5:6], other.W_dec), cosine(one.encoder.weight[5:6], other.encoder.weight)
    )  # fmt: skip
    assert table["other_latent"][5].as_py() == int(both.argmax())
    assert table["other_cosine"][5].as_py() == pytest.approx(both.max().item(), abs=1e-5)
    assert all(share <= 1 for shares in table["together_share"].to_pylist() for share in shares)


def test_python_reads_what_the_command_has_found(runs: Path) -> None:
    run = runs / "batchtopk"
    with pytest.raises(ConfigError, match=r"is not there .*; run sae-latents .*batchtopk first"):
        load_run(run).described_latents  # noqa: B018
    show_latents([str(run)])
    latents = load_run(run).described_latents["layers.2/seed1"]
    assert latents.coder.matryoshka_widths == [64, 512]
    assert latents.table().num_rows == 512
    best = latents.contexts([7]).to_pylist()[0]
    assert best["latent"] == 7
    assert best["activation"] == max(best["activations"]) or best["activation"] in best["activations"]
    assert all(latents.texts[token] for token in best["tokens"])


def test_python_finds_what_the_command_does_and_once(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs / "topk"
    show_latents([str(run), "latents=3-9"])
    command_tables = files(folder_of(run))
    shutil.rmtree(folder_of(run))
    described = describe_latents(run, "latents=3-9")
    assert described.keys() == {"layers.1.mlp", "layers.2.mlp"}
    assert described["layers.2.mlp"].table()["latent"].to_pylist() == [*range(3, 10)]
    assert files(folder_of(run)) == command_tables
    monkeypatch.setattr(one_pass, "describe_latents", None)
    assert describe_latents(str(run), "latents=3-9")["layers.1.mlp"].table().num_rows == 7
    for arguments, part in [
        ((runs,), "4 runs; give the directory of one"),
        ((run, str(runs / "jumprelu")), "2 runs"),
        ((run, "k=4"), "k is not read"),
    ]:
        with pytest.raises(ConfigError, match=part):
            describe_latents(*arguments)


REFUSED = {
    "latents=512": "latents=512: layers.1.mlp",
    "latents=9-3": "latents=9-3: numbers and ranges",
    f"latents=0-{10**15}": f"latents={10**15}: layers.1.mlp",
    "top=0": "top=0: a number from 1 to 100",
    "tokens=x": "tokens=x: a number",
    "k=4": "k=4: k is not read",
    "latent=7": "latent=7: there is no field latent here; did you mean latents or ",
    "layers=[0]": "no coders for layers.0.mlp",
    "model_name=/nowhere": "model_name=/nowhere",
    "topp=3": "topp=3: there is no field topp here",
    "save_dir=x": "save_dir=x: the latents of a run are kept in its directory; for another place give --output",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_what_is_wrong_is_refused_with_one_message_and_nothing_is_written(
    trained: Path, setting: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["sae-latents", str(trained / "topk"), setting, *ON_DEVICE])
    with pytest.raises(SystemExit) as stop:
        command.main()
    printed = capsys.readouterr().err
    assert stop.value.code == 1
    assert REFUSED[setting] in printed
    assert "Traceback" not in printed
    assert not folder_of(trained / "topk").exists()


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: the disk: No space left on device; free space"),
        (KeyboardInterrupt(), 130, "the same command goes on from there"),
    ],
)
def test_a_full_disk_and_ctrl_c_before_text_is_read_end_with_one_message(
    trained: Path, tmp_path: Path, raised: BaseException, code: int, said: str, capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr(one_pass, "describe_latents", fail)
    monkeypatch.setattr(sys, "argv", ["sae-latents", str(trained / "topk"), "--output", str(tmp_path / "out"), *ON_DEVICE])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == code
    assert said in capsys.readouterr().err


def test_a_run_that_is_named_in_several_ways_is_described_once(trained: Path) -> None:
    run = trained / "topk"
    asked = latents_requests(
        [str(run), f"{run}/", str(run / "coders"), str(trained / "jumprelu" / ".." / "topk")], Wanted(), [], None, print
    )
    assert [request.folder for request in asked] == [folder_of(run)]


def test_more_tokens_than_there_are_to_train_on_are_refused_with_how_many_there_are(runs: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"def f{i}(x): return x + {i} # and so on"}) + "\n" for i in range(200)))
    settings = ["dataset=local_text", f"dataset_name={text}", "text_column=text"]
    with pytest.raises(ConfigError, match=r"tokens=100000: dataset_name=.*text.jsonl has [\d,]+ to train on; lower it"):
        show_latents([str(runs / "jumprelu"), "tokens=100_000", *settings])


@pytest.mark.parametrize("place", ["nowhere", "empty", ""])
def test_a_path_without_coders_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no coders|no such folder|no run"):
        show_latents([str(tmp_path / place)] if place else [])


def test_coders_of_another_model_are_refused(runs: Path, tmp_path: Path, change_coder: Callable[[Path], None]) -> None:
    change_coder(runs / "jumprelu" / "coders" / "layers.2")
    with pytest.raises(ConfigError, match=r"a coder of width 128, layers.2 of .* has 256; set model"):
        show_latents([str(runs / "jumprelu")])


@pytest.fixture
def change_coder() -> Callable[[Path], None]:
    """Replaces a coder by one of another width."""

    def change(folder: Path) -> None:
        from sparsify import SparseCoder, SparseCoderConfig

        shutil.rmtree(folder)
        SparseCoder(128, SparseCoderConfig(num_latents=512, k=8)).save_to_disk(folder)

    return change
