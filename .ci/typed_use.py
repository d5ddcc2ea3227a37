"""A user's program, which .ci/package has mypy check against the installed package: the types of the Python API reach it, or nothing is ignored."""

from sae_transcoder import __version__
from sae_transcoder.api import load_config, train

cfg = load_config("experiment=demo")
cfg.k = 16
cfg.k = "16"  # type: ignore[assignment]
run = train(cfg)
train("k=16")  # type: ignore[arg-type]
print(__version__, run.directory.name)
