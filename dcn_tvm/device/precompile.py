"""Compiling side by side what the steps will call, into the build cache, before they call it.

It runs beside the first steps, which are not timed: in their order, so that it is mostly ahead of
them; where it is not, a step compiles for itself. `python -m dcn_tvm.device.precompile` does it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

from dcn_tvm import kernels, ops
from dcn_tvm.build import Request
from dcn_tvm.device import correctness, rows
from dcn_tvm.device.items import Context

_SPARED = 2  # cores, for the process that it runs beside
_NICENESS = 10


def requests(context: Context) -> Iterator[Request]:
    """Yield what the steps ask for, in their order, each kernel once."""
    seen: set[Request] = set()
    for request in _all(context):
        if request not in seen:
            seen.add(request)
            yield request


def _all(context: Context) -> Iterator[Request]:
    for check in correctness.checks(small=context.small):
        target = rows.target_of(context.device, check.precision)
        names = tuple(ops.registry()[check.case.op].kernels())
        yield from rows.requests(check.problem, check.sizes, names, target)
    for spec in rows.specs(small=context.small):
        target = rows.target_of(context.device, spec.precision)
        names = spec.workload().kernels
        sizes = spec.case.free_sizes
        yield from rows.requests(spec.problem, sizes, names, target, defaults=True)


def run(wanted: Iterable[Request], deadline: float, workers: int | None = None) -> Counter[str]:
    """Compile kernels until the deadline; return how many became what."""
    found: Counter[str] = Counter()
    count = workers or max(1, len(os.sched_getaffinity(0)) - _SPARED)
    with ProcessPoolExecutor(count, get_context("spawn"), initializer=_begin) as pool:
        try:
            futures = [pool.submit(_make, request, deadline) for request in wanted]
            for future in as_completed(futures):
                found[future.result()] += 1
        except BrokenProcessPool:  # a compiler crashed: the steps find out which kernel it was
            found["the compiler crashed"] += 1
    return found


def _begin() -> None:
    os.environ["DCN_TVM_PROGRESS"] = "0"
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)


def _make(request: Request, deadline: float) -> str:
    if time.time() > deadline:
        return "no time"
    before = kernels.build_count()
    try:
        kernels.get(request)
    except Exception as error:  # the step that needs it reports it
        return f"failed: {request}: {str(error).splitlines()[0][:200]}"
    return "compiled" if kernels.build_count() > before else "there already"


def main(arguments: Sequence[str]) -> None:
    """Compile what the steps of a context need, and print what became of it."""
    context = Context.from_json(arguments[0])
    start = time.perf_counter()
    found = run(requests(context), context.deadline)
    seconds = round(time.perf_counter() - start, 1)
    print("kernels:", json.dumps({**found, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
