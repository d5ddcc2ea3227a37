"""One run on several ranks, in processes of their own as torchrun starts them: the result, stopping, going on, failing."""

import signal
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from helpers import HANGS
from helpers.forked import Forked
from helpers.short_runs import lines, weights
from helpers.sweeps import assert_equal, here
from helpers.torchrun import SHAPE, on_ranks, start_ranks, state
from sae_transcoder import distributed
from sae_transcoder.config import ConfigError, run_dir
from sae_transcoder.config.composer import composed
from sae_transcoder.preflight.device import find_device
from sae_transcoder.preflight.peak import Moment, bytes_by_part, peak
from sae_transcoder.preflight.plan import make_plan
from sae_transcoder.run_store import eval_file, status
from sae_transcoder.training import checkpoint, engine

pytestmark = pytest.mark.slow

# Two ranks that share batches of 4 each are one process with batches of 8. With 65 sequences one rank has none of the last batch.
# Where signs or selections of latents hang on a last bit (signum, ce), a low rate keeps two summations of the same terms together.
SHARED = {
    "adam": ["max_samples=65", "grad_acc_steps=2", "exclude_first_tokens=1", "exclude_tokens=[264,265]", "auxk_alpha=0.03",
             "dead_feature_threshold=400", "multi_topk=true"],
    "muon": ["max_samples=65", "grad_acc_steps=2", "optimizer=muon", "lr=1e-3", "layers=[1,3]", "micro_acc_steps=3"],
    "signum": ["max_samples=66", "optimizer=signum", "lr=1e-4", "model_type=transcoder", "max_norm_multiple=1.5", "init_seeds=[1,2]"],
    "ce": ["max_samples=65", "loss_fn=ce", "lr=1e-3", "layers=[1,3]", "exclude_first_tokens=1", "dead_feature_threshold=200", "max_norm_multiple=3"],
    "kl": ["max_samples=65", "loss_fn=kl", "grad_acc_steps=3", "multi_topk=true"],
    "matryoshka": ["max_samples=65", "activation=batchtopk", "matryoshka_widths=[]", "normalize_activations=mean_norm", "micro_acc_steps=3",
                   "lr=1e-3", "exclude_first_tokens=1", "auxk_alpha=0.03", "auxk_per_level=true", "dead_feature_threshold=400"],
    "jumprelu": ["max_samples=65", "activation=jumprelu", "normalize_activations=mean_norm", "jumprelu_init_threshold=1", "grad_acc_steps=2",
                 "lr=1e-3"],
    "batchtopk-ce": ["max_samples=65", "activation=batchtopk", "loss_fn=ce", "lr=1e-3"],
}  # fmt: skip
# Ranks that share the hookpoints do bit for bit what one process does.
MODULES = {
    "even": ["max_samples=66", "layers=[1,3]", "grad_acc_steps=2", "save_every=2", "keep_every=3", "eval_every=3"],
    "uneven": ["max_samples=65", "layers=[0,2,4]", "init_seeds=[1,2]", "optimizer=muon", "lr=1e-3", "save_every=3"],
    "kinds": ["max_samples=65", "layers=[1,3]", "activation=batchtopk", "matryoshka_widths=[]", "normalize_activations=mean_norm"],
    "signum": ["max_samples=64", "hookpoints=[layers.1,layers.2.mlp.act_fn,layers.3]", "layers=null", "optimizer=signum", "k_decay_steps=4"],
}  # fmt: skip
STOPPED = ["max_samples=88", "grad_acc_steps=4", "save_every=1", "keep_every=2", "max_norm_multiple=3"]
SHARE = "distribute_modules=true"


