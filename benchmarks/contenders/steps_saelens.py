"""SAELens's training coders on the steps of same_steps.py, by their own training_forward_pass. Runs in an environment of its own, in float64.

Not at their defaults: activations are not rescaled by the norms of decoder rows, the decoder starts as given, no latent counts as dead.
"""

import sys
from pathlib import Path
from typing import Any

from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
)
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from contenders.steps import Steps, asked, deliver, make_steps, token_variance


def new_coder(steps: Steps, given: dict[str, Tensor]) -> Any:
    """Its coder with the given weights."""
    latents, d = given["encoder"].shape
    usual: dict[str, Any] = dict(d_in=d, d_sae=latents, dtype="float64", decoder_init_norm=None, normalize_activations="none")
    sae: Any
    if steps.activation == "jumprelu":
        penalty: dict[str, Any] = dict(jumprelu_sparsity_loss_mode=steps.sparsity_loss, target_l0=steps.k)
        sae = JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(**usual, **penalty, jumprelu_bandwidth=steps.bandwidth))
        sae.threshold = nn.Parameter(given["threshold"].clone())  # float64 like the rest, which it would not keep
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
    """Makes the steps. Of the levels' losses, of which it takes the sum, we take the mean."""
    given = {name: values.double() for name, values in steps.given().items()}
    sae = new_coder(steps, given)
    jumprelu = steps.activation == "jumprelu"

    def loss(x: Tensor, step: int) -> Tensor:
        variance = token_variance(x)
        coefficients = {"l0": steps.coefficient * variance} if jumprelu else {}
        out = sae.training_forward_pass(TrainStepInput(x, coefficients, None, step, False))
        return out.loss / variance / len(steps.widths or [0])

    parameters = {"encoder": sae.W_enc, "encoder_bias": sae.b_enc, "decoder": sae.W_dec, "bias": sae.b_dec}
    parameters |= {"threshold": sae.threshold} if jumprelu else {}
    found = make_steps(steps, given["batches"], parameters, lambda x: sae.encode_with_hidden_pre(x)[1], loss)
    if jumprelu:  # it raises them to zero at the start of the next step
        found["weight threshold"] = found["weight threshold"].clamp(min=0)
    else:  # it starts at 0 and is not corrected for that
        found["weight running threshold"] = sae.topk_threshold[None] / (1 - steps.threshold_beta**steps.count)
    deliver(steps, found, transposed=("encoder",))


if __name__ == "__main__":
    for steps in asked():
        main(steps)
