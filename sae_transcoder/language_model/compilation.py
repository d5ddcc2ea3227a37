"""torch.compile: what this machine lacks for it, and compiling the forwards of modules, with a fallback where that fails."""

import functools
import os
import shutil
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sae_transcoder.config import ModelConfig


class CompileObstacle(NamedTuple):
    """Why something is not compiled, and how to change that."""

    reason: str
    fix: str = ""

    def __str__(self) -> str:
        return "; ".join(filter(None, self))


def machine_obstacle(device: torch.device) -> CompileObstacle | None:
    """What this machine lacks for torch.compile on the device; None: nothing that is known before it is tried."""
    gpu = device.type == "cuda"
    needs = f"torch.compile on a {'GPU' if gpu else 'CPU'} needs"
    if gpu and find_spec("triton") is None:
        return CompileObstacle(f"{needs} Triton, which is not installed", "install triton")
    variable, defaults = ("CC", ["gcc", "clang"]) if gpu else ("CXX", ["g++"])
    compilers = [os.environ[variable]] if os.environ.get(variable) else defaults
    if not any(map(shutil.which, compilers)):
        return CompileObstacle(
            f"{needs} a {'C' if gpu else 'C++'} compiler, and there is no {' or '.join(compilers)}", f"install {defaults[0]}"
        )
    # Debian's Python has an install scheme of its own beside the usual one.
    include_dirs = {sysconfig.get_path("include"), sysconfig.get_path("include", "posix_prefix")}
    if not any(Path(folder, "Python.h").exists() for folder in include_dirs):
        return CompileObstacle(f"{needs} Python's headers, which are not there", "install python3-dev")
    return None


# How many graphs torch keeps of one function. Beyond that it runs the function uncompiled, and says so in its own log only. transformers' layers
# share one function: each kind of layer of each model in a process counts, with and without gradients, and once more for a batch of one.
MAX_GRAPHS = 64


def compile_forwards(modules: Sequence[nn.Module], on_failure: Callable[[Exception], None] | None = None) -> None:
    """Has torch compile the forwards of these modules when they are first called.

    The first dimension of tensors, the batch, is dynamic: another batch size does not recompile (a batch of one does, once), and the output
    for a batch does not depend on the batches before it. on_failure: called once with the error where compiling fails, after which all of the
    modules run uncompiled; None: the error is raised.
    """
    from torch._dynamo.exc import TorchDynamoException  # slow to import

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_GRAPHS)
    originals = {module: module.forward for module in modules}

    def give_up(error: Exception) -> None:
        if on_failure is None:
            raise error
        for module, forward in originals.items():
            module.forward = forward
        on_failure(error)

    def compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
        fast_forward = torch.compile(forward)

        @functools.wraps(forward)
        def call(*args: Any, **kwargs: Any) -> Any:
            for tensor in tensors((args, kwargs)):
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
            try:
                return fast_forward(*args, **kwargs)
            except TorchDynamoException as error:
                give_up(error)
            return forward(*args, **kwargs)

        return call

    try:
        for module, forward in originals.items():
            module.forward = compiled(forward)
    except RuntimeError as error:  # a Python that torch cannot compile
        give_up(error)


def tensors(values: Any) -> Iterator[Tensor]:
    """Yields the tensors among a forward's arguments, except those without dimensions."""
    if isinstance(values, Tensor):
        if values.dim():
            yield values
    elif isinstance(values, dict | list | tuple):
        for value in values.values() if isinstance(values, dict) else values:
            yield from tensors(value)


FAILURES: dict[tuple[str, str | None], str] = {}
"""{(a language model's name, its revision): the error of its compilation in this process}."""


def failure(cfg: ModelConfig) -> str | None:
    """The error of the language model's compilation in this process; None where it did not fail."""
    return FAILURES.get((cfg.model_name, cfg.revision))
