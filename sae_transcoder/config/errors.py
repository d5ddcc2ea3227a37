"""The exception for settings that cannot be obeyed."""


class ConfigError(Exception):
    """Settings that cannot be obeyed. Each fault names the fields, their values and the fix."""

    def __init__(self, *faults: str):
        super().__init__("\n".join(faults))
        self.faults = faults
