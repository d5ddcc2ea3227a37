"""How long a run is, by max_samples, max_steps and max_tokens."""

import pytest

from helpers.command_line import composed
from sae_transcoder.config import Config
from sae_transcoder.config.checks import faults
from sae_transcoder.config.run_length import needed_samples, run_length
from sae_transcoder.preflight.length_faults import length_faults


def run(*overrides: str) -> Config:
    """A run of 2 batches of 4 sequences of 32 tokens an optimizer step."""
    return composed("experiment=demo", "max_seq_length=32", "batch_size=4", "grad_acc_steps=2", "max_samples=null", *overrides)


@pytest.mark.parametrize(("tokens", "samples"), [(128, 4), (255, 4), (256, 8), (10_000, 312)])
def test_max_tokens_is_rounded_down_to_whole_batches(tokens: int, samples: int) -> None:
    cfg = run(f"max_tokens={tokens}")
    assert needed_samples(cfg) == samples
    assert run_length(cfg, 10**6).samples == samples
    assert length_faults(cfg, run_length(cfg, samples), samples) == []


def test_ranks_that_share_a_batch_round_to_theirs() -> None:
    assert needed_samples(run("max_tokens=1_000"), ranks=3) == 24


def test_the_smaller_of_max_tokens_and_max_steps_ends_the_run_if_it_is_max_steps() -> None:
    assert needed_samples(run("max_tokens=10_000", "max_steps=3")) == 24
    cfg = run("max_tokens=300", "max_steps=3")
    (fault,) = length_faults(cfg, run_length(cfg, 8), 8)
    assert fault.startswith("max_steps=3: max_tokens=300 gives 8 samples, which make 1 optimizer steps; raise max_tokens or lower")


def test_what_makes_more_steps_is_told_by_what_ends_the_data() -> None:
    def told(samples: int, *overrides: str) -> str:
        cfg = run("max_steps=50", *overrides)
        (fault,) = length_faults(cfg, run_length(cfg, samples), samples)
        return fault

    given = "max_steps=50: the data gives 94 samples, which make 12 optimizer steps"
    assert (
        told(94) == f"{given}; give more text, lower batch_size, grad_acc_steps or max_seq_length, or set max_steps to at most 12"
    )
    assert "give more text, lower max_seq_length, or set max_steps to at most 40" in told(40, "batch_size=1", "grad_acc_steps=1")
    assert told(94, "max_samples=200").startswith(f"{given}; give more text")
    assert told(94, "max_samples=94").endswith("12 optimizer steps; raise max_samples (null: all) or lower max_steps")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["max_tokens=127"], "max_tokens=127: not one batch of batch_size 4 x max_seq_length 32 tokens; raise it, or lower batch_size"),
        (["max_tokens=10_000", "max_samples=8"],
         "max_tokens=10000 with max_samples=8: these are 256 tokens; set max_samples=null, or lower max_tokens"),
    ],
)  # fmt: skip
def test_max_tokens_that_cannot_be_is_refused(overrides: list[str], message: str) -> None:
    cfg = run(*overrides)
    samples = needed_samples(cfg)
    assert length_faults(cfg, run_length(cfg, samples), samples) == [message]


def test_max_samples_beyond_max_tokens_and_data_that_ends_before_are_no_fault() -> None:
    cfg = run("max_tokens=300", "max_samples=100")
    assert length_faults(cfg, run_length(cfg, 8), 8) == []
    cfg = run("max_tokens=10_000")
    assert length_faults(cfg, run_length(cfg, 100), 100) == []


def test_files_are_read_whole_and_streams_need_one_of_the_three() -> None:
    for dataset in ("local_text", "memmap"):
        assert composed("model_type=sae", f"dataset={dataset}", "dataset_name=x").max_samples is None
    stream = ["model_type=sae", "dataset=hub", "dataset_name=x", "max_samples=null"]
    (fault,) = faults(composed(*stream))
    assert "set max_samples, max_tokens or max_steps" in fault
    assert faults(composed(*stream, "max_tokens=10_000")) == []
