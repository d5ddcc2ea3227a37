"""What the terminal shows of training: a progress bar, a closing line; plain lines where there is no terminal."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sae_transcoder.preflight.header import listed
from sae_transcoder.preflight.time_estimate import in_words
from sae_transcoder.process.progress import progress
from sae_transcoder.process.stop_signal import StopSignal
from sae_transcoder.run_store.eval_file import Evaluation, never_fired
from sae_transcoder.run_store.scores import is_worse_than_mean, reasons

if TYPE_CHECKING:
    from sae_transcoder.training.coder_trainer import CoderTrainer

PLAIN_EVERY = 10.0  # seconds between two lines where there is no terminal
RECENT = 30.0  # seconds by whose speed the time left is told


class Bar:
    """A context manager that shows progress in optimizer steps, with tokens per second, time left and FVU; and that of an evaluation."""

    def __init__(
        self,
        console: Console,
        total: int,
        tokens_total: int,
        evaluation: float | None = None,
        expected_speed: float | None = None,
        stop: StopSignal | None = None,
    ):
        """total: optimizer steps; tokens_total: tokens that this process will read; evaluation: seconds that measuring will take after the last
        step if training reads `expected_speed` tokens per second, None where either is not known; stop: a signal that is obeyed wherever an
        evaluation shows how far it is."""
        self.console, self.total, self.tokens_total = console, total, tokens_total
        self.evaluation, self.expected_speed = evaluation, expected_speed
        self.stop = stop or StopSignal()
        self.fvus: dict[Path, float] = {}
        self.start = self.printed = time.monotonic()
        self.tokens = self.printed_step = 0
        self.trainer: CoderTrainer | None = None
        self.recent = deque([(0.0, 0)])  # (seconds, tokens) of the updates of the last RECENT seconds, and one before
        self.progress = Progress(
            TextColumn("{task.description}"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[after]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("step", total=total, state="", after=self.after)

    def __enter__(self) -> "Bar":
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    @property
    def after(self) -> str:
        """What follows the last step, in words. Its time is longer than expected by as much as the training is."""
        if self.evaluation is None:
            return ", then the evaluation"
        slower = self.expected_speed / self.tokens_per_s if self.expected_speed and self.tokens else 1.0
        return f", then about {in_words(self.evaluation * slower)} of evaluation"

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock of training while it is open."""
        before = time.monotonic()
        yield
        self.start += time.monotonic() - before

    @contextmanager
    def show_progress(self, label: str, needed: int | None, unit: str = "sequences") -> Iterator[Callable[[int], None]]:
        """Shows how far something else is than training, as process.progress.Progress says. What it yields raises Stopped after a signal."""
        if not self.console.is_terminal:
            with progress(label, needed, unit, self.console) as show:
                yield self.obeying(show)
            return
        task = self.progress.add_task(label, total=needed, state=unit, after="")
        try:
            yield self.obeying(lambda count: self.progress.update(task, completed=count))
        finally:
            self.progress.remove_task(task)

    def obeying(self, show: Callable[[int], None]) -> Callable[[int], None]:
        """The function, which obeys a signal too."""

        def show_and_obey(count: int) -> None:
            show(count)
            self.stop.obey()

        return show_and_obey

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return time.monotonic() - self.start

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second since the start."""
        return self.tokens / max(1e-9, self.seconds)

    @property
    def recent_tokens_per_s(self) -> float:
        """Tokens per second of late: a compilation at the start, or a machine that slept, is no part of the time that is left."""
        (first, tokens_then), (last, tokens) = self.recent[0], self.recent[-1]
        return (tokens - tokens_then) / max(1e-9, last - first)

    def set_fvu(self, run: Path, fvu: Sequence[float]) -> None:
        """Shows the mean of these FVU of a run's coders from now on; of several runs the lowest and the highest."""
        if fvu:
            self.fvus[run] = fmean(fvu)

    @property
    def fvu(self) -> str:
        """The runs' FVU, in words."""
        if len(self.fvus) < 2:
            return f"FVU {next(iter(self.fvus.values())):.4f}" if self.fvus else "FVU -"
        return f"FVU {min(self.fvus.values()):.4f} to {max(self.fvus.values()):.4f} of {len(self.fvus)} runs"

    def follow(self, trainer: "CoderTrainer") -> None:
        """Has `show` tell how far this trainer is; its tokens count from now on."""
        self.trainer, self.tokens_before = trainer, trainer.tokens

    def show(self) -> None:
        """Shows how far the trainer is."""
        if self.trainer:
            self.update(self.trainer.step, self.trainer.tokens - self.tokens_before)

    def update(self, step: int, tokens: int) -> None:
        """Shows progress. step: optimizer steps made; tokens: read by this process."""
        self.tokens = tokens
        self.recent.append((self.seconds, tokens))
        while len(self.recent) > 2 and self.recent[1][0] < self.seconds - RECENT:
            self.recent.popleft()
        if self.console.is_terminal:
            self.progress.update(self.task, completed=step, state=f"{self.tokens_per_s:,.0f} tokens/s {self.fvu}", after=self.after)
        elif tokens and self.is_line_due(step):  # without tokens an evaluation alone was left
            self.printed, self.printed_step = time.monotonic(), step
            left = in_words((self.tokens_total - tokens) / max(1.0, self.recent_tokens_per_s))
            print(f"step {step}/{self.total}  {self.tokens_per_s:,.0f} tokens/s  {self.fvu}  {left} left{self.after}", flush=True)

    def is_line_due(self, step: int) -> bool:
        """Whether a line is printed for this step: every few seconds, and once for the last step."""
        if step == self.total:
            return step != self.printed_step
        return time.monotonic() - self.printed > PLAIN_EVERY


