"""dictionary_learning's BatchTopK trainers on the steps of same_steps.py, by their own loss. Runs in an environment of its own, in float64.

Left out of what its trainers do at a step: the geometric median at the first, clipping, the schedule. No latent counts as dead before 10 million
tokens.
"""

import sys
from pathlib import Path
from typing import Any

from dictionary_learning.trainers import BatchTopKTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.trainer import remove_gradient_parallel_to_decoder_directions, set_decoder_norm_to_unit_norm
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from contenders.steps import Steps, asked, deliver, make_steps, token_variance


def new_trainer(steps: Steps, given: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """Its trainer with the given weights, and its parameters; that of one dictionary holds the decoder as [d, latent], that of nested ones the
    encoder."""
    latents, d = given["encoder"].shape
    usual: dict[str, Any] = dict(steps=1000, activation_dim=d, dict_size=latents, k=steps.k, layer=0, lm_name="none", device="cpu")
    usual |= dict(lr=steps.lr, warmup_steps=0)
    if steps.widths is None:
        trainer: Any = BatchTopKTrainer(**usual)
        ae = trainer.ae.double()
        ae.encoder.weight.data, ae.encoder.bias.data = given["encoder"].clone(), given["encoder_bias"].clone()
        ae.decoder.weight.data, ae.b_dec.data = given["decoder"].T.contiguous(), given["bias"].clone()
        return trainer, dict(encoder=ae.encoder.weight, encoder_bias=ae.encoder.bias, decoder=ae.decoder.weight, bias=ae.b_dec)
    new = [width - before for before, width in zip([0, *steps.widths], steps.widths, strict=False)]
    trainer = MatryoshkaBatchTopKTrainer(**usual, group_fractions=[size / latents for size in new])
    ae = trainer.ae.double()
    ae.W_enc.data, ae.b_enc.data = given["encoder"].T.contiguous(), given["encoder_bias"].clone()
    ae.W_dec.data, ae.b_dec.data = given["decoder"].clone(), given["bias"].clone()
    return trainer, dict(encoder=ae.W_enc, encoder_bias=ae.b_enc, decoder=ae.W_dec, bias=ae.b_dec)


def main(steps: Steps) -> None:
    """Makes the steps. It takes the mean of the levels' losses, after it has divided each by their number: we take the mean."""
    given = {name: values.double() for name, values in steps.given().items()}
    trainer, parameters = new_trainer(steps, given)
    decoder, (latents, d), nested = parameters["decoder"], given["encoder"].shape, steps.widths is not None

    def columns(values: Tensor) -> Tensor:
        """The decoder as [d, latent], as its functions take it."""
        return values.T if nested else values

    def preacts(x: Tensor) -> Tensor:
        weight = parameters["encoder"].T if nested else parameters["encoder"]
        return (x - parameters["bias"]) @ weight.T + parameters["encoder_bias"]

    def loss(x: Tensor, step: int) -> Tensor:
        return trainer.loss(x, step=step) * len(steps.widths or [0]) / token_variance(x)

    def before() -> None:
        decoder.grad = columns(remove_gradient_parallel_to_decoder_directions(columns(decoder), columns(decoder.grad), d, latents))

    def after() -> None:
        decoder.data = columns(set_decoder_norm_to_unit_norm(columns(decoder), d, latents))

    found = make_steps(steps, given["batches"], parameters, preacts, loss, before, after)
    deliver(steps, found, transposed=("encoder",) if nested else ("decoder",))


if __name__ == "__main__":
    for steps in asked():
        main(steps)
