"""The exceptions for settings that cannot be obeyed."""

from collections.abc import Sequence


class ConfigError(Exception):
    """Settings that cannot be obeyed. Each fault names the fields, their values and the fix."""

    def __init__(self, *faults: str):
        super().__init__("\n".join(faults))
        self.faults = faults


class UnknownField(ConfigError, AttributeError):
    """A name set on a `Config` that is none of its fields; also what Python raises for an attribute that cannot be set."""


def raise_faults(faults: Sequence[str]) -> None:
    """Raises ConfigError where there are faults."""
    if faults:
        raise ConfigError(*faults)
