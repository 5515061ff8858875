import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from results_cases import DEVICE, VERSIONS, ceilings, linear, results, row, sweep
from typer.testing import CliRunner, Result

from dcn_tvm.cli import report
from dcn_tvm.report import Machine
from dcn_tvm.results import Results, write
from dcn_tvm.results.compare import across, changes
from dcn_tvm.results.merge import merge, place
from dcn_tvm.results.scaling import curves

pytest.importorskip("altair", reason="the extra report is not installed")
pytest.importorskip("vl_convert", reason="the extra report is not installed")
pytest.importorskip("itables", reason="the extra report is not installed")

from dcn_tvm.results import charts, page, tables


def columns(table: tables.Table) -> dict[str, list[Any]]:
    """Return a table's cells by title."""
    return {c.title: [cells[i] for cells in table.data] for i, c in enumerate(table.columns)}


def values(spec: charts.Spec) -> list[dict[str, Any]]:
    """Return all data of a chart."""
    return [value for data in spec["datasets"].values() for value in data]


def params(spec: charts.Spec) -> dict[str, tuple[str, list[str]]]:
    """Return the selectors of a chart: their first values and options."""
    return {
        p["name"].removeprefix("chosen_"): (p["value"], p["bind"]["options"])
        for p in spec["params"]
        if "bind" in p
    }


def embedded(html: str, name: str) -> Any:
    """Return data that a page contains."""
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', html, re.S)
    assert found is not None
    return json.loads(found[1])


def test_every_row_is_in_the_table_with_all_it_carries() -> None:
    special = row(peak_mib=None, faults=12.0, records=("a", "b"), cache="cold", bound=None)
    found = columns(tables.all_rows([special, row(), *linear("batch")]))
    assert found["median, ms"] == [1.0, 1.0]
    assert found["p20, ms"] == [0.98, 0.98]
    assert found["roofline, %"] == [40.0, 40.0]
    assert found["GFLOP/s"] == [40.0, 40.0]
    assert found["peak, MiB"] == [None, 4.0]
    assert (found["records"][0], found["cache"][0], found["bound"][0]) == ("a; b", "cold", "")
    assert (found["device"][0], found["date"][0]) == (DEVICE, "2026-11-20")


def test_what_distinguishes_rows_is_shown() -> None:
    def shown(*rows: Any) -> set[str]:
        return {column.title for column in tables.all_rows(rows).columns if column.shown}

    assert shown(row(), row(cache="cold")) - shown(row()) == {"cache"}
    assert shown(row(), row(threads=8)) - shown(row()) == {"threads"}


def test_key_figures_are_means_over_problems() -> None:
    rows = [
        row(problem=problem, median_us=us, provider=provider, role=role, ratio=ratio)
        for problem, provider, role, us, ratio in (
            ("A", "dcn_tvm", "ours", 1000.0, 1.0),
            ("B", "dcn_tvm", "ours", 1000.0, 4.0),
            ("A", "torchvision", "peer", 9000.0, None),
            ("B", "torchvision", "peer", 4000.0, None),
        )
    ]
    here = Results(Machine(DEVICE, 2, VERSIONS), rows)
    found = columns(tables.key_figures([here]))
    assert (found["times as fast"], found["at least"], found["there"]) == ([6.0], [4.0], ["B"])
    assert (found["time / baseline"], found["roofline, %"]) == ([2.0], [40.0])
    alone = here._replace(rows=rows[:2])
    assert columns(tables.key_figures([alone]))["against"] == [""]


def test_bars_choose_among_what_there_is() -> None:
    chosen = params(charts.bars(results().rows))
    assert chosen["what"][1][:2] == ["deform_conv2d, forward", "deform_conv2d, forward+backward"]
    assert chosen["dtype"] == ("float32", ["all", "float32", "bfloat16"])
    assert chosen["layout"] == ("contiguous", ["all", "contiguous", "channels_last"])
    assert "machine" not in chosen
    both = params(charts.bars([*results(2).rows, *results(8).rows]))
    assert both["machine"][1] == [f"{DEVICE}, 2 threads", f"{DEVICE}, 8 threads"]


