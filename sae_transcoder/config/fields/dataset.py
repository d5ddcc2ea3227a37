"""The tokens to train on and those held out."""

from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING

from sae_transcoder.config.fields.metadata import bounded, path


class DatasetKind(StrEnum):
    hub = "hub"
    local_text = "local_text"
    pretokenized = "pretokenized"
    memmap = "memmap"
    demo = "demo"


class TokensDtype(StrEnum):
    uint16 = "uint16"
    uint32 = "uint32"


@dataclass
class DatasetConfig:
    """The tokens (group `dataset`)."""

    dataset_kind: DatasetKind = MISSING
    """hub: text of a hub data set, streamed; local_text: txt, jsonl, parquet or csv files; pretokenized: rows of token ids,
    on the hub or in jsonl or parquet files; memmap: one binary file of token ids, flat or numpy's .npy; demo: the standard library's sources."""
    dataset_name: str = path(MISSING)
    """Hub id, or path of local files: a file, a folder without what is hidden in it, or where there is none of that name, a glob pattern."""
    dataset_config: str | None = None
    """Configuration (subset) of a hub data set."""
    dataset_split: str = "train"
    """Split of a hub data set to train on."""
    text_column: str = "text"
    """Column that holds the text; one string a document."""
    tokens_column: str = "input_ids"
    """Column that holds the ids of a pretokenized set; each row is cut into full sequences, what remains of it is dropped."""
    tokens_dtype: TokensDtype | None = None
    """Number format of a flat memmap. null: read from the `dtype` key of FILE.json beside the file; a .npy file has its own."""
    max_samples: int | None = bounded(1000, at_least=1)
    """Number of training samples, each a packed sequence of `max_seq_length` tokens. null: all there are;
    a hub set then needs `max_steps`."""
    max_seq_length: int = bounded(256, at_least=2)
    """Tokens per sequence."""
    shuffle_seed: int = bounded(42, at_least=0, at_most=2**63)
    """Seed of the order of documents and of sequences. A shorter run reads the first samples of a longer one."""
    shuffle_buffer: int = bounded(10_000, at_least=1)
    """Documents of a stream held for shuffling."""
    eval_samples: int = bounded(256, at_least=1)
    """Sequences held out: the first of the shuffled set, never trained on; or of `eval_split`, or the demo's held-out files."""
    eval_split: str | None = None
    """Split of a hub data set to hold out. null: the first `eval_samples` sequences of `dataset_split`."""
    exclude_tokens: list[int] = field(default_factory=list)
    """Token ids whose positions are left out of training, evaluation and dead counts."""
    exclude_first_tokens: int = bounded(0, at_least=0)
    """Positions at the start of every sequence that are left out likewise (attention sinks)."""
    max_norm_multiple: float | None = bounded(None, at_least=1.0)
    """Positions at which the norm of the coder's input exceeds this multiple of the batch's median are left out likewise."""
    cache_dir: str | None = path(None, result=False)
    """Where tokenised text is kept. null: $XDG_CACHE_HOME/sae_transcoder, else ~/.cache/sae_transcoder."""
