"""One pass of the language model over text, from which the latents of all coders of some runs are described."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from sae_transcoder.coder.names import hookpoint_of
from sae_transcoder.coder.positions import PositionFilter
from sae_transcoder.coder.trained_coder import TrainedCoder
from sae_transcoder.config import Config, ConfigError
from sae_transcoder.data import token_sets
from sae_transcoder.data.sequences import Sequences
from sae_transcoder.evaluation.measure_stored import load_fitting, refuse_other_documents
from sae_transcoder.evaluation.request import grouped
from sae_transcoder.evaluation.settings import READ_FIELDS, SELECTION
from sae_transcoder.language_model import layers, loading, model_checks
from sae_transcoder.language_model.forward import capture
from sae_transcoder.language_model.loading import text_config
from sae_transcoder.language_model.weights_dtype import resolve_dtype
from sae_transcoder.latents import partial, tables
from sae_transcoder.latents.batch import read_batch
from sae_transcoder.latents.coder_pass import CoderPass
from sae_transcoder.latents.request import LatentsRequest
from sae_transcoder.preflight.device import find_device
from sae_transcoder.process import device_settings
from sae_transcoder.process.broken_device import diagnosing
from sae_transcoder.process.progress import progress
from sae_transcoder.process.stop_signal import StopSignal

SAVE_EVERY = 60.0  # seconds
POSITIONS = {"cpu": 2**13, "cuda": 2**16}  # read at a time, about
OF_TEXT = READ_FIELDS - {*SELECTION, "save_dir", "eval_end_to_end"}  # the fields that decide what is read, and how
TOGETHER = 2**17  # tokens on which it is counted which latents fire together, about


@dataclass
class RunPass:
    """One run's part of a pass. `done`: sequences of it that are read."""

    request: LatentsRequest
    coders: dict[str, CoderPass]
    done: int

    def save(self) -> None:
        """Writes how far it is."""
        partial.write(self.request.folder, self.request.fingerprint(), self.done, self.coders)


def groups(requests: Sequence[LatentsRequest]) -> list[list[LatentsRequest]]:
    """The requests by the text and the model that they read, which one pass serves."""
    return grouped(requests, sorted(OF_TEXT))


def describe_latents(requests: Sequence[LatentsRequest]) -> None:
    """Reads the text of one group once, and writes the files of latent_files into the folder of each request.

    A pass that was stopped goes on. Raises ConfigError where coders cannot be read or do not fit the model, and for more tokens than there
    are; Stopped after Ctrl-C, once the part that is done is saved.
    """
    cfg = requests[0].cfg
    device = find_device(cfg)
    outline = loading.outline(cfg, dtype=resolve_dtype(cfg, device))
    with ExitStack() as stack:
        stack.enter_context(diagnosing())
        stack.enter_context(device_settings.configured(cfg, device))
        stack.enter_context(torch.no_grad())
        coders = [load_fitting(request.stored, outline, device) for request in requests]
        points = list(dict.fromkeys(hookpoint_of(name) for own in coders for name in own))
        num_layers = layers.num_layers_needed(replace_logits(cfg, False), outline, points)
        if faults := model_checks.faults(cfg, outline, layers.compile_obstacle(cfg, outline, points, num_layers, device)):
            raise ConfigError(*faults)
        sequences = text_to_read(requests, text_config(outline).vocab_size)
        for request in requests:
            stack.enter_context(partial.locked(request.folder))
        model = layers.load_for_hookpoints(replace_logits(cfg, True), device, num_layers, points)
        share = min(1.0, TOGETHER / (len(sequences) * cfg.max_seq_length))
        runs = [begin(request, own, share) for request, own in zip(requests, coders, strict=True)]
        read_text(model, runs, sequences, points)
        for run in runs:
            tables.write(model, run.request, run.coders, sequences)
            partial.remove(run.request.folder)


def replace_logits(cfg: Config, computed: bool) -> Config:
    """The settings with or without the model's head, which shows what latents raise; the pass itself needs none."""
    return replace(cfg, eval_end_to_end=computed)


def text_to_read(requests: Sequence[LatentsRequest], vocabulary: int) -> Sequences:
    """The sequences that are read: held out, or the first of those to train on. Raises ConfigError where there are fewer than asked for."""
    cfg, tokens = requests[0].cfg, requests[0].wanted.tokens
    if tokens is None:
        sequences, origin = token_sets.heldout_sequences(cfg, lambda: loading.tokenizer(cfg), vocabulary)
        for request in requests:
            refuse_other_documents(request.stored, request.stored.refuse_trained_on(), origin)
        return sequences
    count = -(-tokens // cfg.max_seq_length)
    sets = token_sets.prepare(replace(cfg, max_samples=count, max_steps=None), lambda: loading.tokenizer(cfg), vocabulary)
    if len(sets.train) < count:
        most = len(sets.train) * cfg.max_seq_length
        raise ConfigError(f"tokens={tokens}: dataset_name={cfg.dataset_name} has {most:,} to train on; lower it, or leave it out")
    return sets.train


def begin(request: LatentsRequest, coders: dict[str, TrainedCoder], share: float) -> RunPass:
    """The run's part, from where it was left. share: as in CoderPass."""
    saved = partial.read(request.folder, request.fingerprint())
    run = RunPass(request, {}, saved.sequences if saved else 0)
    for name, coder in coders.items():
        folder, sizes = partial.log_folder(request.folder, name), saved.sizes[name] if saved else {}
        wanted = request.wanted
        run.coders[name] = CoderPass(coder, PositionFilter.of(request.cfg), wanted.latents, wanted.top, share, folder, sizes)
        if saved:
            run.coders[name].restore(saved.tensors[name])
    return run


def read_text(model: PreTrainedModel, runs: Sequence[RunPass], sequences: Sequences, points: Sequence[str]) -> None:
    """Adds all text to the runs' coders; saves what is done from time to time, and before a signal is obeyed."""
    cfg = runs[0].request.cfg
    step = max(1, POSITIONS[model.device.type] // cfg.max_seq_length)
    done, saved = min(run.done for run in runs), time.monotonic()
    count = sum(len(run.coders) for run in runs)
    label = f"latents of {count} coder{'s' if count > 1 else ''}"
    with StopSignal() as signal, progress(label, len(sequences)) as show:
        while done < len(sequences):
            show(done)
            later = [run.done for run in runs if run.done > done]  # a killed process may have saved some runs later than others
            stop = min([len(sequences), done + step, *later])
            batch = read_batch(sequences, done, stop, model.device)
            activations = capture(model, points, batch.tokens, cfg.forward_batch_size)
            for run in runs:
                if run.done > done:
                    continue
                for name, coder in run.coders.items():
                    coder.add(batch, activations[hookpoint_of(name)])
                run.done = stop
            done = stop
            if signal.number is not None or time.monotonic() - saved > SAVE_EVERY:
                for run in runs:
                    run.save()
                saved = time.monotonic()
                signal.obey()
