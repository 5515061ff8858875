"""Clocks: how long a call takes on a device.

On the CPU a turn is as many calls as fill some milliseconds, launching them included. On CUDA what
launching from Python takes does not count: a turn replays a CUDA graph of several calls between two
events; what cannot be captured is called in a loop between them. Calls find in the caches what the
one before left there, as in a network of such layers; with `cold`, the caches are overwritten
before each measured call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dcn_tvm import measure, target

Turn = Callable[[], float]  # takes one, and returns the mean microseconds of a call

TURN_US = 3000.0
MOST_CALLS = 64  # in a graph
_WARM_UPS = 3
_FLUSHED = 2  # times the cache is overwritten
_LEAST_FLUSHED = 64 << 20  # bytes: not every system says how large its last cache is
_PAUSE_S = 0.003  # after which OpenMP's threads sleep, whoever has woken them
_CPUS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True, eq=False)
class Clock:
    """A way to time one call.

    Attributes:
        turn: takes one.
        kind: "graph", "events" or "clock".
        why: no graph was captured, if so.
    """

    turn: Turn
    kind: str
    why: str | None = None


def clock(call: Callable[[], object], device: str, *, cold: bool = False) -> Clock:
    """Warm a call up and return a clock of it."""
    if not device.startswith("cuda"):
        turn = measure.turn_after(_flusher(device), call) if cold else measure.turn_of(call)
        return Clock(turn, "clock")
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        stream.wait_stream(torch.cuda.default_stream(device))
        for _ in range(_WARM_UPS):
            call()
        count = 1 if cold else _calls_per_turn(_events_turn(call, 1, None))
    torch.cuda.synchronize(device)
    flush = _flusher(device) if cold else None
    try:
        graph = captured(call, count, stream)
    except RuntimeError as error:
        torch.cuda.synchronize(device)
        return Clock(_events_turn(call, count, flush), "events", str(error).splitlines()[0][:200])
    return Clock(_events_turn(graph.replay, 1, flush, count), "graph")


def captured(call: Callable[[], object], count: int, stream: Any) -> torch.cuda.CUDAGraph:
    """Return a graph of some calls, which were made on the stream before.

    Raises:
        RuntimeError: something in the call cannot be captured.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(count):
            call()
    return graph


def _events_turn(
    call: Callable[[], object], count: int, flush: Callable[[], object] | None, each: int = 1
) -> Turn:
    """Return a turn of `count` calls, each of which does `each` of what is timed."""

    def turn() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if flush is not None:
            flush()
        start.record()
        for _ in range(count):
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e3 / (count * each)

    return turn


def _calls_per_turn(turn: Turn) -> int:
    return max(1, min(MOST_CALLS, round(TURN_US / max(min(turn() for _ in range(3)), 1e-3))))


def _flusher(device: str) -> Callable[[], object]:
    """Return what overwrites the device's last cache."""
    if device.startswith("cuda"):
        size = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 64 << 20)
        return torch.empty(_FLUSHED * size, dtype=torch.int8, device=device).zero_
    memory = torch.empty(max(_FLUSHED * last_cache_bytes(), _LEAST_FLUSHED), dtype=torch.int8)

    def flush() -> None:
        memory.zero_()
        time.sleep(_PAUSE_S)

    return flush


def last_cache_bytes(cpus: Path = _CPUS) -> int:
    """Return the bytes of the CPU's last caches together: large CPUs have several."""
    groups = {path.read_text() for path in cpus.glob("cpu[0-9]*/cache/index3/shared_cpu_list")}
    return target.detect().l3_bytes * max(1, len(groups))
