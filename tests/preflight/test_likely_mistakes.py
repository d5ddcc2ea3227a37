"""What the header warns of: settings that are allowed and likely not meant."""

from pathlib import Path

import pytest

from helpers.command_line import composed
from sae_transcoder.config.run_length import run_length
from sae_transcoder.preflight.likely_mistakes import data_warnings, warnings
from sae_transcoder.preflight.plan import make_plan
from sae_transcoder.run_store.data_origin import UNKNOWN

LAUNCHES = "tokens a batch leave a GPU waiting for kernel launches"
SAME = "as many an optimizer step as now"


def of_launches(*settings: str, device: str = "cuda", width: int = 576, ranks: int = 1) -> list[str]:
    """Warnings of a batch that is too small for a GPU, by a model of this width."""
    cfg = composed(*([] if any(s.startswith("experiment=") for s in settings) else ["model_type=sae"]), *settings)
    assert cfg.max_samples is not None
    return [warning for warning in warnings(cfg, run_length(cfg, cfg.max_samples, ranks), device, width) if LAUNCHES in warning]


@pytest.mark.parametrize(
    ("settings", "width", "fixes"),
    [
        ([], 576, [f"batch_size=16 with grad_acc_steps=1 (4,096 tokens, {SAME})"]),
        (
            ["batch_size=8", "grad_acc_steps=64", "max_samples=1000000"],
            576,
            [f"batch_size=256 with grad_acc_steps=2 (65,536 tokens, {SAME})"],
        ),
        (
            ["grad_acc_steps=7", "max_samples=1000000"],
            576,
            [
                f"batch_size=14 with grad_acc_steps=1 (3,584 tokens, {SAME})",
                "batch_size=256 with grad_acc_steps=1 (65,536 tokens) and a rate tuned for it",
            ],
        ),
        (
            ["batch_size=16", "grad_acc_steps=1", "max_samples=10000"],
            576,
            ["batch_size=64 with grad_acc_steps=1 (16,384 tokens) and a rate tuned for it"],
        ),
        (["batch_size=1", "max_seq_length=1024"], 4096, [f"batch_size=8 with grad_acc_steps=1 (8,192 tokens, {SAME})"]),
    ],
)
def test_a_batch_that_a_gpu_is_done_with_before_its_kernels_are_launched_is_told_with_the_one_to_set(
    settings: list[str], width: int, fixes: list[str]
) -> None:
    (warning,) = of_launches(*settings, width=width)
    assert warning.endswith(f"{LAUNCHES}; {', or '.join([*(f'set {fix}' for fix in fixes), 'train more runs side by side'])}")


@pytest.mark.parametrize(
    ("settings", "width"),
    [
        (["batch_size=64", "grad_acc_steps=1"], 576),
        (
            ["batch_size=8", "max_seq_length=1024", "max_samples=100000"],
            4096,
        ),  # the arithmetic of a wide model outlasts launches sooner
        (["batch_size=16", "grad_acc_steps=1"], 576),  # of so few samples larger batches would make too few steps
        (["loss_fn=ce"], 576),  # its step is the whole model's
        (["experiment=sae_basic"], 576),
        (["experiment=transcoder_layers"], 576),
        (["experiment=custom_hookpoints"], 768),
    ],
)
def test_batches_that_are_large_enough_or_cannot_be_larger_are_not_warned_of(settings: list[str], width: int) -> None:
    assert of_launches(*settings, width=width) == []


def test_ranks_that_share_a_batch_have_fewer_steps_for_larger_ones() -> None:
    settings = ["batch_size=16", "grad_acc_steps=1", "max_samples=100000"]
    assert "batch_size=256" in of_launches(*settings)[0]
    assert "batch_size=64" in of_launches(*settings, ranks=8)[0]


def test_a_small_batch_is_warned_of_on_a_gpu_and_not_on_a_cpu(tmp_path: Path) -> None:
    demo = [
        "experiment=demo",
        "max_samples=64",
        "max_seq_length=32",
        "grad_acc_steps=4",
        f"cache_dir={tmp_path}",
        f"save_dir={tmp_path}",
    ]
    assert make_plan(composed(*demo, "auxk_alpha=0")).warnings == []
    (warning,) = make_plan(composed(*demo, "auxk_alpha=0", "device=cuda"), on_slurm=True).warnings
    assert LAUNCHES in warning


