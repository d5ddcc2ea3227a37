"""What every test shares: its device, no network, few threads, tiny language models of several architectures.

torch is imported where it is used: pytest-xdist's first process reads this file before it starts the others."""

import atexit
import gc
import os
import shutil
import signal
import sys
import tempfile

os.environ["TRACKIO_DIR"] = tempfile.mkdtemp(prefix="trackio-")  # read when trackio is imported
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # also in the processes that tests start: several at once would wait for each other

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import programs
from helpers.device_name import NAMED, ON_GPU

atexit.register(shutil.rmtree, os.environ["TRACKIO_DIR"], ignore_errors=True)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would what tests start


def pytest_configure(config: pytest.Config) -> None:
    """Stops the session where SAE_TEST_DEVICE is no device, or is not there."""
    if NAMED != "cpu" and not ON_GPU:
        raise pytest.UsageError(f"SAE_TEST_DEVICE={NAMED}: use cpu, cuda or cuda:N")
    if not ON_GPU:
        return
    import torch

    from helpers.device import DEVICE

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (DEVICE.index or 0) >= count and not config.option.collectonly:
        has = f"cuda:0 to cuda:{count - 1}" if count else "no GPU"
        raise pytest.UsageError(f"SAE_TEST_DEVICE={NAMED}: not present; torch {torch.__version__} finds {has} here")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test whose program this machine lacks, or has it fail where SAE_TEST_REQUIRE_PROGRAMS is set."""
    names = [name for mark in item.iter_markers("needs") for name in mark.args]
    for reason in filter(None, map(programs.lacking, names)):
        if programs.REQUIRED:
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


def pytest_report_header() -> str:
    if not ON_GPU:
        return "device: cpu"
    import torch

    from helpers.device import DEVICE

    return f"device: {torch.cuda.get_device_name(DEVICE) if torch.cuda.is_available() else DEVICE}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """With -n each file runs in one process: what its fixtures train is trained once."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On a GPU, the tests that it could change."""
    if ON_GPU:
        config.hook.pytest_deselected(items=[item for item in items if not item.get_closest_marker("device")])
        items[:] = [item for item in items if item.get_closest_marker("device")]


def pytest_collection_finish() -> None:
    """Hydra parses each text once. What was imported and collected is looked through for garbage no more: it lives to the end, and takes half
    a second each time."""
    from helpers import parsed_once

    parsed_once.install()
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_bits_each_time() -> None:
    """One thread; on a GPU deterministic kernels, and products in float32 and not TF32 until a run asks for that."""
    import torch

    torch.set_num_threads(1)
    if ON_GPU:
        torch.use_deterministic_algorithms(True)
        torch.set_float32_matmul_precision("highest")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Where runs keep their tokenised text, of which each is made once, by whichever of pytest-xdist's processes needs it first."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if hasattr(request.config, "workerinput") else own) / "cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(params=["as here", "as on a GPU"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways of working that a device of this kind takes, and those that a GPU takes."""
    from helpers.device import DEVICE
    from sae_transcoder.coder import latent_selection, sparse_products

    for table in (sparse_products.PRODUCT_RULES, latent_selection.TWO_STAGES) if request.param == "as on a GPU" else ():
        monkeypatch.setitem(table, DEVICE.type, table["cuda"])


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of a pack are trained one after the other: a GPU trains those of small batches together, which rounds otherwise than alone."""
    from helpers.device import DEVICE
    from sae_transcoder.coder.chunk_sizes import SMALL_BATCH

    monkeypatch.setitem(SMALL_BATCH, DEVICE.type, 0)


@pytest.fixture
def on_the_device() -> Iterator[None]:
    """Tensors are made on the device under test."""
    import torch

    from helpers.device import DEVICE

    with torch.device(DEVICE):
        yield


@pytest.fixture
def float32_coders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coders' products in float32: on a GPU they are in bfloat16, as sparsify's are, and its rounding would hide what is compared with an
    independent computation."""
    import torch

    from sae_transcoder.coder import batched_coders, corrected_coder, jump_relu_coder

    for module in (batched_coders, corrected_coder, jump_relu_coder) if ON_GPU else ():
        monkeypatch.setattr(module, "product_dtype", lambda device: torch.float32)


@pytest.fixture
def torchs_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    """sparsify's Trainer takes torch's Adam, as where bitsandbytes is not installed, whose 8-bit Adam it would take."""
    for name in ("bitsandbytes", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """{family: a folder that holds a tiny model of it}."""
    from helpers.tiny_models import TINY, tiny_model

    folders = {}
    for family in TINY:
        folders[family] = tmp_path_factory.mktemp(family)
        tiny_model(family).save_pretrained(folders[family])
    return folders
