"""What sae-report refuses."""


class ReportError(Exception):
    """What was asked for is not possible. The message names the cause and the fix."""
