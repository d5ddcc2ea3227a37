"""The language model."""

from dataclasses import dataclass
from enum import StrEnum

from omegaconf import MISSING

from sae_transcoder.config.fields.metadata import path


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Quantization(StrEnum):
    int8 = "int8"
    nf4 = "nf4"


@dataclass
class ModelConfig:
    """The language model whose activations are read (group `model`)."""

    model_name: str = path(MISSING)
    """Hub id, path of a local model, or `demo` for the bundled one (a folder of that name: `./demo`)."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Dtype | None = None
    """Number format of the language model's weights. null: bfloat16 on a GPU that has it, else float32.
    Coders are always float32."""
    quantization: Quantization | None = None
    """Loads the weights of the language model's linear layers in 8 bits (int8: arXiv:2208.07339) or 4 (nf4: arXiv:2305.14314), by
    bitsandbytes (extra `quantization`); everything else stays in `dtype`. null: as they are."""
    trust_remote_code: bool = False
    """Runs code that the model's own files bring, where transformers has no class for the model. Read that code first: it may do anything that
    you may. false: such a model is refused."""
