"""What helpers.forked imports once for all programs that it forks."""

import hydra  # noqa: F401
import transformers.models.auto.modeling_auto
import transformers.models.llama.modeling_llama  # noqa: F401

import sae_transcoder.evaluate
import sae_transcoder.export
import sae_transcoder.launch.sweep
import sae_transcoder.train
import sae_transcoder.training.engine  # noqa: F401
