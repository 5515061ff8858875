"""Charts of the report page, as Vega-Lite specifications that contain their data.

Every chart has selectors, so that one of each kind shows every op. Widths follow the window.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import altair as alt

from dcn_tvm.results import drawing
from dcn_tvm.results.ceilings import COPY
from dcn_tvm.results.drawing import ALL, INK, OTHERS, OURS, PEERS, Choice, Hues, Spec, Values
from dcn_tvm.results.file import Results
from dcn_tvm.results.merge import Key, Place, place
from dcn_tvm.results.row import Row
from dcn_tvm.results.scaling import THREADS, Curve, position

TIME, RATIO = "time, ms", "times the baseline"
MEMORY = "peak memory, MiB"


def bars(rows: Sequence[Row]) -> Spec:
    """Return the times of one op and mode by problem and provider, as times or as ratios."""
    values = [_bar(row) for row in rows]
    choices = [
        drawing.choice(values, "what", "Op"),
        drawing.choice(values, "dtype", "Type", all_too=True, first="float32"),
        drawing.choice(values, "layout", "Layout", all_too=True, first="contiguous"),
        *drawing.choice_if_several(values, "cache", "Cache", first="warm"),
        *drawing.choice_if_several(values, "machine", "Machine"),
    ]
    return _bars(values, choices, "variant", "provider", drawing.hues(rows))


def machines(pairs: Mapping[Key, Mapping[Place, Row]]) -> Spec:
    """Return the times of one provider by problem and machine."""
    rows = [row for places in pairs.values() for row in places.values()]
    values = [_bar(row) for row in rows]
    ours = next((row.variant for row in rows if row.role == "ours"), rows[0].variant)
    choices = [
        drawing.choice(values, "what", "Op"),
        drawing.choice(values, "variant", "Provider", first=ours),
        *drawing.choice_if_several(values, "cache", "Cache", first="warm"),
    ]
    names = list(dict.fromkeys(v["machine"] for v in values))
    hues = dict(zip(names, cycle((OURS[0], *PEERS, *OTHERS)), strict=False))
    return _bars(values, choices, "machine", "machine", hues)


def roofline(machines: Sequence[Results]) -> Spec:
    """Return what was reached, and what the machine allows, by operational intensity."""
    rows = [row for results in machines for row in results.rows if on_roofline(row)]
    points = [_point(row) for row in rows]
    places = {place(row) for row in rows}
    roofs = [roof for results in machines for roof in _roofs(results, places)]
    span = drawing.widened([*(point["x"] for point in points), *(roof.knee for roof in roofs)])
    threads = next((str(place(r)) for r in rows), None)
    choices = [
        drawing.choice(points, "what", "Op", all_too=True, first=ALL),
        drawing.choice(points, "dtype", "Type", first="float32"),
        *drawing.choice_if_several(points, "machine", "Machine", first=threads),
    ]
    hues = drawing.hues(rows)
    shared = [choice for choice in choices if choice.field != "what"]
    x = alt.X(
        "x:Q", title="operations per byte moved", scale=drawing.log(span), axis=drawing.axis()
    )
    y = alt.Y("y:Q", title="GFLOP/s", scale=drawing.log(), axis=drawing.axis())
    corners = [corner for roof in roofs for corner in roof.corners(span)]
    lines = drawing.chosen(corners, shared).encode(x=x, y=y, detail="roof:N")
    parts = {"slope": {"align": "left", "dx": 14, "dy": 4}, "flat": {"align": "right", "dy": -7}}
    names = [
        lines.transform_filter(f"datum.part == '{part}'")
        .mark_text(fontSize=11, color=INK, **where)
        .encode(text="label:N")
        for part, where in parts.items()
    ]
    reached = (
        drawing.chosen(points, choices)
        .mark_point(filled=True, size=45, opacity=0.75)
        .encode(
            x=x,
            y=y,
            color=drawing.coloured("provider", hues),
            tooltip=drawing.tips("variant", "what", "problem", "machine", "x", "y", "share"),
        )
    )
    roof = lines.mark_line(color=INK, strokeWidth=1.5)
    return drawing.finished(alt.layer(roof, *names, reached), choices, 420, hues)


def on_roofline(row: Row) -> bool:
    """Return whether a roofline plot shows a row: it is of no sweep, and has operations."""
    return not row.sweep and row.flops > 0 and row.bytes_moved > 0


def scaling(curves: Sequence[Curve]) -> Spec:
    """Return time or memory along one sweep, with what linear growth of ours would be."""
    values = [value for curve in curves for value in _along(curve)]
    choices = [
        drawing.choice(values, "curve", "Curve"),
        drawing.choice(values, "metric", "Show"),
        *drawing.choice_if_several(values, "cache", "Cache", all_too=True, first=ALL),
        *drawing.choice_if_several(values, "machine", "Machine", all_too=True, first=ALL),
    ]
    rows = [row for curve in curves for row in curve.rows]
    x = alt.X("x:Q", title="the size that grows", scale=drawing.log(), axis=drawing.axis())
    y = alt.Y("y:Q", title=None, scale=drawing.log(), axis=drawing.axis())
    hues = drawing.hues(rows)
    color = drawing.coloured("provider", hues)
    apart = ["variant:N", "cache:N", "machine:N"]
    measured = drawing.chosen(values, choices).encode(x=x, y=y, color=color, detail=apart)
    linear = drawing.chosen(_linear(curves, values), choices).encode(x=x, y=y, detail=apart)
    chart = alt.layer(
        linear.mark_line(strokeDash=[5, 4], color="#888", strokeWidth=1.5),
        measured.mark_line(strokeWidth=1.5),
        measured.mark_rule(strokeWidth=1).encode(y="low:Q", y2="high:Q"),
        measured.mark_point(filled=True, size=40, opacity=1).encode(
            tooltip=drawing.tips("variant", "machine", "problem", "x", "y", "low", "high")
        ),
    )
    return drawing.finished(chart, choices, 380, hues)


def _bar(row: Row) -> dict[str, Any]:
    """Return what the bar of a row shows."""
    floor = None if row.floor_us is None else row.floor_us / 1e3
    return {
        "what": f"{row.op}, {row.mode}",
        "problem": row.problem,
        "provider": row.provider,
        "variant": row.variant,
        "dtype": row.dtype,
        "layout": row.memory_format,
        "cache": row.cache,
        "machine": str(place(row)),
        "ms": drawing.short(row.median_us / 1e3),
        "p20": drawing.short(row.p20_us / 1e3),
        "p80": drawing.short(row.p80_us / 1e3),
        "ratio": drawing.short(row.ratio),
        "floor": drawing.short(floor),
        "share": drawing.short(row.roofline),
    }


def _bars(values: Values, choices: list[Choice], offset: str, colour: str, hues: Hues) -> Spec:
    """Return bars on a log axis, from a power of ten or from the baseline, with the floors."""
    choices = [*choices, Choice("show", "Show", (TIME, RATIO), TIME)]
    time = f"chosen_show == '{TIME}'"
    base = (
        drawing.chosen(values, choices[:-1])
        .transform_calculate(
            value=f"{time} ? datum.ms : datum.ratio",
            least=f"{time} ? datum.floor : datum.ratio * datum.floor / datum.ms",
        )
        .transform_filter("datum.value > 0")
        .transform_calculate(lowest="datum.least > 0 ? min(datum.least, datum.value) : datum.value")
        .transform_joinaggregate(shortest="min(lowest)")
        .transform_calculate(
            start=f"{time} ? pow(10, floor(log(datum.shortest) / LN10)) : 1",
            end="max(datum.start, datum.value)",
        )
        .encode(
            y=alt.Y("problem:N", title=None, sort=None, axis=alt.Axis(labelLimit=230)),
            yOffset=alt.YOffset(f"{offset}:N", sort=None),
            tooltip=drawing.tips(
                "variant", "machine", "problem", "ms", "p20", "p80", "ratio", "floor", "share"
            ),
        )
    )
    x = alt.X("value:Q", title=None, scale=alt.Scale(type="log"), axis=drawing.axis())
    chart = alt.layer(
        base.mark_bar(height=alt.RelativeBandSize(0.85)).encode(
            x=x, x2="start:Q", color=drawing.coloured(colour, hues)
        ),
        base.transform_filter("datum.least > 0")
        .mark_tick(color=INK, thickness=2, size=10)
        .encode(x="least:Q"),
        base.mark_text(align="left", dx=4, fontSize=10, color=INK).encode(
            x="end:Q", text=alt.Text("value:Q", format=".3~r")
        ),
    )
    return drawing.finished(chart, choices, alt.Step(13, **{"for": "offset"}), hues)


def _point(row: Row) -> dict[str, Any]:
    shown = ("what", "dtype", "machine", "provider", "variant", "problem", "share")
    bar = _bar(row)
    x, y = drawing.short(row.flops / row.bytes_moved), drawing.short(row.gflop_per_s)
    return {**{name: bar[name] for name in shown}, "x": x, "y": y}


class _Roof(NamedTuple):
    """The roof of one way for the bytes: a slope up to the knee, then the rate of arithmetic."""

    fields: dict[str, str]
    name: str
    bandwidth: float  # GB/s
    peak: float  # GFLOP/s

    @property
    def knee(self) -> float:
        return self.peak / self.bandwidth

    def corners(self, span: tuple[float, float]) -> Values:
        """Return the line over a range of operations per byte."""
        low, high = span
        ends = (
            (low, self.bandwidth * low, "slope", f"{self.name}, {self.bandwidth:.3g} GB/s"),
            (self.knee, self.peak, "knee", ""),
            (high, self.peak, "flat", f"{self.peak:.3g} GFLOP/s"),
        )
        return [
            {**self.fields, "roof": self.name, "x": x, "y": y, "part": part, "label": label}
            for x, y, part, label in ends
        ]


def _roofs(results: Results, places: Container[Place]) -> list[_Roof]:
    """Return two roofs for each type and place of a row: out of memory and of a cache."""
    roofs = []
    kinds = dict.fromkeys((c.dtype, c.threads, c.device) for c in results.ceilings)
    for dtype, threads, device in kinds:
        measured = [
            c
            for c in results.ceilings
            if (c.dtype, c.threads, c.device) == (dtype, threads, device)
        ]
        copies = [c for c in measured if c.kind == COPY]
        peak = results.limits.gemm(dtype, threads)
        if peak is None or not copies or Place(device, threads) not in places:
            continue
        fields = {"dtype": dtype, "machine": str(Place(device, threads))}
        ways = {
            "memory": max(copies, key=lambda c: c.size),
            "cache": max(copies, key=lambda c: c.rate),
        }
        if ways["memory"] == ways["cache"]:
            del ways["cache"]
        roofs += [_Roof(fields, name, copy.rate, peak) for name, copy in ways.items()]
    return roofs


def _along(curve: Curve) -> Values:
    """Return the points of a curve, for each quantity that was measured along it."""
    points: Values = []
    metrics: dict[str, Callable[[Row], tuple[float | None, float | None, float | None]]] = {
        TIME: lambda row: (row.median_us / 1e3, row.p20_us / 1e3, row.p80_us / 1e3),
        MEMORY: lambda row: (row.peak_mib, row.peak_mib, row.peak_mib),
    }
    for metric, measured in metrics.items():
        for row in curve.rows:
            y, low, high = measured(row)
            if y:  # a log axis has no zero
                points.append(
                    {
                        **_curve_fields(curve, metric),
                        "x": position(row),
                        "y": drawing.short(y),
                        "low": drawing.short(low),
                        "high": drawing.short(high),
                        "problem": row.problem,
                    }
                )
    return points


def _curve_fields(curve: Curve, metric: str) -> dict[str, str]:
    row = curve.rows[0]
    threads = 0 if curve.sweep == THREADS else row.threads
    return {
        "curve": f"{curve.op}, {curve.mode}, against {curve.sweep}",
        "metric": metric,
        "variant": curve.variant,
        "provider": row.provider,
        "role": curve.role,
        "cache": curve.cache,
        "machine": str(Place(curve.device, threads)) if threads else curve.device,
    }


def _linear(curves: Sequence[Curve], values: Values) -> Values:
    """Return a line of linear growth from the first point of our first curve of each picture."""
    falling = {_curve_fields(c, "")["curve"] for c in curves if c.sweep == THREADS}
    pictures: dict[tuple[str, ...], Values] = {}
    fields = ("curve", "metric", "cache", "machine", "variant")
    for value in values:
        pictures.setdefault(tuple(value[field] for field in fields), []).append(value)
    lines: dict[tuple[str, ...], Values] = {}
    for where, points in sorted(pictures.items(), key=lambda item: item[1][0]["role"] != "ours"):
        first, last = points[0], points[-1]
        growth = last["x"] / first["x"]
        fall = first["curve"] in falling and first["metric"] == TIME
        end = {**first, "x": last["x"], "y": first["y"] * (1 / growth if fall else growth)}
        lines.setdefault(where[:-1], [first, end])
    return [point for line in lines.values() for point in line]
