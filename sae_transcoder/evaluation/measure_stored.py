"""Measures coders that lie on disk: loads the language model and the coders, checks that they fit each other."""

from collections.abc import Mapping
from pathlib import Path

import torch

from sae_transcoder.coder.names import hookpoint_of
from sae_transcoder.coder.stored_coders import coder_faults
from sae_transcoder.coder.trained_coder import TrainedCoder, load_coder
from sae_transcoder.config import Config, ConfigError
from sae_transcoder.data import token_sets
from sae_transcoder.evaluation import heldout
from sae_transcoder.evaluation.request import EvaluationRequest
from sae_transcoder.language_model import hookpoints, layers, loading, model_checks
from sae_transcoder.language_model.model_class import base
from sae_transcoder.preflight.device import find_device
from sae_transcoder.process import device_settings
from sae_transcoder.process.broken_device import diagnosing
from sae_transcoder.run_store.data_origin import DataOrigin
from sae_transcoder.run_store.eval_file import Evaluation


def measure_stored(request: EvaluationRequest) -> Evaluation:
    """The held-out metrics of the coders. Raises ConfigError where coders cannot be read or do not fit the model."""
    cfg = request.cfg
    device = find_device(cfg)
    outline = loading.outline(cfg, dtype=loading.resolve_dtype(cfg, device))
    coder_dirs = request.coder_dirs
    if request.only_selected:
        wanted = hookpoints.hookpoint_names(cfg, outline)
        if missing := [point for point in wanted if point not in map(hookpoint_of, coder_dirs)]:
            raise ConfigError(f"{request.path}: no coders for {', '.join(missing)}; it holds {', '.join(coder_dirs)}")
        coder_dirs = {name: coder_dir for name, coder_dir in coder_dirs.items() if hookpoint_of(name) in wanted}
    points = list(dict.fromkeys(map(hookpoint_of, coder_dirs)))
    modules = dict(base(outline).named_modules())
    if missing := [point for point in points if point not in modules]:
        raise ConfigError(
            f"{request.path}: coders on {', '.join(missing)}, which model_name={cfg.model_name} does not have "
            f"(it has {hookpoints.name_patterns(filter(None, modules))}); set model or model_name, or eval_end_to_end as it was in training"
        )
    widths = hookpoints.widths(cfg, outline, points)
    with diagnosing(), device_settings.configured(cfg, device):
        coders, faults = load_coders(cfg, coder_dirs, widths, device)
        num_layers = layers.num_layers_needed(cfg, outline, points)
        faults += model_checks.faults(cfg, outline, layers.compile_obstacle(cfg, outline, points, num_layers, device))
        if faults:
            raise ConfigError(*faults)
        sequences, origin = token_sets.heldout_sequences(
            cfg, lambda: loading.tokenizer(cfg), loading.text_config(outline).vocab_size
        )
        if request.held_out is not None and not holds_out(request.held_out, origin):
            raise ConfigError(
                f"dataset_name={cfg.dataset_name}: its files have changed since {request.path} was trained, which held out other documents and may "
                "have been trained on these; restore them, or set another dataset"
            )
        coders_to_evaluate = heldout.CodersToEvaluate(cfg, coders, origin)
        model = layers.load_for_hookpoints(cfg, device, num_layers, points)
        (result,) = heldout.measure(model, [coders_to_evaluate], sequences, all_metrics=True)
        return result.evaluation(coders_to_evaluate, request.step, request.tokens)


def holds_out(trained: DataOrigin, measured: DataOrigin) -> bool:
    """Whether all documents to measure are among those that were held out in training; of divided ones the first sequences are."""
    documents = set(measured.heldout_identities) <= set(trained.heldout_identities)
    return documents and measured.divided == trained.divided


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
