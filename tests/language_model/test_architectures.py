"""The model that a run plans with is the one that it loads, and its forward is tried on shapes: what cannot work is refused with words."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as tf

from helpers.command_line import composed, refused
from helpers.tiny_models import tiny_config
from sae_transcoder.config import Config, ConfigError, run_dir
from sae_transcoder.language_model import hookpoints, loading, model_class
from sae_transcoder.language_model.forward import capture
from sae_transcoder.language_model.loading import DEMO
from sae_transcoder.preflight.plan import make_plan
from sae_transcoder.training import engine

SIZES = dict(
    vocab_size=4096, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64
)
TEXT = SIZES | dict(num_key_value_heads=1, head_dim=16)
PARTS = dict(
    encoder_layers=3, decoder_layers=3, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64
)


def qwen3_5() -> tf.PreTrainedConfig:
    text = TEXT | dict(linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8)
    return tf.Qwen3_5Config(
        text_config=text, vision_config=dict(depth=2, hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=32)
    )


def llama4() -> tf.PreTrainedConfig:
    image = dict(
        hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14,
        vision_output_dim=32, projector_input_dim=32, projector_output_dim=32,
    )  # fmt: skip
    text = TEXT | dict(intermediate_size_mlp=64, num_local_experts=2, num_experts_per_tok=1)
    return tf.Llama4Config(text_config=text, vision_config=image)


FAMILIES: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "qwen3_5": qwen3_5,
    "llama4": llama4,
    "mixtral": lambda: tf.MixtralConfig(**TEXT, num_local_experts=4),
    "roberta": lambda: tf.RobertaConfig(**SIZES, pad_token_id=1),
    "opt": lambda: tf.OPTConfig(**SIZES | dict(ffn_dim=64), word_embed_proj_dim=32),
    "marian": lambda: tf.MarianConfig(
        vocab_size=4096, d_model=32, max_position_embeddings=64, pad_token_id=1, decoder_start_token_id=1, **PARTS
    ),
    "t5": lambda: tf.T5Config(vocab_size=4096, d_model=32, d_kv=16, d_ff=64, num_layers=3, num_heads=2, decoder_start_token_id=0),
    "xlnet": lambda: tf.XLNetConfig(vocab_size=4096, d_model=32, n_layer=3, n_head=2, d_inner=64),
}


def folder_of(family: str, tmp_path: Path) -> Path:
    """A folder that holds the config of a tiny model of a family."""
    FAMILIES[family]().save_pretrained(tmp_path / family)
    return tmp_path / family


def widths(folder: Path, dtype: torch.dtype = torch.float32, **settings: object) -> dict[str, int]:
    """The hookpoints of a run and their widths, as its plan finds them."""
    cfg = tiny_config("sae", model_name=str(folder), **{"layers": [1]} | settings)
    outline = loading.outline(cfg, dtype=dtype)
    return hookpoints.widths(cfg, outline, hookpoints.hookpoint_names(cfg, outline))


@pytest.mark.parametrize(
    ("family", "with_head", "without"),
    [
        ("qwen3_5", "layers.1", "language_model.layers.1"),
        ("llama4", "layers.1", "language_model.model.layers.1"),
        ("mixtral", "layers.1", "layers.1"),
    ],
)
@pytest.mark.parametrize("end_to_end", [True, False])
def test_modules_are_found_on_the_class_that_is_loaded(
    family: str, with_head: str, without: str, end_to_end: bool, tmp_path: Path
) -> None:
    folder = folder_of(family, tmp_path)
    name = with_head if end_to_end else without
    assert widths(folder, eval_end_to_end=end_to_end) == {name: 32}
    cfg = tiny_config("sae", model_name=str(folder), layers=[1], eval_end_to_end=end_to_end)
    outline = loading.outline(cfg)
    torch.manual_seed(0)
    model = model_class.auto_class(cfg, loading.config_of(cfg)).from_config(loading.config_of(cfg), dtype=torch.float32)
    assert type(model) is type(outline)
    assert {n for n, _ in model.named_parameters()} == {n for n, _ in outline.named_parameters()}
    seen = capture(model.eval(), [name], torch.arange(32).view(2, 16))
    assert seen[name].output.shape == (2, 16, 32)


def saved(family: str, tmp_path: Path) -> Path:
    """A folder that holds a tiny model of a family, with the demo's tokenizer."""
    torch.manual_seed(0)
    model_config = FAMILIES[family]()
    kind = tf.AutoModelForImageTextToText if family in ("qwen3_5", "llama4") else tf.AutoModel
    kind.from_config(model_config).save_pretrained(tmp_path / family)
    with_tokenizer(tmp_path / family)
    return tmp_path / family


