"""Rows, clocks, goals and tuning of `dcn-tvm gpu`, as far as they go without a device."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("tvm")

from dcn_tvm import bridge, gpu, kernels, ops, records, suites
from dcn_tvm.bench import bench_of, clock
from dcn_tvm.bench.contender import Setting
from dcn_tvm.device import (
    benchmark,
    goals,
    machine,
    prebuilt,
    precompile,
    report,
    rows,
    tune,
)
from dcn_tvm.device.items import Context
from dcn_tvm.device.journal import Journal
from dcn_tvm.device.rows import Spec
from dcn_tvm.records import Record

H200 = gpu.assumed("sm_90,name=NVIDIA H200,multiprocessors=132")
OP = "roi_align"


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(tmp_path / "out", "cpu", time.time() + 600, seconds=0.01, small=True)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with an H200, as far as it is only asked what it is."""
    monkeypatch.setattr(gpu, "of_device", lambda index: H200)


def test_rows_cover_the_suites_and_larger_batches() -> None:
    found = rows.specs()
    assert len({spec.key for spec in found}) == len(found)
    layers = [spec for spec in found if "conv" in spec.case.op]
    assert {spec.case.integer("batch") for spec in layers} == {1, 2, 16, 32}
    assert {spec.precision for spec in layers} == {"float32", "tf32", "float16", "bfloat16"}
    assert {spec.case.op for spec in found} == set(ops.registry())
    first = found[0]
    assert (first.mode, first.precision) == ("forward", "bfloat16")
    assert next(spec for spec in found if spec.case == layers[0].case).case.integer("batch") == 16
    for spec in found:
        if "conv" not in spec.case.op:
            assert spec.precision != "tf32"


@pytest.mark.usefixtures("device")
def test_kernels_are_asked_for_as_calls_ask_for_them() -> None:
    """What is compiled ahead is what the binding would request."""
    spec = next(spec for spec in rows.specs() if spec.precision == "tf32")
    target = rows.target_of("cuda", spec.precision)
    assert target == replace(H200, tf32=True)
    (request,) = rows.requests(
        spec.problem, spec.case.free_sizes, spec.workload().kernels, target, defaults=True
    )
    assert (request.kernel, request.outputs, request.recorded) == ("forward", ("output",), ())
    assert request.target == target
    assert request.problem.dtype == "float32"
    small = Context(Path("out"), "cuda", time.time(), small=True)
    found = list(precompile.requests(small))
    assert len(found) == len(set(found))
    assert {request.problem.op for request in found} == set(ops.registry())


def test_kernels_are_compiled_side_by_side(context: Context) -> None:
    wanted = [r for r in precompile.requests(context) if r.problem.op == "roi_pool"][:2]
    found = precompile.run(wanted, time.time() + 100, workers=1)
    assert sum(found.values()) == 2
    assert set(found) <= {"compiled", "there already"}
    assert precompile._make(wanted[0], time.time() - 1) == "no time"
    unknown = replace(wanted[0], target=replace(H200, kind="abacus"))
    assert precompile._make(unknown, time.time() + 9).startswith("failed: roi_pool.forward")


def test_a_row_has_times_work_and_floor(context: Context) -> None:
    journal = Journal(context.out, machine.STEP)
    for item in machine.items(context):
        if item.key in (machine.COPY, machine.PRODUCT.format("float32")):
            journal.end(item.key, {"outcome": "passed", **item.run()}, 0.1)
    spec = next(spec for spec in rows.specs(small=True) if spec.case.op == OP)
    found = benchmark.row(spec, context)
    assert "wrong" not in found
    assert {time["name"] for time in found["times"]} == {"dcn_tvm", "torchvision", "copy"}
    bench = bench_of(OP)
    assert found["flops"] == bench.flops(spec.case, "forward")
    assert found["bytes"] == bench.bytes_moved(spec.case, Setting())
    assert found["floor_us"] > 0
    assert found["bound"] in ("arithmetic", "memory")
    json.dumps(found)


def test_the_floor_is_the_longer_of_two_times() -> None:
    rates = {"copy": 4e6, "float16": 800e6}  # per microsecond: 4 TB/s, 800 TFLOP/s
    assert benchmark.floor(8_000_000_000, 4_000_000, rates, "float16") == {
        "floor_us": 10.0,
        "bound": "arithmetic",
    }
    assert benchmark.floor(8, 40_000_000, rates, "float16")["bound"] == "memory"
    assert benchmark.floor(8, 8, rates, "float32") == {"floor_us": None, "bound": None}


