"""How much memory tensors hold at most while the engine trains on a CPU: the profiler tells of every allocation, its size and its end."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from unittest.mock import patch

from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from sae_transcoder.config import Config
from sae_transcoder.preflight.plan import Plan, make_plan
from sae_transcoder.preflight.plan_cache import PlanCache
from sae_transcoder.training import engine, smaller_packs


def weights(model: PreTrainedModel) -> int:
    """Bytes of a model's parameters and buffers."""
    storages = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """While open, what objects that refer to each other hold stays: when Python looks for them depends on all that was done before."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def train(cfgs: Sequence[Config]) -> tuple[list[Plan], int]:
    """Trains the runs side by side; their plans, and the bytes that the language model and all other tensors held at most."""
    cache = PlanCache()
    plans = [make_plan(cfg, cache) for cfg in cfgs]
    model = smaller_packs.loaded(plans)  # before, since weights that are mapped from a file are not allocated
    with (
        patch.object(smaller_packs, "loaded", lambda _: model),
        no_garbage_collection(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled,
    ):
        engine.train(cfgs)
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    events.sort(key=lambda event: event.start_ns())
    return plans, weights(model) + max(accumulate(event.nbytes() for event in events))
