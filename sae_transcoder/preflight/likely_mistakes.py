"""Valid settings that are probably mistakes; the header shows them. Nothing here imports torch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from sae_transcoder.config import Activation, Config, LossFn, NormalizeActivations, has_stored_ids, threshold_beta
from sae_transcoder.config.run_length import needed_samples, samples_of_limits

if TYPE_CHECKING:
    from sae_transcoder.config.run_length import RunLength
    from sae_transcoder.run_store.data_origin import DataOrigin

# Numbers in the hidden states of a batch [token, width]. Below LAUNCH_BOUND a GPU waits for kernel launches more than a quarter of the
# time; from BUSY on it is busy. Arithmetic for SmolLM2-135M: 5 ms of launches a batch, 1 us of work a token. This has not been measured.
LAUNCH_BOUND, BUSY = 2**23, 2**25
FEWEST_STEPS = 200  # optimizer steps that a larger batch must leave the run
STEP_TOKENS = 2048  # of an optimizer step of experiment=own_text
ENOUGH_BATCHES = 400  # for batchtopk's threshold to average them all
SETTLED = 1.6  # times the batches that batchtopk's threshold averages, which a run should have with its final k


def warnings(cfg: Config, length: RunLength, device: str, width: int) -> list[str]:
    """Warnings for a run of this length on a device of type cpu or cuda; width: of the language model's hidden states."""
    messages = short_run_warnings(cfg, length)
    if cfg.activation == Activation.jumprelu and cfg.normalize_activations == NormalizeActivations.none:
        messages.append(
            "normalize_activations=none with activation=jumprelu: jumprelu_bandwidth and jumprelu_init_threshold are in the units of "
            "pre-activations, whose size differs from model to model; set normalize_activations=mean_norm, or tune both"
        )
    if cfg.activation == Activation.batchtopk:
        averaged = averaged_batches(cfg, length)
        settled = length.batches - cfg.k_decay_steps * cfg.grad_acc_steps  # batches with the final k
        # The average over a whole run with one k is as good, once the cuts of its first batches are few among them: 500 batches of the demo are.
        if settled <= SETTLED * averaged and (length.batches < ENOUGH_BATCHES or cfg.k_decay_steps > 0):
            by_length = averaged_batches(replace(cfg, threshold_beta=None), length)
            if settled > SETTLED * by_length:
                fix = f"write threshold_beta=null, which averages about {by_length:,}"
            else:
                fix = "train longer" + (" or lower k_decay_steps" if cfg.k_decay_steps else "")
            messages.append(
                f"threshold_beta={'null' if cfg.threshold_beta is None else cfg.threshold_beta}: batchtopk's threshold averages about {averaged:,} "
                f"batches, and {max(0, settled):,} have the final k: L0 will be far from k once trained; {fix}"
            )
    return messages + (small_batch_warnings(cfg, length, width) if device == "cuda" else [])


def averaged_batches(cfg: Config, length: RunLength) -> int:
    """About how many batches batchtopk's threshold averages."""
    return round(1 / (1 - threshold_beta(cfg, length.batches)))


def short_run_warnings(cfg: Config, length: RunLength) -> list[str]:
    """A run that is too short for its batches, or for its latents to be dead ever."""
    messages = []
    tokens = length.samples * cfg.max_seq_length
    if cfg.auxk_alpha > 0 and cfg.dead_feature_threshold >= tokens:
        messages.append(
            f"dead_feature_threshold={cfg.dead_feature_threshold:,} is not below the run's {tokens:,} tokens: no latent can count as dead, "
            f"AuxK never acts; set dead_feature_threshold={max(1, tokens // 5)}, or auxk_alpha=0"
        )
    return messages + few_steps_warnings(cfg, length)


def few_steps_warnings(cfg: Config, length: RunLength) -> list[str]:
    """A run of few optimizer steps, to which a smaller batch would give more; not where so few sequences are asked for, for a trial."""
    fewer = power_of_two(length.samples / FEWEST_STEPS)
    steps = math.ceil(length.samples / fewer)
    is_trial = length.samples < FEWEST_STEPS and not ends_before_limits(cfg, length)
    if is_trial or length.ranks > 1 or not length.steps < min(FEWEST_STEPS, steps):
        return []
    longer = f" and max_steps={steps}" if cfg.max_steps is not None else ""
    return [
        f"batch_size={cfg.batch_size} with grad_acc_steps={cfg.grad_acc_steps}: {length.steps:,} optimizer steps are few; "
        f"batch_size={fewer} with grad_acc_steps=1{longer} makes {steps:,} of the same text"
    ]


