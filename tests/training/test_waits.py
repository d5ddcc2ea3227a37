"""Between two lines of metrics the processor waits for a GPU once a batch at most, for all runs of a pack together.

Seen on a CPU in two ways: by the operations of a batch and its optimizer step, of which some wait on every device; and, on the device `meta`,
whose tensors hold no values, by whatever asks for a value or takes a tensor of the host.
"""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers.tiny_models import VOCABULARY, tiny_causal_model, tiny_config, tiny_model
from helpers.trainers import train_end_to_end
from sae_transcoder.coder import chunk_sizes, latent_selection, positions, sparse_products
from sae_transcoder.config import Config
from sae_transcoder.language_model.forward import Activations, capture
from sae_transcoder.training import read_ahead
from sae_transcoder.training.batched_training import train_on_batch
from sae_transcoder.training.coder_trainer import CoderTrainer
from sae_transcoder.training.read_ahead import read_ahead as read

# Operations that read a value on the host, or whose result's size does.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique_dim", "_unique2", "bincount"}
POINT = {"sae": "layers.1", "transcoder": "layers.1.mlp"}
SEQUENCES, LENGTH, WIDTH = 8, 16, 32


class Waits(TorchDispatchMode):
    """Notes the names of operations for which a processor would wait for a GPU, while it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        by_mask = name.startswith(("index", "_index_put")) and any(t.dtype in (torch.bool, torch.uint8) for t in indices(args))
        out = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        mixed = len({t.device.type for t in [*tensors, *made]}) > 1
        if name in WAITING or by_mask or mixed or (name == "repeat_interleave" and len(made) and tensors):
            self.names.append(name)
        return out


def indices(args: Sequence) -> list[Tensor]:
    """The index tensors of an index operation's arguments."""
    return [t for t in args[1] if t is not None] if len(args) > 1 and isinstance(args[1], list | tuple) else []


def configs(model_type: str) -> list[Config]:
    """Runs of a pack in which AuxK acts, tokens are excluded, those of outlying norm left out, and gradients clipped."""
    usual = dict(dead_feature_threshold=100, exclude_tokens=[5], exclude_first_tokens=1, batch_size=SEQUENCES, expansion_factor=8)
    return [
        tiny_config(
            model_type,
            **usual,
            max_norm_multiple=multiple,
            k=k,
            optimizer=optimizer,
            multi_topk=multi,
            auxk_alpha=0.1,
            grad_clip_norm=None if optimizer == "signum" else 1.0,
        )
        for multiple, k, optimizer, multi in [(3.0, 2, "adam", False), (2.0, 2, "muon", False), (None, 3, "signum", True)]
    ]


def tokens() -> Tensor:
    return torch.randint(0, VOCABULARY, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(1))


def past_the_threshold(runs: Sequence[CoderTrainer]) -> None:
    """Some latents of each run are dead."""
    for run in runs:
        run.tokens = 1000
        for idle in run.tokens_since_fired.values():
            idle[::3] = 1000


def new_runs(cfgs: Sequence[Config], device: str = "cpu") -> list[CoderTrainer]:
    """Runs, as after a while; the first batch sets biases."""
    return [CoderTrainer(cfg, {POINT[cfg.model_type]: WIDTH}, 100 * SEQUENCES, torch.device(device)) for cfg in cfgs]


@pytest.mark.parametrize("many", [1, 3])
@pytest.mark.parametrize("model_type", ["sae", "transcoder"])
def test_a_batch_and_its_step_wait_once_for_a_whole_pack(model_type: str, many: int) -> None:
    model, runs, ids = tiny_model("llama"), new_runs(configs(model_type)[:many]), tokens()
    past_the_threshold(runs)
    losses = []
    for _ in range(2):
        with Waits() as waits:
            seen = capture(model, [POINT[model_type]], ids)
            read(runs, ids, seen)
            reads = len(waits.names)
            for run in runs:
                train_on_batch([run], ids, seen)
        of_the_hosts_mask = ["nonzero"] * (many == 3)  # where no norm counts, the mask lies on the host
        assert waits.names == ["_local_scalar_dense", *of_the_hosts_mask]
        assert reads == 1
        losses.append([run.metrics()[f"auxk/{POINT[model_type]}"] for run in runs])
    assert min(losses[1]) > 0, "AuxK acts"


