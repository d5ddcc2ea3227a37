"""SAELens as a contender: its own runner, activation store, training SAEs and training loop. Started by single.py, grid.py and kinds.py.

Runs in an environment of its own (environments.py) on the same Hugging Face model (`model_class_name="AutoModelForCausalLM"`, for which SAELens hooks
the module and stops the forward there). One coder: LanguageModelSAETrainingRunner; several: MultiSAETrainingRunner, whose coders share one
forward and one learning rate. Its buffer is set to one batch and does not mix, so that it trains on the same batches in the same order, and
need not copy and shuffle activations; on a GPU it prefetches one batch. Logging is its own: wandb, offline, every `log_every` steps (its default 10).
"""

import os
import sys
from pathlib import Path

os.environ |= {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}

from typing import Any

import torch
from datasets import Dataset
from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, LoggingConfig
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunner, MultiSAETrainingRunnerConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.matryoshka_batchtopk_sae import MatryoshkaBatchTopKTrainingSAEConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

sys.path.insert(0, str(Path(__file__).parents[1]))

from contenders.meter import THRESHOLD, THRESHOLD_BATCHES, Coder, Job, Meter, deliver, job


def settings(job: Job, lr: float) -> dict[str, Any]:
    """What both runners are told. The schedule rises over the warmup and falls linearly to 0, as the others'."""
    length = job.ids().shape[1]
    return dict(
        model_name=job.model,
        model_class_name="AutoModelForCausalLM",
        model_from_pretrained_kwargs={"dtype": job.dtype},
        context_size=length,
        prepend_bos=False,
        streaming=False,
        dataset_path="benchmark",
        training_tokens=job.trained_tokens,
        train_batch_size_tokens=job.batch * length,
        store_batch_size_prompts=job.batch,
        n_batches_in_buffer=job.batch,
        activations_mixing_fraction=0.0,
        lr=lr,
        lr_warm_up_steps=job.warmup,
        lr_decay_steps=job.steps - job.warmup,
        device=job.device,
        autocast=job.dtype == "bfloat16",
        seed=job.seed,
        logger=LoggingConfig(log_to_wandb=job.wandb, wandb_log_frequency=job.log_every, log_weights_to_wandb=False),
        prefetch_llm_batches=job.device.startswith("cuda"),
        checkpoint_path=None,
        output_path=None,
    )


def folded(sae: TopKTrainingSAE) -> dict[str, torch.Tensor]:
    """The SAE as arrays; latents are chosen by their activation times the norm of their decoder row, which goes into the weights."""
    norm = sae.W_dec.norm(dim=-1) if sae.cfg.rescale_acts_by_decoder_norm else torch.ones_like(sae.b_enc)
    shift = sae.b_dec if sae.cfg.apply_b_dec_to_input else torch.zeros_like(sae.b_dec)
    encoder = {"shift": shift, "encoder": (sae.W_enc * norm).T, "encoder_bias": sae.b_enc * norm}
    running = {THRESHOLD: sae.topk_threshold[None]} if isinstance(sae, BatchTopKTrainingSAE) else {}
    return encoder | {"decoder": sae.W_dec / norm[:, None], "decoder_bias": sae.b_dec} | running


def coder_config(width: int, coder: Coder) -> TopKTrainingSAEConfig:
    """The coder's own config. The loss for dead latents would not act in a run shorter than its window of 1,000 steps."""
    usual: dict[str, Any] = dict(d_in=width, d_sae=coder.latents, k=coder.k, aux_loss_coefficient=0.0)
    if coder.activation == "topk":
        return TopKTrainingSAEConfig(**usual)
    usual["topk_threshold_lr"] = 1 / THRESHOLD_BATCHES
    if coder.widths is None:
        return BatchTopKTrainingSAEConfig(**usual)
    return MatryoshkaBatchTopKTrainingSAEConfig(**usual, matryoshka_widths=coder.widths)


def main(job: Job) -> None:
    """Trains one coder or several."""
    meter = Meter(job.device, job.skip * len(job.coders))
    os.environ["WANDB_DIR"] = job.folder
    torch.manual_seed(job.seed)  # the runner's seed does not reach the initialisation
    data = Dataset.from_dict({"input_ids": job.ids()})
    hook = f"model.{job.hookpoint}"
    saes = [coder_config(job.width, coder) for coder in job.coders]
    rates = {coder.lr for coder in job.coders}
    if len(rates) > 1:
        raise SystemExit("the coders of MultiSAETrainingRunner share one learning rate")
    common = settings(job, *rates)
    if len(saes) == 1:
        single = LanguageModelSAERunnerConfig(sae=saes[0], hook_name=hook, **common)
        runner: Any = LanguageModelSAETrainingRunner(single, override_dataset=data)
    else:
        named = {str(i): sae for i, sae in enumerate(saes)}
        runner = MultiSAETrainingRunner(MultiSAETrainingRunnerConfig(saes=named, hook_names=hook, **common), override_dataset=data)
    runner.model.model.register_forward_pre_hook(meter.start)
    trained = runner.run()
    deliver(job, meter, [folded(sae) for sae in ([trained] if len(saes) == 1 else trained.values())])


if __name__ == "__main__":
    main(job())