def test_a_jumprelu_in_the_units_of_the_model_is_told() -> None:
    def told(*overrides: str) -> list[str]:
        cfg = composed("model_type=sae", "model=demo", "lr=1e-3", "auxk_alpha=0", *overrides)
        return [line for line in warnings(cfg, run_length(cfg, 1000), "cpu", 256) if "steps are few" not in line]

    (warning,) = told("activation=jumprelu")
    assert warning.startswith("normalize_activations=none with activation=jumprelu")
    assert "set normalize_activations=mean_norm" in warning
    assert told("architecture=jumprelu") == told("architecture=batchtopk") == []
    (warning,) = told("architecture=batchtopk", "max_steps=5", "grad_acc_steps=3")
    assert "averages about 10 batches, and 15 have the final k" in warning
    (warning,) = told("architecture=batchtopk", "k_decay_steps=60", "grad_acc_steps=8")  # of 62 steps
    assert warning.startswith("threshold_beta=null")
    assert "and 20 have the final k" in warning
    assert told("architecture=batchtopk", "threshold_beta=0.9999") == []  # averages the whole run, 500 batches
    assert len(told("architecture=batchtopk", "threshold_beta=0.9999", "max_steps=12")) == 1  # 96 batches
    assert len(told("architecture=batchtopk", "threshold_beta=0.9999", "k_decay_steps=20")) == 1
    (shortened,) = told("architecture=batchtopk", "threshold_beta=0.999", "batch_size=16", "grad_acc_steps=1", "max_steps=100")
    assert shortened.endswith("write threshold_beta=null, which averages about 10")


def test_a_text_that_is_too_short_is_told_unless_the_run_is_limited_to_a_part_of_it() -> None:
    def told(samples: int, *overrides: str) -> list[str]:
        cfg = composed("model_type=sae", "model=demo", "dataset=local_text", "dataset_name=mine.txt", *overrides)
        return data_warnings(cfg, run_length(cfg, samples), UNKNOWN)

    (few,) = told(80)
    assert few.startswith("dataset_name=mine.txt: 20,480 tokens to train on are few")
    assert few.endswith("give more text, at least 409,600 tokens")
    assert told(80, "max_steps=5") == told(1600) == []


def test_a_run_that_is_short_for_its_batches_and_dead_threshold_is_told_what_suits_it() -> None:
    def told(samples: int, *overrides: str) -> list[str]:
        cfg = composed("model_type=sae", "model=demo", *overrides)
        return warnings(cfg, run_length(cfg, samples), "cpu", 256)

    dead, few = told(1497)
    assert dead.endswith("AuxK never acts; set dead_feature_threshold=76646, or auxk_alpha=0")
    assert few == (
        "batch_size=2 with grad_acc_steps=8: 94 optimizer steps are few; batch_size=8 with grad_acc_steps=1 makes 188 of the same text"
    )
    assert told(1497, "auxk_alpha=0", "batch_size=8", "grad_acc_steps=1") == []  # as told
    assert told(3200, "auxk_alpha=0") == []
    (all_of_it,) = told(94, "auxk_alpha=0", "batch_size=8", "grad_acc_steps=1", "max_samples=null")
    assert all_of_it == (
        "batch_size=8 with grad_acc_steps=1: 12 optimizer steps are few; batch_size=1 with grad_acc_steps=1 makes 94 of the same text"
    )
    assert told(94, "auxk_alpha=0", "batch_size=1", "grad_acc_steps=1") == []  # as told
    assert told(64, "auxk_alpha=0", "max_samples=64") == told(94, "auxk_alpha=0", "max_steps=5") == []  # trials
    (stopped,) = told(4000, "auxk_alpha=0", "batch_size=16", "grad_acc_steps=1", "max_steps=100")
    assert stopped.endswith("batch_size=8 with grad_acc_steps=1 and max_steps=200 makes 200 of the same text")
