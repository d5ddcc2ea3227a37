"""A launcher for sparse autoencoders and transcoders, trained with EleutherAI's sparsify."""

from importlib.metadata import PackageNotFoundError, version

from sae_transcoder.process import device_settings

try:
    __version__ = version("sae-transcoder")
except PackageNotFoundError:  # a folder on the path, which pip did not install
    __version__ = "0.0.0+not.installed"

# Here, before anything can import torch and use a GPU: in commands, workers and jobs alike.
device_settings.expand_segments()
device_settings.let_waiting_threads_sleep()
