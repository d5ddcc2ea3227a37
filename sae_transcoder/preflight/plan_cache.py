"""What the plans of one sweep or pack have in common, computed once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from sae_transcoder.config import Config, DatasetConfig, DatasetKind, computes_logits

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sae_transcoder.data.token_sets import TokenSets

T = TypeVar("T")


class PlanCache:
    """Model outlines, widths, numbers of layers and tokens, each kept under the settings that it depends on."""

    def __init__(self) -> None:
        self._values: dict[Hashable, object] = {}

    def _once(self, key: Hashable, compute: Callable[[], T]) -> T:
        if key not in self._values:
            self._values[key] = compute()
        return self._values[key]  # type: ignore[return-value] # what `compute` returned

    def check_files(self, cfg: Config) -> None:
        """Raises ConfigError where the data is files that are not there or of another kind, before anything imports torch."""
        from sae_transcoder.data import memmap, sources
        from sae_transcoder.data.mixture import parts

        for part in parts(cfg):
            find = memmap.open_ids if part.dataset_kind == DatasetKind.memmap else sources.local_paths
            self._once(("files", repr(data_settings(part))), partial(find, part))

    def outline(self, cfg: Config, dtype: torch.dtype, layers: int | None = None) -> PreTrainedModel:
        """The language model without weights, in this number format, with its first `layers` layers; None: with all."""
        from sae_transcoder.language_model import loading

        return self._once(("outline", *class_key(cfg), dtype, layers), lambda: loading.outline(cfg, layers, dtype))

    def widths(self, cfg: Config, dtype: torch.dtype, hookpoints: Sequence[str]) -> dict[str, int]:
        """{hookpoint: d}. Raises ConfigError as hookpoints.widths does."""
        from sae_transcoder.language_model import hookpoints as model_hookpoints

        key = ("widths", *class_key(cfg), dtype, cfg.model_type, cfg.loss_fn, cfg.max_seq_length, *hookpoints)
        return self._once(key, lambda: model_hookpoints.widths(cfg, self.outline(cfg, dtype), hookpoints))

    def needed_layers(self, cfg: Config, dtype: torch.dtype, hookpoints: Sequence[str]) -> int | None:
        """How many of the model's first layers the run needs; None: all."""
        from sae_transcoder.language_model import layers

        key = ("layers", *class_key(cfg), *hookpoints)
        return self._once(key, lambda: layers.num_layers_needed(cfg, self.outline(cfg, dtype), hookpoints))

    def weight_faults(self, cfg: Config, layers: int | None) -> list[str]:
        """What is wrong with the model's weights on this machine, of which the run loads the first `layers` layers; None: all."""
        from sae_transcoder.language_model import model_checks

        key = ("weights", *class_key(cfg), cfg.loss_fn, layers)
        return self._once(key, lambda: model_checks.stored_weight_faults(cfg, layers))

    def tokens(self, cfg: Config, vocabulary: int, batch_ranks: int) -> TokenSets:
        """The run's sequences, where `batch_ranks` ranks share each batch. Raises ConfigError as token_sets.prepare does."""
        from sae_transcoder.config.run_length import needed_samples
        from sae_transcoder.data import token_sets

        key = ("tokens", *model_key(cfg), repr(data_settings(cfg)), needed_samples(cfg, batch_ranks))
        return self._once(key, lambda: token_sets.prepare(cfg, lambda: self.tokenizer(cfg), vocabulary, batch_ranks))

    def tokenizer(self, cfg: Config) -> PreTrainedTokenizerBase:
        """The model's tokenizer. Raises ConfigError where it cannot be loaded."""
        from sae_transcoder.language_model import loading

        return self._once(("tokenizer", *model_key(cfg)), lambda: loading.tokenizer(cfg))


def data_settings(cfg: Config) -> dict[str, object]:
    """What says which data it is, but for how much of it is read."""
    return {f.name: getattr(cfg, f.name) for f in fields(DatasetConfig) if f.name != "max_samples"}


def model_key(cfg: Config) -> tuple[Hashable, ...]:
    """What says which language model it is."""
    return cfg.model_name, cfg.revision, cfg.trust_remote_code


def class_key(cfg: Config) -> tuple[Hashable, ...]:
    """What says which language model it is, and of which class: with a head or without."""
    return *model_key(cfg), computes_logits(cfg)
