"""Everything that can be known to be wrong before weights are loaded, and what the run will be.

torch and transformers are imported only once the settings are right by themselves.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from sae_transcoder import checks, coder_names, composition, config, ranks, status
from sae_transcoder.config import (
    Activation,
    Config,
    ConfigError,
    DatasetConfig,
    Hardware,
    LossFn,
    Optimizer,
    Resume,
    Tracker,
    evaluation_batch,
    typed,
)
from sae_transcoder.ranks import refuse

if TYPE_CHECKING:
    import torch

    from sae_transcoder.data import TokenSets
    from sae_transcoder.sparsify_config import Length

log = logging.getLogger(__name__)

SHORT_RUN = 100_000_000  # tokens below which Adam's automatic rate is far too low (README, "Learning rate")


@dataclass(frozen=True)
class Plan:
    """What a run will be, once nothing is found wrong with it."""

    cfg: Config
    device: torch.device
    widths: dict[str, int]  # {hookpoint: d}
    tokens: TokenSets
    length: Length
    model_parameters: int
    memory: dict[str, int]  # bytes, by what holds them
    warnings: list[str]
    start_from: dict[str, Path]  # {coder: folder of the weights to start from}
    ranks: int = 1  # processes that train it together

    @property
    def latents(self) -> dict[str, int]:
        """{hookpoint: number of latents}."""
        return {point: latents(self.cfg, width) for point, width in self.widths.items()}

    @property
    def coder_parameters(self) -> int:
        """Parameters of all coders."""
        return sum(coder_parameters(self.cfg, d) for d in self.widths.values()) * len(self.cfg.init_seeds)


def latents(cfg: Config, width: int) -> int:
    """Latents of a coder on a hookpoint of this width."""
    return cfg.num_latents or width * cfg.expansion_factor


def coder_parameters(cfg: Config, width: int) -> int:
    """Parameters of one coder: encoder, decoder, their biases, and the skip connection."""
    return 2 * width * latents(cfg, width) + latents(cfg, width) + width + cfg.skip_connection * width**2


Known = dict[Any, Any]
"""What runs of one sweep or pack need not find out each for itself: the model's outline, widths, tokens."""


def plan(cfg: Config, known: Known | None = None, processes: int | None = None) -> Plan:
    """Checks the settings, then the machine, the model's outline and the data, and says what the run will be.

    known: what was found out for other runs, added to. processes: the ranks that will train it together; None: as the environment says.
    Raises ConfigError with all faults of the first of these that has any.
    """
    known = {} if known is None else known
    processes = processes or ranks.count()
    sharing = 1 if cfg.distribute_modules else processes  # ranks that share each batch

    def once(make: Callable[[], Any], *key: Any) -> Any:
        if key not in known:
            known[key] = make()
        return known[key]

    check_settings(cfg)
    if cfg.tracker != Tracker.none:
        from sae_transcoder import trackers

        if faults := trackers.check(cfg):
            raise ConfigError(*faults)

    from sae_transcoder import data, finetune, hookpoints, language_model
    from sae_transcoder.sparsify_config import length

    device = find_device(cfg)
    model = (cfg.model_name, cfg.revision)
    outline = once(lambda: language_model.outline(cfg), "outline", model)
    points = hookpoints.find(cfg, outline)
    widths = once(lambda: hookpoints.widths(cfg, outline, points), "widths", model, cfg.model_type, tuple(points))
    faults = loss_faults(cfg, outline.config) + width_faults(cfg, widths) + token_faults(cfg, outline.config)
    faults += share_faults(cfg, widths, processes)
    bound = data.needed_samples(cfg, sharing)
    if bound is not None:
        faults += length_faults(cfg, length(cfg, bound, sharing), bound)
    if faults:
        raise ConfigError(*faults)
    sizes = {point: latents(cfg, width) for point, width in widths.items()}
    start_from = finetune.find(cfg, [name for point in widths for name in coder_names.names(point, cfg.init_seeds)], widths, sizes)
    dtype = language_model.resolve_dtype(cfg, device)
    parameters = sum(p.numel() for p in outline.parameters())
    memory = memory_estimate(cfg, widths, parameters * dtype.itemsize, dtype.itemsize, outline.config.vocab_size, processes)
    if faults := memory_faults(cfg, memory, device):
        raise ConfigError(*faults)
    source = str({f.name: getattr(cfg, f.name) for f in fields(DatasetConfig) if f.name != "max_samples"})
    tokens = once(
        lambda: data.prepare(cfg, lambda: language_model.tokenizer(cfg), outline.config.vocab_size, sharing),
        *("tokens", model, source, bound),
    )
    planned = length(cfg, len(tokens.train), sharing)
    if faults := length_faults(cfg, planned, len(tokens.train)):
        raise ConfigError(*faults)
    return Plan(cfg, device, widths, tokens, planned, parameters, memory, warnings(cfg, planned), start_from, processes)


