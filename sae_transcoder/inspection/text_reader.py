"""What a run's language model and coders do on a text of the user's: its tokens, activations at the hookpoints, latents that fire."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from sae_transcoder.coder.names import hookpoint_of
from sae_transcoder.coder.positions import PositionFilter
from sae_transcoder.coder.trained_coder import TrainedCoder
from sae_transcoder.config import Config, ConfigError, computes_logits, has_stored_ids
from sae_transcoder.data.special_tokens import SpecialTokens, special_tokens
from sae_transcoder.data.token_ids import check_ids, tokenize
from sae_transcoder.inspection.predictions import Factors, Predictions, scaled_reconstruction
from sae_transcoder.language_model import layers, loading, model_checks
from sae_transcoder.language_model.forward import Activations, capture, spliced, spliced_output
from sae_transcoder.language_model.hookpoints import hookpoint_names
from sae_transcoder.language_model.model_class import has_head
from sae_transcoder.language_model.weights_dtype import resolve_dtype
from sae_transcoder.latents.tables import token_texts
from sae_transcoder.preflight.device import find_device
from sae_transcoder.process import device_settings
from sae_transcoder.process.broken_device import diagnosing
from sae_transcoder.run_store.data_origin import DataOrigin


@dataclass(frozen=True)
class Token:
    """A token of a text, and the latents of a coder that fire on it, the strongest first, with their activations. `counts`: whether the
    coder was trained on such positions; on others no latents are given."""

    text: str
    id: int
    counts: bool
    latents: list[int]
    activations: list[float]


@dataclass(frozen=True)
class CapturedText:
    """A text as the language model reads it: the ids and texts of its tokens [position], and of the module at each hookpoint what it receives
    and gives, {hookpoint: [position, d]}, on the CPU in the model's number format."""

    ids: list[int]
    tokens: list[str]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


