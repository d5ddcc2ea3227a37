"""The tokens to train on and those held out."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from omegaconf import MISSING

from sae_transcoder.config.fields.metadata import bounded, path, text_or_list


class DatasetKind(StrEnum):
    hub = "hub"
    local_text = "local_text"
    pretokenized = "pretokenized"
    memmap = "memmap"
    demo = "demo"


class TokensDtype(StrEnum):
    uint16 = "uint16"
    uint32 = "uint32"


class SpecialTokensInText(StrEnum):
    as_text = "as_text"
    parse = "parse"


class TrainOn(StrEnum):
    all = "all"
    assistant = "assistant"


@dataclass
class DatasetConfig:
    """The tokens (group `dataset`)."""

    dataset_kind: DatasetKind = MISSING
    """hub: text of a hub data set, streamed; local_text: txt, json, jsonl, csv (also .gz, .bz2, .zst, .lz4) or parquet files;
    pretokenized: rows of token ids, on the hub or in jsonl or parquet files; memmap: one binary file of token ids, flat or numpy's .npy;
    demo: the standard library's sources."""
    dataset_name: Any = text_or_list(MISSING, is_path=True)
    """Hub id, or path of local files: a file, a folder without what is hidden in it, or where there is none of that name, a glob pattern.
    A list of these is a mixture, each document from one of them by a seeded choice; it ends where one of them does."""
    dataset_config: Any = text_or_list(None)
    """Configuration (subset) of a hub data set; a list for a mixture: one for each name, or several of one name."""
    dataset_weights: list[float] | None = None
    """How likely a document of a mixture comes from each of its parts, relative to the others. null: all equally."""
    dataset_split: str = "train"
    """Split of a hub data set to train on."""
    text_column: str = "text"
    """Column that holds the text; one string a document."""
    messages_column: str | None = None
    """Column that holds conversations, lists of messages (role, content), read in place of a text by the model's own chat template, whose special
    tokens are parsed."""
    train_on: TrainOn = TrainOn.all
    """Of a conversation: all positions, or those of the assistant's messages alone; others are left out of training, evaluation and dead counts."""
    prepend_bos: bool | None = None
    """Whether every sequence begins with the begin token, before `max_seq_length - 1` packed ones. null: as the tokenizer does when it encodes
    a text. Ids that are stored already are taken as they are."""
    separator: str | None = None
    """Token id after each document, or `none`. null: what the tokenizer ends a text with, else its end, begin or separator token."""
    special_tokens_in_text: SpecialTokensInText = SpecialTokensInText.as_text
    """What `<|endoftext|>` and its like inside a text are: characters as any others (as_text), or the special token (parse)."""
    tokens_column: str = "input_ids"
    """Column that holds the ids of a pretokenized set; each row is cut into full sequences, what remains of it is dropped."""
    tokens_dtype: TokensDtype | None = None
    """Number format of a flat memmap. null: read from the `dtype` key of FILE.json beside the file; a .npy file has its own."""
    max_samples: int | None = bounded(1000, at_least=1)
    """Number of training samples, each a packed sequence of `max_seq_length` tokens. null: all there are, as
    dataset=local_text and memmap set it; a hub set then needs `max_tokens` or `max_steps`."""
    max_seq_length: int = bounded(256, at_least=2)
    """Tokens per sequence."""
    shuffle_seed: int = bounded(42, at_least=0, at_most=2**63)
    """Seed of the order of documents and of sequences. A shorter run reads the first samples of a longer one."""
    shuffle_buffer: int = bounded(10_000, at_least=1)
    """Documents of a stream held for shuffling."""
    eval_samples: int = bounded(256, at_least=1)
    """Sequences held out, from as many documents as there are up to one each; whole documents at the start of the shuffled order are never
    trained on, at most a tenth of them where that suffices. Of a memmap, which knows no documents, blocks of 64 sequences."""
    eval_split: str | None = None
    """Split of a hub data set to hold out. null: documents of `dataset_split`."""
    exclude_tokens: list[int] = field(default_factory=list)
    """Token ids whose positions are left out of training, evaluation and dead counts."""
    exclude_first_tokens: int = bounded(0, at_least=0)
    """Positions at the start of every sequence that are left out likewise (attention sinks)."""
    max_norm_multiple: float | None = bounded(None, at_least=1.0)
    """Positions at which the norm of the coder's input exceeds this multiple of the batch's median are left out likewise."""
    cache_dir: str | None = path(None, result=False)
    """Where tokenised text is kept. null: $XDG_CACHE_HOME/sae_transcoder, else ~/.cache/sae_transcoder."""
