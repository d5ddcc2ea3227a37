"""Runs that train on a batch together end as they would alone, and ask a GPU once for what they have in common."""

import copy
from collections.abc import Sequence

import pytest
import torch
from sparsify import SparseCoderConfig
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.device import DEVICE, by_device
from helpers.tiny_models import VOCABULARY, tiny_config, tiny_model
from helpers.trainers import train_alone, train_together
from sae_transcoder.coder import batched_coders
from sae_transcoder.coder.build_optimizers import step_together
from sae_transcoder.coder.chunk_sizes import CHUNK_SIZE
from sae_transcoder.coder.corrected_coder import CorrectedCoder
from sae_transcoder.config import Config
from sae_transcoder.language_model.forward import Activations, capture
from sae_transcoder.training import batched_training
from sae_transcoder.training.coder_trainer import CoderTrainer

TOKENS, WIDTH, LATENTS = 24, 8, 32
POINT = {"sae": "layers.1", "transcoder": "layers.1.mlp"}


pytestmark = [pytest.mark.device, pytest.mark.usefixtures("on_the_device", "float32_coders")]


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small batches train together on this device too."""
    monkeypatch.setitem(batched_training.SMALL_BATCH, DEVICE.type, batched_training.SMALL_BATCH["cuda"])


def some_coders(count: int, **settings: object) -> list[CorrectedCoder]:
    coders = []
    for seed in range(count):
        torch.manual_seed(seed)
        coders.append(CorrectedCoder(WIDTH, SparseCoderConfig(num_latents=LATENTS, k=4, **settings), DEVICE))
        for parameter in coders[-1].parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return coders


DEAD = {
    "none": [None, None, None],
    "few": [torch.tensor([1, 5]), None, torch.tensor([0, 2, 9])],
    "some with many": [torch.tensor([1, 5]), None, torch.arange(0, LATENTS, 2)],
}


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize("dead", DEAD)
@pytest.mark.parametrize("settings", [{}, {"transcode": True}, {"activation": "groupmax"}], ids=str)
def test_coders_computed_as_one_give_what_each_gives(settings: dict, dead: str) -> None:
    one, many = some_coders(3, **settings), some_coders(3, **settings)
    x, y = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator(DEVICE).manual_seed(9))
    variance = (y - y.mean(0)).pow(2).sum()
    rows_of = [None if rows is None else rows.to(DEVICE) for rows in DEAD[dead]]
    outs = batched_coders.batched_forward(many, x, y, rows_of, variance)
    torch.stack([out.fvu + out.auxk_loss / 4 for out in outs]).sum().backward()
    for coder, other, rows, out in zip(one, many, rows_of, outs, strict=True):
        alone = coder(x=x, y=y, dead=[] if rows is None else [rows], total_variance=variance)
        (alone.fvu + alone.auxk_loss / 4).backward()
        torch.testing.assert_close(out, alone)
        for mine, theirs in zip(coder.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(theirs.grad, mine.grad)


def configs(model_type: str) -> list[Config]:
    """Seven runs, of which five have coders of one shape."""
    usual = dict(batch_size=4, dead_feature_threshold=100, auxk_alpha=0.1, lr_warmup_steps=2)
    signum = usual | dict(optimizer="signum", lr_warmup_steps=None)
    return [
        tiny_config(model_type, **usual, lr=1e-2),
        tiny_config(model_type, **usual, lr=1e-2, init_seeds=[1, 2]),
        tiny_config(model_type, **usual, lr=3e-3, exclude_first_tokens=1),
        tiny_config(model_type, **(usual | dict(optimizer="muon")), lr=1e-2, init_seeds=[3]),
        tiny_config(model_type, **signum, lr=1e-3, init_seeds=[4]),
        tiny_config(model_type, **usual, lr=1e-2, k=7),
        tiny_config(model_type, **usual, lr=1e-2, multi_topk=True),
    ]


def new_run(cfg: Config) -> CoderTrainer:
    return CoderTrainer(cfg, {POINT[cfg.model_type]: 32}, 48, DEVICE)


def batches(model_type: str) -> list[tuple[Tensor, dict[str, Activations]]]:
    ids = torch.randint(0, VOCABULARY, (48, 16), generator=torch.Generator(DEVICE).manual_seed(1))
    return [(batch, capture(tiny_model("llama"), [POINT[model_type]], batch)) for batch in ids.split(4)]


@pytest.mark.usefixtures("together", "ways")
@pytest.mark.parametrize("model_type", ["sae", "transcoder"])
def test_each_run_of_a_group_ends_as_it_would_alone(model_type: str) -> None:
    """Within 1e-4 of each weight's largest: products of several matrices round otherwise than one's, on a GPU more so."""
    alone, group = [[new_run(cfg) for cfg in configs(model_type)] for _ in range(2)]
    for ids, seen in batches(model_type):
        for run in alone:
            train_alone(run, ids, seen)
        (small,) = batched_training.grouped(group)
        assert small == group
        assert train_together(group, ids, seen) == group
    for own, run in zip(group, alone, strict=True):
        assert own.step == run.step == 12
        by_sign = own.cfg.optimizer in ("muon", "signum")  # signs flip, and Muon iterates in bfloat16
        tolerance = 2e-2 if by_sign else by_device(cpu=1e-4, gpu=1e-3)
        near = by_device(cpu=1e-4, gpu=5e-2 if by_sign else 1e-3)  # one dead latent more of 26 on an H100
        mine, theirs = own.metrics(), run.metrics()
        assert mine.keys() == theirs.keys()
        assert mine == pytest.approx(theirs, rel=near, abs=1e-6), own.cfg.optimizer
        assert max(value for name, value in mine.items() if name.startswith("auxk")) > 0, "AuxK acts"
        for a, b in zip(own.coders.values(), run.coders.values(), strict=True):
            for p, q in zip(a.parameters(), b.parameters(), strict=True):
                torch.testing.assert_close(p, q, rtol=0, atol=tolerance * float(q.detach().abs().max()))


class Launches(TorchDispatchMode):
    """Counts operations that are no views: about a launch each on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("together")