class TextReader:
    """The language model of a run and its tokenizer. The model is loaded up to the last hookpoint as in training, whole once it has to predict."""

    def __init__(self, cfg: Config, origin: DataOrigin | None):
        """origin: what the run's sequences were made of, None where that is not kept. Raises ConfigError for a model that cannot be loaded."""
        self.cfg = replace(cfg, eval_end_to_end=False)  # logits are needed by predict() alone
        self.tokenizer = loading.tokenizer(self.cfg)
        self._load(self.cfg)
        if origin is not None:
            self.begin = origin.begin
        elif has_stored_ids(self.cfg):
            self.begin = ()
        else:
            self.begin = special_tokens(self.cfg, self.tokenizer, self.vocabulary_size).begin

    def _load(self, cfg: Config) -> None:
        """Loads as much of the language model as these settings ask for, in the place of what was loaded."""
        device = find_device(cfg)
        with self._configured(device):
            outline = loading.outline(cfg, dtype=resolve_dtype(cfg, device))
            hookpoints = hookpoint_names(cfg, outline)
            num_layers = layers.num_layers_needed(cfg, outline, hookpoints)
            obstacle = layers.compile_obstacle(cfg, outline, hookpoints, num_layers, device)
            if faults := model_checks.faults(cfg, outline, obstacle):
                raise ConfigError(*faults)
            model = layers.load_for_hookpoints(cfg, device, num_layers, hookpoints)
        self.cfg, self.model, self.hookpoints = cfg, model, hookpoints
        self.vocabulary_size = loading.text_config(outline).vocab_size

    @contextmanager
    def _configured(self, device: torch.device) -> Iterator[None]:
        """While open, the process computes as in the run's training."""
        with diagnosing(), device_settings.configured(self.cfg, device), torch.no_grad():
            yield

    def ids(self, text: str) -> list[int]:
        """The ids of a text at the start of a sequence, tokenised as in training, without the separator after a document.

        Raises ConfigError for a text without tokens and for more tokens than a sequence has.
        """
        if not isinstance(text, str):
            raise ConfigError(f"{type(text).__name__}: a text is a string; capture() takes several")
        row = {self.cfg.text_column: text}
        tokenised = check_ids(self.cfg, tokenize(self.cfg, [row], self.tokenizer, SpecialTokens()), self.vocabulary_size)
        if not (own := next(tokenised).tolist()):
            raise ConfigError(f"{text!r}: a text without tokens; give one that has some")
        ids = [*self.begin, *own]
        if len(ids) > (most := self.cfg.max_seq_length):
            raise ConfigError(
                f"{text[:20]!r}...: has {len(ids):,} tokens, and the run was trained on sequences of max_seq_length={most}; give it in pieces"
            )
        return ids

    def texts(self, ids: list[int]) -> list[str]:
        """The text of each token."""
        return token_texts(self.tokenizer, ids)

    def capture(self, text: str) -> CapturedText:
        """The activations of a text."""
        ids = self.ids(text)
        at = self._activations(ids)
        inputs, outputs = ({name: getattr(each, side)[0].cpu() for name, each in at.items()} for side in ("input", "output"))
        return CapturedText(ids, self.texts(ids), inputs, outputs)

    def latents(self, text: str, coders: Mapping[str, TrainedCoder]) -> dict[str, list[Token]]:
        """{coder: the tokens with its latents}; coders: {name: coder on the CPU}.

        Left out are the positions that training leaves out; with `max_norm_multiple` by the median of this text.
        """
        ids = self.ids(text)
        texts, activations = self.texts(ids), self._activations(ids)
        return {name: self._tokens(coder, ids, texts, activations[hookpoint_of(name)]) for name, coder in coders.items()}

    def predict(self, text: str, splice: Mapping[str, tuple[TrainedCoder, Factors]]) -> Predictions:
        """The next-token predictions of a text with modules replaced; splice: {hookpoint: (coder on the CPU, factors of its latents)}.

        Positions that training leaves out keep the module's own output, as in the evaluation; with `max_norm_multiple` by the median of this
        text. Raises ConfigError for a model without a language-modelling head.
        """
        ids = self.ids(text)
        if not computes_logits(self.cfg):
            self._load(replace(self.cfg, eval_end_to_end=True))
        if not has_head(self.model):
            raise ConfigError(
                f"model_name={self.cfg.model_name}: has no language-modelling head, and predicts nothing; use capture()"
            )

        def replaced(hookpoint: str, activations: Activations) -> Tensor:
            output, kept, x = self._coder_input(activations, ids)
            coder, factors = splice[hookpoint]
            return spliced_output(output, kept, scaled_reconstruction(coder, x, factors)).to(activations.output.device)

        with self._configured(self.model.device), spliced(self.model, list(splice), replaced):
            logits = self.model(input_ids=torch.tensor([ids], device=self.model.device), use_cache=False).logits[0]
        return Predictions(ids, self.texts(ids), logits.float().cpu(), self.vocabulary)

    @cached_property
    def vocabulary(self) -> list[str]:
        """The text of each token that the model has."""
        return self.texts(list(range(self.vocabulary_size)))

    def _activations(self, ids: list[int]) -> dict[str, Activations]:
        """{hookpoint: activations [1, position, d]} of a sequence."""
        with self._configured(self.model.device):
            return capture(self.model, self.hookpoints, torch.tensor([ids], device=self.model.device))

    def _coder_input(self, activations: Activations, ids: list[int]) -> tuple[Tensor, Tensor | None, Tensor]:
        """Of the activations [1, position, d] of a sequence, on the CPU: the module's output, the positions that count [token] (None: all), and
        the coder's inputs there [token, d_in]."""
        on_cpu = Activations(activations.input.cpu(), activations.output.cpu())
        position_filter = PositionFilter.of(self.cfg)
        kept = position_filter.kept(on_cpu, position_filter.by_token(torch.tensor([ids])))
        x, _ = position_filter.inputs_and_targets(on_cpu, kept)
        return on_cpu.output, kept, x

    def _tokens(self, coder: TrainedCoder, ids: list[int], texts: list[str], activations: Activations) -> list[Token]:
        """The tokens with the latents of one coder."""
        _, kept, x = self._coder_input(activations, ids)
        with torch.no_grad():
            entries = coder.firing(x)
        tokens = [Token(text, number, kept is None, [], []) for text, number in zip(texts, ids, strict=True)]
        for row, position in enumerate(range(len(ids)) if kept is None else kept.tolist()):
            own = entries.tokens == row
            order = entries.preacts[own].argsort(descending=True, stable=True)
            latents, acts = entries.latents[own][order].tolist(), entries.preacts[own][order].tolist()
            tokens[position] = replace(tokens[position], counts=True, latents=latents, activations=acts)
        return tokens
