"""What a warm call costs beside its kernels: checks, dispatch, allocation, the bridge."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from dcn_tvm import measure
from dcn_tvm.bench import provenance
from dcn_tvm.bench.contender import Call, Setting, bench_of
from dcn_tvm.results import Finding
from dcn_tvm.suites import Case


def measure_overhead(case: Case) -> Finding:
    """Return the microseconds by which a forward call on a tiny image exceeds its bare kernels."""
    bench = bench_of(case.op)
    tiny = bench.shrink(case)
    ours = next(contender for contender in bench.contenders if contender.role == "ours")
    call = ours.prepare(tiny, Setting())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # waiting for threads would drown what is measured here
    try:
        timings = measure.rotate({"call": call, "bare": _bare(call)}, seconds=2, turn_us=2000)
    finally:
        torch.set_num_threads(threads)
    full, bare = timings["call"].rounds, timings["bare"].rounds
    overhead_us = statistics.median(full[r] - bare[r] for r in full.keys() & bare.keys())
    problem = f"{tiny.op} {tiny.label}"
    return Finding("call overhead beyond the kernel", ours.name, problem, overhead_us, "us")


def _bare(call: Call) -> Callable[[], None]:
    """Return the kernels that `call` runs, with their tensors at hand."""
    runs = [(function, tensors) for _, function, tensors in provenance.recorded(call)]

    def bare() -> None:
        for function, tensors in runs:
            function(*tensors)

    return bare