def test_the_parts_of_all_ranks_are_all_rows_once() -> None:
    for size in range(1, 9):
        for start, end in [(0, 0), (0, 1), (3, 8), (16, 17), (5, 105), *((8, 8 + n) for n in range(20))]:
            parts = [distributed.rank_rows(start, end, rank, size) for rank in range(size)]
            assert [row for part in parts for row in range(part.start, part.stop)] == list(range(start, end))
            lengths = [part.stop - part.start for part in parts]
            assert max(lengths) - min(lengths) <= 1


def test_shares_are_all_hookpoints_once_balanced_and_the_first_rank_has_the_first() -> None:
    sizes = {f"layers.{i}": size for i, size in enumerate([3, 9, 2, 2, 9, 1, 4])}
    for count in range(1, 8):
        by_rank = distributed.split_hookpoints(sizes, count)
        assert sorted(name for hookpoints in by_rank for name in hookpoints) == sorted(sizes)
        assert by_rank[0][0] == "layers.0"
        assert all(by_rank)
    assert sorted(sum(sizes[name] for name in share) for share in distributed.split_hookpoints(sizes, 3)) == [9, 10, 11]


class Trained:
    """Runs trained on two ranks in one process group, and what the ranks said of them."""

    def __init__(self, folder: Path):
        self.folder, self.cache = folder, folder / "cache"
        packs = {f"shared-{name}": [self.on_two(f"shared-{name}", *own)] for name, own in SHARED.items()}
        packs["rankwise"] = [
            self.on_two("rankwise", "corrections=false", "optimizer=signum", "max_samples=64", f"finetune={folder}/two/shared-kl")
        ]
        packs |= {f"modules-{name}": [self.on_two(f"modules-{name}", SHARE, *own, size=8)] for name, own in MODULES.items()}
        packs["pack"] = [self.on_two(f"packed-{name}", *SHARED[name]) for name in ("adam", "muon")]
        packs["undisturbed"] = [self.on_two("undisturbed", *STOPPED)]
        packs["stopped"] = packs["again"] = [self.on_two("stopped", *STOPPED)]
        packs["undisturbed modules"] = [self.on_two("undisturbed-modules", *STOPPED, SHARE, "layers=[1,3]")]
        packs["stopped modules"] = packs["again modules"] = [self.on_two("stopped-modules", *STOPPED, SHARE, "layers=[1,3]")]
        packs["left"] = [self.on_two("left", *STOPPED)]
        packs["few"] = [self.on_two("few", SHARE, "max_samples=64")]
        packs["unlike"] = [self.on_two("a", SHARE, "layers=[1,2]"), self.on_two("b")]
        packs["raises"] = [self.on_two("raises", *STOPPED)]
        faults = {
            "stopped": (1, 5, "SIGTERM"),
            "stopped modules": (0, 5, "SIGUSR2"),
            "left": (1, 3, "SIGINT"),
            "raises": (1, 5, "ValueError"),
        }
        given = [{"runs": runs, "fault": faults.get(name)} for name, runs in packs.items()]
        self.start = time.monotonic()
        self.code, said, self.printed = on_ranks(folder / "launch", given)
        self.seconds = time.monotonic() - self.start
        self.said = {name: [own[i] for own in said if i < len(own)] for i, name in enumerate(packs)}

    def on_two(self, name: str, *own: str, size: int = 4) -> list[str]:
        return [
            *SHAPE,
            f"batch_size={size}",
            f"save_dir={self.folder / 'two'}",
            f"cache_dir={self.cache}",
            f"run_name={name}",
            *own,
        ]

    def alone(self, name: str, *own: str, size: int = 8) -> Path:
        """The directory of the run in this one process."""
        cfg = composed(self.on_two(name, *own, f"save_dir={self.folder / 'one'}", size=size))
        engine.train([cfg])
        return run_dir(cfg)

    def two(self, name: str) -> Path:
        return self.folder / "two" / name


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", SHARED)
def test_ranks_that_share_batches_have_the_loss_curve_of_one_process_with_all_of_them(trained: Trained, name: str) -> None:
    both = trained.two(f"shared-{name}")
    one = trained.alone(f"shared-{name}", *SHARED[name])
    assert state(both)["state"] == "done", trained.printed
    both_rows, one_rows = lines(both), lines(one)
    assert len(both_rows) == len(one_rows) >= 3
    worst = 0.0
    for row, expected in zip(both_rows, one_rows, strict=True):
        assert row.keys() == expected.keys()
        for key in expected:
            if expected[key] is None:  # no latent can be dead yet
                assert row[key] is None, key
            elif key.split("/")[0] in ("l0", "threshold", "sparsity"):  # in their own units
                assert row[key] == pytest.approx(expected[key], rel=1e-3), key
            elif key.startswith(("fvu", "auxk", "multi_topk_fvu", "ce", "kl", "dead_fraction")):
                worst = max(worst, abs(row[key] - expected[key]))
            elif not key.startswith("heldout"):
                assert row[key] == expected[key], key
    print(f"{name}: largest difference {worst:.2g}")
    assert worst < 1e-4
    for own, other in zip(eval_file.read(both).coders, eval_file.read(one).coders, strict=True):
        assert own.metrics["fvu"] == pytest.approx(other.metrics["fvu"], rel=1e-3)
        assert own.metrics["ce_loss_with_sae"] == pytest.approx(other.metrics["ce_loss_with_sae"], rel=1e-3)


