"""The fourth step, and the last: how long each row takes, beside its peers and its floor.

Contenders are those of `dcn_tvm.bench` that run on a device. All of a row rotate; each is timed by
its clock (`timing`). What is ours is compared with the oracle first, at sizes that it can do. The
floor is what the operations take at the rate of the library's matrix products, or the bytes at that
of a copy, each measured in the same run, whichever is longer.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import torch

from dcn_tvm import bridge, examples, kernels, measure
from dcn_tvm.agreement import relative_error
from dcn_tvm.bench import bench_of
from dcn_tvm.bench.clock import Clock, clock
from dcn_tvm.bench.contender import Call, Contender, OpBench
from dcn_tvm.build import Request
from dcn_tvm.device import machine, rows
from dcn_tvm.device.items import Context, Item
from dcn_tvm.device.journal import FAILED, Journal, Result
from dcn_tvm.device.precision import allowed, tolerance
from dcn_tvm.device.rows import Spec

STEP, TUNED_STEP = "benchmark", "tuned"
TUNED = "tuned"  # what a contender's name ends in where it follows records
MIN_ROUNDS, MAX_ROUNDS = 5, 50


def items(context: Context) -> Iterator[Item]:
    """Yield a row for every spec, all with default choices."""
    torch.backends.cudnn.benchmark = True  # peers at their best
    for spec in rows.specs(small=context.small):
        yield _item(spec, context, tuned=False)


def tuned_items(context: Context) -> Iterator[Item]:
    """Yield the rows for which there are records, with default choices and with those."""
    torch.backends.cudnn.benchmark = True
    bridge.forget()
    for spec in rows.specs(small=context.small):
        if has_records(spec, context.device):
            yield _item(spec, context, tuned=True)


def has_records(spec: Spec, device: str) -> bool:
    """Return whether records choose something for a kernel of the row."""
    target = rows.target_of(device, spec.precision)
    problem, sizes = spec.problem, spec.case.free_sizes
    found = rows.requests(problem, sizes, spec.workload().kernels, target)
    return any(choices for request in found for choices in request.recorded)


def _item(spec: Spec, context: Context, *, tuned: bool) -> Item:
    run = functools.partial(row, spec, context, tuned=tuned)
    return Item(spec.key, run, least_s=5.0, most_s=90.0)


def row(spec: Spec, context: Context, *, tuned: bool = False) -> Result:
    """Time a row's contenders; return times, floor, and what is wrong with ours."""
    bench = bench_of(spec.case.op)
    rates = machine.rates(Journal(context.out, machine.STEP).results())
    flops = bench.flops(spec.case, spec.mode)
    moved = bench.bytes_moved(spec.case, spec.setting(context.device))
    found: Result = {
        "op": spec.case.op,
        "problem": spec.case.label,
        "mode": spec.mode,
        "precision": spec.precision,
        "memory_format": spec.memory_format,
        "cache": "cold" if context.cold else "warm",
        "flops": flops,
        "bytes": moved,
        **floor(flops, moved, rates, spec.precision),
    }
    with allowed(spec.precision):
        error, wrong = _judged(bench, spec, context)
        times, absent = _times(bench, spec, context, tuned=tuned)
    found |= {"error": error, "times": times, "absent": absent}
    return {**found, "wrong": wrong} if wrong else found


def floor(flops: int, moved: int, rates: dict[str, float], precision: str) -> Result:
    """Return the least microseconds that the machine's two rates allow, and which of them does.

    Args:
        flops: operations.
        moved: bytes.
        rates: per microsecond, see `machine.rates`.
        precision: of the products.
    """
    if precision not in rates or "copy" not in rates:
        return {"floor_us": None, "bound": None}
    arithmetic, memory = flops / rates[precision], moved / rates["copy"]
    bound = "arithmetic" if arithmetic > memory else "memory"
    return {"floor_us": max(arithmetic, memory), "bound": bound}


def contenders(bench: OpBench, spec: Spec, device: str) -> list[Contender]:
    """Return who takes part: on a device, who can do the case, peers in their own format only."""
    kind = "cuda" if device.startswith("cuda") else "cpu"
    formats = {c.name: {setting.memory_format for setting in c.settings} for c in bench.contenders}
    return [
        c
        for c in bench.contenders
        if kind in c.devices
        and "cuda" in c.devices
        and c.role != "rest"
        and c.serves(spec.case)
        and spec.memory_format in formats[c.name]
    ]


@contextlib.contextmanager
def defaults() -> Iterator[None]:
    """Let kernels be those of default choices, whatever records say."""
    get = kernels.get

    def plain(request: Request) -> Callable[..., None]:
        return get(replace(request, recorded=()))

    with mock.patch.object(kernels, "get", plain):
        yield


def _by_default(call: Call) -> Call:
    """Return a call that takes default choices, whatever records say."""

    def plain() -> Sequence[torch.Tensor]:
        with defaults():
            return call()

    return plain


def _judged(bench: OpBench, spec: Spec, context: Context) -> tuple[float, str | None]:
    """Return the error of ours against the oracle, at sizes that it can do, and what is wrong."""
    sizes = examples.judged_sizes(spec.problem, spec.case.free_sizes)
    small, setting = spec.case.resized(**sizes), spec.setting(context.device)
    ours = next(c for c in bench.contenders if c.role == "ours")
    results = ours.prepare(small, setting)()
    with allowed("float32"):
        wanted = bench.oracle(small, setting)()
    error = relative_error(results, wanted)
    most = tolerance(spec.precision)
    return error, None if error <= most else f"error {error:.1e}, tolerance {most:.1e}"


def _times(
    bench: OpBench, spec: Spec, context: Context, *, tuned: bool
) -> tuple[list[Result], dict[str, str]]:
    """Return the contenders' times, and why others have none."""
    clocks: dict[str, Clock] = {}
    about: dict[str, Result] = {}
    absent: dict[str, str] = {}
    for contender in contenders(bench, spec, context.device):
        ours = contender.package == "dcn_tvm"
        for manner in ("", TUNED) if ours and tuned else ("",):
            name = f"{contender.name} {manner}".strip()
            if reason := contender.absent_because():
                absent[name] = reason
                continue
            try:
                call = contender.prepare(spec.case, spec.setting(context.device))
                timed = _by_default(call) if ours and not manner else call
                clocks[name] = clock(timed, context.device, cold=context.cold)
            except RuntimeError as error:  # NotImplementedError, CompileError, out of memory
                if ours:
                    raise
                absent[name] = str(error).splitlines()[0][:200]
                continue
            about[name] = {"name": name, "role": contender.role, "version": contender.version}
    turns = {name: made.turn for name, made in clocks.items()}
    timings = measure.rotate_turns(
        turns, seconds=context.seconds, min_rounds=MIN_ROUNDS, max_rounds=MAX_ROUNDS
    )
    return [_time(about[name], clocks[name], timing) for name, timing in timings.items()], absent


def _time(about: Result, made: Clock, timing: measure.Timing) -> Result:
    told: dict[str, Any] = {
        **about,
        "median_us": timing.median_us,
        "p20_us": timing.p20_us,
        "p80_us": timing.p80_us,
        "rounds": len(timing.rounds),
        "clock": made.kind,
    }
    return {**told, "why": made.why} if made.why else told


def found_rows(out: Any, step: str) -> list[Result]:
    """Return the rows that a step has measured."""
    results = Journal(out, step).results().values()
    return [result for result in results if "times" in result and result["outcome"] != FAILED]
