"""The exception for settings that cannot be obeyed."""

from collections.abc import Sequence


class ConfigError(Exception):
    """Settings that cannot be obeyed. Each fault names the fields, their values and the fix."""

    def __init__(self, *faults: str):
        super().__init__("\n".join(faults))
        self.faults = faults


def raise_faults(faults: Sequence[str]) -> None:
    """Raises ConfigError where there are faults."""
    if faults:
        raise ConfigError(*faults)
