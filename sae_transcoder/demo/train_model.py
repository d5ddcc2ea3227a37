"""Trains the bundled demo language model: `python -m sae_transcoder.demo.train_model OUT [epochs]`.

A byte-level BPE tokenizer and a 6-layer Llama (5.8 million parameters), trained on the standard library's sources: with Muon for the
matrices inside the layers, with AdamW for the rest. Writes the model in bfloat16, its tokenizer and a README with its held-out loss.
"""

import json
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sae_transcoder.demo.text import documents

VOCABULARY, CONTEXT, BATCH = 4096, 256, 16
END = "<|endoftext|>"


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer. Its only special token has the last id, since some programs take a bos id of 0 for none."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=VOCABULARY - 1, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END,
        eos_token=END,
        unk_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def sequences(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """The texts as one stream of tokens, the special token before each text, cut into [sequence, position]."""
    stream = [i for text in texts for i in [tokenizer.bos_token_id, *tokenizer(text, verbose=False)["input_ids"]]]
    return torch.tensor(stream[: len(stream) // CONTEXT * CONTEXT]).view(-1, CONTEXT)


@torch.no_grad()
def mean_loss(model: LlamaForCausalLM, tokens: torch.Tensor) -> float:
    """Mean cross-entropy of the next token, in nats."""
    return float(np.mean([model(input_ids=b, labels=b, use_cache=False).loss.item() for b in tokens.split(BATCH)]))


def train_model(model: LlamaForCausalLM, tokens: torch.Tensor, epochs: int) -> None:
    """Trains the model on the sequences [sequence, position], in a new random order in each epoch."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    steps = epochs * (len(tokens) // BATCH)
    factor = lambda i: min(1.0, (i + 1) / 50, max(0.02, (steps - i) / (0.6 * steps)))  # noqa: E731
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, factor) for o in optimizers]
    start, step = time.time(), 0
    for _ in range(epochs):
        for rows in torch.randperm(len(tokens))[: len(tokens) // BATCH * BATCH].split(BATCH):
            batch = tokens[rows]
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(input_ids=batch, labels=batch, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            step += 1
            if step % 50 == 0 or step == steps:
                rate = step * BATCH * CONTEXT / (time.time() - start)
                print(f"step {step}/{steps} loss {loss.item():.3f} {rate:,.0f} tokens/s", flush=True)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out_dir: Path) -> None:
    """Writes the model and its tokenizer, for transformers 4 and 5."""
    model.save_pretrained(out_dir)
    tokenizer.save_pretrained(out_dir)
    # transformers 5 names a class that transformers 4 cannot load.
    path = out_dir / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n")


def main(out_dir: Path, epochs: int) -> None:
    torch.manual_seed(0)
    train_texts, heldout_texts = list(documents("train")), list(documents("heldout"))
    tokenizer = train_tokenizer(train_texts)
    train, heldout = sequences(tokenizer, train_texts), sequences(tokenizer, heldout_texts)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=688, num_hidden_layers=6, num_attention_heads=4,
        max_position_embeddings=CONTEXT, tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    steps = epochs * (len(train) // BATCH)
    print(f"{len(train):,} training and {len(heldout):,} held-out sequences of {CONTEXT}, {steps:,} steps", flush=True)
    train_model(model, train, epochs)
    model = model.eval().bfloat16()
    save(model, tokenizer, out_dir)
    loss_train, loss_heldout = mean_loss(model, train[:: max(1, len(train) // len(heldout))]), mean_loss(model, heldout)
    characters = sum(map(len, heldout_texts))
    (out_dir / "README.md").write_text(
        f"""# The demo language model

A Llama of {config.num_hidden_layers} layers, width {config.hidden_size}, {sum(p.numel() for p in model.parameters()):,} parameters,
and a byte-level BPE tokenizer of {VOCABULARY:,} tokens, trained by `python -m sae_transcoder.demo.train_model` on the sources of
the standard library of Python {platform.python_version()}, tests left out; one file in twenty, chosen by the hash of its path, is held out.

| what | value |
| --- | --- |
| training tokens | {train.numel():,} x {epochs} epochs |
| held-out tokens | {heldout.numel():,} |
| held-out loss | {loss_heldout:.3f} nats per token, {loss_heldout * heldout.numel() / characters / np.log(2):.3f} bits per character |
| loss on a sample of the training text as large | {loss_train:.3f} nats per token |

The weights are in bfloat16. The special token `{END}` (id {tokenizer.bos_token_id}) stands before each file.
"""
    )
    print((out_dir / "README.md").read_text())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3)