def check_settings(cfg: Config) -> None:
    """Raises ConfigError for settings that are wrong by themselves, or whose directory holds something else."""
    if faults := checks.faults(cfg):
        raise ConfigError(*faults)
    for name in ("save_dir", "cache_dir"):
        if getattr(cfg, name) is not None:
            refuse_unwritable(name, Path(getattr(cfg, name)))
    refuse_directory(cfg)


def refuse_unwritable(name: str, folder: Path) -> None:
    """Raises ConfigError where `folder` cannot be made or written to; leaves nothing there."""
    nearest = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    try:
        with tempfile.TemporaryDirectory(dir=nearest):
            pass
    except OSError as error:
        raise ConfigError(f"{name}={folder}: cannot be written to ({error.strerror}: {nearest}); choose another folder") from error


def refuse_directory(cfg: Config) -> None:
    """Raises ConfigError where the run's directory holds anything but this very run."""
    directory = config.run_dir(cfg)
    fix = "choose another run_name or save_dir"
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"run_name={config.run_name(cfg)}: {directory} is a file; {fix}")
    try:
        found = status.read(directory)
    except ValueError as error:
        raise ConfigError(f"{error}; {fix}") from error
    if found is None:
        # What is there before a run can write its status.
        early = {".hydra", "train.log", ".lock", ".status.json.new"}
        if directory.is_dir() and {p.name for p in directory.iterdir()} - early:
            raise ConfigError(f"run_name={config.run_name(cfg)}: {directory} holds files but no run; {fix}")
    elif cfg.resume == Resume.never and found.state != status.State.queued:
        raise ConfigError(f"resume=never: {directory} holds a run ({found.state}); {fix}, or set resume=auto")
    elif found.signature != config.signature(cfg):
        raise ConfigError(
            f"run_name={config.run_name(cfg)}: {directory} holds a run of other settings "
            f"(signature {found.signature}, this one's is {config.signature(cfg)}); {fix}"
        )
    done = found is not None and found.state == status.State.done
    if cfg.resume == Resume.must and not done and not status.state_path(directory).exists():
        raise ConfigError(f"resume=must: {directory} holds no training state; check save_dir and run_name, or set resume=auto")


def find_device(cfg: Config) -> torch.device:
    """The device as set, else cuda where there is one, else the CPU. Raises ConfigError for one that is not there."""
    import torch

    name = ("cuda" if torch.cuda.is_available() else "cpu") if cfg.device is None else cfg.device
    asked = f"hardware={cfg.hardware}, device={name}" if cfg.hardware != Hardware.auto else f"device={name}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{asked}: torch knows no such device; use cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if ranks.count() > 1:
            device = own_device(device, count, asked)
        if (device.index or 0) >= count:
            have = f"cuda:0 to cuda:{count - 1}" if count else "no GPU"
            raise ConfigError(f"{asked}: not present; this machine has {have}; choose one of these, or hardware=cpu")
    elif device.type != "cpu":
        raise ConfigError(f"{asked}: sparsify runs on cpu and cuda only; choose one of these")
    return device


def own_device(device: torch.device, count: int, asked: str) -> torch.device:
    """The GPU of this rank where several train together. Raises ConfigError for one GPU for all, or fewer GPUs than ranks."""
    import torch

    if device.index is not None:
        raise ConfigError(f"{asked} with {ranks.count()} ranks: each has a GPU of its own; write device=cuda")
    index = 0 if count == 1 else ranks.local_number()  # a launcher may let each rank see its own only
    if 0 < count <= index:
        raise ConfigError(f"{asked}: this machine has {count} GPUs for more ranks; start as many ranks as there are GPUs")
    return torch.device("cuda", index)


def loss_faults(cfg: Config, model_config: Any) -> list[str]:
    """End-to-end losses on a model that predicts no next token."""
    from sae_transcoder.language_model import predicts_next_token

    if cfg.loss_fn == LossFn.fvu or predicts_next_token(model_config):
        return []
    return [f"loss_fn={cfg.loss_fn}: {cfg.model_name} ({model_config.model_type}) predicts no next token; use loss_fn=fvu"]