@pytest.mark.parametrize("name", [*(f"shared-{name}" for name in SHARED), "rankwise", "pack", "stopped", "again"])
def test_parameters_are_the_same_bits_on_both_ranks_after_every_step(trained: Trained, name: str) -> None:
    first, second = trained.said[name]
    assert len(first["digests"]) >= (1 if name == "stopped" else 2)
    assert first == second


def test_without_corrections_ranks_average_gradients_of_their_own_fvu(trained: Trained) -> None:
    both = trained.two("rankwise")
    # One process that accumulates over the ranks' rows in turn does the same.
    finetune = f"finetune={trained.two('shared-kl')}"
    settings = ["corrections=false", "optimizer=signum", "max_samples=64", "grad_acc_steps=2", finetune]
    one = trained.alone("rankwise", *settings, size=4)
    for name, value in weights(one / "coders").items():
        torch.testing.assert_close(weights(both / "coders")[name], value, rtol=0, atol=1e-6)
    both_rows, one_rows = ([row["fvu/layers.2"] for row in lines(directory)] for directory in (both, one))
    assert both_rows == pytest.approx(one_rows, abs=1e-6)


@pytest.mark.parametrize("name", MODULES)
def test_ranks_that_share_the_hookpoints_do_bit_for_bit_what_one_process_does(trained: Trained, name: str) -> None:
    both = trained.two(f"modules-{name}")
    assert state(both)["state"] == "done", trained.printed
    one = trained.alone(f"modules-{name}", SHARE, *MODULES[name])
    assert_equal(both, one)
    kept = [{p.name: weights(p) for p in (folder / "snapshots").glob("*")} for folder in (both, one)]
    assert kept[0].keys() == kept[1].keys()
    for step, coders in kept[0].items():
        assert all(torch.equal(value, kept[1][step][key]) for key, value in coders.items())
    first, second = trained.said[f"modules-{name}"]
    assert first["digests"] != second["digests"], "each rank has coders of its own"


def test_runs_of_a_pack_on_ranks_are_identical_to_themselves_alone_there(trained: Trained) -> None:
    for name in ("adam", "muon"):
        assert_equal(trained.two(f"packed-{name}"), trained.two(f"shared-{name}"))


