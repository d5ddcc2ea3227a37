"""SAELens's training coders on the steps of same_steps.py, by their own training_forward_pass. Runs in an environment of its own.

Not at their defaults: activations are not rescaled by the norms of decoder rows, the decoder starts as given, no latent counts as dead.
"""

import sys
from pathlib import Path

import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
)
from sae_lens.saes.sae import TrainingSAE, TrainStepInput
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from contenders.steps import Steps, asked, deliver, make_steps


def new_coder(steps: Steps, given: dict[str, Tensor]) -> TrainingSAE:
    """Its coder with the given weights."""
    latents, d = given["encoder"].shape
    usual = dict(d_in=d, d_sae=latents, dtype=steps.dtype, decoder_init_norm=None, normalize_activations="none")
    if steps.activation == "jumprelu":
        penalty = dict(jumprelu_sparsity_loss_mode=steps.sparsity_loss, target_l0=steps.k, l0_coefficient=steps.coefficient)
        sae: TrainingSAE = JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(**usual, **penalty, jumprelu_bandwidth=steps.bandwidth))
        sae.threshold = nn.Parameter(given["threshold"].clone())  # in the number format of the others, which it would not keep
    else:
        usual |= dict(k=steps.k, topk_threshold_lr=1 - steps.threshold_beta, rescale_acts_by_decoder_norm=False)
        if steps.widths is None:
            sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**usual))
        else:
            sae = MatryoshkaBatchTopKTrainingSAE(MatryoshkaBatchTopKTrainingSAEConfig(**usual, matryoshka_widths=steps.widths))
    sae.W_enc.data, sae.W_dec.data = given["encoder"].T.contiguous(), given["decoder"].clone()
    sae.b_enc.data, sae.b_dec.data = given["encoder_bias"].clone(), given["bias"].clone()
    return sae


def main(steps: Steps) -> None:
    """Makes the steps. Its loss is multiplied by 1 over a token's variance, and over the number of levels, of which it takes the sum."""
    sae = new_coder(steps, steps.given())

    def loss(x: Tensor, step: int) -> Tensor:
        scale = steps.scale(x)
        coefficients = {"l0": steps.coefficient / scale} if steps.activation == "jumprelu" else {}
        out = sae.training_forward_pass(TrainStepInput(x, coefficients, None, step, False))
        return out.loss * scale / len(steps.widths or [0])

    parameters = {"encoder": sae.W_enc, "encoder_bias": sae.b_enc, "decoder": sae.W_dec, "bias": sae.b_dec}
    jumprelu = steps.activation == "jumprelu"
    found = make_steps(steps, parameters | ({"threshold": sae.threshold} if jumprelu else {}), loss)
    if jumprelu:  # it does so at the start of the next step
        found["weight threshold"] = found["weight threshold"].clamp(min=0)
    else:  # it starts at 0, and is not corrected for that
        corrected = sae.topk_threshold / (1 - steps.threshold_beta ** len(found["losses"]))
        found["weight running threshold"] = torch.atleast_1d(corrected)
    deliver(steps, found, transposed=("encoder",))


if __name__ == "__main__":
    for steps in asked():
        main(steps)
