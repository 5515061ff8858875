"""What all charts of the report page share: selectors, colours, axes, and how wide they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, cycle
from typing import Any, NamedTuple

import altair as alt

from dcn_tvm.results.row import Row

Values = list[dict[str, Any]]
Spec = dict[str, Any]
Hues = dict[str, str]

ALL = "all"
OURS = ("#0b5fa5", "#5aa9e6")
PEERS = ("#d1690e", "#7b4ea3", "#1d8a6b", "#b8336a", "#8a6d1d")
OTHERS = ("#5b6470", "#9aa3ad", "#c3c9d0", "#7d8a99")  # baselines, floors and the rest
INK, FAINT = "#222", "#e3e6ea"


class Choice(NamedTuple):
    """A selector: the field of the data that it filters by, its label, options and first value."""

    field: str
    label: str
    options: Sequence[str]
    value: str

    @property
    def parameter(self) -> Any:
        """The parameter that the selector sets."""
        select = alt.binding_select(options=list(self.options), name=f"{self.label} ")
        return alt.param(name=f"chosen_{self.field}", bind=select, value=self.value)

    @property
    def filter(self) -> str:
        """The condition that a datum meets if it is chosen."""
        return f"(chosen_{self.field} == '{ALL}' || datum.{self.field} == chosen_{self.field})"


def chosen(values: Values, choices: Iterable[Choice]) -> Any:
    """Return a chart without marks of what is chosen."""
    chart = alt.Chart(alt.InlineData(values=values))
    return chart.transform_filter(" && ".join(choice.filter for choice in choices))


def choice(
    values: Values, field: str, label: str, *, all_too: bool = False, first: str | None = None
) -> Choice:
    """Return a selector of the values of a field, `first` first if it is one of them."""
    options = list(dict.fromkeys(value[field] for value in values))
    if all_too:
        options = [ALL, *options]
    if first is None or first not in options:
        first = next(option for option in options if option != ALL)
    return Choice(field, label, options, first)


def choice_if_several(values: Values, field: str, label: str, **how: Any) -> Iterable[Choice]:
    """Return a selector if there is something to choose."""
    if len({value[field] for value in values}) > 1:
        yield choice(values, field, label, **how)


def hues(rows: Iterable[Row]) -> Hues:
    """Return the colour of each provider: ours blue, what is no competitor grey."""
    roles = {row.provider: row.role for row in rows}
    ours = [name for name, role in roles.items() if role == "ours"]
    peers = [name for name, role in roles.items() if role == "peer"]
    others = [name for name in roles if name not in {*ours, *peers}]
    groups = ((ours, OURS), (peers, PEERS), (others, OTHERS))
    pairs = (zip(names, cycle(colours), strict=False) for names, colours in groups)
    return dict(chain.from_iterable(pairs))


def coloured(field: str, hues: Hues) -> Any:
    """Return the colour of marks by a field; the page has the legend, which wraps as text does."""
    scale = alt.Scale(domain=list(hues), range=list(hues.values()))
    return alt.Color(f"{field}:N", legend=None, scale=scale)


def log(domain: tuple[float, float] | None = None) -> Any:
    """Return a logarithmic scale, of this domain if one is given, else a bit around the data."""
    if domain is None:
        return alt.Scale(type="log", nice=False, padding=16)
    return alt.Scale(type="log", domain=list(domain), nice=False)


def axis() -> Any:
    """Return an axis with few, short numbers."""
    return alt.Axis(format="~g", tickCount=6, labelOverlap=True)


def tips(*fields: str) -> list[Any]:
    """Return what a pointer on a mark shows."""
    numbers = {"ms", "p20", "p80", "ratio", "floor", "share", "x", "y", "low", "high"}
    return [
        alt.Tooltip(f"{field}:Q", format=".3~g") if field in numbers else alt.Tooltip(f"{field}:N")
        for field in fields
    ]


def widened(numbers: Sequence[float]) -> tuple[float, float]:
    """Return a range around positive numbers on a log axis."""
    return (min(numbers) / 3, max(numbers) * 3) if numbers else (0.1, 1000.0)


def short(number: float | None) -> float | None:
    """Return a number with the digits that a page shows."""
    return None if number is None else float(f"{number:.4g}")


def finished(chart: Any, choices: Iterable[Choice], height: Any, hues: Hues) -> Spec:
    """Return the specification of a chart as wide as its place on the page, and its legend."""
    whole = (
        chart.add_params(*(choice.parameter for choice in choices))
        .properties(
            width="container",
            height=height,
            usermeta={"legend": list(hues.items())},
            autosize=alt.AutoSizeParams(type="fit-x", contains="padding", resize=True),
            padding={"left": 4, "top": 4, "bottom": 4, "right": 44},
        )
        .configure(font="system-ui, sans-serif")
        .configure_axis(
            gridColor=FAINT,
            domainColor="#999",
            tickColor="#999",
            labelColor=INK,
            labelFontSize=11,
            titleFontSize=12,
            titleFontWeight="normal",
        )
        .configure_view(stroke=None)
    )
    spec: Spec = whole.to_dict()
    return spec