def test_eight_runs_together_launch_less_than_half_of_what_they_launch_alone() -> None:
    cfgs = [tiny_config("sae", batch_size=4, init_seeds=[seed], auxk_alpha=0) for seed in range(8)]
    alone, group = [[new_run(cfg) for cfg in cfgs] for _ in range(2)]
    ids, seen = batches("sae")[0]
    for run in (*alone, *group):
        train_alone(run, ids, seen)  # which sets biases
    with Launches() as of_all:
        train_together(group, ids, seen)
    with Launches() as of_each:
        for run in alone:
            train_alone(run, ids, seen)
    assert of_all.count < of_each.count / 2


def test_a_group_is_of_small_runs_only_and_large_ones_and_cpus_train_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [new_run(tiny_config("sae")), new_run(tiny_config("sae", num_latents=4096)), new_run(tiny_config("sae", k=2))]
    monkeypatch.setitem(batched_training.SMALL_BATCH, DEVICE.type, 0)
    assert batched_training.grouped(runs) == [[run] for run in runs]
    monkeypatch.setitem(batched_training.SMALL_BATCH, DEVICE.type, 32 * 1024)  # a batch is of 2 x 16 tokens
    assert batched_training.grouped(runs) == [[runs[0], runs[2]], [runs[1]]]


def test_ranks_agree_on_groups_whatever_share_of_the_batch_and_of_the_coders_each_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each would wait for another sum over ranks than the others."""
    monkeypatch.setitem(batched_training.SMALL_BATCH, DEVICE.type, 32 * 1024)
    widths = {"layers.1": 32, "layers.2": 512}
    cfgs = [tiny_config("sae", distribute_modules=True), tiny_config("sae", distribute_modules=True, k=2)]
    shares = [[CoderTrainer(cfg, widths, 8, DEVICE, local_hookpoints=[point]) for cfg in cfgs] for point in widths]
    assert [len(batched_training.grouped(runs)) for runs in shares] == [2, 2]


@pytest.mark.usefixtures("together")
def test_more_coders_than_a_piece_holds_are_computed_in_several_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    real = batched_coders.batched_forward

    def noted(coders: Sequence[CorrectedCoder], *arguments: object) -> list:
        counts.append(len(coders))
        return real(coders, *arguments)

    monkeypatch.setattr(batched_coders, "batched_forward", noted)
    monkeypatch.setitem(CHUNK_SIZE, DEVICE.type, 3 * 64 * 128)
    group = [new_run(tiny_config("sae", batch_size=4, init_seeds=[seed])) for seed in range(6)]
    train_together(group, *batches("sae")[0])
    assert counts == [3, 3]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.filterwarnings("error")
def test_adams_that_step_in_one_call_step_as_each_alone(weight_decay: float) -> None:
    cfgs = [tiny_config("sae", lr=lr, weight_decay=weight_decay, init_seeds=[i]) for i, lr in enumerate([1e-2, 1e-3, 1e-2, 1e-2])]
    alone, group = [[new_run(cfg) for cfg in cfgs] for _ in range(2)]
    for step in range(3):
        for run in (*alone, *group):
            torch.manual_seed(step)
            for parameter in run.coders["layers.1"].parameters():
                parameter.grad = torch.randn_like(parameter)
        for run in alone:
            run.optimizers[0].step()
        step_together([run.optimizers[0] for run in group])
        for run in (*alone, *group):
            run.schedules[0].step()
    for run, other in zip(alone, group, strict=True):
        for mine, theirs in zip(run.coders["layers.1"].parameters(), other.coders["layers.1"].parameters(), strict=True):
            assert torch.equal(mine, theirs)
        mine, theirs = (copy.deepcopy(r.optimizers[0].state_dict()) for r in (run, other))
        assert mine["param_groups"] == theirs["param_groups"]
        assert all(
            torch.equal(mine["state"][i][name], theirs["state"][i][name]) for i in mine["state"] for name in mine["state"][i]
        )
        assert len(mine["state"]) == 4
