"""What run.py measures, as data: the shapes of language models, and rows in their order of importance."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import LlamaConfig


@dataclass(frozen=True)
class Shape:
    """A language model's sizes; both are Llamas."""

    width: int
    inner: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int

    def config(self) -> LlamaConfig:
        """Its config."""
        return LlamaConfig(
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            vocab_size=self.vocabulary,
            max_position_embeddings=2048,
            tie_word_embeddings=True,  # the head is never computed
        )


SMOLLM2, LLAMA3 = "SmolLM2-135M", "Llama-3-8B"
# As in config.json of HuggingFaceTB/SmolLM2-135M and meta-llama/Meta-Llama-3-8B; and what stands for them in a trial on a CPU.
SHAPES = {SMOLLM2: Shape(576, 1536, 30, 9, 3, 49152), LLAMA3: Shape(4096, 14336, 32, 32, 8, 128256)}
SMALL_SHAPES = {SMOLLM2: Shape(32, 64, 4, 4, 2, 512), LLAMA3: Shape(64, 128, 4, 4, 2, 512)}
K = 64


@dataclass(frozen=True)
class Row:
    """A pack of equal runs, each an SAE on the residual stream after the model's middle layer.

    dead: share of its latents that never fire, and AuxK acts; dense: one latent fires on every token; excluded: the first token of each
    sequence and the most frequent ids are left out; seconds: what the row takes on an H100, its process's start included (measured for five, the
    others by these).
    """

    name: str
    model: str
    latents: int
    seconds: float
    runs: int = 1
    sequences: int = 64  # a batch
    length: int = 1024  # tokens of a sequence
    k: int = K
    dead: float = 0.0
    dense: bool = False
    excluded: bool = False
    compiled: bool | None = None  # the language model; None: the project's default
    profiled: bool = False  # whether its profile is shown
    settings: Sequence[str] = ()  # further ones, as on the command line

    @property
    def tokens(self) -> int:
        """Tokens of a batch."""
        return self.sequences * self.length


@dataclass(frozen=True)
class Peer:
    """Another program on the work of the first row, for so many coders at once."""

    name: str
    contender: str  # as in common.SCRIPTS
    row: Row
    seconds: float


def smollm2(name: str, seconds: float, expansion: int = 8, **settings: Any) -> Row:
    """A row of SmolLM2-135M's shape."""
    return Row(f"SmolLM2 x{expansion}{name}", SMOLLM2, expansion * SHAPES[SMOLLM2].width, seconds, **settings)


def llama3(name: str, seconds: float, latents: int = 2**15, **settings: Any) -> Row:
    """A row of Llama-3-8B's shape, with smaller batches."""
    return Row(f"Llama {latents // 1000}k{name}", LLAMA3, latents, seconds, sequences=8, **settings)


ONE, EIGHT = smollm2("", 44, profiled=True), smollm2(", 8 runs", 40, runs=8, profiled=True)
LAUNCHES = dict(sequences=2, length=256)  # a batch that is bound by launches, not by arithmetic
ROWS: list[Row | Peer] = [
    ONE,
    EIGHT,
    Peer("sparsify", "sparsify", ONE, 52),
    llama3("", 48, profiled=True),
    Peer("dictionary_learning", "dictionary_learning", ONE, 55),
    Peer("SAELens", "saelens", ONE, 55),
    smollm2(", batchtopk", 43, settings=("architecture=batchtopk",), profiled=True),
    smollm2(", jumprelu", 43, settings=("architecture=jumprelu",), profiled=True),
    smollm2(", AuxK acting", 43, dead=0.05, profiled=True),
    llama3(", 8 runs", 55, runs=8),
    smollm2(", model not compiled", 43, compiled=False),
    smollm2(", matryoshka", 43, settings=("architecture=matryoshka",)),
    smollm2("", 43, expansion=64),
    smollm2(", batch of 2 x 256", 40, **LAUNCHES, profiled=True),
    smollm2(", 8 runs, batch of 2 x 256", 40, runs=8, **LAUNCHES),
    smollm2(", a dense latent", 43, dense=True),
    smollm2(", 16 runs", 45, runs=16),
    llama3("", 60, latents=2**18),
    smollm2(", 32 runs", 45, runs=32),
    llama3("", 55, latents=2**17),
    smollm2(", tokens excluded", 43, excluded=True),
    llama3(", AuxK acting", 50, dead=0.05),
    Peer("SAELens, 8 coders", "saelens", EIGHT, 80),
    Peer("dictionary_learning, 8 coders", "dictionary_learning", EIGHT, 80),
    llama3(", a dense latent", 50, dense=True),
    smollm2(", model compiled", 60, compiled=True),
]


def small(row: Row | Peer) -> Row | Peer:
    """The row in a size that a CPU trains in a second."""
    if isinstance(row, Peer):
        return replace(row, row=small(row.row), seconds=10)
    latents = row.latents // (SHAPES[row.model].width // SMALL_SHAPES[row.model].width)
    return replace(row, latents=latents, k=8, sequences=min(row.sequences, 8), length=row.length // 16, seconds=8)


def rows(*, tiny: bool) -> list[Row | Peer]:
    """All rows, the most important first."""
    return [small(row) if tiny else row for row in ROWS]


def shapes(*, tiny: bool) -> dict[str, Shape]:
    """{language model: its sizes}."""
    return SMALL_SHAPES if tiny else SHAPES