def fvu_by_width(evaluation: Evaluation) -> dict[int, float]:
    """{width: mean FVU over the coders} of the nested dictionaries that are smaller than the coders; empty without."""
    fvus: dict[int, list[float]] = {}
    for level in (level for coder in evaluation.coders for level in coder.levels[:-1] if math.isfinite(level.fvu)):
        fvus.setdefault(level.width, []).append(level.fvu)
    return {width: fmean(values) for width, values in fvus.items()}


def undefined(evaluation: Evaluation, label: str, score: str) -> list[str]:
    """Why coders have no such score; empty where they have."""
    found = [(c.coder, reason) for c in evaluation.coders if (reason := reasons(c.metrics).get(score))]
    if not found:
        return []
    names = "" if len(evaluation.coders) == 1 else f" of {listed([name for name, _ in found])}"
    return [f"{label}{names} - ({found[0][1]})"]


def closing_line(directory: Path, steps: int, seconds: float, evaluation: Evaluation, console: Console) -> None:
    """Prints one line: where the coders are, and their held-out metrics, of Matryoshka coders also the FVU of each nested dictionary."""
    k = listed([c.k for c in evaluation.coders])
    scores = []
    for label, name, spec, beside in [
        ("FVU", "fvu", ".4f", ""),
        ("L0", "l0", ".1f", f" at k {k}"),
        ("CE loss score", "ce_loss_score", ".4f", ""),
    ]:
        values = [value for c in evaluation.coders if math.isfinite(value := c.metrics.get(name, math.nan))]
        spread = "" if len(values) < 2 else f" (mean of {len(values)}: {min(values):{spec}} to {max(values):{spec}})"
        scores += [f"{label} {fmean(values):{spec}}{beside}{spread}"] if values else []
        scores += undefined(evaluation, label, name)
    if shares := [share for c in evaluation.coders if (share := never_fired(c.metrics)) is not None]:
        scores.append(f"never fired {100 * fmean(shares):.1f} %")
    if by_width := fvu_by_width(evaluation):
        scores.append(
            f"FVU of the first {', '.join(map(str, by_width))} latents {', '.join(f'{fvu:.4f}' for fvu in by_width.values())}"
        )
    if worse := [c.coder for c in evaluation.coders if is_worse_than_mean(c.metrics)]:
        which = "" if len(evaluation.coders) == 1 else f" of {listed(worse)}"
        scores.append(f"FVU{which} above 1: worse than the mean output at every token, try a lower lr")
    console.print(
        f"done: {steps:,} steps in {seconds:.0f} s, held-out {', '.join(scores)}, coders in {directory / 'coders'}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
