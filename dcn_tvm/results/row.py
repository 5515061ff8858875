"""Rows: what a benchmark found, each complete in itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Size = int | str | tuple[int, int]

_SHORT_DTYPES = {"float32": "", "bfloat16": " bf16", "float16": " f16", "float64": " f64"}
_SHORT_FORMATS = {"contiguous": "", "channels_last": " cl"}


@dataclass(frozen=True)
class Row:
    """One provider's time for one problem in one setting, and where and when it was taken.

    Attributes:
        op: the op's name.
        problem: the problem in a few characters.
        sizes: all sizes and options of the call.
        provider: who computed it: `dcn_tvm`, a peer's name, or what a floor does.
        role: "ours"; "peer", the same function by others; "baseline", to whose time all others are
            related; "floor", another function that does as much; "rest", what the network mode
            does beside the op.
        version: of the provider's distribution.
        mode: "forward", "forward+backward" or "network".
        dtype: of the tensors.
        memory_format: "contiguous" or "channels_last".
        cache: "warm", if the data may lie in a cache since the call before, or "cold".
        clock: the CPU's "clock", a CUDA "graph", or "events", which count launching, too.
        sweep: the size that a scaling curve changes, of which this row is a point; else "".
        median_us: microseconds of a call, as are the quintiles `p20_us` and `p80_us`.
        p20_us: see there.
        p80_us: see there.
        rounds: turns of the provider, each a mean of some calls.
        flops: operations of a call; 0 for a copy.
        bytes_moved: what a call must read and write at least, each tensor once.
        gflop_per_s: `flops` over the median.
        gbyte_per_s: `bytes_moved` over the median.
        floor_us: an estimate of the least time on the machine: operations at the measured rate of
            matrix products or bytes at that of a copy, whichever takes longer. Reading alone can
            be faster than a copy, and pixels in no box need not be read.
        bound: which it is: "arithmetic" or "memory".
        roofline: `floor_us` over the median, 1 on the roofline.
        peak_mib: memory during a call beyond inputs and output.
        faults: pages that a call touched for the first time (minor page faults).
        ratio: the time over the baseline's in the same dtype and, if it has that, memory format;
            the median of the rounds' own ratios. In the network mode both without the other ops'
            time.
        error: relative, against the oracle.
        records: where the choices of each kernel of ours come from.
        device: the processor that computed it.
        threads: of the CPU.
        versions: of Python and everything that matters.
        date: UTC, ISO 8601.
    """

    op: str
    problem: str
    sizes: Mapping[str, Size]
    provider: str
    role: str
    version: str
    mode: str
    dtype: str
    memory_format: str
    cache: str
    sweep: str
    clock: str
    median_us: float
    p20_us: float
    p80_us: float
    rounds: int
    flops: int
    bytes_moved: int
    gflop_per_s: float
    gbyte_per_s: float
    floor_us: float | None
    bound: str | None
    roofline: float | None
    peak_mib: float | None
    faults: float | None
    ratio: float | None
    error: float | None
    records: tuple[str, ...]
    device: str
    threads: int
    versions: Mapping[str, str]
    date: str

    @property
    def variant(self) -> str:
        """The provider with what distinguishes this row from its other ones."""
        return self.provider + _SHORT_DTYPES[self.dtype] + _SHORT_FORMATS[self.memory_format]


@dataclass(frozen=True)
class Rejection:
    """A provider that is not ranked: its results are wrong, or it refused the problem."""

    op: str
    problem: str
    provider: str
    role: str
    version: str
    mode: str
    dtype: str
    memory_format: str
    kind: str  # "wrong" or "failed"
    error: float | None  # relative, of what is wrong
    reason: str


@dataclass(frozen=True)
class Finding:
    """One number about a provider that is not a time per call."""

    what: str
    provider: str
    problem: str
    value: float
    unit: str
