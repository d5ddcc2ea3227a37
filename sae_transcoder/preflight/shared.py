"""What runs must have in common to train side by side, on one forward of the language model."""

from collections.abc import Sequence
from dataclasses import fields

from sae_transcoder.config import Config, ConfigError, DatasetConfig, LossFn, ModelConfig

# Fields of the model and the data in which runs of one pack may differ: each leaves out its own tokens, and a shorter run reads the
# first part of what a longer one reads.
OWN = {"exclude_tokens", "exclude_first_tokens", "max_norm_multiple", "max_samples"}
# What runs of one pack have in common: they see the same batches and the same activations.
SHARED = [f.name for f in (*fields(ModelConfig), *fields(DatasetConfig)) if f.name not in OWN]
SHARED += ["batch_size", "device", "threads", "deterministic", "forward_batch_size", "compile_model"]


def check_shared(cfgs: Sequence[Config]) -> None:
    """Raises ConfigError for runs that cannot train side by side."""
    faults = []
    for name in SHARED:
        values = dict.fromkeys(getattr(cfg, name) for cfg in cfgs)
        if len(values) > 1:
            faults.append(f"{name}={', '.join(map(str, values))}: runs that train side by side must agree in it; train them apart")
    if len(cfgs) > 1 and any(cfg.loss_fn != LossFn.fvu for cfg in cfgs):
        faults.append("loss_fn=ce or kl: the run's own forward passes through its coders; train it apart")
    if faults:
        raise ConfigError(*faults)
