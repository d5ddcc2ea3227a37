"""SAELens's part of peers/synthetic.py: the model of known features, its batches, its own coders' training, and its scores of all coders.

    synthetic_saelens.py build|draw|train|score TASK.json

Runs in an environment of its own. `build` makes the model once and keeps it; `draw` writes batches to standard output; `train` reads them from
standard input and trains by MultiSAETrainer; `score` prints a JSON line {"PROGRAM KIND": scores}, by eval_sae_on_synthetic_data.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import BatchTopKTrainingSAEConfig, JumpReLUTrainingSAEConfig, MatryoshkaBatchTopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.synthetic import (
    FeatureDictionary,
    FoldedNormalMagnitudeConfig,
    HierarchyConfig,
    LinearMagnitudeConfig,
    LowRankCorrelationConfig,
    OrthogonalizationConfig,
    SyntheticModel,
    SyntheticModelConfig,
    ZipfianFiringProbabilityConfig,
)
from sae_lens.synthetic.evals import eval_sae_on_synthetic_data
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from sae_lens.util import temporary_seed
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from contenders.synthetic import Task, arrays_path, asked, keep

PROGRAM = "saelens"


def model_config(task: Task) -> SyntheticModelConfig:
    """SynthSAEBench-16k by its published parameters (SAELens's docs/synth_sae_bench.md; synth-sae-bench-experiments,
    create_synth_bench_16k_model.py), or a sixteenth of it."""
    hierarchy = HierarchyConfig(
        total_root_nodes=8 if task.small else 128,
        branching_factor=4,
        max_depth=3,
        mutually_exclusive_portion=1.0,
        mutually_exclusive_min_depth=0,
        compensate_probabilities=True,
        scale_children_by_parent=True,
    )
    return SyntheticModelConfig(
        num_features=1024 if task.small else 16_384,
        hidden_dim=task.d,
        firing_probability=ZipfianFiringProbabilityConfig(exponent=0.5, max_prob=0.4, min_prob=5e-4),
        hierarchy=hierarchy,
        orthogonalization=OrthogonalizationConfig(num_steps=100, lr=3e-4),
        correlation=LowRankCorrelationConfig(rank=25, correlation_scale=0.1),
        mean_firing_magnitudes=LinearMagnitudeConfig(start=5.0, end=4.0),
        std_firing_magnitudes=FoldedNormalMagnitudeConfig(mean=0.5, std=0.5),
        bias=0.5,
        seed=42,
    )


def orthogonalized(features: Tensor, steps: int, lr: float) -> Tensor:
    """What SAELens's orthogonalize_embeddings makes of features [feature, d]: that takes all pairs of features, this the d x d sums over them, which
    give the same loss: the squares of all dot products but those with itself, and one per feature's distance from norm 1."""
    found = (features / features.norm(dim=1, keepdim=True)).requires_grad_()
    adam = torch.optim.Adam([found], lr=lr)
    for _ in range(steps):
        adam.zero_grad()
        squares = found.pow(2).sum(1)
        loss = (found.T @ found).pow(2).sum() - squares.pow(2).sum() + len(found) * (squares - 1).pow(2).sum()
        loss.backward()
        adam.step()
    return (found / found.norm(dim=1, keepdim=True)).detach()


def build(task: Task) -> None:
    """Makes the model and keeps it."""
    config = model_config(task)

    def initializer(feature_dict: FeatureDictionary) -> None:
        feature_dict.feature_vectors.data = orthogonalized(feature_dict.feature_vectors.detach(), 100, 3e-4)

    with temporary_seed(config.seed):
        features = FeatureDictionary(
            config.num_features, config.hidden_dim, config.bias, initializer, device=task.device, seed=config.seed
        )
    SyntheticModel(config, feature_dict=features, device=task.device).save(task.model)


def load(task: Task) -> SyntheticModel:
    """The model, from its seeded features on; what is drawn next is drawn anew from the task's seed."""
    model = SyntheticModel.load_from_disk(task.model, device=task.device)
    torch.manual_seed(task.seed)
    return model


