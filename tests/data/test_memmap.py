"""Files of token ids: .npy is read by its own header, and files that are something else are refused with what they are."""

import gzip
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file

from helpers.characters import HELD, LENGTH, VOCABULARY, settings
from sae_transcoder.config import ConfigError, TokensDtype
from sae_transcoder.data.token_sets import prepare

IDS = np.arange(400 * LENGTH) % VOCABULARY


def untouched() -> None:
    raise AssertionError("ids are not tokenised")


def prepared(tmp_path: Path, name: Path, **given: object) -> np.ndarray:
    """All sequences to train on."""
    cfg = settings(tmp_path, dataset_kind="memmap", dataset_name=str(name), max_samples=None, **given)
    return prepare(cfg, untouched, VOCABULARY).train[:]


def refusal(tmp_path: Path, name: Path, **given: object) -> str:
    with pytest.raises(ConfigError) as refused:
        prepared(tmp_path, name, **({"tokens_dtype": TokensDtype.uint16} | given))
    return str(refused.value)


@pytest.mark.parametrize("dtype", ["uint16", "int32", "int64"])
def test_a_npy_file_is_the_same_as_its_ids_in_a_flat_file(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "ids.npy", IDS.astype(dtype))
    IDS.astype(np.uint16).tofile(tmp_path / "ids.bin")
    flat = prepared(tmp_path, tmp_path / "ids.bin", tokens_dtype=TokensDtype.uint16)
    assert len(flat) == 400 - HELD
    np.testing.assert_array_equal(prepared(tmp_path, tmp_path / "ids.npy"), flat)


def test_a_npy_file_that_holds_no_row_of_ids_or_another_format_than_was_set_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ids.npy"
    np.save(path, IDS.reshape(-1, LENGTH).astype(np.uint16))
    assert f"holds uint16 numbers of shape (400, {LENGTH}); give one row" in refusal(tmp_path, path)
    np.save(path, IDS.astype(np.float32))
    assert "holds float32 numbers" in refusal(tmp_path, path)
    np.save(path, IDS.astype(np.int32))
    assert "tokens_dtype=uint16: " in refusal(tmp_path, path)
    np.save(path, -IDS)
    assert "holds the token id -" in refusal(tmp_path, path, tokens_dtype=None)
    path.write_bytes(path.read_bytes()[:20])
    assert "cannot be read" in refusal(tmp_path, path)


def test_a_file_of_another_kind_is_refused_with_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "ids"
    ids = IDS.astype(np.uint16)
    np.savez(tmp_path / "a.npz", ids)
    torch.save(torch.from_numpy(IDS), tmp_path / "a.pt")
    save_file({"ids": ids}, tmp_path / "a.safetensors")
    pq.write_table(pa.table({"ids": ids}), tmp_path / "a.parquet")
    with pa.ipc.new_file(tmp_path / "a.arrow", pa.schema([("ids", pa.uint16())])) as file:
        file.write_table(pa.table({"ids": ids}))
    kinds = {
        (tmp_path / "a.npz").read_bytes(): "a zip archive",
        (tmp_path / "a.pt").read_bytes(): "a zip archive",
        (tmp_path / "a.safetensors").read_bytes(): "a safetensors file",
        (tmp_path / "a.parquet").read_bytes(): "a Parquet file",
        (tmp_path / "a.arrow").read_bytes(): "an Arrow file",
        gzip.compress(ids.tobytes()): "compressed with gzip",
        pickle.dumps(ids): "a pickle",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n": "a Git LFS pointer",
    }
    for content, kind in kinds.items():
        path.write_bytes(content)
        assert f"dataset_name={path}: is {kind}" in refusal(tmp_path, path)
