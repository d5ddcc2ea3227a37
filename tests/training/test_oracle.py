"""With the corrections off, our loop trains bit for bit what sparsify's own Trainer trains; its Trainer is the oracle.

On a GPU too: both have the same autocast, TF32 and deterministic kernels.
"""

import pytest
import torch
from datasets import Dataset
from sparsify import Trainer

from helpers.device import DEVICE
from helpers.oracle import POINTS, assert_equal, tokens
from helpers.tiny_models import tiny_config, tiny_model
from helpers.trainers import train_alone
from sae_transcoder.coder.sparsify_config import sparsify_configs
from sae_transcoder.config import Config
from sae_transcoder.config.run_length import run_length
from sae_transcoder.language_model.forward import capture
from sae_transcoder.language_model.hookpoints import widths
from sae_transcoder.training.coder_trainer import CoderTrainer

pytestmark = [pytest.mark.device, pytest.mark.usefixtures("torchs_adam")]


def config(model_type: str, **settings: object) -> Config:
    """A short run in which k decays, latents die and AuxK acts."""
    usual = dict(corrections=False, lr_warmup_steps=3, k_decay_steps=8, dead_feature_threshold=60)
    return tiny_config(model_type, **(usual | settings))


def by_sparsify(cfg: Config, model: torch.nn.Module, points: list[str], ids: torch.Tensor) -> dict:
    """The coders that sparsify's Trainer trains for the same settings."""
    _, train_config = sparsify_configs(cfg, points, run_length(cfg, len(ids)).steps)
    trainer = Trainer(train_config, Dataset.from_dict({"input_ids": ids.tolist()}).with_format("torch"), model)
    if cfg.optimizer == "muon":  # it keeps its parameters in a set, whose order differs between processes
        rank = {p: i for i, p in enumerate(p for s in trainer.saes.values() for p in s.parameters())}
        for group in (g for o in trainer.optimizers for g in o.param_groups):
            group["params"].sort(key=rank.get)
    trainer.save = trainer.save_best = lambda *_: None
    trainer.fit()
    return trainer.saes


def by_us(cfg: Config, model: torch.nn.Module, points: list[str], ids: torch.Tensor) -> CoderTrainer:
    """Our run on the same sequences."""
    torch.set_float32_matmul_precision("high")  # as the Trainer and every run do
    seen = capture(model, points, ids[:1].to(DEVICE))
    run = CoderTrainer(cfg, {p: seen[p].output.shape[-1] for p in points}, len(ids), DEVICE)
    for batch in ids[: run.length.samples].split(cfg.batch_size):
        train_alone(run, batch, capture(model, points, batch.to(DEVICE)))
    assert run.done
    return run


FAMILIES, KINDS, OPTIMIZERS, GRAD_ACC_STEPS = ("llama", "gpt2", "neox"), ("sae", "transcoder"), ("adam", "muon", "signum"), (1, 4)
CASES = [  # each family meets each kind, optimizer and number of batches in a step; all of those meet each other
    (FAMILIES[(i + j + n) % 3], kind, optimizer, grad_acc_steps)
    for i, kind in enumerate(KINDS)
    for j, optimizer in enumerate(OPTIMIZERS)
    for n, grad_acc_steps in enumerate(GRAD_ACC_STEPS)
]


@pytest.mark.parametrize(("family", "model_type", "optimizer", "grad_acc_steps"), CASES)
def test_weights_are_bit_identical_to_sparsifys_trainer(family: str, model_type: str, optimizer: str, grad_acc_steps: int) -> None:
    model, points = tiny_model(family), POINTS[family, model_type]
    warmup = None if optimizer == "signum" else 3
    cfg = config(model_type, optimizer=optimizer, grad_acc_steps=grad_acc_steps, lr_warmup_steps=warmup)
    run = by_us(cfg, model, points, tokens())
    assert any((idle > 60).any() for idle in run.tokens_since_fired.values()), "AuxK has something to do"
    assert_equal(run.coders, by_sparsify(cfg, model, points, tokens()))


@pytest.mark.parametrize(
    "settings",
    [
        dict(activation="groupmax", k_decay_steps=0),
        dict(multi_topk=True, k_decay_steps=0),
        dict(skip_connection=True),
        dict(micro_acc_steps=3),
        dict(init_seeds=[3, 4]),
        dict(exclude_tokens=[1, 2, 3]),
        dict(num_latents=100),
        dict(normalize_decoder=False),
        dict(lr=3e-3),
        dict(batch_size=5),
    ],
    ids=lambda s: ",".join(s),
)
def test_every_option_of_the_coder_is_bit_identical_too(settings: dict) -> None:
    kinds = ["sae"] if "normalize_decoder" in settings else ["sae", "transcoder"]
    for kind in kinds:
        model, points = tiny_model("llama"), POINTS["llama", kind]
        cfg = config(kind, **settings)
        assert_equal(by_us(cfg, model, points, tokens()).coders, by_sparsify(cfg, model, points, tokens()))


def test_widths_of_the_outline_are_those_of_the_activations(tiny_folder: dict) -> None:
    from sae_transcoder.language_model.loading import outline

    for (family, model_type), points in POINTS.items():
        cfg = config(model_type, model_name=str(tiny_folder[family]), hookpoints=points)
        seen = capture(tiny_model(family), points, tokens()[:1].to(DEVICE))
        assert widths(cfg, outline(cfg), points) == {p: seen[p].output.shape[-1] for p in points}
