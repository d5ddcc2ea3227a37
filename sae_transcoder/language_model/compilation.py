"""torch.compile: what it lacks on this machine, and modules whose forwards it compiles, until it fails."""

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


class Obstacle(NamedTuple):
    """Why something is not compiled, and what would change that."""

    reason: str
    fix: str = ""

    def __str__(self) -> str:
        return "; ".join(filter(None, self))


def machine_obstacle(device: torch.device) -> Obstacle | None:
    """What torch.compile lacks on this machine to compute on the device; None: nothing that is known before it is tried."""
    gpu = device.type == "cuda"
    needs = f"torch.compile on a {'GPU' if gpu else 'CPU'} needs"
    if gpu and find_spec("triton") is None:
        return Obstacle(f"{needs} Triton, which is not installed", "install triton")
    variable, usual = ("CC", ["gcc", "clang"]) if gpu else ("CXX", ["g++"])
    compilers = [os.environ[variable]] if os.environ.get(variable) else usual
    if not any(map(shutil.which, compilers)):
        return Obstacle(
            f"{needs} a {'C' if gpu else 'C++'} compiler, and there is no {' or '.join(compilers)}", f"install {usual[0]}"
        )
    folders = {
        sysconfig.get_path("include"),
        sysconfig.get_path("include", "posix_prefix"),
    }  # Debian's own Python has a scheme of its own
    if not any(Path(folder, "Python.h").exists() for folder in folders):
        return Obstacle(f"{needs} Python's headers, which are not there", "install python3-dev")
    return None


# The graphs that torch keeps of one function; beyond, it computes without, which it says in its own log alone. transformers' layers share one:
# each kind of layer of each model in a process counts, with and without gradients, and once more for a batch of one.
GRAPHS = 64


def compile_forwards(modules: Sequence[nn.Module], excuse: Callable[[Exception], None] | None = None) -> None:
    """Has torch compile the forwards of these modules, when they are first called.

    The first dimension of tensors, the batch, is left open: another batch size compiles nothing anew (a batch of one does, once), and what a
    batch gives does not depend on which ones came before. excuse: called once, with the error, where compiling fails; all of the modules then
    compute as they were. None: the error is raised.
    """
    from torch._dynamo.exc import TorchDynamoException  # takes its time

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    own = {module: module.forward for module in modules}

    def give_up(error: Exception) -> None:
        if excuse is None:
            raise error
        for module, forward in own.items():
            module.forward = forward
        excuse(error)

    def compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
        fast = torch.compile(forward)

        @functools.wraps(forward)
        def called(*args: Any, **kwargs: Any) -> Any:
            for tensor in tensors((args, kwargs)):
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
            try:
                return fast(*args, **kwargs)
            except TorchDynamoException as error:
                give_up(error)
            return forward(*args, **kwargs)

        return called

    try:
        for module, forward in own.items():
            module.forward = compiled(forward)
    except RuntimeError as error:  # a Python that torch cannot compile
        give_up(error)


def tensors(values: Any) -> Iterator[Tensor]:
    """The tensors among a forward's arguments, those without dimensions left out."""
    if isinstance(values, Tensor):
        if values.dim():
            yield values
    elif isinstance(values, dict | list | tuple):
        for value in values.values() if isinstance(values, dict) else values:
            yield from tensors(value)


FAILED: dict[tuple[str, str | None], str] = {}
"""{a language model's name and revision: what its compilation failed of in this process}."""


def failure(cfg: ModelConfig) -> str | None:
    """What the compilation of the language model failed of in this process; None: of nothing."""
    return FAILED.get((cfg.model_name, cfg.revision))
