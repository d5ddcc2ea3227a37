"""Tables of run.py's records: pure functions of what was written."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from ourselves.op_cost import Cost

Record = Mapping[str, Any]
Table = tuple[str, list[str], list[list[str]]]  # title, headings, rows
MODEL = "language_model."  # how the names of the functions begin whose operations are the language model's


def ms(seconds: float | None) -> str:
    """A time."""
    return "" if seconds is None else f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{1000 * seconds:,.0f} ms"


def gb(held: float | None) -> str:
    """An amount of memory."""
    return "" if held is None else f"{held / 1e9:.2f} GB"


def costs(row: Record) -> tuple[dict[str, Cost], dict[str, Cost]] | None:
    """{function: cost} of a step's language model, and of its coders; None where they were not counted."""
    if "parts" not in row:
        return None
    parts = {name: Cost(**cost) for name, cost in row["parts"].items()}
    of_model = {name: cost for name, cost in parts.items() if name.startswith(MODEL)}
    return of_model, {name: cost for name, cost in parts.items() if name not in of_model}


def launches(row: Record) -> tuple[str, str]:
    """A step's kernel launches by the language model, and by each run's coders; on a CPU the operations that would launch them."""
    runs, counted = row["runs"], costs(row)
    if row.get("launches"):
        return f"{row['launches']['model']:.0f}", f"{row['launches']['coders'] / runs:.0f}"
    if counted is None:
        return "", ""
    model, coders = (sum(part.values(), Cost()).launches for part in counted)
    return f"about {model}", f"about {coders / runs:.0f}"


def times(rows: Sequence[Record]) -> Table:
    """How long a step takes, and why it might."""
    headings = ["row", "latents", "runs", "a batch", "step", "model alone", "coders alone", "of a run", "tokens/s x runs"]
    headings += ["launches: model", "of a run", "waits a step and run", "outcome"]
    cells = []
    for row in rows:
        step, coders, waits = row.get("step"), row.get("coders"), row.get("waits")
        speed = f"{row['tokens'] * row['runs'] / step:,.0f}" if step else ""
        own = ms(coders / row["runs"]) if coders else ""
        waited = "" if waits is None else f"{sum(waits.values()) / row['runs']:.3g}"
        numbers = [
            f"{row['latents']:,}",
            str(row["runs"]),
            f"{row['tokens']:,}",
            ms(step),
            ms(row.get("model")),
            ms(coders),
            own,
            speed,
        ]
        cells.append([row["name"], *numbers, *launches(row), waited, row["status"]])
    return "A step, and its parts by themselves", headings, cells


def least(parts: Mapping[str, Cost], card: Record) -> float:
    """Seconds that these functions would take if each ran at the card's measured peaks."""
    return sum(max(part.flop / card["flop_per_s"], part.bytes / card["bytes_per_s"]) for part in parts.values())


def work(rows: Sequence[Record], card: Record | None) -> Table:
    """What a step asks for, against what the card did at most; and what is planted."""
    headings = ["row", "model: TFLOP", "GB", "at the peaks", "of its time", "coders: TFLOP", "GB", "at the peaks", "of their time"]
    headings += ["latents idle for a batch", "most frequent latent"]
    cells = []
    for row in rows:
        counted, planted = costs(row), row.get("planted", {})
        numbers: list[str] = []
        for part, taken in zip(counted or (), (row.get("model"), row.get("coders")), strict=False):
            whole, time = sum(part.values(), Cost()), least(part, card) if card else None
            share = f"{100 * time / taken:.0f} %" if time and taken else ""
            numbers += [f"{whole.flop / 1e12:.3g}", f"{whole.bytes / 1e9:.3g}", ms(time), share]
        shares = [f"{100 * planted[name]:.3g} %" if name in planted else "" for name in ("dead", "most_frequent")]
        cells.append([row["name"], *(numbers or [""] * 8), *shares])
    return "What a step asks for, counted, and the time of it at the card's own peaks", headings, cells


