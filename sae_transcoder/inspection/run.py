"""A run read back from its directory, finished or not: its settings, state, coders and metrics, and what its coders do on a text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from sae_transcoder.coder.names import hookpoint_of
from sae_transcoder.coder.stored_coders import coder_faults, coders_dir, find_coders, run_dir_of
from sae_transcoder.coder.trained_coder import TrainedCoder, load_coder
from sae_transcoder.config import Config, ConfigError
from sae_transcoder.config.composer import from_values
from sae_transcoder.config.paths import local_path
from sae_transcoder.evaluation.settings import evaluation_config, refuse_unread, run_settings
from sae_transcoder.inspection.predictions import Factors, Predictions, check_splice
from sae_transcoder.inspection.text_reader import CapturedText, TextReader, Token
from sae_transcoder.run_store import (
    data_origin,
    eval_file,
    latent_files,
    latents_pass,
    observed_status,
    other_evaluations,
    run_files,
    run_records,
    status,
)
from sae_transcoder.run_store.eval_file import Evaluation
from sae_transcoder.run_store.latent_files import DescribedLatents
from sae_transcoder.run_store.run_files import MetricsRow
from sae_transcoder.run_store.status import State, Status


@dataclass(frozen=True)
class Run:
    """A run as it lies in its directory. `config`: its settings; `coders_folder`: that of the coders, its coders/, best/ or a snapshot.

    The rest is read when it is asked for: `status` and `state` each time, the coders, metrics and the language model once.
    """

    directory: Path
    config: Config = field(repr=False)
    coders_folder: Path

    @property
    def status(self) -> Status:
        """How far the run is now. Raises ConfigError where its status.json is gone or damaged."""
        if (observed := observed_status.read(self.directory)) is None:
            raise ConfigError(f"{self.directory}: has no {status.NAME} any more; restore it from a copy")
        return observed.status

    @property
    def state(self) -> State:
        """Whether the run is queued, running, interrupted, preempted, failed, cancelled or done."""
        return self.status.state

    @cached_property
    def coders(self) -> dict[str, TrainedCoder]:
        """The coders, SAEs or transcoders, float32 on the CPU: {hookpoint: coder}, with several seeds {hookpoint/seed<N>: coder}.

        Each is sparsify's: called with x [token, d_in] it gives `sae_out` [token, d_in], `latent_acts` and `latent_indices` [token, k];
        `encoder.weight` and `W_dec` are [latent, d_in]. Of batchtopk and jumprelu the latents above `threshold` fire, of which there are
        differing numbers: the last axis of latent_acts is as long as the most there are for a token, with zeros at others.
        Raises ConfigError where the run has saved none yet, or they cannot be read.
        """
        if not find_coders(self.coders_folder):
            run = self.status
            raise ConfigError(
                f"{self.directory}: no coders yet, the run is {run.state} at step {run.step:,} of {run.total:,} and saves them every "
                f"save_every={self.config.save_every} steps and at its end; the command that began it goes on"
            )
        return load_coders(self.coders_folder)

    @property
    def evaluation(self) -> Evaluation | None:
        """The held-out metrics of these coders on the run's own data (names and units: metric_names.py); None where they are not measured.
        Raises DamagedFile."""
        of_run = self.coders_folder == self.directory / "coders"
        return eval_file.read(self.directory if of_run else self.coders_folder)

    @property
    def other_evaluations(self) -> dict[str, Evaluation]:
        """{data set, and what else is not the run's own: what sae-eval has measured there}. Raises DamagedFile."""
        own, settings = self.evaluation, run_files.read_config(self.directory)
        names = [coder.coder for coder in own.coders] if own else []
        found = [
            other_evaluations.labelled(evaluation, settings, names)
            for folder in other_evaluations.folders(self.coders_folder, self.directory)
            if (evaluation := other_evaluations.read(folder)) is not None
        ]
        called = other_evaluations.told_apart(found)
        return {called[other.full_label]: other.evaluation for other in found}

    @cached_property
    def metrics(self) -> list[MetricsRow]:
        """The lines of metrics.jsonl so far {name: value}, NaN for null. Raises DamagedFile."""
        return run_files.read_metrics(self.directory)

    @cached_property
    def described_latents(self) -> dict[str, DescribedLatents]:
        """What sae-latents has found of the latents {coder: its latents}. Raises ConfigError where the command was not run, and DamagedFile."""
        return latent_files.described(latents_pass.folder_of(self.coders_folder, self.directory), str(self.directory))

    def latents(self, text: str) -> dict[str, list[Token]]:
        """The tokens of a text, for each coder with the latents that fire on them: {coder: [token]}.

        The text stands at the start of a sequence, behind the begin token where training put one. Raises ConfigError for a text of no token or
        of more than a sequence has, for a model that cannot be loaded, and as `coders` does.
        """
        coders = self.coders
        return self._reader.latents(text, coders)

    def capture(self, texts: str | Sequence[str]) -> list[CapturedText]:
        """What the modules at the run's hookpoints receive and give for each text by itself. Raises ConfigError as `latents` does."""
        return [self._reader.capture(text) for text in ([texts] if isinstance(texts, str) else texts)]

    def predict(self, text: str, splice: Mapping[str, Factors] | None = None) -> Predictions:
        """What the language model predicts after each token of a text; None: as it is.

        splice: {coder: {latent: factor}}, the coders whose output takes the place of their module's output, and what the activations of their
        latents are multiplied by: {"layers.2": {}} is the reconstruction, {"layers.2": {7: 0}} the same with latent 7 switched off. A latent
        that does not fire stays 0. Positions that training leaves out keep the module's own output, as in the evaluation.

        Raises ConfigError as `latents` does, for coders and latents that the run does not have, and for a model without a
        language-modelling head.
        """
        if splice is None:
            return self._reader.predict(text, {})
        coders = self.coders
        check_splice(splice, coders)
        return self._reader.predict(text, {hookpoint_of(name): (coders[name], factors) for name, factors in splice.items()})

    @cached_property
    def _reader(self) -> TextReader:
        """The language model, as the run loads it."""
        return TextReader(self.config, data_origin.read(self.directory))


def load_run(path: str | Path, *overrides: str) -> Run:
    """The run in a directory; with the path of its best/ or of a snapshot, with the coders there.

    overrides: as for sae-eval, where the language model lies elsewhere or another device is to be used: `model_name=PATH`, `hardware=cpu`.
    Raises ConfigError where there is no run, and for overrides that are wrong or not read.
    """
    folder = local_path(path)
    directory = run_dir_of(folder) if folder.is_dir() else None
    if directory is None or status.read(directory) is None:
        raise ConfigError(f"{path}: {no_run(folder)}; give the directory of a run, its best/ or one of its snapshots/")
    coders_folder = directory / "coders" if folder == directory else folder
    if folder != directory and not find_coders(folder):
        raise ConfigError(
            f"{path}: holds no coders; give the directory of the run, {directory}, its best/ or one of its snapshots/"
        )
    refuse_unread(overrides)
    settings = run_settings(directory)
    config = evaluation_config(settings, overrides)[0] if overrides else from_values(settings)
    return Run(directory, config, coders_folder)


def no_run(folder: Path) -> str:
    """What a folder is that is no run's."""
    if not folder.is_dir():
        return "there is no such folder"
    if runs := list(run_records.find(folder, lambda fault: None)):
        return f"is a folder of {len(runs):,} runs, such as {runs[0]}"
    return f"is no run, it lacks {status.NAME} or {run_files.CONFIG}"


def load_coders(path: str | Path) -> dict[str, TrainedCoder]:
    """The coders of a folder with one folder for each hookpoint, of a run or not, or of a repository of the Hugging Face Hub, with their
    thresholds, as `Run.coders`.

    Raises ConfigError where there are no coders, or where they cannot be read.
    """
    folders = find_coders(coders_dir(str(path)))
    if not folders:
        raise ConfigError(
            f"{path}: holds no coders (folders with cfg.json and sae.safetensors); give a run's directory or its coders/"
        )
    if faults := [fault for folder in folders.values() for fault in coder_faults(folder)]:
        raise ConfigError(*(f"{fault}; load another copy" for fault in faults))
    return {name: load_coder(folder).float() for name, folder in folders.items()}
