"""The latents that two coders have in common, where it is known which they are."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from helpers.made_up_coders import directions, write_coder
from sae_transcoder.reports.matched_latents import Rows, assignment, match, read_rows, unit_rows
from sae_transcoder.run_store.checked_files import DamagedFile

LATENTS, D = 60, 48


def rows(encoder: np.ndarray, decoder: np.ndarray) -> Rows:
    return Rows(unit_rows(encoder), unit_rows(decoder))


def shuffled(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows in another order, where each row is now)."""
    order = np.random.default_rng(0).permutation(len(values))
    return values[order], np.argsort(order)


def test_the_sum_of_cosines_is_the_largest_of_all_orders() -> None:
    one, other = unit_rows(directions(6, 4, 0)), unit_rows(directions(6, 4, 1))
    index, cosines = assignment(one, other)
    best = max(sum(one[i] @ other[j] for i, j in enumerate(order)) for order in itertools.permutations(range(6)))
    assert cosines.sum() == pytest.approx(best, abs=1e-6)
    assert cosines == pytest.approx([one[i] @ other[j] for i, j in enumerate(index)], abs=1e-6)


def test_shuffled_scaled_and_noisy_latents_are_found() -> None:
    encoder, decoder = directions(LATENTS, D, 0), directions(LATENTS, D, 1)
    other_encoder, place = shuffled(3 * encoder + 0.4 * directions(LATENTS, D, 2))
    found = match(rows(encoder, decoder), rows(other_encoder, shuffled(decoder)[0]))
    assert found.shared.all()
    assert (found.encoder == place).all()
    assert (found.decoder == place).all()
    assert found.decoder_cosine == pytest.approx(1, abs=1e-5)
    assert ((found.encoder_cosine > 0.9) & (found.encoder_cosine < 1)).all()


def test_both_encoder_and_decoder_must_be_alike() -> None:
    encoder, decoder = directions(LATENTS, D, 0), directions(LATENTS, D, 1)
    other_encoder, other_decoder = encoder.copy(), decoder.copy()
    other_encoder[:7] = directions(7, D, 2)
    other_decoder[7:12] *= -1
    other_decoder[12:15] += 1.5 * directions(3, D, 3)  # a cosine of 0.55, the best there is
    found = match(rows(encoder, decoder), rows(other_encoder, other_decoder))
    assert found.shared.tolist() == [False] * 15 + [True] * (LATENTS - 15)
    assert found.agree[12:].all()


def test_equal_rows_in_another_pairing_are_not_in_common() -> None:
    encoder, decoder = directions(LATENTS, D, 0), directions(LATENTS, D, 1)
    found = match(rows(encoder, decoder), rows(encoder, np.roll(decoder, 1, axis=0)))
    assert (np.minimum(found.encoder_cosine, found.decoder_cosine) > 0.999).all()
    assert not found.agree.any()
    assert not found.shared.any()


def test_of_equal_latents_each_needs_a_counterpart_of_its_own() -> None:
    encoder, decoder = directions(LATENTS, D, 0), directions(LATENTS, D, 1)
    doubled_encoder, doubled_decoder = encoder.copy(), decoder.copy()
    doubled_encoder[1], doubled_decoder[1] = encoder[0], decoder[0]
    one, doubled = rows(encoder, decoder), rows(doubled_encoder, doubled_decoder)
    assert match(one, doubled).shared.sum() == match(doubled, one).shared.sum() == LATENTS - 1
    assert match(one, doubled).shared.tolist() == [True, False] + [True] * (LATENTS - 2)


def test_rows_of_zeros_match_nothing() -> None:
    encoder, decoder = directions(LATENTS, D, 0), directions(LATENTS, D, 1)
    encoder[:4] = 0
    both = rows(encoder, decoder)
    assert np.isfinite(both.encoder).all()
    assert match(both, both).shared.sum() == LATENTS - 4


def test_weights_that_cannot_be_compared_are_named(tmp_path: Path) -> None:
    encoder, decoder = directions(LATENTS, D, 0), directions(LATENTS, D, 1)
    folder = write_coder(tmp_path, "layers.2", encoder, decoder).parent
    assert read_rows(folder, LATENTS, D).decoder == pytest.approx(unit_rows(decoder))
    write_coder(tmp_path, "layers.2", encoder, decoder[:-1])
    with pytest.raises(DamagedFile, match=r"W_dec has the shape \[59, 48\], its evaluation is of \[60, 48\]"):
        read_rows(folder, LATENTS, D)
    write_coder(tmp_path, "layers.2", np.where(encoder > 2, np.nan, encoder).astype(np.float32), decoder)
    with pytest.raises(DamagedFile, match=r"encoder\.weight holds numbers that are not finite"):
        read_rows(folder, LATENTS, D)
    write_coder(tmp_path, "layers.2", encoder.astype(np.int8), decoder)
    with pytest.raises(DamagedFile, match=r"encoder\.weight is in I8, not in float32"):
        read_rows(folder, LATENTS, D)
    (folder / "sae.safetensors").write_bytes(b"cut off")
    with pytest.raises(DamagedFile, match=r"sae\.safetensors: cannot be read"):
        read_rows(folder, LATENTS, D)
