"""What the child processes of a tuning session do: compile, measure, judge.

A candidate may hang the compiler, crash, or compute nonsense; it does so in a child process, which
is thrown away. Functions here take and return what can be pickled.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from dcn_tvm import build
from dcn_tvm.build import Request
from dcn_tvm.gpu import Gpu
from dcn_tvm.knobs import Choices, Knobs
from dcn_tvm.measure import Timing
from dcn_tvm.target import Target
from dcn_tvm.tuning.bench import Bench
from dcn_tvm.tuning.call import KernelCall, disagreement, judge, prepare
from dcn_tvm.workload import Sizes


def initialize() -> None:
    """Leave Ctrl-C to the parent, which has results to keep, and the terminal too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["DCN_TVM_PROGRESS"] = "0"


def make_library(request: Request, target: Target | Gpu, choices: Choices, path: Path) -> None:
    """Compile a point of a kernel's space to a library; no device is needed, whatever it is for."""
    scheduled = build.schedule(request, target, Knobs(dict(choices)))
    draft = path.with_suffix(f".{os.getpid()}{path.suffix}")
    build.link(build.compile(request, scheduled, target), draft)
    draft.replace(path)


def rotate(
    bench: Bench, request: Request, sizes: Sizes, libraries: Mapping[str, Path], seconds: float
) -> dict[str, Timing]:
    """Time libraries of one kernel in turn, on the same data."""
    return bench.rotate(libraries, _prepare(request, sizes).arguments, seconds)


def check(bench: Bench, request: Request, sizes: Sizes, library: Path, default: Path) -> str | None:
    """Compare a library's results with the reference, and at full size with the default's.

    Returns:
        What is wrong, or None.
    """

    def run(path: Path, call: KernelCall) -> None:
        bench.run(path, call.arguments, len(call.results))

    if wrong := judge(request, sizes, functools.partial(run, library)):
        return f"{wrong}, against the reference"
    call = _prepare(request, sizes)

    def results(path: Path) -> dict[str, Tensor]:
        for result in call.results.values():
            result.fill_(float("nan"))
        run(path, call)
        return {name: result.clone() for name, result in call.results.items()}

    wanted = results(default)
    for _ in range(bench.runs):
        if wrong := disagreement(request, results(library), wanted):
            return f"{wrong}, against the default schedule"
    return None


def usable(bench: Bench) -> bool:
    """Return whether this process can go on after something failed in it."""
    return bench.usable()


@functools.lru_cache(maxsize=1)
def _prepare(request: Request, sizes: Sizes) -> KernelCall:
    return prepare(request, sizes)