def test_a_row_that_is_wrong_says_so(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = next(spec for spec in rows.specs(small=True) if spec.case.op == OP)
    bench = bench_of(OP)
    wrong = replace(bench, oracle=lambda case, setting: lambda: [torch.tensor(1.0)])
    monkeypatch.setattr(benchmark, "relative_error", lambda *_: 0.5)
    monkeypatch.setattr(benchmark, "bench_of", lambda op: wrong)
    assert "error 5.0e-01" in benchmark.row(spec, context)["wrong"]


def _tuned(home: Path, spec: Spec) -> None:
    from dcn_tvm import target

    here = target.detect()
    (workload,) = [spec.workload()]
    request = kernels.request(workload.problem, "forward", ("output",), dict(workload.sizes))
    chosen = next(iter(kernels.explain(workload.problem, dict(workload.sizes)))).choices
    assert request.recorded == ()
    record = Record(
        problem=workload.problem,
        kernel="forward",
        sizes=dict(workload.sizes),
        choices=chosen,
        median_us=1.0,
        default_us=2.0,
        noise=0.01,
        trials=2,
        threads=here.cores,
        device=here.name,
        versions={},
        date="2026-01-01",
    )
    records.append(home / "tuning_logs", here.ids[0], [record])


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("DCN_TVM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(records.store, "shipped_root", lambda: tmp_path / "nothing")
    bridge.forget()
    yield tmp_path / "home"
    bridge.forget()


def test_tuned_rows_have_both_choices(context: Context, home: Path) -> None:
    spec = next(spec for spec in rows.specs(small=True) if spec.case.op == OP)
    assert not list(benchmark.tuned_items(context))
    _tuned(home, spec)
    (item,) = benchmark.tuned_items(context)
    assert item.key == spec.key
    found = item.run()
    assert {"dcn_tvm", "dcn_tvm tuned"} <= {time["name"] for time in found["times"]}
    assert tune.keep(context) == 1
    (kept,) = (path for path in (context.out / "records").rglob("*") if path.is_file())
    assert kept.name == "all.jsonl"
    (home / "tuning_logs").rename(home / "lost")
    tune.restore(context.out)
    assert len(records.files(records.user_root())) == 1


def test_records_are_left_out_of_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(kernels, "get", lambda request: seen.append(request.recorded))
    problem = suites.SUITES[OP][0].problem()
    request = kernels.Request(problem, "forward", ("output",), ((("a", 1),), None))
    kernels.get(request)
    with benchmark.defaults():
        kernels.get(request)
    assert seen == [((("a", 1),), None), ()]


def test_tuning_is_the_tuners_own_command(
    context: Context, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setattr(rows, "target_of", lambda device: H200)
    on_device = replace(context, device="cuda", small=False)
    command = tune.command(Path("model.jsonl"), on_device, 90.0)
    assert command[1:4] == ["-m", "dcn_tvm", "tune"]
    assert command[-2:] == ["--target", "cuda"]
    assert "--resume" in command
    assert command[command.index("--minutes") + 1] == "1.50"
    first = tune.workloads()[0]
    assert (first.problem.dtype, first.kernels) == ("bfloat16", ("forward",))

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        model = Path(command[command.index("--from-model") + 1]).read_text()
        assert len(model.splitlines()) == 2
        return subprocess.CompletedProcess(command, code, "1 of 2 kernels run faster\n", "error: x")

    monkeypatch.setattr(subprocess, "run", run)
    code = 0
    assert tune.tune(tune.workloads()[:2], on_device) == {
        "said": ["1 of 2 kernels run faster"],
        "records": 0,
    }
    code = 1
    assert tune.tune(tune.workloads()[:2], on_device)["wrong"] == "exit code 1: error: x"


def _row(op: str, mode: str, precision: str, form: str = "contiguous", **times: float) -> Any:
    roles = {"conv2d": "baseline", "copy": "baseline", "torchvision": "peer"}
    told = [
        {"name": name.replace("_tuned", " tuned"), "role": roles.get(name, "ours"), "median_us": us}
        for name, us in times.items()
    ]
    key = {"op": op, "problem": "p", "mode": mode, "precision": precision, "memory_format": form}
    return {
        **key,
        "times": told,
        "flops": 10**9,
        "bytes": 2**20,
        "floor_us": 2.0,
        "bound": "memory",
    }


CONV = "deform_conv2d"
ROWS = [
    _row(CONV, "forward", "float16", dcn_tvm=10, torchvision=60, conv2d=5),
    _row(CONV, "forward", "bfloat16", dcn_tvm=20, conv2d=16),
    _row(CONV, "forward", "bfloat16", "channels_last", dcn_tvm=15, conv2d=15),
    _row(CONV, "forward", "tf32", dcn_tvm=10, torchvision=20),
    _row(CONV, "forward+backward", "float32", dcn_tvm=100, torchvision=400),
    _row(OP, "forward", "float32", dcn_tvm=10, torchvision=8, copy=4),
    _row(OP, "forward+backward", "float32", dcn_tvm=30, torchvision=68, copy=9),
]
TUNED = [_row(CONV, "forward", "float16", dcn_tvm=10, dcn_tvm_tuned=8)]


def test_goals_are_ratios_of_the_rows() -> None:
    half, cost, single, both, pool, backward, tuned = goals.goals(ROWS, TUNED)
    assert sorted(half.values.values()) == [3.0, 4.0, 6.0]  # bfloat16 against float16's peer
    assert sorted(cost.values.values()) == [1.0, 1.25, 2.0]
    assert cost.most
    assert cost.reached
    assert cost.worst is not None
    assert "float16" in cost.worst
    assert (single.mean, single.reached) == (2.0, False)
    assert (both.mean, both.reached) == (4.0, True)
    assert (pool.mean, pool.reached) == (0.8, False)
    assert backward.mean == pytest.approx(3.0)  # (68 - 8) / (30 - 10)
    assert tuned.mean == pytest.approx(1.25)
    assert all(goal.reached is None for goal in goals.goals([], []))


def test_the_report_shows_goals_and_floors(context: Context) -> None:
    journal = Journal(context.out, benchmark.STEP)
    for number, row in enumerate(ROWS):
        journal.end(str(number), {"outcome": "passed", **row}, 0.5)
    journal.end("bad", {"outcome": "failed", "why": "no kernel"}, 0.5)
    text = report.write_report(context.out).read_text()
    assert "| benchmark | not finished | 7 | 1 | 0 | 4 |" in text
    assert "| benchmark | bad | no kernel |" in text
    assert "≥ 2.5 | 2.00 | no |" in text
    assert "| p | 1.00 | 1.0 | 2.0 memory | 5.0 (2.5) | 10.0 (5.0) | 60.0 (30.0) |" in text.replace(
        "| p | 1.00 | 1.0 | 2.0 memory | 10.0 (5.0) | 60.0 (30.0) | 5.0 (2.5) |",
        "| p | 1.00 | 1.0 | 2.0 memory | 5.0 (2.5) | 10.0 (5.0) | 60.0 (30.0) |",
    )
    assert "tuned, times as fast as by default | ≥ 1.15 | not measured" in text


class FakeCuda:
    """Stands in for torch.cuda: an event's time is the number of calls so far."""

    def __init__(self, *, captures: bool) -> None:
        self.now, self.captures, self.capturing = 0.0, captures, False
        self.flushed = 0

    def call(self) -> None:
        if not self.capturing:
            self.now += 0.25  # ms

    def namespace(self) -> SimpleNamespace:
        fake = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                self.at = 0.0

            def record(self) -> None:
                self.at = fake.now

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, end: Any) -> float:
                return float(end.at - self.at)

        class CUDAGraph:
            calls = 0

            def replay(self) -> None:
                fake.now += 0.2 * self.calls

        @contextlib.contextmanager
        def graph(made: Any, stream: Any) -> Iterator[None]:
            if not fake.captures:
                raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
            before, fake.capturing = fake.now, True
            yield
            fake.capturing = False
            assert fake.now == before
            made.calls = 12

        stream = SimpleNamespace(wait_stream=lambda other: None)
        return SimpleNamespace(
            Event=Event,
            CUDAGraph=CUDAGraph,
            Stream=lambda device: stream,
            default_stream=lambda device: stream,
            current_stream=lambda device=None: stream,
            stream=lambda s: contextlib.nullcontext(),
            graph=graph,
            synchronize=lambda device: None,
        )


def test_a_clock_replays_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(captures=True)
    monkeypatch.setattr(clock.torch, "cuda", fake.namespace())
    made = clock.clock(fake.call, "cuda")
    assert (made.kind, made.why) == ("graph", None)
    assert made.turn() == pytest.approx(200.0)  # 12 calls of a graph of 3000 us / 250 us


def test_a_clock_without_a_graph_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(captures=False)
    monkeypatch.setattr(clock.torch, "cuda", fake.namespace())
    made = clock.clock(fake.call, "cuda")
    assert made.kind == "events"
    assert made.why is not None
    assert "capturing" in made.why
    assert made.turn() == pytest.approx(250.0)


def test_a_bundle_has_the_kernels_of_the_rows() -> None:
    made = prebuilt.jobs("sm_90", small=True)
    wanted = {(job.request.problem.op, job.request.kernel) for job in made}
    assert wanted == {(o.name, k) for o in ops.registry().values() for k in o.kernels()}
    manners = {(job.code.tf32, job.code.deterministic) for job in made}
    assert manners >= {(False, False), (False, True)}
    assert len({str((job.request, job.code)) for job in made}) == len(made)
