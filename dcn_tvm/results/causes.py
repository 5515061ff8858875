"""Causes: why a curve grows faster than linearly, from what its rows carry, in sentences."""

from __future__ import annotations

import math

from dcn_tvm.results.row import Row
from dcn_tvm.results.scaling import EFFICIENT, THREADS, Curve, Span, position, steep_spans

EXPLAINED = 0.15  # a cause whose exponent comes so near leaves nothing to explain
FEW_FAULTS = 100  # per call: less than half a mebibyte of fresh pages
SLOW_FAULT_US = 5.0  # no page fault takes longer: 0.1-2.5 us are usual, with virtual machines


def sentences(curve: Curve) -> list[str]:
    """Return what is worse than linear in a curve and why, in sentences; none if nothing is."""
    time = [_time_sentence(curve, span) for span in steep_spans(curve)]
    return time + [_memory_sentence(curve, span) for span in steep_spans(curve, memory=True)]


def causes(span: Span) -> list[str]:
    """Return why time grows faster than linearly: work, then roofline, then page faults.

    A cause that explains only a part is followed by the next one, and by the confession that
    something is left when none is.
    """
    if span.sweep == THREADS:
        return _thread_causes(span)
    found, explained = [], 1.0
    for cause in (_work, _roofline):
        text, exponent = cause(span, explained)
        if text:
            found.append(text)
            explained = max(explained, exponent)
            if span.time - explained <= EXPLAINED:
                return found
    text, enough = _faults(span, explained)
    found += [text] if text else []
    return found if enough else [*found, _unexplained(span, partly=bool(found))]


def _work(span: Span, explained: float) -> tuple[str, float]:
    """Return the faster growing one of operations and bytes, if faster than linearly."""
    growths = {
        "operations": span.exponent(lambda row: row.flops),
        "bytes": span.exponent(lambda row: row.bytes_moved),
    }
    name, exponent = max(growths.items(), key=lambda item: item[1] or 0.0)
    if not exponent or exponent < explained + EXPLAINED / 3:
        return "", 0.0
    return f"its {name} grow as {span.sweep}^{exponent:.2f}", exponent


def _roofline(span: Span, explained: float) -> tuple[str, float]:
    """Return how the bandwidth of the floor falls, if the floor grows faster than the work."""
    exponent = span.exponent(lambda row: row.floor_us)
    if exponent is None or exponent < explained + EXPLAINED / 3:
        return "", 0.0
    text = f"the roofline itself bends, growing as {span.sweep}^{exponent:.2f}"
    if (span.first.bound, span.last.bound) != ("memory", "memory"):
        return f"{text}, from {span.first.bound} to {span.last.bound}", exponent
    return f"{text}: {_copy(span.first)} runs in a cache, {_copy(span.last)} does not", exponent


def _copy(row: Row) -> str:
    """Return what the floor of a row copies, and how fast."""
    rate = row.bytes_moved / (row.floor_us or math.inf) / 1e3
    return f"a copy of {_size(row.bytes_moved)} at {rate:.3g} GB/s"


def _faults(span: Span, explained: float) -> tuple[str, bool]:
    """Return what page faults must take each to explain the rest, and whether they can."""
    if span.first.faults is None or span.last.faults is None:
        return "", False
    more = span.last.faults - span.first.faults * span.growth
    if more < FEW_FAULTS:
        return "", False
    expected_us = span.first.median_us * span.growth**explained
    each_us = (span.last.median_us - expected_us) / more
    text = (
        f"page faults appear, {span.last.faults:,.0f} in a call after {span.first.faults:,.0f} "
        "(large results are fresh pages in every call)"
    )
    if each_us > SLOW_FAULT_US:
        return f"{text}, which cannot be all: they would take {each_us:.2g} us each", False
    return f"{text}, which explains it if each takes {each_us:.2g} us", True


def _unexplained(span: Span, *, partly: bool) -> str:
    start = "the rest is" if partly else "this is"
    if span.first.roofline is None or span.last.roofline is None:
        return f"{start} not explained by work or page faults, and no roofline was measured"
    return (
        f"{start} not explained by work, roofline or page faults: the fraction of the roofline "
        f"went from {span.first.roofline:.2g} to {span.last.roofline:.2g}"
    )


def _thread_causes(span: Span) -> list[str]:
    """Return why more threads do not help as much as they should."""
    exponent = span.exponent(lambda row: row.floor_us)
    if exponent is not None:
        at_most = span.growth**-exponent
        if at_most < EFFICIENT * span.growth:
            text = f"the roofline itself becomes only {at_most:.2f} times as high"
            return [text] if span.speedup >= EFFICIENT * at_most else [text, _unexplained_threads()]
    return [_unexplained(span, partly=False)]


def _unexplained_threads() -> str:
    return "the rest is not explained"


def _time_sentence(curve: Curve, span: Span) -> str:
    ends = f"from {position(span.first):,.0f} to {position(span.last):,.0f}"
    why = "; ".join(causes(span))
    if curve.sweep == THREADS:
        return (
            f"{curve.name}: {ends} threads it becomes {span.speedup:.2f} times as fast, an "
            f"efficiency of {span.efficiency:.0%}: {why}."
        )
    return f"{curve.name}: time grows as {curve.sweep}^{span.time:.2f} {ends}: {why}."


def _memory_sentence(curve: Curve, span: Span) -> str:
    """Return how memory grows, and whether what the op moves grows as fast."""
    exponent, moved = span.memory or 0.0, span.exponent(lambda row: row.bytes_moved) or 0.0
    why = "not explained by the bytes that the op moves, which"
    if exponent - moved <= EXPLAINED:
        why = "what it moves grows alike, as the bytes"
    ends = f"from {position(span.first):,.0f} to {position(span.last):,.0f}"
    peaks = f"{span.first.peak_mib:.3g} to {span.last.peak_mib:.3g} MiB"
    return (
        f"{curve.name}: memory grows as {curve.sweep}^{exponent:.2f} {ends}, {peaks}: {why} grow "
        f"as {curve.sweep}^{moved:.2f}."
    )


def _size(count: int) -> str:
    return f"{count / 2**20:.3g} MiB" if count >= 2**20 else f"{count / 2**10:.3g} KiB"