def test_ours_are_blue_and_what_is_no_competitor_grey() -> None:
    spec = charts.bars(results().rows)
    scale = spec["layer"][0]["encoding"]["color"]["scale"]
    colours = dict(zip(scale["domain"], scale["range"], strict=True))
    assert dict(spec["usermeta"]["legend"]) == colours
    assert list(colours) == ["dcn_tvm", "torchvision", "conv2d", "copy"]
    assert colours["dcn_tvm"] == "#0b5fa5"
    assert len(set(colours.values())) == 4


def test_the_roofline_has_both_roofs_of_each_type() -> None:
    spec = charts.roofline([results()])
    corners = [value for value in values(spec) if "roof" in value and value["dtype"] == "float32"]
    knees = {corner["roof"]: corner["x"] for corner in corners if corner["part"] == "knee"}
    assert knees == {"memory": 10.0, "cache": 2.0}
    for corner in corners:
        assert corner["y"] == pytest.approx(min(100.0, corner["x"] * 100.0 / knees[corner["roof"]]))
    points = [value for value in values(spec) if "variant" in value]
    assert {(point["x"], point["what"].split(",")[0]) for point in points} == {
        (2.5, "roi_align"),
        (75.0, "deform_conv2d"),
    }


def test_roofs_are_those_of_the_rows() -> None:
    found = results()
    both = found._replace(ceilings=(*found.ceilings, *ceilings(threads=1)))
    roofs = {value["machine"] for value in values(charts.roofline([both])) if "roof" in value}
    assert roofs == {str(place(found.rows[0]))}


def test_rows_without_operations_are_on_no_roofline() -> None:
    spec = charts.roofline([results(rows=(row(), row(flops=0)))])
    assert len([value for value in values(spec) if "variant" in value]) == 1


def test_scaling_shows_time_and_memory_where_there_is_some() -> None:
    spec = charts.scaling(curves(linear("batch", peak_mib=lambda x: 0.0 if x < 4 else 3.0)))
    assert params(spec)["metric"][1] == [charts.TIME, charts.MEMORY]
    shown = [(v["metric"], v["x"], v["y"]) for v in values(spec)]
    times = [(charts.TIME, x, x / 100) for x in (1, 2, 4, 8)]
    ends = [times[0], times[-1]]  # of the line of linear growth
    memory = [(charts.MEMORY, 4, 3.0), (charts.MEMORY, 8, 3.0)]
    assert sorted(shown) == sorted([*times, *ends, *memory, memory[0], (charts.MEMORY, 8, 6.0)])


def test_with_threads_linear_growth_falls() -> None:
    spec = charts.scaling(curves(sweep("threads", {1: 1000.0, 4: 500.0}, peak_mib=None)))
    assert sorted(v["y"] for v in values(spec)) == [0.25, 0.5, 1.0, 1.0]


def test_a_table_of_growths() -> None:
    peer = sweep("channels", {64: 1.0, 128: 4.0}, role="peer", provider="torchvision")
    threads = sweep("threads", {1: 1000.0, 2: 500.0})
    found = columns(tables.growths(curves([*peer, *linear("batch"), *threads])))
    assert found["against"] == ["batch", "threads", "channels"]
    assert found["time exponent"] == [1.0, None, 2.0]
    assert found["speed-up"] == [None, 2.0, None]
    assert found["verdict"] == ["linear or better", "linear or better", "worse than linear"]


def test_machines_are_compared_with_the_first() -> None:
    pairs = across([row(), row(threads=8, median_us=250.0), row(problem="P1")])
    found = columns(tables.across_machines(pairs))
    assert found[f"{DEVICE}, 2 threads, ms"] == [1.0]
    assert found[f"{DEVICE}, 8 threads, times the first"] == [0.25]


def test_a_page_with_everything(tmp_path: Path) -> None:
    machines = merge([results(2), results(8)])
    old = results(
        rows=[dataclasses.replace(r, ratio=r.ratio and r.ratio / 2) for r in results().rows]
    )
    path = page.make(machines, tmp_path / "new" / "page.html", changes(machines, [old]))
    html = path.read_text("utf-8")
    assert path.stat().st_size < 3e6
    for said in (
        f"{DEVICE}, 8 threads",
        "torch 2.15.0",
        "pip install openvino",
        "relative error 0.25 is above 1e-5",
        "time grows as channels^2.00 from 64 to 256: its operations grow as channels^2.00.",
        "In 2 of 4 curves",
        "by more than 10 %",
    ):
        assert said in html
    assert embedded(html, "charts").keys() == {"bars", "roofline", "scaling", "machines"}
    names = {"rows", "figures", "growths", "points", "machines", "changes"}
    assert embedded(html, "tables").keys() == names
    body = re.sub(r"<(script|style)\b.*?</\1>", "", html, flags=re.S)
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#|data:)""", body)


