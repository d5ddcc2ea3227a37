"""What the terminal shows of a run before it starts: a header, made of facts, and warnings."""

from collections.abc import Sequence

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from sae_transcoder.config import (
    OPTIMIZERS,
    Activation,
    JumpReLULoss,
    LrSchedule,
    NormalizeActivations,
    as_list,
    has_stored_ids,
    learning_rate,
    length_rule,
    matryoshka_widths,
    run_dir,
    run_name,
    warmup_steps,
)
from sae_transcoder.config.run_length import samples_of_limits
from sae_transcoder.preflight import time_estimate
from sae_transcoder.preflight.peak import peak
from sae_transcoder.preflight.plan import Plan

UNKNOWN_TIME = "not known before the first batches: nothing like it has run on this machine"


def size(count: float, unit: str = "") -> str:
    """A number with three digits and a letter: 1.23 M."""
    for factor, letter in [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")]:
        if count >= factor:
            return f"{count / factor:.3g} {letter}{unit}"
    return f"{count:.3g} {unit}".strip()


def listed(values: Sequence[object]) -> str:
    """The distinct values in their order, without the middle of a long list."""
    shown = [str(v) for v in dict.fromkeys(values)]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:3], "...", shown[-1]])


def facts(plan: Plan) -> dict[str, str]:
    """What will be trained, {name: description}."""
    cfg, length = plan.cfg, plan.length
    latents = plan.latents
    dead = f", AuxK after {size(cfg.dead_feature_threshold)} tokens" if cfg.auxk_alpha else ""
    warmup = f", {warmup_steps(cfg, length.steps)} warmup steps" if OPTIMIZERS[cfg.optimizer].scheduled else ""
    needed = peak([plan.memory])
    parts = ", ".join(f"{part} {size(num_bytes, 'B')}" for part, num_bytes in needed.parts.items())
    return {
        "run": run_name(cfg),
        "model": f"{cfg.model_name}, {size(plan.model_parameters)} parameters{first_layers(plan)}, on {plan.device}{compiled(plan)}",
        "hookpoints": f"{listed(list(plan.widths))} ({len(plan.widths)})",
        "coders": f"{len(plan.widths) * len(cfg.init_seeds)} of type {cfg.model_type}, d_in {listed(list(plan.widths.values()))}, "
        f"{listed([f'{n:,}' for n in latents.values()])} latents, k {cfg.k}{kind(plan)}{dead}",
        **scaling(plan),
        "parameters": f"{size(plan.coder_parameters)} trained",
        "data": f"{listed(as_list(cfg.dataset_name))}, {sequences(plan)}, "
        f"{length.samples * cfg.max_seq_length:,} tokens; {len(plan.tokens.heldout):,} held out{from_documents(plan)}",
        **mixture(plan),
        "special tokens": special_tokens(plan),
        "steps": steps(plan),
        **ranks(plan),
        "optimizer": f"{cfg.optimizer}, lr {rate(plan)}{warmup}{fall(plan)}",
        "memory": f"about {size(needed.total_bytes, 'B')}, most {needed.moment} ({parts})",
        "directory": str(run_dir(cfg)),
    }


def time_needed(plans: Sequence[Plan]) -> str:
    """How long runs side by side will take, in words."""
    found = time_estimate.estimate(plans)
    if found is None:
        return UNKNOWN_TIME
    if found.training is None or found.evaluation is None or found.evaluation <= found.training:
        return str(found)
    shorter = [f"an eval_samples below {max(plan.cfg.eval_samples for plan in plans):,}"]
    shorter += ["eval_end_to_end=false"] if any(plan.cfg.eval_end_to_end for plan in plans) else []
    return f"{found} (less with {', or '.join(shorter)})"


def sequences(plan: Plan) -> str:
    """How many sequences of which length are trained on, of how many where that is known, and the field that leaves the others out."""
    supply, count, length = plan.tokens.supply, plan.length.samples, plan.cfg.max_seq_length
    if supply is None:
        return f"{count:,} sequences of {length}"
    if supply.exact and count >= supply.sequences:
        return f"all {count:,} sequences of {length}"
    limits = samples_of_limits(plan.cfg, plan.length.ranks)
    field = min(limits, key=lambda name: limits[name], default=None)
    # Of an estimate, two digits.
    in_all = f"{supply.sequences:,}" if supply.exact else f"about {int(float(f'{supply.sequences:.2g}')):,}"
    return f"{count:,} of {in_all} sequences of {length}{f' ({field})' if field else ''}"


def kind(plan: Plan) -> str:
    """How latents are selected and how dictionaries nest; empty for one dictionary by topk."""
    cfg = plan.cfg
    how = {Activation.topk: "", Activation.jumprelu: " as the target of jumprelu"}.get(cfg.activation, f" by {cfg.activation}")
    if cfg.activation == Activation.jumprelu and cfg.jumprelu_loss != JumpReLULoss.quadratic:
        how = f" not aimed at by jumprelu with jumprelu_loss={cfg.jumprelu_loss}"
    nested = [matryoshka_widths(cfg, width) for width in plan.widths.values()]
    levels = [" in ".join(f"{n:,}" for n in widths) for widths in nested if widths]
    return how + (f", nested {listed(levels)}" if levels else "")