@pytest.mark.parametrize(("how", "number"), [("", "SIGTERM"), (" modules", "SIGUSR2")])
def test_a_signal_to_one_rank_saves_both_and_they_go_on_bit_for_bit(trained: Trained, how: str, number: str) -> None:
    assert [own["outcomes"] for own in trained.said[f"stopped{how}"]] == [[f"Stopped: stopped by {number}"]] * 2
    assert [own["outcomes"] for own in trained.said[f"again{how}"]] == [["TrainedRun"]] * 2
    assert "continues after step 1" in trained.printed
    suffix = how.replace(" ", "-")
    assert_equal(trained.two(f"stopped{suffix}"), trained.two(f"undisturbed{suffix}"))
    assert not (trained.two(f"stopped{suffix}") / "resume").exists()


def test_another_number_of_ranks_is_refused(trained: Trained) -> None:
    directory = trained.two("left")
    before = {p: p.read_bytes() for p in (directory / "resume").iterdir()}
    assert {p.name for p in before} == {"state.pt", "rank1-4.pt"}
    assert state(directory)["state"] == "interrupted"
    with pytest.raises(ConfigError, match=r"left was begun on 2 ranks, here are 1: .*torchrun --nproc-per-node"):
        engine.train([composed(trained.on_two("left", *STOPPED))])
    assert {p: p.read_bytes() for p in (directory / "resume").iterdir()} == before


def test_more_ranks_than_hookpoints_are_refused_on_all(trained: Trained) -> None:
    fault = "ConfigError: distribute_modules=True on 2 ranks with 1 hookpoints: each rank trains whole ones; start at most 1 ranks"
    assert [own["outcomes"][0].startswith(fault) for own in trained.said["few"]] == [True, True]
    assert not trained.two("few").exists()
    unlike = [
        "ConfigError: distribute_modules=True, False: ranks read the same batches for one, their own for the other; train them apart"
    ]
    assert [own["outcomes"] for own in trained.said["unlike"]] == [unlike, unlike]


def test_an_exception_on_one_rank_ends_both_with_its_message(trained: Trained) -> None:
    run_status = state(trained.two("raises"))
    assert (run_status["state"], run_status["why"]) == ("failed", "rank 1: ValueError: broken on purpose")
    assert run_status["step"] == 1
    assert trained.code == 1
    assert trained.said["raises"] == [], "no rank goes on"
    assert 'getattr(torch, kind))("broken on purpose")' in (trained.two("raises") / "train.log").read_text()
    assert "Connection closed" not in (trained.two("raises") / "train.log").read_text()
    # What the first rank alone prints is there once.
    assert trained.printed.count("done: ") == sum(
        p.name != "resume" and (p / "eval.json").exists() for p in trained.two("").iterdir()
    )


def test_a_killed_rank_ends_the_other_and_the_same_command_goes_on_bit_for_bit(trained: Trained, tmp_path: Path) -> None:
    runs = [trained.on_two("killed", *STOPPED)]
    start = time.monotonic()
    code, said, _ = on_ranks(tmp_path / "killed", [{"runs": runs, "fault": (1, 9, "SIGKILL")}])
    seconds = time.monotonic() - start
    assert (code, said) == (1, [[], []])
    assert seconds < 45
    run_status = state(trained.two("killed"))
    assert (run_status["state"], run_status["step"]) == ("interrupted", 2), "nothing is known to be wrong with it"
    assert "another rank is gone without a word" in run_status["why"]
    assert {p.name for p in (trained.two("killed") / "resume").iterdir()} == {"state.pt", "rank1-8.pt"}
    # What a rank has written beside a state that does not name it is of no account.
    checkpoint.rank_path(trained.two("killed"), 1, 12).write_bytes(b"torn")
    first = [trained.on_two("first-raises", *STOPPED, SHARE, "layers=[1,3]")]
    code, said, printed = on_ranks(tmp_path / "again", [{"runs": runs}, {"runs": first, "fault": (0, 3, "OSError")}])
    assert [own[0]["outcomes"] for own in said] == [["TrainedRun"]] * 2, printed
    assert_equal(trained.two("killed"), trained.two("undisturbed"))
    # Where the first rank itself fails, the other, which trains hookpoints of its own, ends as well.
    assert (code, [len(own) for own in said]) == (1, [1, 1])
    run_status = state(trained.two("first-raises"))
    assert (run_status["state"], run_status["why"]) == ("failed", "OSError: broken on purpose")


