"""SAE_TEST_DEVICE: the tests that a GPU could change are collected for it, and it must be there."""

import os
import subprocess
import sys

import pytest

from helpers.device import by_device


def session(device: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A session of pytest of its own on that device."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"SAE_TEST_DEVICE": device})


@pytest.mark.slow
def test_for_a_gpu_the_tests_that_it_could_change_are_collected_and_no_others() -> None:
    done = session(
        "cuda",
        "--collect-only",
        "tests/training/test_oracle.py",
        "tests/coder/test_corrected_coder.py",
        "tests/config/test_config.py",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_oracle.py::" in done.stdout
    assert "test_losses_and_gradients_equal_dense_autograd[usual" in done.stdout
    assert "test_losses_and_gradients_equal_dense_autograd[deterministic" in done.stdout
    assert "test_config.py::" not in done.stdout
    assert " deselected" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "says"),
    [("cuda:99", "SAE_TEST_DEVICE=cuda:99: not present; torch"), ("tpu", "SAE_TEST_DEVICE=tpu: use cpu, cuda or cuda:N")],
)
def test_a_device_that_is_not_there_stops_the_session_with_one_message(device: str, says: str) -> None:
    done = session(device, "tests/training/test_oracle.py")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert [line for line in (done.stdout + done.stderr).splitlines() if line.strip()] == [
        line for line in done.stderr.splitlines() if line.startswith(f"ERROR: {says}")
    ]


def test_on_the_cpu_no_process_sees_a_gpu_and_tolerances_are_the_cpus() -> None:
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert by_device(cpu=1.0, gpu=2.0) == 1.0