def ends_before_limits(cfg: Config, length: RunLength) -> bool:
    """Whether the data ends before any of the settings that limit how much of it is read."""
    asked = needed_samples(cfg, length.ranks)
    return asked is None or length.samples < asked


def data_warnings(cfg: Config, length: RunLength, origin: DataOrigin) -> list[str]:
    """Less data than was asked for, held-out documents that are trained on as well, and settings that stored ids do not follow."""
    messages = []
    asked = needed_samples(cfg, length.ranks)
    if asked is not None and ends_before_limits(cfg, length):
        messages.append(
            f"{cfg.dataset_name}: {asked:,} sequences are asked for ({', '.join(samples_of_limits(cfg))}), it has {length.samples:,} to train on"
        )
    if length.samples < FEWEST_STEPS and ends_before_limits(cfg, length):
        messages.append(
            f"dataset_name={cfg.dataset_name}: {length.samples * cfg.max_seq_length:,} tokens to train on are few for coders to learn from; give "
            f"more text, at least {FEWEST_STEPS * STEP_TOKENS:,} tokens"
        )
    if origin.divided:
        messages.append(
            f"eval_samples={cfg.eval_samples}: to hold whole documents out would leave less than half of {cfg.dataset_name} to train on; held out "
            "are its first sequences, and a document may stand in both parts: lower eval_samples, or give the text as more documents, each a .txt "
            "file or a row"
        )
    if origin.copies:
        one = origin.copies == 1
        messages.append(
            f"dataset_name={cfg.dataset_name}: {origin.copies:,} document{'' if one else 's'} to train on {'is' if one else 'are'} held out too, to "
            "the letter; remove copies from the data"
        )
    stored = has_stored_ids(cfg)
    if stored and cfg.separator is not None:
        messages.append(
            f"separator={cfg.separator}: the ids of {cfg.dataset_name} are taken as they are stored, nothing is put between documents"
        )
    if stored and cfg.prepend_bos and not origin.begin:
        messages.append(
            f"prepend_bos=True: the ids of {cfg.dataset_name} are taken as they are stored, and its sequences do not all begin with one token"
        )
    return messages


def small_batch_warnings(cfg: Config, length: RunLength, width: int) -> list[str]:
    """A batch that takes a GPU less time than its kernels' launches, where a larger one can be set. Arguments as `warnings` has them."""
    numbers = cfg.max_seq_length * width  # of a sequence's hidden states
    if cfg.loss_fn != LossFn.fvu or cfg.batch_size * numbers >= LAUNCH_BOUND:
        return []
    busy = power_of_two(BUSY / numbers)  # sequences
    factor = max(
        f for f in range(1, cfg.grad_acc_steps + 1) if cfg.grad_acc_steps % f == 0 and (f == 1 or cfg.batch_size * f <= busy)
    )
    same_step = cfg.batch_size * factor  # sequences of the largest batch that leaves an optimizer step as it is
    larger = min(busy, power_of_two(length.samples / (FEWEST_STEPS * length.ranks)))
    fixes = []
    if factor > 1:
        tokens = f"{same_step * cfg.max_seq_length:,} tokens, as many an optimizer step as now"
        fixes.append(f"set batch_size={same_step} with grad_acc_steps={cfg.grad_acc_steps // factor} ({tokens})")
    if same_step * numbers < LAUNCH_BOUND and larger > same_step:
        fixes.append(
            f"set batch_size={larger} with grad_acc_steps=1 ({larger * cfg.max_seq_length:,} tokens) and a rate tuned for it"
        )
    if not fixes:
        return []
    have = f"batch_size={cfg.batch_size}: {cfg.batch_size * cfg.max_seq_length:,} tokens a batch leave a GPU waiting for kernel launches"
    return [f"{have}; {', or '.join([*fixes, 'train more runs side by side'])}"]


def power_of_two(number: float) -> int:
    """The power of two nearest to a number; at least 1."""
    return 2 ** max(0, round(math.log2(number)))
