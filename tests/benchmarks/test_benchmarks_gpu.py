"""benchmarks/gpu/run.py and arithmetic.py as far as they need no GPU: what fits into the time, what is kept of a killed row, what operations cost."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from gpu import plant, result_tables, rows
from gpu.phases import Phase, Remembered, in_phases
from gpu.tasks import Record, Running, Task, limit, next_task, pace
from helpers.tiny_models import tiny_config
from helpers.trainers import train_alone
from ourselves import arithmetic
from ourselves.op_cost import Cost, Counting
from sae_transcoder.language_model import forward
from sae_transcoder.language_model.forward import Activations
from sae_transcoder.training.coder_trainer import CoderTrainer


def task(name: str, seconds: float, kind: str = "row", code: str = "") -> Task:
    return Task(kind, name, seconds, lambda _: [sys.executable, "-c", code])


def run(task: Task, limit: float) -> Record:
    running = Running(task, limit, {})
    while not running.ended():
        time.sleep(0.02)
    return running.record()


def test_what_does_not_fit_into_the_time_is_passed_over_for_what_does() -> None:
    tasks = [task("long", 100), task("short", 20), task("shorter", 10)]
    assert next_task(tasks, math.inf, 1).name == "long"
    assert next_task(tasks, 50, 1).name == "short"
    assert next_task(tasks, 50, 4).name == "shorter"
    assert next_task(tasks, 5, 1) is None
    assert next_task([Task("peer", "elsewhere", 1, lambda _: [], hindrance="missing"), *tasks], 50, 1).name == "short"


def test_the_pace_is_that_of_rows_and_a_row_is_killed_before_the_time_is_up() -> None:
    assert pace([]) == 1
    assert pace([(task("test", 10, "check"), 100.0)]) == 1
    assert pace([(task("a", 10), 20.0), (task("b", 10), 30.0), (task("c", 10), 300.0)]) == 3
    assert limit(task("a", 20), 1000, 2) == 150
    assert limit(task("a", 20), 40, 2) == 40
    assert limit(Task("check", "a", 20, lambda _: [], limit=60), math.inf, 1) == 60


def test_a_killed_row_leaves_what_it_told_and_no_process(tmp_path: Path) -> None:
    left = tmp_path / "left"
    child = f"import time, pathlib; time.sleep(2); pathlib.Path({str(left)!r}).touch()"
    code = f"""import subprocess, sys, time
