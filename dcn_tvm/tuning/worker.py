"""What the child processes of a tuning session do: compile, measure, judge.

A candidate may hang the compiler, crash, or compute nonsense; it does so in a child process, which
is thrown away. Functions here take and return what can be pickled.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dcn_tvm import build, kernels, measure
from dcn_tvm.build import Request
from dcn_tvm.knobs import Choices, Knobs
from dcn_tvm.measure import Timing
from dcn_tvm.target import Target
from dcn_tvm.tuning import remote
from dcn_tvm.tuning.call import KernelCall, disagreement, judge, prepare
from dcn_tvm.tuning.remote import Tracker
from dcn_tvm.workload import Sizes

TURN_US = 4000.0


@dataclass(frozen=True)
class Bench:
    """Where kernels run: on this machine with so many threads, or on one behind a tracker."""

    threads: int
    tracker: Tracker | None = None


def initialize() -> None:
    """Leave Ctrl-C to the parent, which has results to keep, and the terminal too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["DCN_TVM_PROGRESS"] = "0"


def make_library(request: Request, target: Target, choices: Choices, path: Path) -> None:
    """Compile a point of a kernel's space to a library."""
    scheduled = build.schedule(request, target, Knobs(dict(choices)))
    draft = path.with_suffix(f".{os.getpid()}{path.suffix}")
    build.link(build.compile(request, scheduled, target), draft)
    draft.replace(path)


def rotate(
    bench: Bench, request: Request, sizes: Sizes, libraries: Mapping[str, Path], seconds: float
) -> dict[str, Timing]:
    """Time libraries of one kernel in turn, on the same data."""
    call = _prepare(request, sizes)
    if bench.tracker is not None:
        return remote.rotate(bench.tracker, libraries, call.arguments, seconds)
    torch.set_num_threads(bench.threads)
    calls = {
        name: functools.partial(kernels.open_library(path), *call.arguments)
        for name, path in libraries.items()
    }
    return measure.rotate(calls, seconds=seconds, min_rounds=3, turn_us=TURN_US)


def check(bench: Bench, request: Request, sizes: Sizes, library: Path, default: Path) -> str | None:
    """Compare a library's results with the reference, and at full size with the default's.

    Returns:
        What is wrong, or None.
    """
    torch.set_num_threads(bench.threads)

    def run(path: Path, call: KernelCall) -> None:
        if bench.tracker is None:
            kernels.open_library(path)(*call.arguments)
        else:
            remote.run(bench.tracker, path, call.arguments, len(call.results))

    if wrong := judge(request, sizes, functools.partial(run, library)):
        return f"{wrong}, against the reference"
    call = _prepare(request, sizes)
    found = []
    for path in (library, default):
        for result in call.results.values():
            result.fill_(float("nan"))
        run(path, call)
        found.append({name: result.clone() for name, result in call.results.items()})
    wrong = disagreement(request, *found)
    return f"{wrong}, against the default schedule" if wrong else None


@functools.lru_cache(maxsize=1)
def _prepare(request: Request, sizes: Sizes) -> KernelCall:
    return prepare(request, sizes)


def ready() -> dict[str, Any]:
    """Answer, so that a child's start is not counted as its first task's time."""
    return {"pid": os.getpid()}
