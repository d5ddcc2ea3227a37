"""A launcher for sparse autoencoders and transcoders, trained with EleutherAI's sparsify."""

from sae_transcoder.process import device_settings

device_settings.expand_segments()  # here, before anything can import torch and use a GPU: in commands, workers and jobs alike
