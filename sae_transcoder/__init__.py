"""A launcher for sparse autoencoders and transcoders, trained with EleutherAI's sparsify."""

from sae_transcoder.process import device_settings

# Here, before anything can import torch and use a GPU: in commands, workers and jobs alike.
device_settings.expand_segments()
device_settings.let_waiting_threads_sleep()
