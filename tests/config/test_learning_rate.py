"""The learning rate of runs that set none: sparsify's, or one that suits the run's length."""

import pytest

from helpers.command_line import composed
from sae_transcoder.config import learning_rate, signature

SPARSIFY = {"adam": 2e-4 * 8**0.5, "muon": 2e-3, "signum": 5e-3 * 8**0.5}  # for 2,048 latents


def rate(*overrides: str, latents: int = 2048, steps: int = 250) -> float:
    return learning_rate(composed("model_type=sae", "k=32", *overrides), latents, steps)


def test_a_rate_that_is_set_is_obeyed() -> None:
    assert rate("lr=0.5", steps=10) == 0.5
    assert type(composed("model_type=sae", "lr=1").lr) is float


@pytest.mark.parametrize("optimizer", SPARSIFY)
@pytest.mark.parametrize("how", ["lr=sparsify", "corrections=false", "finetune=outputs/run"])
def test_sparsifys_rule_is_there_by_name_and_where_a_high_rate_would_be_wrong(optimizer: str, how: str) -> None:
    assert rate(f"optimizer={optimizer}", how) == pytest.approx(SPARSIFY[optimizer])


@pytest.mark.parametrize("optimizer", SPARSIFY)
def test_a_very_long_run_has_sparsifys_rate(optimizer: str) -> None:
    assert rate(f"optimizer={optimizer}", steps=10**8) == pytest.approx(SPARSIFY[optimizer])


def test_the_rate_follows_the_share_of_latents_that_fire_and_falls_with_the_length() -> None:
    assert rate() == rate(steps=30) == pytest.approx(20 * SPARSIFY["adam"])
    assert rate("k=128") == rate(latents=512) == pytest.approx(2 * rate())
    assert rate(steps=2000) == pytest.approx(rate() * 0.125**0.3)


def test_signums_rate_for_an_sae_is_sparsifys_whatever_its_k() -> None:
    assert rate("optimizer=signum", "k=128") == rate("optimizer=signum", "k=8") == pytest.approx(SPARSIFY["signum"])


@pytest.mark.parametrize("optimizer", SPARSIFY)
def test_a_transcoders_rate_is_higher_and_does_not_follow_k(optimizer: str) -> None:
    own = f"optimizer={optimizer}", "model_type=transcoder"
    assert rate(*own) > 2 * rate(own[0])
    assert rate(*own, "k=128") == rate(*own, "k=8") == rate(*own)
    narrower = {"muon": 1.0}.get(optimizer, 2**0.5)
    assert rate(*own, latents=512) == pytest.approx(rate(*own) * narrower)


def test_a_run_whose_rate_follows_the_rule_is_another_than_one_by_sparsifys_rule_under_the_same_settings() -> None:
    ruled, sparsifys = composed("model_type=sae"), composed("model_type=sae", "corrections=false")
    assert signature(ruled) not in {signature(sparsifys), signature(composed("model_type=sae", "lr=sparsify"))}
    assert signature(composed("model_type=sae", "lr=1")) == signature(composed("model_type=sae", "lr=1.0"))


@pytest.mark.parametrize("wrong", ["fast", "0", "-1", ".inf", "[1]", "true"])
def test_what_is_no_rate_is_refused(wrong: str) -> None:
    from sae_transcoder.config.checks import faults

    (fault,) = faults(composed("model_type=sae", f"lr={wrong}"))
    assert fault.startswith("lr=")
