"""Rows: what a benchmark found, each complete in itself, and the means over them."""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dcn_tvm.bench.contender import Contender, Setting
from dcn_tvm.measure import Timing
from dcn_tvm.report import Machine
from dcn_tvm.suites import Case


@dataclass(frozen=True)
class Row:
    """One provider's time for one problem in one setting, and where and when it was taken.

    `ratio` relates the time to the baseline's in the same memory format, if it has that, the
    baseline's own times to its contiguous one; in the network mode both without the time of the
    other ops. `gbyte_per_s` counts the bytes that the op must move at least, in the row's dtype.
    """

    op: str
    problem: str
    provider: str
    role: str
    version: str
    mode: str
    dtype: str
    memory_format: str
    median_us: float
    p20_us: float
    p80_us: float
    rounds: int
    gflop_per_s: float
    gbyte_per_s: float
    ratio: float | None
    device: str
    threads: int
    versions: dict[str, str]
    date: str

    @property
    def variant(self) -> str:
        """The provider with what distinguishes this row from its other ones."""
        formats = {"contiguous": "", "channels_last": " cl"}
        dtypes = {"float32": "", "bfloat16": " bf16"}
        return self.provider + dtypes[self.dtype] + formats[self.memory_format]


class Work(NamedTuple):
    """What one call does: operations, and the bytes it must move at least."""

    flops: int
    bytes_moved: int


def make_row(
    contender: Contender,
    setting: Setting,
    case: Case,
    timing: Timing,
    work: Work,
    ratio: float | None,
    machine: Machine,
) -> Row:
    """Return the row of one timing."""
    return Row(
        op=case.op,
        problem=case.label,
        provider=contender.name,
        role=contender.role,
        version=contender.version,
        mode=setting.mode,
        dtype=setting.dtype,
        memory_format=setting.memory_format,
        median_us=timing.median_us,
        p20_us=timing.p20_us,
        p80_us=timing.p80_us,
        rounds=len(timing.rounds),
        gflop_per_s=work.flops / timing.median_us / 1e3,
        gbyte_per_s=work.bytes_moved / timing.median_us / 1e3,
        ratio=ratio,
        device=machine.device,
        threads=machine.threads,
        versions=machine.versions,
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


@dataclass(frozen=True)
class Mean:
    """A geometric mean over the problems that two variants share, and the least favourable one."""

    variant: str
    against: str
    mean: float
    worst: float
    worst_problem: str
    problems: int


def variants(rows: Iterable[Row]) -> list[str]:
    """Return the variants in the order of their first row."""
    return list(dict.fromkeys(row.variant for row in rows))


def mean_ratio(rows: Iterable[Row], variant: str) -> float | None:
    """Return the geometric mean of a variant's ratios to the baseline."""
    ratios = [row.ratio for row in rows if row.variant == variant and row.ratio]
    return statistics.geometric_mean(ratios) if ratios else None


def speedups(rows: Sequence[Row]) -> list[Mean]:
    """Return how many times faster each of our variants is than each peer, by the medians.

    The rows must be of one mode. A mean is over the problems that the peer can do.
    """
    ours = variants(row for row in rows if row.role == "ours" and row.dtype == "float32")
    peers = variants(row for row in rows if row.role == "peer")
    means = (_speedup(rows, variant, peer) for variant in ours for peer in peers)
    return [mean for mean in means if mean is not None]


def half_speedups(rows: Sequence[Row]) -> list[Mean]:
    """Return how many times faster our bfloat16 is than our float32; rows of one mode."""
    halves = variants(row for row in rows if row.role == "ours" and row.dtype == "bfloat16")
    means = (_speedup(rows, half, half.replace(" bf16", "")) for half in halves)
    return [mean for mean in means if mean is not None]


def _speedup(rows: Sequence[Row], variant: str, against: str) -> Mean | None:
    """Return the mean over the problems of both, None if they share none."""
    times = {(row.variant, row.problem): row.median_us for row in rows}
    problems = [p for v, p in times if v == variant and (against, p) in times]
    ratios = {p: times[against, p] / times[variant, p] for p in problems}
    if not ratios:
        return None
    worst = min(ratios, key=lambda problem: ratios[problem])
    mean = statistics.geometric_mean(ratios.values())
    return Mean(variant, against, mean, ratios[worst], worst, len(ratios))
