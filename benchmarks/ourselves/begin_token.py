"""What is the begin token worth? The demo model's loss on its held-out files, with and without its special token before each sequence.

    python benchmarks/ourselves/begin_token.py        about a minute on two CPU cores

The demo model was trained on a stream of files with its special token before each, cut into sequences anywhere: at the start of a file it
knows the token, before a place in the middle it does not. Losses are nats per token of the text, of all positions and of the first 8; the first
token of a sequence, which nothing predicts without a begin token, counts in neither.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[2]))

from sae_transcoder.demo.text import documents
from sae_transcoder.language_model.loading import DEMO

LENGTH, BATCH, FIRST = 256, 16, 8


@torch.no_grad()
def losses(model: torch.nn.Module, rows: list[list[int]], before: int) -> tuple[float, float]:
    """Mean loss of all tokens but the first of each row's text, and of the FIRST of these; before: begin tokens at the start of each row."""
    total = torch.zeros(LENGTH - 2, dtype=torch.float64)
    for tokens in torch.tensor(rows).split(BATCH):
        log_probs = model(input_ids=tokens, use_cache=False).logits[:, :-1].log_softmax(-1)
        of_tokens = -log_probs.gather(2, tokens[:, 1:, None])[..., 0]
        total += of_tokens[:, before : before + LENGTH - 2].sum(0).double()
    mean = total / len(rows)
    return mean.mean().item(), mean[:FIRST].mean().item()


def cut(ids: list[int], length: int) -> list[list[int]]:
    """Whole pieces of the ids."""
    return [ids[start : start + length] for start in range(0, len(ids) // length * length, length)]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    tokenizer, model = AutoTokenizer.from_pretrained(DEMO), AutoModelForCausalLM.from_pretrained(DEMO).float().eval()
    begin: int = tokenizer.bos_token_id
    files: list[Tensor] = [tokenizer(text, verbose=False)["input_ids"] for text in documents("heldout")]
    texts = {
        "the first tokens of each file": [ids[: LENGTH - 1] for ids in files if len(ids) >= LENGTH - 1],
        "anywhere in the files": cut([i for ids in files for i in [*ids, begin]], LENGTH - 1),
    }
    print(f"{len(files)} files; loss of all positions, and of the first {FIRST}")
    for name, rows in texts.items():
        for label, put in (("without", []), ("with the begin token", [begin])):
            every, first = losses(model, [[*put, *row] for row in rows], len(put))
            print(f"{name}, {label}: {every:.3f}, {first:.3f} ({len(rows):,} sequences)")


if __name__ == "__main__":
    main()
