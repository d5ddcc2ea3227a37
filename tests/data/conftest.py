"""What the tests of the data share."""

from pathlib import Path

import pytest

from helpers.token_data import documents, jsonl


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    return jsonl(tmp_path / "corpus.jsonl", [{"text": t} for t in documents()])
