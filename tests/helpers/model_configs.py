"""The configs of the models that conf/model names, without their weights."""

from functools import cache
from pathlib import Path

import yaml
from transformers import AutoConfig


@cache
def known() -> dict[str, dict]:
    """The values of the models' configs, by hub name, each with its source."""
    return yaml.safe_load(Path(__file__).with_name("model_configs.yaml").read_text())


def config_only(name: str, folder: Path) -> Path:
    """A folder that holds the config of the hub's model `name` and nothing else."""
    AutoConfig.for_model(**known()[name]).save_pretrained(folder / "model")
    return folder / "model"
