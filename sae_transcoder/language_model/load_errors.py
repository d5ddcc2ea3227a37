"""What is told of a model's files that cannot be loaded: one message, with a fix for each cause that is known."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import constants, get_token
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from sae_transcoder.config import ConfigError, ModelConfig
from sae_transcoder.config.paths import expanded
from sae_transcoder.config.presets import model_presets
from sae_transcoder.process.broken_device import raise_if_broken
from sae_transcoder.process.memory_errors import is_out_of_memory


@contextmanager
def explain_load_errors(cfg: ModelConfig, part: str) -> Iterator[None]:
    """While open, whatever transformers, or a model's own code, raises is told as a ConfigError: this part of the model cannot be loaded.

    Other errors stay what they are: a lack of memory, a broken GPU.
    """
    try:
        yield
    except Exception as error:
        raise_if_broken(error)
        if isinstance(error, ConfigError) or is_out_of_memory(error):
            raise
        raise cannot_load(cfg, part, error) from error


def cannot_load(cfg: ModelConfig, part: str, error: Exception) -> ConfigError:
    """The message for a part of the model that cannot be loaded."""
    setting = f"model_name={cfg.model_name}" + (f", revision={cfg.revision}" if cfg.revision else "")
    if "trust_remote_code" in str(error) and not cfg.trust_remote_code:
        where = cfg.model_name if Path(expanded(cfg.model_name)).is_dir() else f"{constants.ENDPOINT}/{cfg.model_name}"
        return ConfigError(
            f"{setting} with trust_remote_code=False: its {part} needs the model's own code; read the code in {where}, and set "
            "trust_remote_code=true if you trust it"
        )
    return ConfigError(f"{setting}: its {part} cannot be loaded ({reason(error)}); {fix(cfg, error)}")


def reason(error: Exception) -> str:
    """The first line of an error's message, and the next where that only announces it, with the name of its class where it needs one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = " ".join(lines[:2] if lines and lines[0].endswith(":") else lines[:1])
    if isinstance(error, OSError | ValueError) and first:
        return first
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def fix(cfg: ModelConfig, error: Exception) -> str:
    """What to do about an error of loading."""
    page, logged_in = f"{constants.ENDPOINT}/{cfg.model_name}", get_token() is not None
    folder = Path(expanded(cfg.model_name))
    if "/" not in cfg.model_name and not folder.is_dir() and (presets := model_presets(cfg.model_name)):
        return f"write model={presets[0]}, or the hub's whole name"
    causes = [error, error.__cause__, error.__context__]
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        login = "with the account that is logged in" if logged_in else "and run `hf auth login`, or set HF_TOKEN"
        return f"accept its conditions on {page} {login}"
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        login = "the login may not read it" if logged_in else "run `hf auth login`, or set HF_TOKEN"
        return f"there is no such model on {page}, or it is private: check the name, {login}"
    if any(isinstance(cause, HfHubHTTPError) and cause.response.status_code == 401 for cause in causes):
        return "the hub does not know the token; run `hf auth login`, or correct HF_TOKEN"
    if any(isinstance(cause, RevisionNotFoundError) for cause in causes):
        return f"there is no such branch, tag or commit on {page}; check revision"
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        return "the folder holds an adapter alone; merge it into its model (peft's merge_and_unload) and save that"
    if isinstance(error, ImportError):
        return "install the package that it names, or choose another model"
    if folder.is_dir() or not isinstance(error, OSError):
        packages = " and ".join(f"{name} {version(name)}" for name in ("transformers", "tokenizers"))
        return f"its files are damaged, not complete, or of a version that {packages} do not read: correct or replace them, or choose another model"
    return (
        "check the name, the network (or that it is cached, with HF_HUB_OFFLINE=1), or give a local path; model=demo needs neither"
    )
