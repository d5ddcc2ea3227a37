"""What every test shares: its device, no network, few threads, tiny language models of several architectures."""

import atexit
import os
import shutil
import signal
import sys
import tempfile

os.environ["TRACKIO_DIR"] = tempfile.mkdtemp(prefix="trackio-")  # read when trackio is imported
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # also in the processes that tests start: several at once would wait for each other

from pathlib import Path

import pytest
import torch
from device import DEVICE, NAMED, ON_GPU, SETTINGS
from omegaconf import OmegaConf
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sae_transcoder.config import Config
from sae_transcoder.language_model.loading import DEMO

atexit.register(shutil.rmtree, os.environ["TRACKIO_DIR"], ignore_errors=True)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would what tests start


def pytest_configure(config: pytest.Config) -> None:
    """Stops the session where SAE_TEST_DEVICE is no device, or is not there."""
    if NAMED != "cpu" and not ON_GPU:
        raise pytest.UsageError(f"SAE_TEST_DEVICE={NAMED}: use cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if ON_GPU and torch.cuda.is_available() else 0
    if ON_GPU and (DEVICE.index or 0) >= count and not config.option.collectonly:
        has = f"cuda:0 to cuda:{count - 1}" if count else "no GPU"
        raise pytest.UsageError(f"SAE_TEST_DEVICE={NAMED}: not present; torch {torch.__version__} finds {has} here")


def pytest_report_header() -> str:
    return f"device: {torch.cuda.get_device_name(DEVICE) if ON_GPU and torch.cuda.is_available() else DEVICE}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On a GPU, the tests that it could change."""
    if ON_GPU:
        config.hook.pytest_deselected(items=[item for item in items if not item.get_closest_marker("device")])
        items[:] = [item for item in items if item.get_closest_marker("device")]


VOCABULARY = 256
TINY = {
    "llama": lambda: LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=64,
    ),
    "gpt2": lambda: GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_inner=48, n_layer=4, n_head=4, n_positions=64),
    "neox": lambda: GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=64,
    ),
    "bert": lambda: BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=64,
    ),
}


@pytest.fixture(autouse=True)
def _same_bits_each_time() -> None:
    """One thread; on a GPU deterministic kernels, and products in float32 and not TF32 until a run asks for that."""
    torch.set_num_threads(1)
    if ON_GPU:
        torch.use_deterministic_algorithms(True)
        torch.set_float32_matmul_precision("highest")


@pytest.fixture
def float32_coders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coders' products in float32: on a GPU they are in bfloat16, as sparsify's are, and its rounding would hide what is compared with an
    independent computation."""
    from sae_transcoder.coder import corrected_coder, stack

    for module in (corrected_coder, stack) if ON_GPU else ():
        monkeypatch.setattr(module, "product_dtype", lambda device: torch.float32)


@pytest.fixture
def torchs_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    """sparsify's Trainer takes torch's Adam, as where bitsandbytes is not installed, whose 8-bit Adam it would take."""
    for name in ("bitsandbytes", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, name, None)


def tiny_model(family: str) -> PreTrainedModel:
    """A model of random weights, the same at every call."""
    torch.manual_seed(0)
    return AutoModel.from_config(TINY[family]()).eval().requires_grad_(False).to(DEVICE)


def tiny_causal_model(family: str) -> PreTrainedModel:
    """The same with a language-modelling head."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(TINY[family]()).eval().requires_grad_(False).to(DEVICE)


def tiny_config(model_type: str, **settings: object) -> Config:
    """A config for a tiny model's activations; its data set is never read."""
    usual = dict(
        model_name="tiny", dataset_kind="memmap", dataset_name="none", batch_size=2, grad_acc_steps=1, expansion_factor=4, k=4,
        init_seeds=[0], max_seq_length=16,
    )  # fmt: skip
    composed = OmegaConf.merge(OmegaConf.structured(Config), {"model_type": model_type} | usual | SETTINGS | settings)
    return OmegaConf.to_object(composed)


def demo_tokenizer() -> PreTrainedTokenizerBase:
    """The bundled tokenizer."""
    return AutoTokenizer.from_pretrained(DEMO)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """{family: a folder that holds a tiny model of it}."""
    folders = {}
    for family in TINY:
        folders[family] = tmp_path_factory.mktemp(family)
        tiny_model(family).save_pretrained(folders[family])
    return folders
