"""The typed config: one dataclass per group, one flat `Config` made of them, its names and its signature.

Nothing here imports torch: `--help`, completion and every refusal that needs no model stay instant.
A field marked `result=False` does not change what is trained; all others make up the run's signature.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf


class ConfigError(Exception):
    """The user's settings cannot be obeyed; each fault names the fields, their values and the fix."""

    def __init__(self, *faults: str):
        super().__init__("\n".join(faults))
        self.faults = faults


class ModelType(StrEnum):
    sae = "sae"
    transcoder = "transcoder"


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Quantization(StrEnum):
    int8 = "int8"
    nf4 = "nf4"


class Site(StrEnum):
    residual = "residual"
    mlp = "mlp"
    attention = "attention"


class DatasetKind(StrEnum):
    hub = "hub"
    local_text = "local_text"
    pretokenized = "pretokenized"
    memmap = "memmap"
    demo = "demo"


class TokensDtype(StrEnum):
    uint16 = "uint16"
    uint32 = "uint32"


class Activation(StrEnum):
    topk = "topk"
    groupmax = "groupmax"


class LossFn(StrEnum):
    fvu = "fvu"
    ce = "ce"
    kl = "kl"


class Optimizer(StrEnum):
    adam = "adam"
    muon = "muon"
    signum = "signum"


class Tracker(StrEnum):
    none = "none"
    wandb = "wandb"
    trackio = "trackio"


class TrackerMode(StrEnum):
    online = "online"
    offline = "offline"


class Hardware(StrEnum):
    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"
    slurm = "slurm"


class Resume(StrEnum):
    auto = "auto"
    never = "never"
    must = "must"


