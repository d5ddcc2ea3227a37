"""The parts of sparsify that this project uses, imported without the side effects of importing sparsify: it prints that Triton is missing
on every machine without a GPU, and asks the driver whether the GPU has bfloat16, also in processes that only plan."""

from contextlib import redirect_stdout
from io import StringIO
from unittest.mock import patch

import torch

with redirect_stdout(StringIO()), patch.object(torch.cuda, "is_bf16_supported", lambda *_, **__: False):
    from sparsify import SparseCoderConfig, TrainConfig, sparse_coder, utils
    from sparsify import muon as sparsify_muon
    from sparsify.fused_encoder import EncoderOutput
    from sparsify.muon import Muon
    from sparsify.sign_sgd import SignSGD
    from sparsify.sparse_coder import ForwardOutput, SparseCoder

__all__ = [
    "EncoderOutput",
    "ForwardOutput",
    "Muon",
    "SignSGD",
    "SparseCoder",
    "SparseCoderConfig",
    "TrainConfig",
    "sparse_coder",
    "sparsify_muon",
    "utils",
]
