"""The entrypoint `sae-train`: finds conf/, refuses misspelt and untyped overrides, composes, hands over.

Everything slow to import is imported after the config is known to be valid.
"""

import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae_transcoder.config import FIELDS, GROUPS, Config, ConfigError, run_dir, run_name, typed

PACKAGE = Path(__file__).parent
# Beside the package in a clone, inside it in a wheel.
CONF = next((p for p in (PACKAGE / "conf", PACKAGE.parent / "conf") if p.is_dir()), PACKAGE / "conf")


def field_list() -> str:
    """The fields of the config, one line a group, for --help."""
    lines = []
    for part in reversed(Config.__mro__[1:-1]):
        label = re.sub("(?<=[a-z])(?=[A-Z])", " ", part.__name__.removesuffix("Config")).lower()
        names, line = list(part.__annotations__), f"  {label + ':':<14}"
        for name in names:
            if len(line) + len(name) > 110:
                lines.append(line)
                line = " " * 16
            line += f" {name}"
        lines.append(line)
    return "\n".join(lines)


def register() -> None:
    """Makes the schema and the resolvers of conf/config.yaml known to Hydra."""
    ConfigStore.instance().store(name="schema", node=Config)
    resolvers: dict[str, Callable[..., str]] = {
        "run_dir": lambda *, _root_: str(run_dir(typed(_root_))),
        "run_name": lambda *, _root_: run_name(typed(_root_)),
        "field_list": field_list,
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def override_faults(overrides: Sequence[str], config_dirs: Sequence[Path]) -> list[str]:
    """Overrides that name no field or group, or that would step around the schema."""
    own_groups = {p.name for d in config_dirs if d.is_dir() for p in d.iterdir() if p.is_dir()}
    groups = {*GROUPS, *own_groups}
    known = [*FIELDS, *groups]
    found = []
    for override in overrides:
        match = re.fullmatch(r"(~|\+\+?)?([^=]*)(=.*)?", override, re.DOTALL)
        prefix, key, value = match.groups() if match else ("", override, None)
        name = key.split("@")[0].lstrip("/")
        if name in ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"):
            found.append(f"{override}: a run's directory is save_dir/run_name; set these")
            continue
        if name == "hydra" or name.startswith(("hydra.", "hydra/")):
            continue
        if name in groups and prefix in (None, "+") and value:
            continue
        if prefix:
            fix = "leave it out" if prefix == "~" else f"write {key}{value or ''}" if name in FIELDS else "check its name"
            found.append(
                f"{override}: {prefix} would step around the typed config; {fix} (only +GROUP=CHOICE of a --config-dir is allowed)"
            )
        elif name not in known:
            near = get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else "see sae-train --help for all fields"
            found.append(f"{override}: there is no field or group {name}; {hint}")
        elif not value:
            found.append(f"{override}: needs a value, as in {name}=VALUE")
    return found


INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[Path]]:
    """The overrides among the command line's arguments, and the folders given with --config-dir."""
    overrides, folders, rest = [], [], list(arguments)
    takes_value = {"--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--cfg", "-c", "--package", "-p"}
    while rest:
        argument = rest.pop(0)
        option, _, value = argument.partition("=")
        if argument.startswith("-"):
            if (option in takes_value and not value and rest) or (option in ("--info", "-i") and rest and rest[0] in INFO):
                value = rest.pop(0)
            if option in ("--config-dir", "-cd"):
                folders.append(Path(value))
        else:
            overrides.append(argument)
    return overrides, folders


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """Hydra's and OmegaConf's complaint about a value or a choice, in one line where that is possible."""
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return f"{group}={choice}: there is no such choice; choose one of {', '.join(error.options)}"
    if isinstance(error, OverrideParseException):
        reason = str(error).splitlines()[0]
        return f"{error.override}: cannot be read ({reason}); quote what is special: 'name=\"a value\"', 'name=[1,2]'"
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        name, _, value = next((o for o in overrides if o.startswith(f"{cause.full_key}=")), "").partition("=")
        if "ListConfig" in str(cause.msg) and value:
            return f"{name}={value}: {name} is a list; write '{name}=[{value}]'"
        if "is not Optional" in str(cause.msg):
            return f"{cause.full_key}: null is not possible; give a value or leave it out"
        return f"{cause.full_key}: {str(cause.msg or cause).splitlines()[0]}"
    noise = ("Config search path", "provider=", "full_key", "object_type", "Set the environment")
    lines = [line.strip() for line in str(error).splitlines()]
    return "\n  ".join(line for line in lines if line and not line.startswith(noise))


@hydra.main(version_base="1.3", config_path=str(CONF.resolve()), config_name="config")
def run(composed: DictConfig) -> None:
    """Trains the one run that `composed` describes."""
    from sae_transcoder import engine, preflight

    cfg = typed(composed)
    if note := preflight.nothing_to_do(cfg):  # a job of a sweep, of which the callback knows nothing
        print(note)
    else:
        engine.train([cfg])


def refuse(faults: Sequence[str]) -> None:
    """Prints each fault and ends with exit code 1."""
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    sys.exit(1)


def main() -> None:
    """The command line; exit code 0: done, 1: refused or failed, 128 + n: stopped by signal n, the state saved."""
    register()
    overrides, folders = split_arguments(sys.argv[1:])
    completing = "-sc" in sys.argv or "--shell-completion" in sys.argv
    if not completing and (faults := override_faults(overrides, folders)):
        refuse(faults)
    # Hydra then raises instead of printing its own hints, which would advise what is refused here.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        run()
    except ConfigError as error:
        refuse(error.faults)
    except (HydraException, OmegaConfBaseException) as error:
        refuse([explain(error, overrides)])
    except SystemExit:
        raise
    except KeyboardInterrupt:  # before training began: afterwards it saves first
        print("stopped before the first batch; what was tokenised is kept", file=sys.stderr)
        sys.exit(130)
    except BaseException as error:
        # torch is imported by now: a message of our own kinds ends here, anything else is a bug and keeps its traceback.
        from sae_transcoder.checkpoint import DiskError
        from sae_transcoder.engine import Stopped

        if isinstance(error, Stopped):
            print(f"{error}; the same command goes on from here", file=sys.stderr)
            sys.exit(128 + error.number)
        if isinstance(error, DiskError):
            refuse([str(error)])
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            refuse([f"{error.filename or 'the disk'}: {error.strerror}; free space and start the same command again"])
        raise
    finally:
        GlobalHydra.instance().clear()


if __name__ == "__main__":
    main()