@pytest.mark.parametrize("where", ["_reduce_over_ranks", "metrics"])
def test_a_rank_that_waits_for_another_on_its_gpu_ends_with_the_others_message_and_keeps_nothing(
    tmp_path: Path, where: str
) -> None:
    own = [
        *SHAPE,
        "device=cuda",
        "batch_size=4",
        "max_samples=64",
        "save_every=1",
        "keep_every=1",
        f"save_dir={tmp_path}/out",
        "run_name=r",
    ]
    gpus = {"PRETEND_GPUS": "2", "PRETEND_NOTES": f"{tmp_path}/notes", "CUDA_VISIBLE_DEVICES": "0,1"}
    packs = [{"runs": [[*own, f"cache_dir={tmp_path}"]], "fault": [1, 6, "ValueError", where]}]
    code, said, printed = on_ranks(tmp_path / "launch", packs, **gpus)
    assert (code, said) == (1, [[], []]), printed
    run_status = state(tmp_path / "out" / "r")
    assert (run_status["state"], run_status["why"]) == ("failed", "rank 1: ValueError: broken on purpose"), printed
    assert [row["step"] for row in lines(tmp_path / "out" / "r")] == [1, 2, 3, 4, 5], "the sixth step's sums were broken off"
    assert len(list((tmp_path / "out" / "r" / "snapshots").iterdir())) == 5
    assert all(value.isfinite().all() for value in weights(tmp_path / "out" / "r" / "coders").values())


def test_the_first_rank_may_evaluate_for_longer_than_ranks_wait_for_a_sum(tmp_path: Path) -> None:
    own = [
        *SHAPE,
        "batch_size=4",
        "max_samples=32",
        "save_best=false",
        f"save_dir={tmp_path}/out",
        "run_name=r",
        f"cache_dir={tmp_path}",
    ]
    code, said, printed = on_ranks(tmp_path / "launch", [{"runs": [own], "slow": [20, 8]}])
    assert code == 0, printed
    assert [rank[0]["outcomes"] for rank in said] == [["TrainedRun"]] * 2
    assert state(tmp_path / "out" / "r")["state"] == "done"


def test_ranks_wait_for_each_other_on_gpus_as_long_as_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch.distributed, "new_group", lambda **named: asked.append(named))
    ranks = distributed.Ranks(1, 2)
    ranks.store = torch.distributed.HashStore()
    ranks.connect(torch.device("cuda", 1))
    ranks.closed.set()
    ranks.watcher.join()
    assert asked == [{"backend": "nccl", "timeout": distributed.connection.PEER_TIMEOUT}]


def test_a_rank_whose_store_is_gone_takes_the_first_rank_for_lost_and_breaks_off_its_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def check(self, keys: list[str]) -> bool:
            raise RuntimeError("Connection reset by peer")

    monkeypatch.setattr(distributed.connection, "WATCH_SECONDS", 0.001)
    ranks, group = distributed.Ranks(1, 2), Mock()
    ranks.store, ranks.data_group = Gone(), group
    ranks.watch()
    group.abort.assert_called_once_with()
    with pytest.raises(distributed.PeerFailed, match="another rank is gone without a word") as failed:
        ranks.synchronize(torch.device("cpu"))
    assert failed.value.is_resumable


def test_each_rank_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    cfg = composed([*SHAPE, "device=cuda"])
    for gpus, index in [(4, 1), (2, 1), (1, 0)]:  # a launcher may let each rank see one only
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        assert find_device(cfg) == torch.device("cuda", index)
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="this machine has 2 GPUs for more ranks"):
        find_device(cfg)
    with pytest.raises(ConfigError, match="device=cuda:0 with 8 ranks: each has a GPU of its own; write device=cuda"):
        find_device(composed([*SHAPE, "device=cuda:0"]))
    monkeypatch.delenv("RANK")
    assert find_device(cfg) == torch.device("cuda"), "no rank, so alone"


