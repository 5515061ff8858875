"""A CUDA device of this machine: kernels in graphs, timed by the device's own clock.

A call takes the host several microseconds, as many as a small kernel takes the device. So calls are
captured in a CUDA graph, which the device replays without the host, between two events. Scratch
comes from torch's allocator, within the graph too. All contenders work on the same data: what fits
the second cache is found there, as it would be where a call follows upon what wrote it.

A kernel that reads or writes where it must not takes its whole process with it: every later call of
CUDA fails there. `usable` says so, and the station that hears it begins a new process.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from dcn_tvm import kernels, measure
from dcn_tvm.gpu import Gpu
from dcn_tvm.measure import Timing
from dcn_tvm.tuning.bench import Bench

TURN_US = 2000.0
MAX_CALLS = 100  # of a graph; more would take longer to capture, and tell no more

Call = Callable[[], object]


@dataclass(frozen=True)
class Cuda(Bench):
    """A device.

    Attributes:
        gpu: its facts.
        index: torch's number of it.
    """

    gpu: Gpu
    index: int
    patience_s: ClassVar[float] = 20.0  # a device has no neighbours that could keep it so long
    seconds_each: ClassVar[float] = 0.1
    batch: ClassVar[int] = 16  # they compile side by side where there are cores for it
    runs: ClassVar[int] = 3

    def rotate(
        self, libraries: Mapping[str, Path], arguments: Sequence[Any], seconds: float
    ) -> dict[str, Timing]:
        """Time them by the device's clock."""
        with self._stream():
            placed = [self._place(argument) for argument in arguments]
            calls = {
                name: functools.partial(kernels.open_library(path, self.gpu), *placed)
                for name, path in libraries.items()
            }
            return measure.rotate_turns(turns(calls), seconds=seconds)

    def run(self, library: Path, arguments: Sequence[Any], outputs: int) -> None:
        """Call a kernel on copies of the tensors, and fetch what it filled."""
        with self._stream():
            placed = [self._place(argument) for argument in arguments]
            kernels.open_library(library, self.gpu)(*placed)
            pairs = zip(arguments, placed, strict=True)
            tensors = [pair for pair in pairs if isinstance(pair[0], Tensor)]
            for here, there in tensors[len(tensors) - outputs :]:
                here.copy_(there)

    def usable(self) -> bool:
        """Return whether the process can still use the device."""
        try:
            with self._stream():
                return int(torch.ones(1, device=f"cuda:{self.index}").sum()) == 1
        except RuntimeError:
            return False

    @contextmanager
    def _stream(self) -> Iterator[None]:
        """A stream, as the default one cannot be captured; an error of CUDA's in one line."""
        try:
            with torch.cuda.device(self.index), torch.cuda.stream(torch.cuda.Stream(self.index)):
                torch.cuda.empty_cache()  # of the graphs before
                yield
        except RuntimeError as error:  # what follows its first line is advice about debugging
            raise RuntimeError(str(error).strip().split("\n")[0]) from error

    def _place(self, argument: Any) -> Any:
        return argument.to(f"cuda:{self.index}") if isinstance(argument, Tensor) else argument


def turns(calls: Mapping[str, Call]) -> dict[str, Callable[[], float]]:
    """Return, for each call, what takes a turn on the current stream: its microseconds.

    A call that cannot be captured keeps all others from it: they are only compared alike.
    """
    once_us = {name: _once_us(call) for name, call in calls.items()}
    counts = {name: round(min(max(TURN_US / us, 1), MAX_CALLS)) for name, us in once_us.items()}
    replays = {name: max(round(TURN_US / us / counts[name]), 1) for name, us in once_us.items()}
    try:
        pool = torch.cuda.graph_pool_handle()  # for all: no scratch outlives its call
        bodies = {name: _captured(call, counts[name], pool) for name, call in calls.items()}
    except RuntimeError:
        torch.cuda.synchronize()  # raises if it was the kernel that failed, and not the capture
        bodies = {name: _repeated(call, counts[name]) for name, call in calls.items()}
    return {
        name: functools.partial(_turn_us, body, counts[name], replays[name])
        for name, body in bodies.items()
    }


def _once_us(call: Call) -> float:
    """Let a call load its code, then return about how long it takes."""
    call()
    once_us = _turn_us(call, 1, 1)
    return max(once_us if once_us > TURN_US else min(once_us, _turn_us(call, 1, 3)), 1e-3)


def _captured(call: Call, count: int, pool: Any) -> Call:
    """Return what replays so many calls in a row."""
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin(pool=pool)
    try:
        for _ in range(count):
            call()
    finally:
        graph.capture_end()
    graph.replay()  # the first time it is also brought to the device
    return graph.replay


def _repeated(call: Call, count: int) -> Call:
    def body() -> None:
        for _ in range(count):
            call()

    return body


def _turn_us(body: Call, count: int, replays: int) -> float:
    """Return the mean microseconds of the `count` calls that each replay makes."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(replays):
        body()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e3 / (count * replays)
