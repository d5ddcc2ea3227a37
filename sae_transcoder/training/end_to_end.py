"""A batch trained by the language model's own loss, with the coders' outputs in place of its modules'."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sae_transcoder.coder.corrected_coder import CoderOutput
from sae_transcoder.coder.names import coders_by_seed, seed_of
from sae_transcoder.language_model.forward import Activations, end_to_end_loss, spliced_output
from sae_transcoder.training import losses
from sae_transcoder.training.coder_trainer import CoderTrainer, optimizer_step
from sae_transcoder.training.task import Task


@dataclass
class EndToEndStep:
    """One forward of the language model, in which the coders of one seed replace their modules' outputs."""

    trainer: CoderTrainer
    names: dict[str, str]  # {hookpoint: coder}
    mask: Tensor | None  # of positions kept by token id and index, on the host
    coder_losses: list[Tensor] = field(default_factory=list)  # the coders' own, beside that of the model

    def replace(self, hookpoint: str, activations: Activations) -> Tensor:
        """The module's output [batch, position, d], the coder's at the positions kept."""
        trainer, name, cfg = self.trainer, self.names[hookpoint], self.trainer.cfg
        # With max_norm_multiple this waits for the GPU: norms depend on earlier coders.
        kept = trainer.positions.kept(activations, self.mask, trainer.batch_ranks)
        x, y = trainer.positions.inputs_and_targets(activations, kept)
        (count,) = trainer.batch_ranks.sum_integers([len(y)])
        if not trainer.is_enough(count):
            return activations.output
        if scales := trainer.scales_of(hookpoint, x, y, count):
            x, y = scales.scaled(x, y)
        y = y.detach()
        coder, variance = trainer.coders[name], trainer.variance(y, count)
        task = Task(name, coder, x, y, count, variance, trainer.prepare(name, x.detach(), y, count))
        out = None
        for part_x, part_y, given in task.micro_batches(1, trainer.batch_ranks):
            out = own = CoderOutput(*coder(x=part_x, y=part_y, total_variance=variance, **given))
            if losses.reach_inputs(cfg):  # x depends on earlier coders, which this coder's own losses are not to train
                own = CoderOutput(*coder(x=part_x.detach(), y=part_y, total_variance=variance, **given))
        if out is None:
            return activations.output
        trainer.record(name, count, out, auxk_acts=bool(task.dead))
        if cfg.corrections:  # sparsify leaves them out
            self.coder_losses.append(losses.beside_models_loss(cfg, trainer.step, count, own))
        # sparsify cuts the gradient that reaches earlier coders through positions left out.
        output = activations.output if cfg.corrections else activations.output.detach()
        return spliced_output(output, kept, out.sae_out / scales.targets if scales else out.sae_out)


def train_end_to_end(trainer: CoderTrainer, model: PreTrainedModel, tokens: Tensor, tokens_on_device: Tensor) -> bool:
    """Trains on the batch `tokens` [batch, position], each seed in a forward of its own. Returns whether it made an optimizer step.

    tokens: on the host; tokens_on_device: the same on the device.
    """
    cfg, (trainer.rows_in_batch,) = trainer.cfg, trainer.batch_ranks.sum_integers([len(tokens)])
    share_of_loss = len(tokens) / trainer.rows_in_batch if cfg.corrections else 1.0  # this rank's of the batch's
    mask = trainer.positions.by_token(tokens)
    if not len(tokens):
        tokens_on_device, mask = placeholder(tokens, tokens_on_device)
    for names in coders_by_seed(trainer.coders):
        step = EndToEndStep(trainer, names, mask)
        loss = end_to_end_loss(model, tokens_on_device, list(names), step.replace, cfg.loss_fn, marked=trainer.positions.marked)
        if loss.requires_grad:  # else every token of the batch was excluded
            (loss * share_of_loss + sum(step.coder_losses)).div(trainer.batches_in_step).backward()
        seed = seed_of(next(iter(names.values())))
        trainer.averages.begin_batch(seed)
        trainer.averages.add(cfg.loss_fn, seed, loss * share_of_loss)
    step_is_due = trainer.end_batch(tokens.shape[1])
    if step_is_due:
        optimizer_step([trainer])
    return step_is_due


def placeholder(tokens: Tensor, tokens_on_device: Tensor) -> tuple[Tensor, Tensor]:
    """One sequence and a mask that keeps none of its positions, for a rank without sequences: the other ranks wait for it in the forward."""
    num_positions = tokens.shape[1]
    return tokens_on_device.new_zeros(1, num_positions), tokens.new_zeros(num_positions, dtype=torch.bool)