def test_length_and_memory_are_those_of_all_ranks(tmp_path: Path) -> None:
    cfg = composed([*SHAPE, "batch_size=4", "max_steps=3", "grad_acc_steps=2", f"save_dir={tmp_path}", "max_samples=64"])
    one, four = make_plan(cfg, processes=1), make_plan(cfg, processes=2)
    assert (one.length.samples, four.length.samples, four.length.steps) == (24, 48, 3)
    assert bytes_by_part(Moment.update, [four.memory])["gradients exchanged"] == 4 * one.coder_parameters
    with pytest.raises(ConfigError, match="batch_size=4 on 17 ranks with max_samples=64: not one full batch"):
        make_plan(replace(cfg, max_steps=None), processes=17)
    shared = composed([*SHAPE, SHARE, "layers=[0,1,2]", f"save_dir={tmp_path}"])
    parts = [make_plan(shared, processes=count) for count in (1, 2, 3)]
    coders = [peak([part.memory]).parts["coders"] for part in parts]
    assert [own * 3 // coders[0] for own in coders] == [3, 2, 1]
    assert len({part.length for part in parts}) == 1, "each reads all batches"


def test_a_missing_part_of_the_state_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rank1-8.pt: missing, .*remove .*resume"):
        checkpoint.load_rank_state(tmp_path, "signature", 1, 8)


def command_line(trained: Trained, *own: str) -> Forked:
    """Starts `torchrun sae-train`."""
    return start_ranks(["-m", "sae_transcoder.train", *trained.on_two("cli", *own)])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_sweep_on_ranks_is_refused_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    for name, value in zip(distributed.environment.VARIABLES, (rank, 2, rank, "localhost", 1), strict=True):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(distributed.environment, "REFUSAL_SECONDS", 0.0)
    code, printed, complaint = here("-m", *SHAPE, f"save_dir={tmp_path / 'runs'}", "lr=0.1,0.2")
    assert (code, printed) == (1, "")
    fault = "error: -m on 2 ranks (torchrun): ranks train one run together; start each run of the sweep by its own command\n"
    assert complaint == (fault if rank == 0 else "")
    assert not (tmp_path / "runs").exists()


def test_the_command_line_trains_once_and_speaks_once(trained: Trained) -> None:
    """A wrong setting; a run stopped by a signal to torchrun, gone on with, and repeated."""
    own = ["max_samples=1200", "save_every=10"]
    process = command_line(trained, "k=100000")
    _, errors = process.communicate(timeout=HANGS)
    assert (process.returncode, errors.count("error: k=100000 with expansion_factor=2")) == (1, 1), errors
    assert not trained.two("cli").exists()

    process = command_line(trained, *own)
    metrics = trained.two("cli") / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 12):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=HANGS)
    assert process.returncode != 0
    assert errors.count("stopped by SIGTERM; the same command goes on from here") == 1, errors
    run_status = state(trained.two("cli"))
    assert (run_status["state"], run_status["why"]) == ("interrupted", "stopped by SIGTERM")

    process = command_line(trained, *own)
    printed, errors = process.communicate(timeout=HANGS)
    assert process.returncode == 0, errors
    assert printed.count(f"continues after step {run_status['step']}") == 1
    assert printed.count("ranks: 2: each reads 4 sequences of a batch") == 1
    assert status.read(trained.two("cli")).state == "done"
    assert (trained.two("cli") / ".hydra" / "overrides.yaml").read_text().count("output_subdir") == 0

    process = command_line(trained, *own)
    printed, errors = process.communicate(timeout=HANGS)
    assert (process.returncode, printed.count("already done")) == (0, 1), errors
