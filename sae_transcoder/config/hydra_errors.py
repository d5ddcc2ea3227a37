"""What Hydra and OmegaConf say of a value or a choice, in plain words."""

import re
from collections.abc import Sequence

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from sae_transcoder.config.group_choices import choice_fault
from sae_transcoder.config.other_words import DIFFERENT_HERE
from sae_transcoder.config.shell_words import NAMES
from sae_transcoder.config.type_checks import ANNOTATIONS, element_type
from sae_transcoder.config.unknown_names import as_whole_number, name_fault
from sae_transcoder.config.value_faults import value_fault


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """Hydra's or OmegaConf's error about a value or a choice, in one line where that is possible."""
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        return choice_fault(error.missing_cfg_file, error.options)
    if isinstance(error, OverrideParseException):
        reason = str(error).splitlines()[0]
        return f"{error.override}: cannot be read ({reason}); quote what is special: 'name=\"a value\"', 'name=[1,2]'"
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        name, _, value = next((o for o in overrides if o.startswith(f"{cause.full_key}=")), "").partition("=")
        if "could not be converted to Integer" in str(cause.msg) and (whole := as_whole_number(value)) != value:
            return f"{name}={value}: must be a whole number; write {name}={whole}"
        if "is not Optional" in str(cause.msg):
            return f"{cause.full_key}: null is not possible; give a value or leave it out"
        reason, of_resolver = str(cause.msg or cause).splitlines()[0], "ConfigError raised while resolving interpolation: "
        if reason.startswith(of_resolver):
            return reason.removeprefix(of_resolver)
        fault = value_fault(cause.full_key, value, reason) or f"{cause.full_key}: {reason}"
        return fault + (f"; {DIFFERENT_HERE[cause.full_key]}" if cause.full_key in DIFFERENT_HERE else "")
    if match := re.match(r"In '(.*)': .*\n\s*Key '(.*)' not in 'Config'", str(error)):
        return name_fault(f"{match[1]}.yaml, {match[2]}", match[2], None, NAMES)
    if "does not support sweep type" in str(error):
        which = next((o for o in overrides if "interval(" in o), "interval(...)")
        return f"{which}: only a sweeper that searches takes an interval; add hydra/sweeper=optuna (extra `search`), or list values, as 1e-3,1e-2"
    if match := re.match(
        r"(?:Ambiguous value for argument|Sweep parameters) '(.*)'(?: requires --multirun|\n1\. )", str(error), re.DOTALL
    ):
        name, _, values = match[1].partition("=")
        one = (
            f"write '{name}=[{values}]' for one list"
            if element_type(ANNOTATIONS.get(name)) and "[" not in values
            else "give one value"
        )
        return f"{match[1]}: several values are a sweep; add -m, or {one}"
    noise = ("Config search path", "provider=", "full_key", "object_type", "Set the environment")
    lines = [line.strip() for line in str(error).splitlines()]
    return "\n  ".join(line for line in lines if line and not line.startswith(noise))