# How many entries lie above a bound only the device knows.
OWN_WAITS = {
    "batchtopk": (dict(activation="batchtopk"), 2),  # candidates, and the selected among them
    "jumprelu": (dict(activation="jumprelu"), 3),  # candidates; among them those that fire, and those near their thresholds
    "matryoshka_topk": (dict(matryoshka_widths=[32, 256]), 0),
}


@pytest.mark.parametrize("kind", OWN_WAITS)
def test_coders_whose_tokens_have_differing_numbers_of_latents_wait_for_these_numbers(kind: str) -> None:
    settings, expected = OWN_WAITS[kind]
    cfg = tiny_config("sae", batch_size=SEQUENCES, expansion_factor=8, auxk_alpha=0.0, **settings)
    model, ids = tiny_model("llama"), tokens()
    runs = new_runs([cfg])
    seen = capture(model, ["layers.1"], ids)
    for number in range(2):
        with Waits() as waits:
            read(runs, ids, seen)
            train_on_batch(runs, ids, seen)
        if number:  # the first batch also estimates its cut
            assert len(waits.names) == expected, waits.names


def test_the_watch_sees_what_waits() -> None:
    values, mask = torch.arange(4.0), torch.tensor([True, False, True, True])
    with Waits() as waits:
        values.sum().item()
        values[mask]
        values[mask] = 0.0
        mask.nonzero()
        torch.zeros(3, device="meta").add_(torch.ones(3))
        torch.tensor([1.0, 2.0]).to("meta")
        values[torch.tensor([0, 1])] = torch.zeros(2)
    assert len(waits.names) == 6


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device `meta` works as a GPU does; what is read ahead comes from elsewhere, and what `copy_to_device` copies does not wait."""
    for table in (chunk_sizes.CHUNK_SIZE, chunk_sizes.SMALL_BATCH, sparse_products.PRODUCT_RULES, latent_selection.TWO_STAGES):
        monkeypatch.setitem(table, "meta", table["cuda"])
    monkeypatch.setattr(
        read_ahead, "true_indices", lambda masks: [torch.empty(9, dtype=torch.long, device=m.device) for m in masks]
    )
    monkeypatch.setattr(
        positions, "copy_to_device", lambda device, values: torch.empty(values.shape, dtype=values.dtype, device=device)
    )


@pytest.mark.usefixtures("on_meta")
@pytest.mark.parametrize("model_type", ["sae", "transcoder"])
@pytest.mark.parametrize("latents", [256, 2**16], ids=["products", "bags"])
def test_a_batch_asks_no_value_of_its_device_and_takes_no_tensor_of_the_host(model_type: str, latents: int) -> None:
    nested = {"multi_topk": False, "auxk_per_level": True, "matryoshka_widths": [64, latents]}
    cfgs = [*configs(model_type), Config(**vars(configs(model_type)[0]) | nested)]
    cfgs = [Config(**vars(cfg) | {"num_latents": latents, "grad_acc_steps": 2}) for cfg in cfgs]
    runs, ids, point = new_runs(cfgs, "meta"), tokens(), POINT[model_type]
    past_the_threshold(runs)
    for run in runs:
        run.set_biases(point, torch.empty(9, WIDTH, device="meta"), torch.empty(9, WIDTH, device="meta"), 9)
    given = torch.empty(SEQUENCES, LENGTH, WIDTH, device="meta")
    with Waits() as waits:
        seen = {point: Activations(given, given + 1)}
        read(runs, ids, seen)
        for run in runs:
            train_on_batch([run], ids, seen)
    assert [name for name in waits.names if name != "nonzero"] == []


def test_an_end_to_end_batch_waits_once() -> None:
    cfg = tiny_config("sae", loss_fn="ce", dead_feature_threshold=100, exclude_first_tokens=1, batch_size=SEQUENCES, auxk_alpha=0.1)
    run, model, ids = (
        CoderTrainer(cfg, {"layers.1": WIDTH, "layers.2": WIDTH}, 800, torch.device("cpu")),
        tiny_causal_model("llama"),
        tokens(),
    )
    past_the_threshold([run])
    with Waits() as waits:
        train_end_to_end(run, model, ids, ids)
    assert [name for name in waits.names if name != "nonzero"] == ["_local_scalar_dense"]
