"""A tokenizer of one id a character, and settings of runs on its tokens."""

from pathlib import Path
from typing import Any

from sae_transcoder.config import Config

LENGTH, HELD, VOCABULARY, EOS, SEED = 8, 50, 2000, 1999, 42


class Characters:
    """A tokenizer of one id a character, above 256 so that Python's ints cost what they usually do; counts what it is given."""

    eos_token_id, bos_token_id, sep_token_id, cls_token_id = EOS, None, None, None

    def __init__(self) -> None:
        self.calls, self.texts = 0, 0

    def __call__(self, texts: str | list[str], add_special_tokens: bool = True, **_: Any) -> dict[str, Any]:
        if isinstance(texts, str):
            return {"input_ids": [300 + ord(c) for c in texts]}
        assert not add_special_tokens
        self.calls += 1
        self.texts += len(texts)
        return {"input_ids": [[300 + ord(c) for c in text] for text in texts]}


def characters(text: str) -> list[int]:
    return [*(300 + ord(c) for c in text), EOS]


def settings(tmp_path: Path, **given: Any) -> Config:
    usual = dict(
        model_type="sae", model_name="tests/letters", dataset_kind="local_text", cache_dir=str(tmp_path / "cache"),
        max_samples=1100, max_seq_length=LENGTH, eval_samples=HELD, shuffle_seed=SEED,
    )  # fmt: skip
    return Config(**usual | given)  # type: ignore[arg-type]
