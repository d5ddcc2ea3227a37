"""What helpers.forked does once for all programs that it forks: imports, and a dry run, which fills what libraries keep in memory.

transformers makes its table of old checkpoints' names when it loads its first model, torch its rules for tensors without data with the
first of them: a third of the work of a short command.
"""

import gc
import tempfile

import transformers.models.auto.modeling_auto
import transformers.models.llama.modeling_llama  # noqa: F401

import sae_transcoder.evaluate
import sae_transcoder.export
import sae_transcoder.launch.sweep
import sae_transcoder.training.engine  # noqa: F401
from helpers import parsed_once
from helpers.device import ON_GPU
from helpers.sweeps import SHORT, here

parsed_once.install()
if not ON_GPU:  # no fork may use CUDA once this process has asked for it
    with tempfile.TemporaryDirectory(prefix="dry-run-") as folder:
        code, _, errors = here(*SHORT, "dry_run=true", f"save_dir={folder}", f"cache_dir={folder}")
        assert code == 0, errors
gc.freeze()  # these objects live as long as the process: to look through them for garbage takes a third of a second each time
