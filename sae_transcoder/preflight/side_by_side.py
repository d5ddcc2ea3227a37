"""What runs must have in common to train side by side, on one forward of the language model."""

from collections.abc import Sequence
from dataclasses import fields

from sae_transcoder.config import Config, DatasetConfig, LossFn, ModelConfig
from sae_transcoder.config.errors import raise_faults

# Fields of the model and the data in which runs of one pack may differ: each run excludes its own tokens, and a shorter run reads the
# first part of what a longer one reads.
MAY_DIFFER = {"exclude_tokens", "exclude_first_tokens", "max_norm_multiple", "max_samples"}
# Fields in which runs of one pack agree, so that they see the same batches and the same activations.
SHARED = [f.name for f in (*fields(ModelConfig), *fields(DatasetConfig)) if f.name not in MAY_DIFFER]
SHARED += ["batch_size", "device", "threads", "deterministic", "forward_batch_size", "compile_model"]


def check_shared(cfgs: Sequence[Config]) -> None:
    """Raises ConfigError for runs that cannot train side by side."""
    faults = []
    for name in SHARED:
        values = dict.fromkeys(str(getattr(cfg, name)) for cfg in cfgs)  # some are lists
        if len(values) > 1:
            faults.append(f"{name}={', '.join(values)}: runs that train side by side must agree in it; train them apart")
    if len(cfgs) > 1 and any(cfg.loss_fn != LossFn.fvu for cfg in cfgs):
        faults.append("loss_fn=ce or kl: the run's own forward passes through its coders; train it apart")
    raise_faults(faults)