def width_faults(cfg: Config, widths: dict[str, int]) -> list[str]:
    """What k asks of coders that have too few latents."""
    found = []
    for point, width in widths.items():
        size = latents(cfg, width)
        how = f"num_latents={cfg.num_latents}" if cfg.num_latents else f"expansion_factor={cfg.expansion_factor}"
        have = f"{how}: the coder on {point} (width {width}) has {size} latents"
        if cfg.k > size:
            found.append(f"k={cfg.k} with {have}; lower k or raise {how.split('=')[0]}")
        elif cfg.activation == Activation.groupmax and size % cfg.k:
            found.append(f"k={cfg.k}, activation=groupmax with {have}, which k must divide into equal groups; choose a divisor")
        elif cfg.multi_topk and 4 * cfg.k > size:
            found.append(
                f"k={cfg.k}, multi_topk=True with {have}, fewer than 4k = {4 * cfg.k}; lower k or raise {how.split('=')[0]}"
            )
    return list(dict.fromkeys(found))


def share_faults(cfg: Config, widths: dict[str, int], processes: int) -> list[str]:
    """Ranks without a hookpoint of their own."""
    if not cfg.distribute_modules or processes <= len(widths):
        return []
    return [
        f"distribute_modules=True on {processes} ranks with {len(widths)} hookpoints: each rank trains whole ones; "
        f"start at most {len(widths)} ranks, or choose more hookpoints"
    ]


def token_faults(cfg: Config, model_config: Any) -> list[str]:
    """Sequences longer than the model's positions, and excluded ids that it does not have."""
    found = []
    positions = getattr(model_config, "max_position_embeddings", None)
    if positions is not None and cfg.max_seq_length > positions:
        found.append(f"max_seq_length={cfg.max_seq_length}: {cfg.model_name} has {positions} positions; lower it")
    beyond = [i for i in cfg.exclude_tokens if i >= model_config.vocab_size]
    if beyond:
        found.append(
            f"exclude_tokens={cfg.exclude_tokens}: {cfg.model_name} has ids below {model_config.vocab_size}; leave out {beyond}"
        )
    return found


def length_faults(cfg: Config, planned: Length, samples: int) -> list[str]:
    """Batches, warmup and k decay that do not fit into a run on `samples` sequences."""
    size = f"batch_size={cfg.batch_size}" + (
        f" on {planned.batch // cfg.batch_size} ranks" if planned.batch > cfg.batch_size else ""
    )
    if planned.batch > samples:
        limit = f"max_samples={cfg.max_samples}" if samples == cfg.max_samples else f"the data gives {samples} training samples"
        return [f"{size} with {limit}: not one full batch; lower batch_size or give more samples"]
    if planned.steps < 1:
        return [
            f"grad_acc_steps={cfg.grad_acc_steps} with {planned.samples // planned.batch} batches: not one optimizer step; "
            "lower it or give more samples"
        ]
    found = []
    if cfg.max_steps is not None and planned.steps < cfg.max_steps:
        limit = f"max_samples={cfg.max_samples}" if samples == cfg.max_samples else "the data"
        found.append(
            f"max_steps={cfg.max_steps}: {limit} gives {samples} samples, which make {planned.steps} optimizer steps; "
            "raise max_samples (null: all) or lower max_steps"
        )
    how = f"{planned.samples} samples / ({size.replace('=', ' ')} x grad_acc_steps {cfg.grad_acc_steps})"
    for name, fix in [("lr_warmup_steps", "lower it, or leave it out for a twentieth of the run"), ("k_decay_steps", "lower it")]:
        value = getattr(cfg, name)
        if value and value >= planned.steps:
            found.append(f"{name}={value}: the run has {planned.steps} optimizer steps ({how}); {fix}")
    return found


# Numbers of the size of the coder that each optimizer keeps beside weights and gradients.
OPTIMIZER_STATES = {Optimizer.adam: 2, Optimizer.muon: 1, Optimizer.signum: 1}