def no_result(default: Any) -> Any:
    """A field that changes where or how a run is done, never what it computes."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"result": False})
    return field(default=default, metadata={"result": False})


@dataclass
class ModelTypeConfig:
    """What is trained (group `model_type`)."""

    model_type: ModelType = MISSING
    """sae: a module's output is reconstructed from itself; transcoder: from the module's input."""
    site: Site | None = None
    """Which module of a layer `layers` and `layer_stride` mean: residual (the layer's output), mlp or attention.
    null: residual for an SAE, mlp for a transcoder."""
    layers: list[int] | None = None
    """Layer indices, counted from 0. null: every `layer_stride`-th layer."""
    layer_stride: int = 1
    """Take every n-th layer, from layer 0; with `hookpoints`, every n-th module that they match."""
    hookpoints: list[str] | None = None
    """Module names or patterns inside the base model, in place of `layers` and `site`: `*`, `?` and `[0-5]` stay within one
    part of a dotted name, `**` crosses dots. `layers.*` is every layer, `h.*.mlp.act` every MLP activation of GPT-2."""


@dataclass
class ModelConfig:
    """The language model whose activations are read (group `model`)."""

    model_name: str = MISSING
    """Hub id, path of a local model, or `demo` for the bundled one (a folder of that name: `./demo`)."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Dtype | None = None
    """Number format of the language model's weights. null: bfloat16 on a GPU that has it, else float32.
    Coders are always float32."""
    quantization: Quantization | None = None
    """Loads the weights of the language model's linear layers in 8 bits (int8: arXiv:2208.07339) or 4 (nf4: arXiv:2305.14314), by
    bitsandbytes (extra `quantization`); everything else stays in `dtype`. null: as they are."""


@dataclass
class DatasetConfig:
    """The tokens (group `dataset`)."""

    dataset_kind: DatasetKind = MISSING
    """hub: text of a hub data set, streamed; local_text: txt, jsonl, parquet or csv files; pretokenized: rows of token ids,
    on the hub or in jsonl or parquet files; memmap: one flat binary file of token ids; demo: the standard library's sources."""
    dataset_name: str = MISSING
    """Hub id, or path (glob patterns allowed) of local files."""
    dataset_config: str | None = None
    """Configuration (subset) of a hub data set."""
    dataset_split: str = "train"
    """Split of a hub data set to train on."""
    text_column: str = "text"
    """Column that holds the text; one string a document."""
    tokens_column: str = "input_ids"
    """Column that holds the ids of a pretokenized set; each row is cut into full sequences, what remains of it is dropped."""
    tokens_dtype: TokensDtype | None = None
    """Number format of a memmap. null: read from the `dtype` key of FILE.json beside the file."""
    max_samples: int | None = 1000
    """Number of training samples, each a packed sequence of `max_seq_length` tokens. null: all there are;
    a hub set then needs `max_steps`."""
    max_seq_length: int = 256
    """Tokens per sequence."""
    shuffle_seed: int = 42
    """Seed of the order of documents and of sequences; a shorter run reads the first part of what a longer one reads."""
    shuffle_buffer: int = 10_000
    """Documents of a stream held for shuffling."""
    eval_samples: int = 256
    """Sequences held out: the first of the shuffled set, never trained on; or of `eval_split`, or the demo's held-out files."""
    eval_split: str | None = None
    """Split of a hub data set to hold out. null: the first `eval_samples` sequences of `dataset_split`."""
    exclude_tokens: list[int] = field(default_factory=list)
    """Token ids whose positions are left out of training, evaluation and dead counts."""
    exclude_first_tokens: int = 0
    """So many positions at the start of every sequence are left out likewise (attention sinks)."""
    max_norm_multiple: float | None = None
    """Positions at which the norm of the coder's input exceeds this multiple of the batch's median are left out likewise."""
    cache_dir: str | None = no_result(None)
    """Where tokenised text is kept. null: $XDG_CACHE_HOME/sae_transcoder, else ~/.cache/sae_transcoder."""


@dataclass
class ArchitectureConfig:
    """The sparse coder (group `architecture`)."""

    expansion_factor: int = 8
    """Latents per dimension of the hookpoint, where `num_latents` is 0."""
    num_latents: int = 0
    """Number of latents; above 0 it takes the place of `expansion_factor`."""
    k: int = 8
    """Latents active per token."""
    activation: Activation = Activation.topk
    """topk: the k largest; groupmax: the largest of each of k equal groups of latents."""
    normalize_decoder: bool | None = None
    """Keep each decoder row at norm 1. null: true for an SAE, false for a transcoder, for which true is refused
    (its decoder starts at zero)."""
    multi_topk: bool = False
    """Add the FVU with 4k active latents, weighted 1/8, to the loss (Gao et al. 2024, appendix D)."""
    skip_connection: bool = False
    """Add a linear map from input to output, started at zero."""


@dataclass
class OptimizerConfig:
    """How the coder is optimised (group `optimizer`)."""

    optimizer: Optimizer = Optimizer.adam
    """adam: torch's; signum: sign descent, schedule-free averaged; muon: orthogonalised momentum, Adam for the biases."""
    lr: float | None = None
    """Learning rate. null: sparsify's: adam 2e-4, signum 5e-3, both over sqrt(latents / 2^14); muon 2e-3."""
    lr_warmup_steps: int | None = None
    """Optimizer steps over which Adam's rate (with muon: that of the biases) rises from 0. All rates then fall linearly to 0.
    null: a twentieth of the run, at most 1,000. signum has neither warmup nor decay."""
    weight_decay: float | None = None
    """adam: L2 penalty; muon: decoupled decay of the matrices. null: the optimizer's own (adam 0, muon 0.1). signum has none."""


@dataclass
class TrainingConfig:
    """Batches, losses and length of a run."""

    batch_size: int = 2
    """Sequences per batch; where several ranks train one run with distribute_modules=false, of each rank. The header warns of batches that
    are too small for a GPU."""
    grad_acc_steps: int = 8
    """Batches per optimizer step."""
    micro_acc_steps: int = 1
    """Pieces in which a batch's activations pass through the coder; saves memory, changes no gradient."""
    max_steps: int | None = None
    """Optimizer steps after which the run ends, for which there must be samples. null: all samples once."""
    loss_fn: LossFn = LossFn.fvu
    """fvu: fraction of the activations' variance that is left unexplained. ce, kl: the language model's next-token cross-entropy,
    or KL(original || spliced) of its predictions, with the coders' outputs in place of the modules'."""
    auxk_alpha: float = 0.03125
    """Weight of the loss that has dead latents predict what is left unexplained (Gao et al. 2024, appendix B.1). 0: none."""
    dead_feature_threshold: int = 5_000_000
    """Tokens after which a latent that has not fired counts as dead."""
    k_decay_steps: int = 0
    """Optimizer steps (with corrections=false: batches) over which k falls linearly from min(latents, 10 x width) to `k`."""
    init_seeds: list[int] = field(default_factory=lambda: [42])
    """Seeds of the initialisation; several train one coder each, side by side."""
    finetune: str | None = None
    """Start from these coders instead of from `init_seeds`: a run's directory, a folder of sparsify coders, or a hub id."""
    corrections: bool = True
    """Train with sparsify's known faults corrected (see upstream.py). false: sparsify's own behaviour, for comparison."""


@dataclass
class TrackerConfig:
    """Where numbers go besides metrics.jsonl (group `tracker`)."""

    tracker: Tracker = no_result(Tracker.none)
    """none, wandb or trackio."""
    tracker_mode: TrackerMode | None = no_result(None)
    """online or offline. null: for wandb WANDB_MODE, else online; for trackio offline, a local database."""
    project: str = no_result("sae-transcoder")
    """Project at the tracker."""
    entity: str | None = no_result(None)
    """wandb: user or team; trackio, online: Hugging Face user or organisation that owns the Space."""
    group: str | None = no_result(None)
    """Group of runs at the tracker."""
    tags: list[str] = no_result([])
    """Tags of the run at the tracker (trackio shows them in the run's config)."""
    log_every: int = no_result(10)
    """Optimizer steps per line of metrics.jsonl and of the tracker; each line averages the steps since the one before."""


@dataclass
class HardwareConfig:
    """Where a run computes (group `hardware`)."""

    hardware: Hardware = no_result(Hardware.auto)
    """auto, cpu, gpu or slurm; set by choosing the group. slurm submits to the cluster, whatever machine the command runs on."""
    device: str | None = no_result(None)
    """torch device, such as cpu or cuda:1. null: cuda where there is one, else cpu."""
    threads: int | None = no_result(None)
    """CPU threads. null: torch's own choice. Results are bit-identical only at an equal count."""
    forward_batch_size: int | None = no_result(None)
    """Sequences per forward of the language model, where a batch of `batch_size` at once needs too much memory; `loss_fn=fvu` only.
    null: a batch. Another number rounds otherwise."""
    compile_model: bool | None = no_result(None)
    """Compile the language model's layers (torch.compile) except those inside which a hookpoint lies. Takes seconds to minutes at the
    start, and rounds otherwise. true: or refuse the run. null: on a GPU, where torch.compile can, the weights are not quantized and
    deterministic is not set; should it fail, the run goes on without."""
    deterministic: bool = no_result(False)
    """Deterministic algorithms only, for runs that are bit-identical on the same GPU; slower. On a CPU they are without it."""
    distribute_modules: bool = False
    """Where several ranks train one run (torchrun). true: each trains its share of the hookpoints on every batch, as one process would.
    false: each trains all coders on `batch_size` sequences of its own (data parallel), as one process with ranks x batch_size would."""


@dataclass
class SlurmConfig(HardwareConfig):
    """What a job asks of SLURM, with hardware=slurm (group `hardware`); each pack is a job. Names and meanings are sbatch's where it has one."""

    partition: str | None = no_result(None)
    """Partition. null: the cluster's default."""
    account: str | None = no_result(None)
    """Account that is charged."""
    qos: str | None = no_result(None)
    """Quality of service."""
    constraint: str | None = no_result(None)
    """Features that the node must have, such as `a100|h100`."""
    gres: str | None = no_result(None)
    """Generic resources on each node, such as gpu:1 or gpu:a100:8. null: none, for a job on CPUs."""
    nodes: int = no_result(1)
    """Nodes per job."""
    tasks_per_node: int = no_result(1)
    """Processes on each node that train a pack together, with a GPU each: data parallel, or with distribute_modules by hookpoints."""
    cpus: int | None = no_result(None)
    """CPU cores per task. null: the cluster's default."""
    memory: str | None = no_result(None)
    """Memory on each node, such as 32G. null: the partition's default."""
    gpu_memory_gib: float | None = no_result(None)
    """Memory of one GPU of the cluster in GiB: runs that need more are refused, packs are made to fit. null: not known; a pack that
    turns out too large is split when it runs."""
    time: str = no_result("24:00:00")
    """Time limit of a job: minutes, or [days-]hours:minutes:seconds. What it does not suffice for goes on in the queue."""
    signal_delay: int = no_result(120)
    """Seconds before the time limit at which runs save and make room."""
    max_timeouts: int | None = no_result(None)
    """Times that a job may run into its time limit and go on in the queue. null: as often as it makes progress."""
    array_parallelism: int | None = no_result(None)
    """Jobs of a sweep that run at the same time. null: as many as the cluster starts."""
    setup: list[str] = no_result([])
    """Shell lines at the start of the job, such as `module load cuda`; a failing one ends the job."""
    sbatch: list[str] = no_result([])
    """Further options of sbatch, each as --name=value or --name."""
    snapshot: bool = no_result(True)
    """Jobs run a copy of this program as it is when they are submitted. false: the program itself; a job refuses to start once it has changed."""
    wait: bool = no_result(False)
    """Stay until the jobs have ended, with the table of runs. false: submit and return; searches, which need results, must wait."""


@dataclass
class EvaluationConfig:
    """What is measured on the held-out sequences (see eval_file.py for the metrics); always at a run's end."""

    eval_every: int | None = no_result(None)
    """Optimizer steps between two evaluations before the end. null: none."""
    eval_end_to_end: bool = no_result(True)
    """Measure the language model with the coders in place (cross-entropy, KL) too: for each coder a forward of the whole model,
    and one with zeros for each hookpoint. false: the coders' own metrics; with loss_fn=fvu layers beyond the last hookpoint are then not
    loaded, where the model's first layers do not depend on their number."""


@dataclass
class SweepConfig:
    """What several runs of one command (`-m`) have in common."""

    sweep_name: str | None = no_result(None)
    """Folder inside `save_dir` for the runs of a sweep. null: for a sweep composed of the experiment or model_type, the swept fields and
    a hash of the other settings, so that more values add runs to the same sweep; for a single run none."""
    runs_per_pack: int | None = no_result(None)
    """Runs that train side by side at most. null: as many as the memory estimate allows; on a cluster whose memory is not known, 4."""
    workers: int | None = no_result(None)
    """Processes that train packs at the same time, on a machine with GPUs one on each. null: as many as there are GPUs, on a CPU 1."""
    objective: str = no_result("fvu")
    """Held-out metric, the mean over coders, that a run returns to a sweeper which searches (a name of eval.json)."""
    dry_run: bool = no_result(False)
    """Check everything, show what would be trained, and stop."""


@dataclass
class SavingConfig:
    """Where a run is kept."""

    save_dir: str = no_result("outputs")
    """Folder of all runs."""
    run_name: str | None = no_result(None)
    """Folder of this run inside `save_dir`. null: composed of the main settings and the signature."""
    save_every: int = no_result(1000)
    """Optimizer steps between two saves of the training state, of coders/ and of best/."""
    keep_every: int | None = no_result(None)
    """Optimizer steps between two exports that are kept, in snapshots/step<N>_tokens<T>/. null: none."""
    save_best: bool = no_result(True)
    """Keep each hookpoint's coder of the lowest held-out FVU (with loss_fn=ce, kl: held-out loss) seen at a save in best/."""
    resume: Resume = no_result(Resume.auto)
    """auto: continue the run where its directory holds a training state, else start; must: continue, or be refused;
    never: be refused where the directory holds a run."""


@dataclass
class Config(
    SavingConfig,
    SweepConfig,
    EvaluationConfig,
    SlurmConfig,
    TrackerConfig,
    TrainingConfig,
    OptimizerConfig,
    ArchitectureConfig,
    DatasetConfig,
    ModelConfig,
    ModelTypeConfig,
):
    """Everything a run needs, flat: `k=16` on the command line is `cfg.k` in code."""


FIELDS = tuple(f.name for f in fields(Config))
GROUPS = {
    "model_type": ModelTypeConfig,
    "model": ModelConfig,
    "dataset": DatasetConfig,
    "architecture": ArchitectureConfig,
    "optimizer": OptimizerConfig,
    "tracker": TrackerConfig,
    "hardware": SlurmConfig,
    "experiment": Config,
}


def typed(composed: DictConfig) -> Config:
    """The composed config as a `Config`; Hydra's own node and nothing else is left out.

    Raises ConfigError for a field without a value (`model_type` is the only one that the groups leave open).
    """
    missing = [name for name in FIELDS if OmegaConf.is_missing(composed, name)]
    if missing:
        raise ConfigError(*map(missing_fault, missing))
    own = composed if tuple(composed) == FIELDS else OmegaConf.masked_copy(composed, list(FIELDS))
    config = OmegaConf.to_object(own)
    return config if isinstance(config, Config) else Config(**config)  # type: ignore[arg-type]


def missing_fault(name: str) -> str:
    """The message for a field that has no value."""
    if name == "model_type":
        return "model_type is missing: add model_type=sae or model_type=transcoder"
    return f"{name} is missing: add {name}=VALUE"


def signature(cfg: Config) -> str:
    """Eight hex digits of every setting that changes the result, as written."""
    kept = [f.name for f in fields(cfg) if f.metadata.get("result", True)]
    values = {name: getattr(cfg, name) for name in sorted(kept)}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def site(cfg: Config) -> Site:
    """The module of a layer that is read where `hookpoints` is not set."""
    return cfg.site or (Site.mlp if cfg.model_type == ModelType.transcoder else Site.residual)


def run_name(cfg: Config) -> str:
    """The set name, or a readable and unique one such as `transcoder-smollm2_135m-L6.12-mlp-k16-x8-1a2b3c4d`."""
    if cfg.run_name:
        return cfg.run_name
    model = re.sub(r"[^a-z0-9.]+", "_", Path(cfg.model_name).name.lower()).strip("_.")
    if cfg.hookpoints:
        where = ["hooks"]
    else:
        stride = f"all{cfg.layer_stride}" if cfg.layer_stride > 1 else "all"
        where = ["L" + ".".join(map(str, cfg.layers)) if cfg.layers else stride, site(cfg)]
    size = f"n{cfg.num_latents}" if cfg.num_latents else f"x{cfg.expansion_factor}"
    return "-".join([cfg.model_type, model, *where, f"k{cfg.k}", size, signature(cfg)])


def run_dir(cfg: Config) -> Path:
    """The run's directory: `save_dir/run_name`, in a sweep `save_dir/sweep_name/run_name`."""
    return sweep_dir(cfg) / run_name(cfg)


def sweep_dir(cfg: Config) -> Path:
    """Where the runs of a sweep lie: `save_dir/sweep_name`; for a single run `save_dir`."""
    return Path(cfg.save_dir) / (cfg.sweep_name or "")


def normalize_decoder(cfg: Config) -> bool:
    """Whether decoder rows are kept at norm 1."""
    return cfg.model_type == ModelType.sae if cfg.normalize_decoder is None else cfg.normalize_decoder


def warmup_steps(cfg: Config, steps: int) -> int:
    """Warmup in optimizer steps for a run of `steps`: as set, else a twentieth of the run, at most 1,000."""
    return min(1000, steps // 20) if cfg.lr_warmup_steps is None else cfg.lr_warmup_steps


def summary(cfg: Config) -> dict[str, Any]:
    """The config as plain values, with the run's name and signature; for trackers and status files."""
    return asdict(cfg) | {"run_name": run_name(cfg), "signature": signature(cfg)}


def evaluation_settings(cfg: Config) -> dict[str, Any]:
    """The settings that say what was measured on which tokens; for eval.json."""
    parts = (ModelConfig, DatasetConfig, EvaluationConfig)
    names = ["model_type", *(f.name for part in parts for f in fields(part)), "batch_size"]
    return {name: getattr(cfg, name) for name in names if name not in ("cache_dir", "eval_every")}


LOGITS_HELD = 2**27  # numbers; with a vocabulary of 128,000, four sequences of 256 tokens


def evaluation_batch(cfg: Config, vocabulary: int) -> int:
    """Sequences per forward of an evaluation: the run's batch, or fewer where their logits would need too much memory."""
    return max(1, min(cfg.batch_size, LOGITS_HELD // (cfg.max_seq_length * vocabulary)))