def scaling(plan: Plan) -> dict[str, str]:
    """To what activations are scaled; empty where coders train on them as they are."""
    scaled = plan.cfg.normalize_activations == NormalizeActivations.mean_norm
    return {"activations": "scaled to a mean norm of sqrt(d)"} if scaled else {}


def rate(plan: Plan) -> str:
    """The peak learning rate, of each number of latents, and by which rule where none is set."""
    cfg = plan.cfg
    rates = [f"{learning_rate(cfg, latents, plan.length.steps):.3g}" for latents in dict.fromkeys(plan.latents.values())]
    return listed(rates) + (" by the run's length" if length_rule(cfg) else " by sparsify's rule" if cfg.lr is None else "")


def fall(plan: Plan) -> str:
    """How the rate falls; empty where it does so linearly from the end of the warmup on, or where the optimizer has no schedule."""
    cfg = plan.cfg
    if cfg.lr_schedule == LrSchedule.constant:
        return ", then constant"
    if cfg.lr_decay_steps is None and cfg.lr_schedule == LrSchedule.linear:
        return ""
    where = "" if cfg.lr_decay_steps is None else f" over the last {cfg.lr_decay_steps:,} steps"
    return f", {cfg.lr_schedule} to 0{where}"


def from_documents(plan: Plan) -> str:
    """From how many documents the held-out sequences come; empty where that is not known."""
    count = plan.tokens.origin.heldout_documents
    return "" if count is None else f", from {count:,} document{'' if count == 1 else 's'}"


def steps(plan: Plan) -> str:
    """How many optimizer steps, and of how many sequences each is made."""
    cfg, length = plan.cfg, plan.length
    factors = {"batch_size": cfg.batch_size, "grad_acc_steps": cfg.grad_acc_steps, "ranks": length.ranks}
    used = {name: factor for name, factor in factors.items() if factor > 1 or name == "batch_size"}
    if len(used) == 1:
        return f"{length.steps:,} of {cfg.batch_size} sequence{'' if cfg.batch_size == 1 else 's'}"
    return f"{length.steps:,}, each of {' x '.join(map(str, used.values()))} sequences ({' x '.join(used)})"


def mixture(plan: Plan) -> dict[str, str]:
    """Each part's share of the tokens; empty for data that is no mixture."""
    shares = plan.tokens.origin.shares
    return {"mixture": ", ".join(f"{share:.1%} {name}" for name, share in shares.items())} if shares else {}


def special_tokens(plan: Plan) -> str:
    """With which ids sequences begin and documents end."""
    origin = plan.tokens.origin
    begin = f"each sequence begins with id {listed(origin.begin)}" if origin.begin else "no begin token"
    if has_stored_ids(plan.cfg):
        return f"{begin}, as stored"
    return f"{begin}; " + (
        f"id {listed(origin.separator)} after each document" if origin.separator else "nothing between documents"
    )


def first_layers(plan: Plan) -> str:
    """How much of the language model is loaded; empty where all of it is."""
    return "" if plan.model_layers is None else f" in its first {plan.model_layers} layers"


def compiled(plan: Plan) -> str:
    """Whether the language model's layers are compiled, or why they are not; empty where the settings turn that off, and on a CPU."""
    if plan.compile_obstacle is None:
        return ", compiled"
    is_expected = plan.cfg.compile_model is False or plan.device.type != "cuda"
    return "" if is_expected else f", not compiled ({plan.compile_obstacle})"


def ranks(plan: Plan) -> dict[str, str]:
    """How several ranks train together; empty for a process alone."""
    if plan.ranks == 1:
        return {}
    how = "each trains its hookpoints" if plan.cfg.distribute_modules else f"each reads {plan.cfg.batch_size} sequences of a batch"
    return {"ranks": f"{plan.ranks}: {how}"}


def print_header(plans: Sequence[Plan], console: Console) -> None:
    """Shows what will be trained and likely mistakes; of several runs what they share and where they differ."""
    facts_by_run = [facts(plan) for plan in plans]
    together = {"time": time_needed(plans)}
    facts_by_run = [facts_of_run | together for facts_of_run in facts_by_run]
    shared = {name: value for name, value in facts_by_run[0].items() if all(other.get(name) == value for other in facts_by_run)}
    if console.is_terminal:
        table = Table.grid(padding=(0, 2))
        for name, value in shared.items():
            table.add_row(f"[bold]{name}", value)
        title = f"sae-train: {plans[0].cfg.model_type}" if len(plans) == 1 else f"sae-train: {len(plans)} runs side by side"
        console.print(Panel(table, title=title, expand=False))
    else:
        for name, value in shared.items():
            print(f"{name}: {value}", flush=True)
    for facts_of_run in facts_by_run if len(plans) > 1 else ():
        omitted = {"run", "directory", "memory", *shared}
        differing = "; ".join(f"{name} {value}" for name, value in facts_of_run.items() if name not in omitted)
        console.print(f"run {facts_of_run['run']}: {differing}", markup=False, highlight=False, soft_wrap=True)
    for warning in dict.fromkeys(w for plan in plans for w in plan.warnings):
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)
