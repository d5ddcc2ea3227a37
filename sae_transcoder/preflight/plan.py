"""What a run will be, and everything that can be known to be wrong before weights are loaded.

torch and transformers are imported only once the settings are right by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sae_transcoder import distributed
from sae_transcoder.coder.names import coder_names
from sae_transcoder.config import Config, Tracker, checks, num_latents
from sae_transcoder.config.errors import raise_faults
from sae_transcoder.preflight import device_memory, memory_estimate
from sae_transcoder.preflight.coder_size_faults import share_faults, width_faults
from sae_transcoder.preflight.device import find_device, torch_device
from sae_transcoder.preflight.length_faults import length_faults
from sae_transcoder.preflight.likely_mistakes import data_warnings, warnings
from sae_transcoder.preflight.peak import Part, peak
from sae_transcoder.preflight.plan_cache import PlanCache
from sae_transcoder.preflight.run_directory import refuse_directory, refuse_unwritable

if TYPE_CHECKING:
    import torch

    from sae_transcoder.config.run_length import RunLength
    from sae_transcoder.data.token_sets import TokenSets
    from sae_transcoder.language_model.compilation import CompileObstacle
    from sae_transcoder.language_model.sizes import ForwardSizes, ModelSizes


@dataclass(frozen=True)
class Plan:
    """What a run will be, once nothing is found wrong with it."""

    cfg: Config
    device: torch.device
    widths: dict[str, int]  # {hookpoint: d}
    tokens: TokenSets
    length: RunLength
    model_parameters: int
    model_layers: int | None  # how many of the language model's first layers are loaded; None: all
    memory: list[Part]  # what it holds on its device
    available: int | None  # bytes of the device; None where it is a cluster's, and not known
    warnings: list[str]
    start_from: dict[str, Path]  # {coder: folder of the weights to start from}
    compile_obstacle: CompileObstacle | None  # why the language model's layers are not compiled; None: they are
    forward: ForwardSizes
    predicts: bool  # whether the language model is loaded with a head
    ranks: int = 1  # processes that train it together

    @property
    def latents(self) -> dict[str, int]:
        """{hookpoint: number of latents}."""
        return {point: num_latents(self.cfg, width) for point, width in self.widths.items()}

    @property
    def coder_parameters(self) -> int:
        """Parameters of all coders."""
        return memory_estimate.all_parameters(self.cfg, self.widths)


def make_plan(cfg: Config, cache: PlanCache | None = None, *, on_slurm: bool = False, processes: int | None = None) -> Plan:
    """Checks the settings, then the machine, the model's outline and the data; returns what the run will be.

    cache: what other runs of the sweep or pack share with this one. on_slurm: whether it will run in a SLURM job, whose device is not
    here. processes: the ranks that will train it together; None: as the job's settings, or here the environment, say.
    Raises ConfigError with all faults of the first failing stage.
    """
    cache = PlanCache() if cache is None else cache
    processes = processes or (cfg.nodes * cfg.tasks_per_node if on_slurm else distributed.world_size())
    check_settings(cfg)
    check_tracker(cfg)
    cache.check_files(cfg)

    from sae_transcoder.language_model.sizes import forward_sizes, sizes_of
    from sae_transcoder.language_model.weights_dtype import resolve_dtype

    device = torch_device(cfg) if on_slurm else find_device(cfg)
    dtype = resolve_dtype(cfg, device)
    widths, model_layers, obstacle = check_model(cfg, cache, device, processes, on_slurm)
    start_from = find_start_weights(cfg, widths)
    outline = cache.outline(cfg, dtype, model_layers)
    model_sizes = sizes_of(cfg, outline, dtype)
    parts, available = check_memory(cfg, widths, model_sizes, device, processes, on_slurm)
    tokens, length = check_tokens(cfg, cache, model_sizes.vocabulary, processes)
    return Plan(
        cfg=cfg,
        device=device,
        widths=widths,
        tokens=tokens,
        length=length,
        model_parameters=sum(p.numel() for p in outline.parameters()),
        model_layers=model_layers,
        memory=parts,
        available=available,
        warnings=warnings(cfg, length, device.type, model_sizes.width) + data_warnings(cfg, length, tokens.origin),
        start_from=start_from,
        compile_obstacle=obstacle,
        forward=forward_sizes(outline, list(widths)),
        predicts=model_sizes.predicts,
        ranks=processes,
    )


def check_settings(cfg: Config) -> None:
    """Raises ConfigError for settings that are wrong by themselves, or whose directory holds something else."""
    raise_faults(checks.faults(cfg) + checks.path_faults(cfg))
    for name in ("save_dir", "cache_dir"):
        if (value := getattr(cfg, name)) is not None:
            refuse_unwritable(name, value)
    refuse_directory(cfg)


def check_tracker(cfg: Config) -> None:
    """Raises ConfigError for a tracker that cannot be logged to."""
    if cfg.tracker != Tracker.none:
        from sae_transcoder.trackers.open_tracker import tracker_faults

        raise_faults(tracker_faults(cfg))


def check_model(
    cfg: Config, cache: PlanCache, device: torch.device, processes: int, on_slurm: bool
) -> tuple[dict[str, int], int | None, CompileObstacle | None]:
    """Returns the hookpoints' widths, how many of the model's first layers are needed (None: all) and why its layers are not compiled.

    Raises ConfigError for a model that is not there, or that does not go with the coders, the ranks or the length asked for.
    """
    from sae_transcoder.config.run_length import needed_samples, run_length
    from sae_transcoder.language_model import hookpoints, layers, model_checks
    from sae_transcoder.language_model.weights_dtype import resolve_dtype

    dtype = resolve_dtype(cfg, device)
    outline = cache.outline(cfg, dtype)
    points = hookpoints.hookpoint_names(cfg, outline)
    widths, model_layers = cache.widths(cfg, dtype, points), cache.needed_layers(cfg, dtype, points)
    obstacle = layers.compile_obstacle(cfg, outline, points, model_layers, device, here=not on_slurm)
    faults = model_checks.faults(cfg, outline, obstacle) + width_faults(cfg, widths) + share_faults(cfg, len(widths), processes)
    faults += cache.weight_faults(cfg, model_layers)
    samples = needed_samples(cfg, batch_ranks(cfg, processes))
    if samples is not None:  # else the length is known once the data is read
        faults += length_faults(cfg, run_length(cfg, samples, batch_ranks(cfg, processes)), samples)
    raise_faults(faults)
    return widths, model_layers, obstacle


def batch_ranks(cfg: Config, processes: int) -> int:
    """How many of the ranks that train a run together share each batch; with distribute_modules each reads all of it."""
    return 1 if cfg.distribute_modules else processes


def find_start_weights(cfg: Config, widths: Mapping[str, int]) -> dict[str, Path]:
    """{coder: folder of the weights that `finetune` starts from}. Raises ConfigError as finetune.start_coders does."""
    from sae_transcoder.coder import finetune

    sizes = {point: num_latents(cfg, width) for point, width in widths.items()}
    return finetune.start_coders(cfg, [name for point in widths for name in coder_names(point, cfg.init_seeds)], widths, sizes)


def check_memory(
    cfg: Config, widths: Mapping[str, int], model_sizes: ModelSizes, device: torch.device, processes: int, on_slurm: bool
) -> tuple[list[Part], int | None]:
    """Returns what the run holds on its device, and the device's bytes (None: not known). Raises ConfigError for a run that needs more."""
    parts = memory_estimate.memory_estimate(cfg, widths, model_sizes, device.type, processes)
    available = device_memory.on_cluster(cfg, device) if on_slurm else device_memory.here(device)
    raise_faults(device_memory.faults(cfg, peak([parts]), available, device))
    return parts, available


def check_tokens(cfg: Config, cache: PlanCache, vocabulary: int, processes: int) -> tuple[TokenSets, RunLength]:
    """Reads the data and returns it with the run's length. Raises ConfigError for data that cannot be read or does not suffice."""
    from sae_transcoder.config.run_length import run_length

    ranks = batch_ranks(cfg, processes)
    tokens = cache.tokens(cfg, vocabulary, ranks)
    length = run_length(cfg, len(tokens.train), ranks)
    raise_faults(length_faults(cfg, length, len(tokens.train)))
    return tokens, length
