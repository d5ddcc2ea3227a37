"""Measures coders that lie on disk: loads the language model and the coders, checks that they fit each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from sae_transcoder.coder.names import hookpoint_of
from sae_transcoder.coder.stored_coders import coder_faults
from sae_transcoder.coder.trained_coder import TrainedCoder, load_coder
from sae_transcoder.config import Config, ConfigError, computes_logits
from sae_transcoder.data import token_sets
from sae_transcoder.evaluation import heldout
from sae_transcoder.evaluation.request import EvaluationRequest, StoredCoders, grouped
from sae_transcoder.language_model import hookpoints, layers, loading, model_checks
from sae_transcoder.language_model.model_class import base
from sae_transcoder.language_model.weights_dtype import resolve_dtype
from sae_transcoder.preflight import side_by_side
from sae_transcoder.preflight.device import find_device
from sae_transcoder.process import device_settings
from sae_transcoder.process.broken_device import diagnosing
from sae_transcoder.process.free_memory import free_memory
from sae_transcoder.process.memory_errors import is_out_of_memory
from sae_transcoder.run_store.data_origin import DataOrigin
from sae_transcoder.run_store.eval_file import Evaluation


def groups(requests: Sequence[EvaluationRequest]) -> list[list[EvaluationRequest]]:
    """The requests by the model and the text that they read, which one forward serves; they may exclude other positions."""
    return grouped(requests, side_by_side.SHARED)


def measure_stored(requests: Sequence[EvaluationRequest]) -> list[Evaluation]:
    """The held-out metrics of the coders of one group, in its order; where memory does not suffice for all, of its halves one after the other.

    Raises ConfigError where coders cannot be read or do not fit the model.
    """
    try:
        return measure_together(requests)
    except Exception as error:
        if len(requests) == 1 or not is_out_of_memory(error):
            raise
    free_memory()  # once the error, which holds tensors, is gone
    middle = len(requests) // 2
    return [*measure_stored(requests[:middle]), *measure_stored(requests[middle:])]


def measure_together(requests: Sequence[EvaluationRequest]) -> list[Evaluation]:
    """As `measure_stored`, of all at once."""
    cfg = with_logits_of_any(requests)
    device = find_device(cfg)
    outline = loading.outline(cfg, dtype=resolve_dtype(cfg, device))
    with diagnosing(), device_settings.configured(cfg, device):
        coders = [load_fitting(request.stored, outline, device) for request in requests]
        points = list(dict.fromkeys(hookpoint_of(name) for own in coders for name in own))
        num_layers = layers.num_layers_needed(cfg, outline, points)
        if faults := model_checks.faults(cfg, outline, layers.compile_obstacle(cfg, outline, points, num_layers, device)):
            raise ConfigError(*faults)
        sequences, origin = token_sets.heldout_sequences(
            cfg, lambda: loading.tokenizer(cfg), loading.text_config(outline).vocab_size
        )
        for request in requests:
            refuse_other_documents(request.stored, request.held_out, origin)
        to_evaluate = [heldout.CodersToEvaluate(request.cfg, own, origin) for request, own in zip(requests, coders, strict=True)]
        model = layers.load_for_hookpoints(cfg, device, num_layers, points)
        results = heldout.measure(model, to_evaluate, sequences, all_metrics=True)
        return [
            result.evaluation(own, request.step, request.tokens)
            for result, own, request in zip(results, to_evaluate, requests, strict=True)
        ]


def with_logits_of_any(requests: Sequence[EvaluationRequest]) -> Config:
    """The settings by which a group reads the model: with its head if any of the coders is measured inside the model."""
    cfgs = [request.cfg for request in requests]
    return next((cfg for cfg in cfgs if computes_logits(cfg)), cfgs[0])


def refuse_other_documents(stored: StoredCoders, held_out: DataOrigin | None, measured: DataOrigin) -> None:
    """Raises ConfigError where what is to be measured was not held out when the coders were trained.

    held_out: what was, None where the data are others.
    """
    if held_out is not None and not holds_out(held_out, measured):
        raise ConfigError(
            f"dataset_name={stored.cfg.dataset_name}: its files have changed since {stored.path} was trained, which held out other documents and "
            "may have been trained on these; restore them, or set another dataset"
        )


def holds_out(trained: DataOrigin, measured: DataOrigin) -> bool:
    """Whether all documents to measure are among those that were held out in training; of divided ones the first sequences are."""
    documents = set(measured.heldout_identities) <= set(trained.heldout_identities)
    return documents and measured.divided == trained.divided


def load_fitting(stored: StoredCoders, outline: PreTrainedModel, device: torch.device) -> dict[str, TrainedCoder]:
    """The coders {name: coder} in float32. Raises ConfigError where they cannot be read, or do not fit the model of the outline."""
    cfg, coder_dirs = stored.cfg, stored.coder_dirs
    if stored.only_selected:
        wanted = hookpoints.hookpoint_names(cfg, outline)
        if missing := [point for point in wanted if point not in map(hookpoint_of, coder_dirs)]:
            raise ConfigError(f"{stored.path}: no coders for {', '.join(missing)}; it holds {', '.join(coder_dirs)}")
        coder_dirs = {name: coder_dir for name, coder_dir in coder_dirs.items() if hookpoint_of(name) in wanted}
    points = list(dict.fromkeys(map(hookpoint_of, coder_dirs)))
    modules = dict(base(outline).named_modules())
    if missing := [point for point in points if point not in modules]:
        raise ConfigError(
            f"{stored.path}: coders on {', '.join(missing)}, which model_name={cfg.model_name} does not have "
            f"(it has {hookpoints.name_patterns(filter(None, modules))}); set model or model_name, or eval_end_to_end as it was in training"
        )
    coders, faults = load_coders(cfg, coder_dirs, hookpoints.widths(cfg, outline, points), device)
    if faults:
        raise ConfigError(*faults)
    return coders


def load_coders(
    cfg: Config, coder_dirs: Mapping[str, Path], widths: Mapping[str, int], device: torch.device
) -> tuple[dict[str, TrainedCoder], list[str]]:
    """The coders {name: coder} in float32, and a fault for each that cannot be read or whose width is not that of its hookpoint."""
    coders: dict[str, TrainedCoder] = {}
    faults: list[str] = []
    for name, coder_dir in coder_dirs.items():
        if own_faults := coder_faults(coder_dir):
            faults += [f"{fault}; measure another copy" for fault in own_faults]
            continue
        try:
            coders[name] = load_coder(coder_dir, device).float().requires_grad_(False)
        except Exception as error:  # of settings that sparsify does not know
            faults.append(f"{coder_dir}: cannot be read ({str(error).splitlines()[0]})")
            continue
        if coders[name].d_in != (width := widths[hookpoint_of(name)]):
            faults.append(
                f"{coder_dir}: a coder of width {coders[name].d_in}, {hookpoint_of(name)} of model_name={cfg.model_name} has {width}; set model"
            )
    return coders, faults
