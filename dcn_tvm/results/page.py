"""The report page: tables and charts of any number of results, in one file that fetches nothing.

Charts are drawn by Vega, tables are sorted and filtered by DataTables. Both are inside the page,
taken from the packages vl-convert-python and itables.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from dcn_tvm.report import write_page
from dcn_tvm.results.causes import sentences
from dcn_tvm.results.compare import TOLERANCE, Change, across
from dcn_tvm.results.file import Results
from dcn_tvm.results.merge import Place, place
from dcn_tvm.results.scaling import THREADS, Curve, curves

try:
    import altair
    import itables
    import jinja2  # noqa: F401 - of write_page, which imports it late
    import vl_convert

    from dcn_tvm.results import charts, tables
except ImportError as error:
    message = f"dcn-tvm report needs {error.name}: pip install 'dcn_tvm[report]'"
    raise ImportError(message) from error


def make(
    machines: Sequence[Results],
    path: Path,
    changes: Sequence[Change] | None = None,
    tolerance: float = TOLERANCE,
) -> Path:
    """Write the page.

    Args:
        machines: what was found, one per machine: see `merge`.
        path: of the page; its folders are made.
        changes: against older results, if there are any to compare with.
        tolerance: that the changes were judged by.

    Returns:
        The path.

    Raises:
        ImportError: a package of the extra `report` is missing, when this module is imported.
        ValueError: a row of a scaling curve lacks its size.
        OSError: the page cannot be written.

    Example:
        >>> from dcn_tvm.report import Machine
        >>> results = Results(Machine("some CPU", 2, {"torch": "2.6"}))
        >>> page = make([results], Path("report.html"))  # doctest: +SKIP
    """
    rows = [row for results in machines for row in results.rows]
    found = curves(rows)
    pairs = across(rows)
    shown = [tables.all_rows(rows), tables.key_figures(machines)]
    drawn: dict[str, dict[str, Any]] = {}
    if ranked := [row for row in rows if not row.sweep]:
        drawn["bars"] = charts.bars(ranked)
    if any(map(charts.on_roofline, rows)) and any(results.ceilings for results in machines):
        drawn["roofline"] = charts.roofline(machines)
    if found:
        drawn["scaling"] = charts.scaling(found)
        shown += [tables.growths(found), tables.sweep_rows(found)]
    if pairs:
        drawn["machines"] = charts.machines(pairs)
        shown.append(tables.across_machines(pairs))
    if changes is not None:
        shown.append(tables.changed(changes))
    plain = {table.name: table.plain() for table in shown if table.data}
    return write_page(
        "bench.html.j2",
        path,
        machines=[_described(results) for results in machines],
        rejections=[(results.machine, r) for results in machines for r in results.rejections],
        absent=_absent(machines),
        findings=[(results.machine, f) for results in machines for f in results.findings],
        rows=len(ranked),
        remarks=_remarks(found),
        changes=changes,
        tolerance=tolerance,
        drawn=drawn,
        tables=plain,
        data={"charts": _json(drawn), "tables": _json(plain)},
        vega=_vega(),
        datatables=_itables("dt_bundle.js"),
        datatables_style=_itables("dt_bundle.css"),
    )


def _absent(machines: Sequence[Results]) -> dict[tuple[str, str], list[str]]:
    """Return who is not installed and why, and on which machines."""
    found: dict[tuple[str, str], list[str]] = {}
    for results in machines:
        for item in results.absent.items():
            found.setdefault(item, []).append(results.machine.device)
    return found


def _described(results: Results) -> dict[str, Any]:
    """Return a machine, when it was measured, and on how many threads."""
    dates = sorted(row.date[:10] for row in results.rows)
    places = sorted({place(row) for row in results.rows})
    default = Place(results.machine.device, results.machine.threads)
    return {
        "places": [str(where) for where in places or [default]],
        "versions": results.machine.versions,
        "rows": len(results.rows),
        "dates": " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "",
    }


def _remarks(found: Sequence[Curve]) -> dict[str, Any]:
    """Return what is worse than linear, ours and others', and how many curves are not."""
    several = len({place(curve.rows[0]) for curve in found if curve.sweep != THREADS}) > 1
    said = [(curve, sentences(curve)) for curve in found]
    ours, others = (
        [
            f"{place(curve.rows[0])}: {text}" if several else text
            for curve, texts in said
            for text in texts
            if (curve.role == "ours") == own
        ]
        for own in (True, False)
    )
    fine = sum(not texts for _, texts in said)
    return {"ours": ours, "others": others, "curves": len(said), "fine": fine}


@cache
def _vega() -> str:
    """Return Vega, Vega-Lite of the version that the charts are written for, and Vega-Embed."""
    version = altair.SCHEMA_VERSION.removeprefix("v").rsplit(".", 1)[0]
    snippet = "window.vegaEmbed = vegaEmbed;"
    return _in_a_script(vl_convert.javascript_bundle(snippet, vl_version=version))


def _itables(name: str) -> str:
    """Return a file of the offline bundle of DataTables."""
    return _in_a_script(
        importlib.resources.files(itables).joinpath("html", name).read_text("utf-8")
    )


def _json(data: object) -> str:
    """Return data without spaces, which are a tenth of a page, and without markup."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c")


def _in_a_script(text: str) -> str:
    """Return a text that does not end the element that it stands in."""
    return text.replace("</script", "<\\/script").replace("</style", "<\\/style")
