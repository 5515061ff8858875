"""Ceilings: two measured rates that kernels of a machine hardly exceed, and the floor they give.

The roofline model (Williams, Waterman, Patterson 2009): an op that does `flops` operations and must
move `bytes` takes at least the longer of `flops / rate of matrix products` and `bytes / bandwidth`.
Caches make the bandwidth a function of how much is moved, so it is measured at several sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

GEMM, COPY = "gemm", "copy"
_HALF = ("bfloat16", "float16")


@dataclass(frozen=True)
class Ceiling:
    """One measured rate.

    Attributes:
        kind: "gemm", products of square matrices, or "copy", which reads and writes.
        dtype: of the elements.
        threads: of the CPU.
        size: the matrices' side, or the bytes that a copy reads and writes together.
        rate: GFLOP/s, or GB/s, of the best of some turns.
        device: the processor.
        date: UTC, ISO 8601.
    """

    kind: str
    dtype: str
    threads: int
    size: int
    rate: float
    device: str
    date: str


class Floor(NamedTuple):
    """The least time of a call, and what sets it: "arithmetic" or "memory"."""

    us: float
    bound: str


class Ceilings:
    """All measured ceilings of one machine.

    Example:
        >>> gemm = Ceiling("gemm", "float32", 2, 2048, 100.0, "CPU", "2026-01-01T00:00:00+00:00")
        >>> copy = Ceiling("copy", "float32", 2, 1 << 28, 20.0, "CPU", gemm.date)
        >>> Ceilings([gemm, copy]).floor(10**9, 10**6, "float32", 2)
        Floor(us=10000.0, bound='arithmetic')
    """

    def __init__(self, measured: Sequence[Ceiling]) -> None:
        self.measured = tuple(measured)

    def gemm(self, dtype: str, threads: int) -> float | None:
        """Return the highest rate of matrix products in GFLOP/s, None if none was measured.

        A half type's is at least that of float32, in which it can be computed.
        """
        if not self._of(GEMM, dtype, threads):
            return None
        dtypes = {dtype, "float32"} if dtype in _HALF else {dtype}
        return max(c.rate for d in dtypes for c in self._of(GEMM, d, threads))

    def bandwidth(
        self, bytes_moved: int, dtype: str, threads: int, *, cold: bool = False
    ) -> float | None:
        """Return the bandwidth in GB/s for so many bytes, None if none was measured.

        It is the best one of the largest measured copy that moves no more and of all larger ones.
        If cold, it is that of the largest of all, which comes from memory.
        """
        copies = sorted(self._of(COPY, dtype, threads), key=lambda c: c.size)
        if not copies:
            return None
        if cold:
            return copies[-1].rate
        start = max((c.size for c in copies if c.size <= bytes_moved), default=0)
        return max(c.rate for c in copies if c.size >= start)

    def floor(
        self, flops: int, bytes_moved: int, dtype: str, threads: int, *, cold: bool = False
    ) -> Floor | None:
        """Return the least time that the machine allows, None if a ceiling is missing."""
        rate = self.gemm(dtype, threads)
        bandwidth = self.bandwidth(bytes_moved, dtype, threads, cold=cold)
        if rate is None or bandwidth is None:
            return None
        arithmetic, memory = flops / rate / 1e3, bytes_moved / bandwidth / 1e3
        return Floor(max(arithmetic, memory), "arithmetic" if arithmetic > memory else "memory")

    def _of(self, kind: str, dtype: str, threads: int) -> list[Ceiling]:
        wanted = (kind, dtype, threads)
        return [c for c in self.measured if (c.kind, c.dtype, c.threads) == wanted]
