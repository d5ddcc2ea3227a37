"""Which causal language models of the installed transformers a run works with: each class once, tiny and random, trained for a few steps.

    python benchmarks/ourselves/architectures.py                                     about 10 minutes on one CPU core
    python benchmarks/ourselves/architectures.py --only llama,roberta
    python benchmarks/ourselves/architectures.py --write docs/architectures.md       the table as a file

Each class is made with few layers of width 32 and the demo's tokenizer, and trains an SAE on the output of its second layer, end-to-end evaluation
included, in a process of its own. It works, or is refused with the words that are shown, or fails, which is a fault of this program.
"""

import argparse
import multiprocessing
import os
import shutil
import tempfile
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sae_transcoder.api import load_config, train
from sae_transcoder.config import ConfigError
from sae_transcoder.language_model.loading import DEMO, quiet

LAYERS, WIDTH, HEADS, VOCABULARY = 3, 32, 2, 4096
# {sizes: the names that families have for them}
NAMES: dict[int, str] = {
    VOCABULARY: "vocab_size vocab_size_per_layer_input",
    LAYERS: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers num_decoder_layers depth",
    WIDTH: "hidden_size d_model n_embd embed_dim embedding_size dim word_embed_proj_dim hidden_dim out_hidden_size linear_width output_dim lru_width",
    HEADS: "num_attention_heads num_key_value_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads num_kv_heads "
    "attention_heads linear_num_key_heads linear_num_value_heads num_encoder_attention_heads num_decoder_attention_heads",
    16: "head_dim v_head_dim qk_nope_head_dim kv_lora_rank q_lora_rank linear_key_head_dim linear_value_head_dim attention_head_dim d_kv "
    "hidden_size_per_layer_input rotary_dim",
    8: "qk_rope_head_dim laurel_rank mamba_d_state state_size ssm_state_size",
    64: "intermediate_size ffn_dim n_inner d_inner d_ff encoder_ffn_dim decoder_ffn_dim moe_intermediate_size intermediate_size_mlp ffn_hidden_size "
    "shared_expert_intermediate_size moe_shared_expert_intermediate_size shared_intermediate_size dff max_position_embeddings n_positions n_ctx",
    4: "num_experts num_local_experts n_routed_experts moe_num_experts num_codebooks",
    1: "num_experts_per_tok moe_k top_k n_shared_experts moe_topk n_group topk_group first_k_dense_replace num_kv_shared_layers",
}
SIZES = {name: size for size, names in NAMES.items() for name in names.split()}
# What a family needs beyond that.
MAMBA = dict(mamba_n_heads=4, mamba_d_head=16, mamba_chunk_size=8)
ROTARY = dict(head_dim=8, qk_head_dim=24)  # of attention by latents: those of its rotated part, and of both parts
OVERRIDES: dict[str, dict[str, Any]] = {
    "axk1": ROTARY,
    "bailing_hybrid": ROTARY | dict(num_expert_group=1, num_experts_per_token=1, linear_head_dim=16, linear_num_heads=2),
    "bamba": MAMBA,
    "codegen": dict(n_head=4, rotary_dim=8),
    "cohere_compass_text": dict(rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}),
    "deepseek_v2": ROTARY | dict(num_experts_per_tok=1, n_group=1, topk_group=1),
    "deepseek_v3": ROTARY,
    "dots1": dict(n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=1),
    "dots3_note_text": dict(
        per_layer_config=None, layer_types=["indexed_attention", "sliding_attention", "indexed_attention"], head_dim=24
    ),
    "falcon_h1": MAMBA | dict(mamba_d_ssm=64),
    "granitemoehybrid": MAMBA,
    "hrm_text": dict(num_layers_per_stack=3),
    "hunyuan_v1_dense": dict(head_dim=16),
    "hunyuan_v1_moe": dict(head_dim=16),
    "kimi_linear": ROTARY | dict(num_experts_per_token=1, linear_head_dim=16, linear_num_heads=2),
    "lfm2_moe": dict(layer_types=["conv", "full_attention", "conv"]),
    "longcat_flash": ROTARY | dict(zero_expert_num=2, expert_ffn_hidden_size=64),
    "mamba2": dict(num_heads=4, head_dim=16, n_groups=1, chunk_size=8),
    "mimo_v2_flash": dict(v_head_dim=16, num_key_value_heads=2),
    "ministral": dict(head_dim=16),
    "nemotron": dict(num_key_value_heads=2),
    "olmo_hybrid": dict(layer_types=["linear_attention", "linear_attention", "full_attention"]),
    "reformer": dict(
        vocab_size=VOCABULARY,
        is_decoder=True,
        axial_pos_shape=[8, 8],
        axial_pos_embds_dim=[16, 16],
        attn_layers=["local", "lsh", "local"],
    ),
    "xlm": dict(emb_dim=32, n_words=4096),
    "youtu": ROTARY,
}
RUN = [
    "model_type=sae", "dataset=demo", "layers=[1]", "max_samples=12", "batch_size=4", "grad_acc_steps=1", "eval_samples=4", "max_seq_length=32",
    "expansion_factor=2", "k=4", "lr=1e-3", "auxk_alpha=0", "threads=1", "device=cpu",
]  # fmt: skip


class Row(NamedTuple):
    """What became of a class: works, refused, fails or not made; and the words."""

    family: str
    class_name: str
    outcome: str
    words: str