def test_one_machine_and_linear_growth_are_told(tmp_path: Path) -> None:
    html = page.make([results(rows=linear("batch"))], tmp_path / "page.html").read_text("utf-8")
    assert "of one machine" in html
    assert "All of ours grow linearly or better." in html
    assert "Against older results" not in html


def test_results_without_rows_make_a_page_that_says_so(tmp_path: Path) -> None:
    empty = Results(Machine(DEVICE, 2, VERSIONS))
    html = page.make([empty], tmp_path / "page.html", []).read_text("utf-8")
    assert "There are no rows" in html
    assert (embedded(html, "charts"), embedded(html, "tables")) == ({}, {})


def test_names_are_text_and_no_markup(tmp_path: Path) -> None:
    bad = "</script><b>x"
    found = results(rows=[row(problem=bad)], rejections=[], absent={"a": bad})
    html = page.make([found], tmp_path / "page.html").read_text("utf-8")
    assert bad not in html
    assert bad in str(embedded(html, "tables"))


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    report.register(app)
    return app


def call(app: typer.Typer, *arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write(results(), tmp_path / "now.json")
    return tmp_path / "now.json"


def test_the_command_names_the_page(app: typer.Typer, file: Path, tmp_path: Path) -> None:
    result = call(app, file, file, "-o", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    assert f"{len(results().rows)} rows of 1 machine, 1 wrong or failed" in result.output
    assert "page.html" in result.output
    assert (tmp_path / "page.html").exists()


def test_the_exit_code_tells_of_regressions(app: typer.Typer, file: Path, tmp_path: Path) -> None:
    def against(ratio: float, *more: object) -> Result:
        rows = [dataclasses.replace(r, ratio=r.ratio and r.ratio * ratio) for r in results().rows]
        write(results(rows=rows), tmp_path / "then.json")
        options = ("-o", tmp_path / "page.html", "--baseline", tmp_path / "then.json")
        return call(app, file, *options, *more)

    same, worse, better = against(1.0), against(0.8), against(1.2)
    assert (same.exit_code, worse.exit_code, better.exit_code) == (0, 1, 0), worse.output
    assert "regressions" in worse.output
    assert "regressions" not in better.output
    assert f"{len(results().rows)} slower" in worse.output
    assert (tmp_path / "page.html").exists()
    assert against(0.8, "--tolerance", 30).exit_code == 0


def test_nothing_to_compare_is_no_success(app: typer.Typer, file: Path, tmp_path: Path) -> None:
    rows = [dataclasses.replace(row, problem="another") for row in results().rows]
    write(results(rows=rows), tmp_path / "then.json")
    result = call(app, file, "-o", tmp_path / "p.html", "--baseline", tmp_path / "then.json")
    assert (result.exit_code, "nothing was compared" in result.output) == (2, True)


def test_wrong_input_is_told_in_a_line(app: typer.Typer, file: Path, tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("hello")
    (tmp_path / "schema.json").write_text('{"rows": [], "schema": 0}')
    for name, words in {
        "gone.json": "must be a file that can be read",
        "text.json": "is no file of results",
        "schema.json": "must have schema",
    }.items():
        for arguments in ((tmp_path / name,), (file, "--baseline", tmp_path / name)):
            result = call(app, *arguments, "-o", tmp_path / "page.html")
            assert result.exit_code == 2
            assert words in result.output
    assert call(app).exit_code == 2
    result = call(app, file, "-o", file)
    assert (result.exit_code, "another file than the results" in result.output) == (2, True)
    result = call(app, file, "-o", file / "page.html")
    assert (result.exit_code, "output must be" in result.output) == (2, True)
    assert not (tmp_path / "page.html").exists()


def test_what_is_missing_is_named(
    app: typer.Typer, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "dcn_tvm.results.page")
    monkeypatch.delattr("dcn_tvm.results.page")
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    result = call(app, file)
    assert result.exit_code == 2, "1 is a regression"
    assert "needs vl_convert: pip install 'dcn_tvm[report]'" in result.output