def memory(rows: Sequence[Record]) -> Table:
    """What was held, against the estimate."""
    headings = [
        "row",
        "runs",
        "estimate",
        "reserved and context",
        "estimate of that",
        "allocated",
        "while loading",
        "context",
        "by the estimate",
    ]
    cells = []
    for row in rows:
        peaks = [row[name] for name in ("training", "ending") if name in row]
        loading, estimate = row.get("loading", {}), row.get("estimate")
        allocated = max((p["allocated"] for p in peaks), default=None)
        reserved = max((p["reserved"] for p in peaks if "reserved" in p), default=None)
        context = max((p["in_use"] - p["reserved_now"] for p in peaks[:1] if "in_use" in p), default=None)
        held = reserved + context if reserved is not None and context is not None else allocated
        off = f"{100 * estimate / held:.0f} %" if estimate and held else ""
        packs = ", ".join(map(str, row.get("packed", [])))
        said = "" if not packs else "refused" if row["refused"] else "one pack" if "," not in packs else f"packs of {packs}"
        shown = [gb(held), off, gb(allocated), gb(loading.get("reserved", loading.get("allocated"))), gb(context)]
        cells.append([row["name"], str(row["runs"]), gb(estimate), *shown, said])
    return "Memory at most, in training, evaluation and save", headings, cells


def peers(rows: Sequence[Record], others: Sequence[Record]) -> Table:
    """Other programs beside the rows whose work they do."""
    ours = {row["name"]: row for row in rows if "step" in row}
    cells = []
    for name in dict.fromkeys(peer["against"] for peer in others):
        mine = ours.get(name, {})
        if mine:
            cells.append(
                [
                    f"this project: {name}",
                    str(mine["runs"]),
                    ms(mine["step"]),
                    "1.00",
                    gb(mine["training"]["allocated"]),
                    mine["status"],
                ]
            )
        for peer in (p for p in others if p["against"] == name):
            ratio = f"{peer['step'] / mine['step']:.2f}" if mine and "step" in peer else ""
            cells.append([peer["name"], str(peer["runs"]), ms(peer.get("step")), ratio, gb(peer.get("allocated")), peer["status"]])
    return "The same work by other programs", ["", "coders", "step", "of ours", "allocated at most", "outcome"], cells


def checks(records: Sequence[Record]) -> Table:
    """What was tried first."""
    cells = [
        [r["name"], r["status"], f"{r.get('seconds', 0):.0f} s", (r.get("said", "").strip().splitlines() or [""])[-1]]
        for r in records
    ]
    return "Checks", ["what", "outcome", "time", "its last line"], cells


def waits(rows: Sequence[Record]) -> Table:
    """Where the processor waits."""
    cells = [
        [
            row["name"],
            ", ".join(f"{place} {times:g}" for place, times in sorted(row["waits"].items(), key=lambda w: -w[1])) or "none",
        ]
        for row in rows
        if "waits" in row
    ]
    return "Where the processor waits, times a step", ["row", "places"], cells


def profile(row: Record) -> Table:
    """Which kernels a step's time goes to."""
    cells = [[name[:100], ms(time / 1000), f"{calls:g}"] for name, time, calls in row["kernels"]]
    return f"Profile of two steps: {row['name']}", ["kernel", "own time a step", "calls a step"], cells


def faults(records: Sequence[Record]) -> Table:
    """The last line of what failed."""
    cells = [[r["name"], r["status"], (r["error"].strip().splitlines() or [""])[-1][:200]] for r in records if r.get("error")]
    return "What failed", ["what", "outcome", "last line of its errors"], cells


def tables(records: Sequence[Record]) -> list[Table]:
    """All tables that these records have something for."""
    by_kind: dict[str, list[Record]] = {}
    for record in records:
        by_kind.setdefault(record["kind"], []).append(record)
    rows, card = by_kind.get("row", []), next((c for c in by_kind.get("card", []) if "flop_per_s" in c), None)
    every = [checks(by_kind.get("check", [])), times(rows), work(rows, card), memory(rows), peers(rows, by_kind.get("peer", []))]
    every += [waits(rows), *(profile(row) for row in rows if row["profiled"] and "kernels" in row), faults(records)]
    return [table for table in every if table[2]]


def heading(records: Sequence[Record]) -> str:
    """What computed, and its peaks."""
    card = next((r for r in records if r["kind"] == "card"), None)
    if card is None or "card" not in card:
        return "The card was not measured."
    peaks = f"{card['flop_per_s'] / 1e12:.3g} TFLOP/s in a product of matrices, {card['bytes_per_s'] / 1e12:.3g} TB/s in a copy"
    about = "" if card["device"].startswith("cuda") else " No GPU: nothing here is about GPUs."
    return f"{card['card']}, torch {card['torch']}: {peaks}.{about}"
