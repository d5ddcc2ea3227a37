"""Every setting: one dataclass per group, and the flat `Config` made of them. A group's enums stand beside it.

Nothing here imports torch, so `--help`, completion and every refusal that needs no model stay instant.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any

from sae_transcoder.config.errors import UnknownField
from sae_transcoder.config.fields.architecture import ArchitectureConfig
from sae_transcoder.config.fields.dataset import DatasetConfig
from sae_transcoder.config.fields.evaluation import EvaluationConfig
from sae_transcoder.config.fields.hardware import SlurmConfig
from sae_transcoder.config.fields.model import ModelConfig
from sae_transcoder.config.fields.model_type import ModelTypeConfig
from sae_transcoder.config.fields.optimizer import OptimizerConfig
from sae_transcoder.config.fields.saving import SavingConfig
from sae_transcoder.config.fields.sweep import SweepConfig
from sae_transcoder.config.fields.tracker import TrackerConfig
from sae_transcoder.config.fields.training import TrainingConfig
from sae_transcoder.config.unknown_names import name_fault


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
    """Everything a run needs, flat: `k=16` on the command line is `cfg.k` in code. The order of its fields is written to files."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets a field. Raises UnknownField for a name that is none, which Python would take and nothing would read."""
        if name not in FIELDS:
            raise UnknownField(name_fault(f"{name}={value!r}", name, str(value), FIELDS, "field"))
        super().__setattr__(name, value)


# The groups in the order of their fields: ModelTypeConfig first, SavingConfig last.
FIELD_GROUPS = tuple(reversed(Config.__mro__[1:-1]))
FIELDS = tuple(f.name for f in fields(Config))
DEFAULTS = asdict(Config())
PATH_FIELDS = tuple(f.name for f in fields(Config) if f.metadata.get("path"))
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