def shrunk(values: Mapping[str, Any], default_layers: int | None = None) -> dict[str, Any]:
    """A config's values with sizes, ids and lists of layers small; those of its parts too."""
    layers = next((values[name] for name in NAMES[LAYERS].split() if isinstance(values.get(name), int)), default_layers)
    small: dict[str, Any] = {}
    for name, value in values.items():
        if name in ("model_type", "transformers_version", "architectures", "dtype"):
            continue
        if isinstance(value, dict) and "model_type" in value:
            small[name] = shrunk(value)
        elif isinstance(value, int) and not isinstance(value, bool) and name in SIZES:
            small[name] = min(value, SIZES[name]) if value else value
        elif isinstance(value, int) and name.endswith(("_token_id", "_token_index")) and value >= VOCABULARY:
            small[name] = VOCABULARY - 1
        elif isinstance(value, list) and len(value) == layers and layers > LAYERS:
            small[name] = value[:LAYERS]
    return small


def tiny_config(family: str) -> PreTrainedConfig:
    """A tiny config of a family."""
    kind = CONFIG_MAPPING[family]
    values = shrunk(kind().to_dict()) | OVERRIDES.get(family, {})
    return kind(**{name: value for name, value in values.items() if value is not None})


def outcome(family: str, class_name: str, folder: Path) -> Row:
    """Makes a family's model and trains on it."""
    try:
        torch.manual_seed(0)
        config = tiny_config(family)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        if (size := sum(p.numel() for p in model.parameters())) > 120_000_000:
            return Row(family, class_name, "not made", f"{size:,} parameters")
        model.save_pretrained(folder / "model")
        if type(model.config) is not type(config):  # that of its text alone
            config.save_pretrained(folder / "model")
    except Exception as error:
        return Row(family, class_name, "not made", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder / "model" / name)
    try:
        run = train(load_config(*RUN, f"model_name={folder}/model", f"save_dir={folder}", f"cache_dir={folder.parent}/cache"))
    except ConfigError as error:
        return Row(family, class_name, "refused", str(error).replace(f"{folder}/model", family).replace("\n", "; "))
    except Exception as error:
        traceback.print_exc()
        return Row(family, class_name, "fails", f"{type(error).__name__}: {error}")
    metrics = run.evaluation.mean()
    head = "" if "ce_loss_with_sae" in metrics else "without end-to-end evaluation"
    return Row(family, class_name, "works", head)


def in_process(family: str, class_name: str, limit: float) -> Row:
    """The outcome, from a process that has `limit` seconds."""
    context = multiprocessing.get_context("fork")  # all is imported
    receiving, sending = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(dir=SCRATCH.name) as folder:
        process = context.Process(target=answer, args=(sending, family, class_name, Path(folder)))
        process.start()
        sending.close()
        row = None
        if receiving.poll(limit):
            try:
                row = receiving.recv()
            except EOFError:
                row = Row(family, class_name, "fails", "its process ended")
        process.kill()
        process.join()
    return row or Row(family, class_name, "fails", f"no end after {limit:.0f} s")


def answer(sending: Connection, family: str, class_name: str, folder: Path) -> None:
    """Sends the outcome, and leaves what is printed on the way in a file."""
    with open(folder / "printed.txt", "w") as printed:
        os.dup2(printed.fileno(), 1)
        if not VERBOSE:
            os.dup2(printed.fileno(), 2)
        with quiet():
            sending.send(outcome(family, class_name, folder))


def document(rows: list[Row]) -> str:
    """The rows as Markdown."""
    by_outcome = {name: [row for row in rows if row.outcome == name] for name in ("works", "refused", "fails", "not made")}
    lines = [
        "# Architectures",
        "",
        f"The {len(rows)} causal classes of transformers {transformers.__version__}, each tiny, with random weights, on a CPU in float32: an SAE",
        "on the output of the second layer, trained for a few steps, with held-out metrics. "
        "`python benchmarks/ourselves/architectures.py --write docs/architectures.md` makes this page.",
        f"{len(by_outcome['works'])} work, {len(by_outcome['refused'])} are refused before anything starts, "
        f"{len(by_outcome['fails'])} fail, {len(by_outcome['not made'])} could not be made tiny. A refusal can be one of these sizes only.",
        "",
        "## Work",
        "",
        ", ".join(row.family + (f" ({row.words})" if row.words else "") for row in by_outcome["works"]),
    ]
    titles = {"refused": "Refused", "fails": "Fail", "not made": "Not made here"}
    for name, title in titles.items():
        if by_outcome[name]:
            lines += ["", f"## {title}", "", "| model_type | class | words |", "| --- | --- | --- |"]
            lines += [f"| {row.family} | {row.class_name} | {row.words.replace('|', chr(92) + '|')} |" for row in by_outcome[name]]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Tries the classes and shows the rows."""
    rows = []
    chosen = (
        {name: MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name] for name in ARGS.only.split(",")}
        if ARGS.only
        else MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    )
    for family, class_name in chosen.items():
        rows.append(in_process(family, class_name, ARGS.limit))
        print("  ".join(rows[-1]), flush=True)
    if ARGS.write:
        Path(ARGS.write).write_text(document(rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="model types, by commas")
    parser.add_argument("--limit", type=float, default=60, help="seconds for each class (default 60)")
    parser.add_argument("--write", help="a Markdown file for the rows")
    parser.add_argument("--verbose", action="store_true", help="show tracebacks and what libraries print")
    ARGS = parser.parse_args()
    VERBOSE, SCRATCH = ARGS.verbose, tempfile.TemporaryDirectory()
    torch.set_num_threads(1)
    main()
