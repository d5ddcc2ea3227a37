"""Prints the names that settings have in SAELens or dictionary_learning; runs in the program's own environment.

python names_in_other_programs.py saelens
"""

import dataclasses
import importlib
import inspect
import pkgutil
import sys


def sae_lens() -> set[str]:
    """The fields of the configs of runners and training SAEs."""
    from sae_lens import config, evals, multi_sae_training_runner
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

    classes = {cls for _, cls in SAE_TRAINING_CLASS_REGISTRY.values()}
    for module in (config, evals, multi_sae_training_runner):
        classes |= {
            cls
            for _, cls in inspect.getmembers(module, inspect.isclass)
            if dataclasses.is_dataclass(cls) and "Config" in cls.__name__
        }
    return {field.name for cls in classes for field in dataclasses.fields(cls) if field.init and not field.name.startswith("_")}


def dictionary_learning() -> set[str]:
    """The arguments of trainSAE, of its trainers and of its buffers."""
    from dictionary_learning import buffer, trainers
    from dictionary_learning.training import trainSAE

    modules = [
        buffer,
        *(importlib.import_module(module.name) for module in pkgutil.iter_modules(trainers.__path__, f"{trainers.__name__}.")),
    ]
    classes = {
        cls
        for module in modules
        for name, cls in inspect.getmembers(module, inspect.isclass)
        if name.endswith(("Trainer", "Buffer"))
    }
    calls = [trainSAE, *(cls.__init__ for cls in classes)]
    return {name for call in calls for name in inspect.signature(call).parameters} - {"self", "args", "kwargs"}


if __name__ == "__main__":
    print(*sorted(sae_lens() if sys.argv[1] == "saelens" else dictionary_learning()))
