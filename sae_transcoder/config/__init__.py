"""Every setting: its fields by group, their names and checks, and how a command line becomes a `Config`."""
# ruff: noqa: F401 - other packages import these names from here

from sae_transcoder.config.derived import (
    as_list,
    computes_logits,
    evaluation_batch,
    has_stored_ids,
    l0_coefficient,
    leaves_roles_out,
    matryoshka_widths,
    normalize_decoder,
    num_latents,
    site,
    threshold_beta,
    warmup_steps,
)
from sae_transcoder.config.errors import ConfigError
from sae_transcoder.config.fields import DEFAULTS, FIELD_GROUPS, FIELDS, GROUPS, PATH_FIELDS, Config
from sae_transcoder.config.fields.architecture import (
    WITH_THRESHOLD,
    Activation,
    ArchitectureConfig,
    BiasInit,
    JumpReLULoss,
    NormalizeActivations,
)
from sae_transcoder.config.fields.dataset import DatasetConfig, DatasetKind, SpecialTokensInText, TokensDtype, TrainOn
from sae_transcoder.config.fields.evaluation import EvaluationConfig
from sae_transcoder.config.fields.hardware import Hardware, HardwareConfig, SlurmConfig
from sae_transcoder.config.fields.model import Dtype, ModelConfig, Quantization
from sae_transcoder.config.fields.model_type import ModelType, ModelTypeConfig, Site
from sae_transcoder.config.fields.optimizer import OPTIMIZERS, LrRule, LrSchedule, Optimizer, OptimizerConfig
from sae_transcoder.config.fields.saving import Resume, SavingConfig
from sae_transcoder.config.fields.sweep import SweepConfig
from sae_transcoder.config.fields.tracker import Tracker, TrackerConfig, TrackerMode
from sae_transcoder.config.fields.training import LossFn, TrainingConfig
from sae_transcoder.config.learning_rate import learning_rate, length_rule
from sae_transcoder.config.naming import evaluation_settings, run_dir, run_name, save_dir, signature, summary, sweep_dir