def draw(task: Task) -> None:
    """Writes the batches to standard output; whatever else is printed goes to standard error."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    model = load(task)
    for _ in range(task.steps):
        out.write(model.sample(task.batch).float().cpu().contiguous().numpy().tobytes())
    out.close()


def coder_config(task: Task, kind: str, variance: float) -> Any:
    """SAELens's config of a coder, as the benchmark's own runs have it (synth-sae-bench-experiments, sweeps/common.py), but for JumpReLU's loss:
    there tanh, with a controller of its weight that SAELens does not have; here the quadratic one.

    variance: of a sample, once samples have a mean norm of sqrt(d).
    """
    usual: dict[str, Any] = dict(d_in=task.d, d_sae=task.latents, device=task.device)
    if kind == "batchtopk":
        return BatchTopKTrainingSAEConfig(**usual, k=task.k)
    if kind == "matryoshka":
        return MatryoshkaBatchTopKTrainingSAEConfig(**usual, k=task.k, matryoshka_widths=task.widths, use_matryoshka_aux_loss=True)
    return JumpReLUTrainingSAEConfig(
        **usual,
        normalize_activations="expected_average_only_in",
        jumprelu_sparsity_loss_mode="quadratic",
        target_l0=task.k,
        l0_coefficient=task.l0_coefficient * variance,
        jumprelu_bandwidth=task.bandwidth,
        jumprelu_init_threshold=task.init_threshold,
        decoder_init_norm=task.init_norm,
    )


def train(task: Task) -> None:
    """Trains on the batches of standard input, of which the first also tells the mean norm. Gradients are clipped to norm 1, as it always does."""
    batches = task.batches()
    first = next(batches)
    scaled = first * (task.d**0.5 / first.norm(dim=1).mean())
    variance = (scaled - scaled.mean(0)).pow(2).sum(1).mean().item()
    torch.manual_seed(task.seed)
    saes = {}
    for kind in task.kinds:
        config = coder_config(task, kind, variance)
        saes[kind] = get_sae_training_class(config.architecture())[0](config)
    config = SAETrainerConfig(
        total_training_samples=task.steps * task.batch,
        train_batch_size_samples=task.batch,
        lr=task.lr,
        lr_end=task.lr,
        device=task.device,
        dead_feature_window=task.dead_steps,
        n_batches_for_norm_estimate=1,
    )

    def given() -> Any:
        if "jumprelu" in task.kinds:
            yield {"all": first}  # for the mean norm
        yield {"all": first}
        for x in batches:
            yield {"all": x}

    trained = MultiSAETrainer(config, saes, dict.fromkeys(saes, "all"), given()).fit()
    for kind, sae in trained.items():
        state = {name: values.clone() for name, values in sae.state_dict().items()}
        sae.process_state_dict_for_saving_inference(state)
        arrays = {"shift": state["b_dec"], "encoder": state["W_enc"].T, "encoder_bias": state["b_enc"]}
        arrays |= {"decoder": state["W_dec"], "decoder_bias": state["b_dec"], "threshold": state["threshold"]}
        keep(task, PROGRAM, kind, arrays)


def score(task: Task) -> None:
    """Scores every coder that a program has left, each on the same samples, which none was trained on."""
    model = load(task)
    found = {}
    for kind in task.kinds:
        for program in ("ours", PROGRAM):
            with np.load(arrays_path(task, program, kind)) as kept:
                arrays = {name: torch.from_numpy(kept[name]).to(task.device) for name in kept}
            sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=task.d, d_sae=task.latents, device=task.device))
            sae.W_enc.data, sae.b_enc.data = arrays["encoder"].T.contiguous(), arrays["encoder_bias"]
            sae.W_dec.data, sae.b_dec.data = arrays["decoder"], arrays["decoder_bias"]
            sae.threshold.data = arrays["threshold"].expand(task.latents).clone()
            torch.manual_seed(task.seed + 1)
            scores = eval_sae_on_synthetic_data(
                sae, model.feature_dict, model.activation_generator, task.eval_samples, batch_size=task.batch
            )
            found[f"{program} {kind}"] = scores.to_dict()
    print("\n" + json.dumps(found), flush=True)


if __name__ == "__main__":
    {"build": build, "draw": draw, "train": train, "score": score}[sys.argv[1]](asked())