def with_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder / name)


def run(cache: Path, tmp_path: Path, folder: Path, *settings: str) -> Config:
    """A run of two steps on a model."""
    usual = ["experiment=demo", "layers=[1]", "max_samples=8", "batch_size=4", "max_seq_length=32", "eval_samples=4", "k=4"]
    return composed(
        *usual, "threads=1", "device=cpu", f"model_name={folder}", f"save_dir={tmp_path}/out", f"cache_dir={cache}", *settings
    )


@pytest.mark.parametrize("family", ["qwen3_5", "llama4"])
def test_a_family_of_text_and_images_trains_and_is_evaluated_end_to_end(family: str, cache: Path, tmp_path: Path) -> None:
    cfg = run(cache, tmp_path, saved(family, tmp_path))
    (trained,) = engine.train([cfg])
    assert trained.evaluation is not None
    assert "ce_loss_with_sae" in trained.evaluation.mean()
    assert (run_dir(cfg) / "coders" / "layers.1").is_dir()


@pytest.mark.parametrize(("family", "longest"), [("roberta", 62), ("opt", 64)])
def test_a_sequence_may_be_as_long_as_the_positions_that_tokens_have(family: str, longest: int, tmp_path: Path) -> None:
    folder = folder_of(family, tmp_path)
    assert len(widths(folder, max_seq_length=longest)) == 1
    if longest < 64:
        with pytest.raises(ConfigError, match=f"max_seq_length=64: embeddings.position_embeddings .* lower it to {longest}$"):
            widths(folder, max_seq_length=64)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("t5", {"layers": [1]}, r"layers=\[1\]: .* an encoder and a decoder.* such as encoder.block.\*, decoder.block.\*"),
        (
            "t5",
            {"layers": None, "hookpoints": ["decoder.block.1"]},
            "forward of T5Model fails in decoder .*set hookpoints in its encoder",
        ),
        ("marian", {"eval_end_to_end": False}, r"layers=\[1\]: .* an encoder and a decoder"),
        ("xlnet", {}, r"the output of layer.1 has the shape \[16, 3, 32\] for 3 sequences of 16 tokens"),
        (
            "xlnet",
            {"dtype": torch.bfloat16},
            r"fails in layer.0.rel_attn \(RuntimeError: .*\); set dtype=float32 in place of bfloat16",
        ),
    ],
)
def test_what_a_family_cannot_do_is_refused_with_the_module_and_a_fix(
    family: str, settings: dict, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(ConfigError, match=message):
        widths(folder_of(family, tmp_path), **settings)
    assert "Traceback" not in capsys.readouterr().err


def test_the_encoder_of_a_model_that_has_a_decoder_too_can_be_read(tmp_path: Path) -> None:
    folder = folder_of("t5", tmp_path)
    assert widths(folder, layers=None, hookpoints=["encoder.block.1"]) == {"encoder.block.1": 32}


def test_weights_of_an_encoder_and_a_decoder_are_told_as_the_cause(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="MarianForCausalLM is a decoder alone; set eval_end_to_end=false and name modules with hookpoints"
    ):
        make_plan(run(cache, tmp_path, saved("marian", tmp_path)))


def test_a_run_does_not_go_on_with_other_modules_than_it_was_begun_with(cache: Path, tmp_path: Path) -> None:
    from helpers.short_runs import interrupted

    folder = saved("qwen3_5", tmp_path)
    interrupted(run(cache, tmp_path, folder, "save_every=1"))
    with pytest.raises(
        ConfigError, match=r"begun with coders on layers\.1, here they would be on language_model\.layers\.1; set eval_end_to_end"
    ):
        engine.train([run(cache, tmp_path, folder, "save_every=1", "eval_end_to_end=false")])


def changed(tmp_path: Path, file: str, **settings: object) -> Path:
    """A copy of the demo model's folder, with other values in one of its files."""
    folder = Path(shutil.copytree(DEMO, tmp_path / "changed"))
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | settings))
    return folder


