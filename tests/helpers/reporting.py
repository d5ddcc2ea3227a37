"""The command sae-report, called in this process, and the record of a run."""

from pathlib import Path

import pytest

from sae_transcoder import report
from sae_transcoder.run_store import run_records


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command."""
    code = 0
    try:
        report.main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def record_of(directory: Path) -> run_records.Record:
    faults: list[str] = []
    found = next(iter(run_records.read_all([directory], faults.append)), None)
    assert found is not None
    assert faults == []
    return found