print('a line of text'); print('{{"step": 0.5}}'); print('{{"coders": 0.', flush=True)
subprocess.Popen([sys.executable, '-c', {child!r}])
time.sleep(60)"""
    record = run(task("slow", 1, code=code), 1.0)
    assert record["status"] == "killed after 1 s"
    assert record["step"] == 0.5
    assert "coders" not in record
    time.sleep(1.5)
    assert not left.exists()


def test_a_row_that_fails_is_a_record_with_its_error_and_one_that_does_not_fit_says_so() -> None:
    failed = run(task("wrong", 1, code="raise SystemExit('no such kernel')"), 20)
    assert (failed["status"], failed["error"].strip()) == ("failed (1)", "no such kernel")
    full = run(task("large", 1, code="""print('{"status": "out of memory"}')"""), 20)
    assert (full["kind"], full["name"], full["status"]) == ("row", "large", "out of memory")


ROW = dict(kind="row", latents=64, runs=2, tokens=1000, profiled=True, status="done")
DONE = ROW | dict(
    name="whole",
    step=0.1,
    coders=0.06,
    model=0.04,
    waits={"run.py:1": 3.0},
    launches={"model": 100.0, "coders": 80.0},
    parts={"language_model.forward.capture": vars(Cost(1, 10**12, 10**9)), "select": vars(Cost(1, 10**12, 3 * 10**9))},
    kernels=[["gemm", 5.0, 2.0]],
    estimate=9 * 10**9,
    packed=[2],
    refused=False,
    training={"allocated": 7 * 10**9, "reserved": 8 * 10**9, "reserved_now": 8 * 10**9, "in_use": 10**10},
    ending={"allocated": 75 * 10**8, "reserved": 8 * 10**9, "reserved_now": 8 * 10**9, "in_use": 10**10},
)
CARD = dict(kind="card", name="the card", status="done", card="a card", device="cuda", torch="2", flop_per_s=1e14, bytes_per_s=1e12)


def cells(records: list[dict], title: str) -> list[dict[str, str]]:
    headings, rows = next((h, r) for t, h, r in result_tables.tables(records) if t.startswith(title))
    return [dict(zip(headings, row, strict=True)) for row in rows]


def test_tables_show_time_apart_per_run_and_against_the_cards_own_peaks() -> None:
    (row,) = cells([CARD, DONE], "A step, and its parts")
    assert (row["step"], row["model alone"], row["coders alone"]) == ("100 ms", "40 ms", "60 ms")
    assert (row["launches: model"], row["waits a step and run"], row["tokens/s x runs"]) == ("100", "1.5", "20,000")
    (work,) = cells([CARD, DONE], "What a step asks for")
    assert (work["model: TFLOP"], work["of its time"], work["of their time"]) == ("1", "25 %", "17 %")
    (held,) = cells([CARD, DONE], "Memory")
    assert (held["reserved and context"], held["estimate of that"], held["context"]) == ("10.00 GB", "90 %", "2.00 GB")
    assert cells([CARD, DONE], "Profile")[0]["kernel"] == "gemm"


def test_rows_that_did_not_end_are_rows_that_say_so() -> None:
    killed = ROW | dict(name="slow", status="killed after 90 s", step=0.2, error="Traceback\nlast words")
    full = ROW | dict(name="large", status="out of memory", estimate=10**11, packed=[1, 1], refused=True)
    rows = cells([DONE, killed, full], "A step, and its parts")
    assert [row["outcome"] for row in rows] == ["done", "killed after 90 s", "out of memory"]
    assert [row["step"] for row in rows] == ["100 ms", "200 ms", ""]
    assert cells([full], "Memory")[0]["by the estimate"] == "refused"
    assert cells([killed], "What failed")[0]["last line of its errors"] == "last words"


def test_other_programs_stand_beside_the_row_whose_work_they_do() -> None:
    peer = ROW | dict(kind="peer", name="another", against="whole", step=0.25, allocated=10**9)
    missing = peer | dict(name="third", status="missing", step=None)
    del missing["step"], missing["allocated"]
    ours, theirs, none = cells([DONE, peer, missing], "The same work")
    assert (ours["of ours"], theirs["of ours"], none["of ours"], none["outcome"]) == ("1.00", "2.50", "", "missing")


def test_batches_pass_through_the_phases_and_remembered_ones_need_no_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def capture() -> dict[str, Activations]:
        said.append("forward")
        return {"layers.1": Activations(torch.zeros(1), torch.ones(1))}

    @contextmanager
    def around() -> Iterator[None]:
        said.append("open")
        yield
        said.append("closed")

    monkeypatch.setattr(forward, "capture", capture)
    monkeypatch.setattr("gpu.phases.forward_of", capture)
    with in_phases([Phase(1, capture=capture), Phase(2, around, Remembered())], lambda number, seen: said.append(str(number))):
        for _ in range(4):
            forward.capture()
    assert said == ["forward", "0", "open", "forward", "1", "2", "closed", "forward", "3"]


def test_small_rows_are_all_rows_and_can_be_trained() -> None:
    assert len({row.name for row in rows.ROWS}) == len(rows.ROWS)
    for row, whole in zip(rows.rows(tiny=True), rows.rows(tiny=False), strict=True):
        work = row if isinstance(row, rows.Row) else row.row
        assert row.name == whole.name
        assert work.latents * rows.SMALL_SHAPES[work.model].width < 2**20
        assert 0 < work.k <= work.latents * (1 - work.dead) / 2


def test_what_is_planted_never_fires_or_always_does() -> None:
    cfg = tiny_config("sae", num_latents=64, k=4, batch_size=4)
    row = rows.Row("", "", 64, 0, k=4, dead=0.25, dense=True)
    run = CoderTrainer(cfg, {"layers.1": 32}, 4 * 8, torch.device("cpu"))
    torch.manual_seed(0)
    for number in range(4):
        values = torch.randn(4, 16, 32)
        plant.plant(row, [run], number, {"layers.1": Activations(values, values)})
        train_alone(run, torch.zeros(4, 16, dtype=torch.long), {"layers.1": Activations(values, values)})
    (idle,), (coder,) = run.tokens_since_fired.values(), run.coders.values()
    assert (idle[:16] == 3 * 64).all()
    assert idle[16] == 2 * 64  # one more with each batch
    assert idle[-1] == 0
    _, indices, _ = coder.encode(torch.randn(50, 32))
    assert (indices == 63).any(1).all()


def test_operations_cost_what_they_cost_by_hand() -> None:
    a, b, table = torch.ones(3, 4), torch.ones(4, 5), torch.ones(100, 4)
    indices, weights = torch.tensor([[0, 1], [2, 0], [1, 1]]), torch.ones(3, 2)
    with Counting("cpu") as product:
        (a @ b).view(5, 3).t()
    assert product.total == Cost(1, 2 * 3 * 4 * 5, 4 * (12 + 20 + 15))
    with Counting("cpu") as written:
        a.add_(1)
        a.zero_()
    assert written.total == Cost(2, 0, 4 * (24 + 12))
    with Counting("cpu") as bags:
        F.embedding_bag(indices, table, per_sample_weights=weights, mode="sum")
    assert (bags.total.flop, bags.total.gathered) == (2 * 6 * 4, 6 * 4 * 4)
    assert bags.total.bytes < 4 * 100 * 4, "rows that are not read do not count"
    query, key = torch.ones(2, 6, 10, 8), torch.ones(2, 3, 10, 8)
    with Counting("cpu") as attention:
        F.scaled_dot_product_attention(query, key, key, is_causal=True, enable_gqa=True)
    assert attention.total.flop == 2 * 2 * 2 * 6 * 10 * 10 * 8
    with Counting("cpu") as waiting:
        a[a[:, 0] > 0]
        a[a[:, 0] > 0] = 1.0
        a.sum().item()
    assert waiting.total.waits == 2


@pytest.mark.parametrize("dead", [0, 9])
def test_a_step_without_values_costs_what_it_costs_with_them(dead: int) -> None:
    shape = arithmetic.Shape(width=16, latents=64, sequences=2, length=32, k=4)
    real, without = Counting("cpu"), arithmetic.Assuming(64, dead)
    arithmetic.last_step(shape, dead, real)
    with arithmetic.path_of("cpu"):
        arithmetic.last_step(shape, dead, without)
    assert real.total.flop == without.total.flop
    assert real.total.gathered == without.total.gathered
    # embedding_bag returns more beside its sums on `meta`, and setting a scalar makes a tensor of it.
    assert real.total.bytes == pytest.approx(without.total.bytes, rel=0.06)
    assert real.total.launches == pytest.approx(without.total.launches, abs=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SmolLM2 x8, jumprelu"])
def test_a_row_is_measured_from_its_start_to_its_end(name: str, tmp_path: Path) -> None:
    script, out = Path(result_tables.__file__).with_name("run.py"), tmp_path / "records.jsonl"
    command = [sys.executable, script, "--small", "--only", "row", "--match", name, "--out", out]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    card, row = map(json.loads, out.read_text().splitlines())
    assert card["flop_per_s"] > 0
    assert (row["name"], row["status"]) == (name, "done"), row.get("error")
    assert min(row[part] for part in ("step", "model", "coders")) > 0
    model, coders = result_tables.costs(row)
    assert min(sum(cost.flop for cost in part.values()) for part in (model, coders)) > 0
    assert row["planted"]["most_frequent"] < 0.5, "thresholds are what k of a token's latents exceed"