def memory_estimate(
    cfg: Config, widths: dict[str, int], model_bytes: int, itemsize: int, vocabulary: int, processes: int = 1
) -> dict[str, int]:
    """Bytes that the run needs on its device, or on that of each rank at most, by what holds them; temporary tensors of the largest coder
    counted once."""
    tokens = cfg.batch_size * cfg.max_seq_length
    every = {point: coder_parameters(cfg, d) * len(cfg.init_seeds) for point, d in widths.items()}
    own = max(ranks.shares(every, processes), key=lambda s: sum(every[p] for p in s)) if cfg.distribute_modules else list(widths)
    parameters, copied = sum(every[point] for point in own), sum(every.values())  # the first rank evaluates all
    sides = 2 if cfg.model_type == "transcoder" else 1
    captured = sum(tokens * widths[p] * sides * (itemsize + 4 * (itemsize != 4)) for p in own)
    # Pre-activations, with AuxK a second time; input, output, error and their gradients.
    step = max(tokens // cfg.micro_acc_steps * ((1 + (cfg.auxk_alpha > 0)) * latents(cfg, d) + 6 * d) * 4 for d in widths.values())
    held = {
        "language model": model_bytes,
        "coders": parameters * 4 * (2 + OPTIMIZER_STATES[cfg.optimizer]),
        "their copy at a save": copied * 4 * (2 if cfg.optimizer == Optimizer.signum else 1),
        "activations": captured + step,
    }
    if processes > 1 and not cfg.distribute_modules:
        held["gradients exchanged"] = max(coder_parameters(cfg, d) for d in widths.values()) * 4
    if cfg.loss_fn != LossFn.fvu:  # logits, their softmax, its logarithm and a gradient, float32
        held["logits"] = tokens * vocabulary * 4 * (4 if cfg.loss_fn == LossFn.kl else 2)
    elif cfg.eval_end_to_end:  # those of the model as it is and with coders; one sequence's in float64, for the divergence
        sequences = evaluation_batch(cfg, vocabulary)
        held["held-out logits"] = cfg.max_seq_length * vocabulary * (2 * itemsize * sequences + 4 * 8)
    return held


def memory_faults(cfg: Config, memory: dict[str, int], device: torch.device) -> list[str]:
    """A run that needs more than the whole of the device's memory."""
    there, needed = device_memory(device), sum(memory.values())
    if needed <= there:
        return []
    parts = ", ".join(f"{what} {held / 1e9:,.1f}" for what, held in memory.items())
    return [
        f"expansion_factor={cfg.expansion_factor}, num_latents={cfg.num_latents}, batch_size={cfg.batch_size}: the run needs about "
        f"{needed / 1e9:,.1f} GB ({parts}), {device} has {there / 1e9:,.1f}; lower them, or choose fewer hookpoints"
    ]


def device_memory(device: torch.device) -> int:
    """Bytes of a GPU, or of this machine."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def warnings(cfg: Config, planned: Length) -> list[str]:
    """What is allowed and likely not meant."""
    tokens = planned.samples * cfg.max_seq_length
    found = []
    if cfg.auxk_alpha > 0 and cfg.dead_feature_threshold >= tokens:
        found.append(
            f"dead_feature_threshold={cfg.dead_feature_threshold:,} is not below the run's {tokens:,} tokens: no latent can count as dead, "
            "AuxK never acts"
        )
    if cfg.lr is None and cfg.optimizer == Optimizer.adam and tokens < SHORT_RUN:
        found.append(
            f"lr=null: Adam's automatic rate is made for billions of tokens, the run has {tokens:,}; try lr=1e-3 and above"
        )
    return found


class BeforeTheRun(Callback):
    """Hydra's hook before it writes the run's directory: a refused run leaves nothing there."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuses several ranks, and launchers under which the jobs would be neither checked together nor trained side by side."""
        if ranks.count() > 1:
            fault = f"-m on {ranks.count()} ranks (torchrun): ranks train one run together; start each run of the sweep by its own command"
            refuse([fault])
        if not str(config.hydra.launcher._target_).startswith("hydra_plugins.sae_transcoder"):
            chosen = config.hydra.runtime.choices["hydra/launcher"]
            refuse(
                [
                    f"hydra/launcher={chosen} with hardware={config.hardware}: trains no sweep; leave it out, and use hardware=auto, cpu or gpu"
                ]
            )

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Ends the program with exit code 1 if the run must be refused, 0 if there is nothing left to do; of several ranks the first one
        decides and speaks for all."""
        try:
            together, code = ranks.meet(), None
        except ConfigError as error:
            composition.refuse(error.faults)  # each rank for itself
        if together.leads:
            try:
                self.decide(config)
            except SystemExit as end:
                code = end.code
        if (code := together.from_first(code)) is not None:
            sys.exit(code)

    def decide(self, config: DictConfig) -> None:
        """Ends the program where the run is not to be started."""
        # Exceptions of callbacks are only warnings to Hydra.
        try:
            cfg = typed(config)
            check_settings(cfg)
            if note := nothing_to_do(cfg):
                print(note)
                sys.exit(0)
            found = plan(cfg)
            if cfg.dry_run:
                from rich.console import Console

                from sae_transcoder import display

                display.header([found], Console(highlight=False))
                print("dry run: nothing was started")
                sys.exit(0)
        except ConfigError as error:
            refuse(error.faults)


def nothing_to_do(cfg: Config) -> str | None:
    """Why the run need not be started: it is done, or goes on elsewhere. None: it is to be trained."""
    directory = config.run_dir(cfg)
    found = status.read(directory)
    if found is not None and found.state == status.State.done:
        return f"{directory}: already done ({found.step} steps); nothing to do"
    if found is not None and status.alive(directory, found):
        return f"{directory}: runs now (process {found.pid} on {found.host}, step {found.step} of {found.total}); not started again"
    return None