@pytest.mark.parametrize(
    ("file", "settings", "parts"),
    [
        (
            "tokenizer.json",
            {"pre_tokenizer": {"type": "OfAFutureVersion"}},
            ["its tokenizer cannot be loaded", "PreTokenizer", "tokenizers"],
        ),
        ("tokenizer.json", {"model": {"type": "OfAFutureVersion"}}, ["its tokenizer cannot be loaded", "correct or replace"]),
        ("config.json", {"dtype": "float99"}, ["its config cannot be loaded", "float99"]),
        ("config.json", {"num_attention_heads": 3}, ["its config cannot be loaded", "hidden size", "256", "3"]),
        ("config.json", {"hidden_act": "swish9"}, ["its config cannot be loaded", "swish9"]),
        ("config.json", {"hidden_size": "wide"}, ["its config cannot be loaded", "hidden_size"]),
        ("config.json", {"rope_parameters": {"rope_type": "round"}}, ["its config cannot be loaded", "round"]),
        ("config.json", {"model_type": "of_a_future_version"}, ["its config cannot be loaded", "of_a_future_version"]),
        ("config.json", {"vocab_size": -1}, ["its config cannot be loaded"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_files_that_a_loader_cannot_read_are_one_message_before_anything_starts(
    file: str, settings: dict, parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = changed(tmp_path, file, **settings)
    own = [f"model_name={folder}", f"save_dir={tmp_path}/out", f"cache_dir={tmp_path}/cache", "max_samples=64", "max_seq_length=32"]
    message = refused(capsys, monkeypatch, "experiment=demo", *own)
    assert all(part in message for part in [f"model_name={folder}", *parts]), message
    assert not (tmp_path / "out").exists()


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def own_code(tmp_path: Path, code: str = CODE) -> Path:
    """A copy of the demo model whose classes are in a file of its own."""
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    folder = changed(tmp_path, "config.json", model_type="own", auto_map=classes)
    (folder / "own.py").write_text(code)
    return folder


@pytest.fixture
def modules_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of models' own code go into a temporary folder."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def test_a_models_own_code_is_not_run_unless_it_is_trusted(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modules_cache: None
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    folder = own_code(tmp_path, f"open({str(tmp_path / 'ran')!r}, 'w')\n{CODE}")
    with pytest.raises(
        ConfigError, match=r"trust_remote_code=False: its config needs the model's own code; read the code in .*changed"
    ):
        make_plan(run(cache, tmp_path, folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
@pytest.mark.parametrize("end_to_end", ["true", "false"])
def test_a_trusted_models_own_code_is_planned_with_and_loaded(
    end_to_end: str, cache: Path, tmp_path: Path, modules_cache: None
) -> None:
    cfg = run(cache, tmp_path, own_code(tmp_path), "trust_remote_code=true", f"eval_end_to_end={end_to_end}")
    (trained,) = engine.train([cfg])
    assert trained.evaluation is not None
    assert ("ce_loss_with_sae" in trained.evaluation.mean()) == (end_to_end == "true")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "raise LookupError('no such thing')",
            r"its config cannot be loaded \(LookupError: no such thing\); its files are damaged",
        ),
        ("import no_such_package", "no_such_package.*; install the package that it names"),
        (
            CODE + "    def __init__(self, config):\n        raise LookupError('no such thing')",
            r"cannot be loaded \(LookupError: no such thing\)",
        ),
        (
            CODE + "    def forward(self, input_ids, **given):\n        raise LookupError('no such thing')",
            r"the forward of OwnModel fails in OwnModel \(LookupError: no such thing\); set eval_end_to_end=false",
        ),
    ],
)
def test_what_a_models_own_code_raises_is_one_message(
    code: str, words: str, cache: Path, tmp_path: Path, modules_cache: None
) -> None:
    with pytest.raises(ConfigError, match=words):
        make_plan(run(cache, tmp_path, own_code(tmp_path, code), "trust_remote_code=true"))
