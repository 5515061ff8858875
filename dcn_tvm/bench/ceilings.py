"""Measure the ceilings of a machine: products of matrices, and copies of several sizes.

The products are torch's own, of square matrices, by `@` and by a 1×1 convolution, which another
library may do better; copies fill memory that they have touched before.
Each rate is that of the best turn of the clock that times the contenders: a ceiling is what can be
reached, not what usually is.
"""

from __future__ import annotations

import datetime
import functools
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.nn import functional

from dcn_tvm.bench.clock import clock, last_cache_bytes
from dcn_tvm.report import Machine
from dcn_tvm.results.ceilings import COPY, GEMM, Ceiling

DTYPES = ("float32", "bfloat16", "float16", "float64")
SIDES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
_MANY_THREADS, _LARGE_SIDE = 16, 4096  # which smaller products do not keep busy
_LEAST_BYTES = 1 << 17  # of a copy: some of any first cache, and calling costs little beside it
_STEP = 4  # from one copy's bytes to the next one's
_BEYOND = 4  # times the last cache: the largest copy
_LEAST_LARGEST = 128 << 20  # bytes
_GPU_BYTES = 2 << 30
_SLOWEST = 5.0  # seconds for a product: float16 has no kernel worth the name on some CPUs
_TURNS = 5
_MAP_WIDTH = 32  # pixels, of a product as a convolution

Report = Callable[[str], None]


def thread_counts(most: int) -> list[int]:
    """Return 1, 2, 4 ... and `most` itself."""
    return sorted({*(1 << k for k in range(most.bit_length())), most} & set(range(1, most + 1)))


def measure(
    dtypes: Sequence[str] = DTYPES,
    threads: Sequence[int] | None = None,
    *,
    device: str = "cpu",
    seconds: float = 0.3,
    report: Report = lambda _: None,
) -> list[Ceiling]:
    """Return the rates of products and copies for each dtype and number of threads.

    Args:
        dtypes: of the elements.
        threads: of the CPU; torch's own number if absent.
        device: in torch's words.
        seconds: for each rate.
        report: is told what is being measured.
    """
    before = torch.get_num_threads()
    found: list[Ceiling] = []
    try:
        for count in threads or [before]:
            torch.set_num_threads(count)
            for dtype in dtypes:
                report(f"ceilings: {dtype}, {count} threads")
                found += _of_dtype(dtype, device, seconds)
    finally:
        torch.set_num_threads(before)
    return found


def copy_sizes(device: str = "cpu") -> list[int]:
    """Return the bytes of the copies, from what fits the first cache to what fits none."""
    if device.startswith("cuda"):
        return [1 << 24, _GPU_BYTES]
    sizes, most = [], max(_BEYOND * last_cache_bytes(), _LEAST_LARGEST)
    size = _LEAST_BYTES
    while size < most:
        sizes.append(size)
        size *= _STEP
    return [*sizes, most]


def _of_dtype(dtype: str, device: str, seconds: float) -> Iterator[Ceiling]:
    kind = getattr(torch, dtype)
    machine = Machine.here(device)

    def ceiling(what: str, size: int, rate: float) -> Ceiling:
        date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        return Ceiling(what, dtype, machine.threads, size, rate, machine.device, date)

    sides: Sequence[int] = SIDES[device.partition(":")[0]]
    if device == "cpu" and machine.threads > _MANY_THREADS:
        sides = (*sides, _LARGE_SIDE)
    for side in sides:
        us = min(_best_us(call, device, seconds) for call in _products(side, kind, device))
        yield ceiling(GEMM, side, 2 * side**3 / us / 1e3)
        if us > _SLOWEST * 1e6 / 8:  # twice the side takes eight times as long
            break
    for size in copy_sizes(device):
        source = torch.ones(size // 2 // kind.itemsize, dtype=kind, device=device)
        into = torch.ones_like(source)
        us = _best_us(functools.partial(into.copy_, source), device, seconds)
        yield ceiling(COPY, size, 2 * source.numel() * kind.itemsize / us / 1e3)


def _products(side: int, kind: torch.dtype, device: str) -> list[Callable[[], object]]:
    """Return the ways to multiply two square matrices; the pixels of the map are one's columns."""
    one, other = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    columns = other.view(1, side // _MAP_WIDTH, _MAP_WIDTH, side).permute(0, 3, 1, 2)
    return [lambda: one @ other, lambda: functional.conv2d(columns, one[..., None, None])]


def _best_us(call: Callable[[], object], device: str, seconds: float) -> float:
    turn = clock(call, device).turn
    start, found = time.perf_counter(), [turn()]
    while time.perf_counter() - start < seconds or len(found) < _TURNS:
        found.append(turn())
    return min(found)
