"""The report page in a real browser: charts draw, tables sort and filter, nothing is fetched."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from results_cases import results

from dcn_tvm.report import Machine
from dcn_tvm.results import Results

pytest.importorskip("altair", reason="the extra report is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for path in map(shutil.which, BROWSERS) if path), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is installed"
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from dcn_tvm.results import page
    from dcn_tvm.results.compare import changes

    machines = [results(2), results(8)]
    where = tmp_path_factory.mktemp("report") / "report.html"
    return page.make(machines, where, changes(machines, [results(2)]))


@pytest.fixture(scope="module")
def opened(path: Path) -> Iterator[tuple[Any, list[str], list[str]]]:
    """Yield the page, what it asked for, and what its console complained of."""
    asked: list[str] = []
    complaints: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        context = browser.new_context(offline=True, viewport={"width": 1200, "height": 900})
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-drawn]", timeout=60_000)
        yield page, asked, complaints
        browser.close()


@pytest.fixture
def page(opened: tuple[Any, list[str], list[str]]) -> Iterator[Any]:
    page, _, complaints = opened
    yield page
    assert complaints == [], "the console complains"


def marks(page: Any, chart: str, kind: str) -> int:
    """Return how many marks of a kind a chart has drawn, without those of its legend."""
    return page.locator(f"#chart-{chart} svg g.mark-{kind}.role-mark > path").count()


def shown(page: Any, table: str, column: str) -> list[str]:
    """Return the cells of a column that a table shows."""
    titles = page.locator(f"#table-{table} thead th .dt-column-title").all_inner_texts()
    cells = f"#table-{table} tbody tr td:nth-child({titles.index(column) + 1})"
    return page.locator(cells).all_inner_texts()


def header(page: Any, table: str, column: str) -> Any:
    titles = page.locator(f"#table-{table} thead th .dt-column-title")
    at = titles.all_inner_texts().index(column)
    return page.locator(f"#table-{table} thead th").nth(at)


def count(page: Any, table: str) -> int:
    """Return how many rows a table says it has left."""
    words = page.locator(f"#table-{table}_info").inner_text().split()
    return int(words[words.index("of") + 1])


def test_every_chart_has_drawn(page: Any) -> None:
    charts = page.locator(".chart").all()
    assert [chart.get_attribute("id") for chart in charts] == [
        f"chart-{name}" for name in ("bars", "roofline", "scaling", "machines")
    ]
    assert marks(page, "bars", "rect") == 2 * 12  # four providers on three problems, with floors
    assert marks(page, "roofline", "symbol") == 48
    assert marks(page, "roofline", "line") == 2
    assert marks(page, "scaling", "symbol") == 2 * 3  # two machines
    assert marks(page, "machines", "rect") == 2 * 6
    for chart in charts:
        box = chart.locator("svg.marks").bounding_box()
        assert box["width"] > 600
        assert box["height"] > 60


def test_the_page_asks_for_nothing_but_itself(page: Any, opened: Any, path: Path) -> None:
    asked = opened[1]
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [path.as_uri()]


def test_what_files_say_is_no_markup(page: Any, tmp_path: Path) -> None:
    from dcn_tvm.results import page as pages

    text = "<img src=x onerror=document.title=1>"
    rows = [
        dataclasses.replace(row, device=device, provider=f"{row.provider}{text}", version=text)
        for device in (f"CPU {text}", "CPU")
        for row in results().rows
        if row.op == "roi_align"
    ]
    machines = [
        Results(Machine(device, 2, {text: text}), [r for r in rows if r.device == device])
        for device in dict.fromkeys(row.device for row in rows)
    ]
    other = page.context.new_page()
    other.goto(pages.make(machines, tmp_path / "report.html").as_uri())
    other.wait_for_selector("html[data-drawn]", timeout=60_000)
    other.locator("#table-machines_wrapper button", has_text="Columns").first.click()
    assert other.locator("img").count() == 0
    assert other.title() == "dcn_tvm measured"
    other.close()


def test_numbers_are_sorted_as_numbers(page: Any) -> None:
    title = header(page, "rows", "median, ms")
    title.locator(".dt-column-order").click()
    rising = [float(cell) for cell in shown(page, "rows", "median, ms")]
    assert rising == sorted(rising)
    assert len(set(rising)) > 3
    title.locator(".dt-column-order").click()
    falling = [float(cell) for cell in shown(page, "rows", "median, ms")]
    assert falling == sorted(falling, reverse=True)
    assert falling[0] > 100 > 20 > rising[0]  # as text, 9 would be above 100


def test_a_search_leaves_what_it_names(page: Any) -> None:
    before = count(page, "rows")
    search = page.locator("#table-rows_wrapper .dt-search input")
    search.fill("torchvision")
    assert count(page, "rows") == before / 5
    assert set(shown(page, "rows", "provider")) == {"torchvision"}
    search.fill("")
    assert count(page, "rows") == before


def test_a_column_is_filtered_by_a_list(page: Any) -> None:
    before = count(page, "rows")
    header(page, "rows", "type").locator(".dtcc-button_dropdown").click()
    page.locator(".dtcc-list button", has_text="bfloat16").click()
    assert count(page, "rows") == before / 5
    assert set(shown(page, "rows", "type")) == {"bfloat16"}
    page.locator(".dtcc-list button", has_text="bfloat16").click()
    page.locator("h1").click()
    assert count(page, "rows") == before


def test_a_column_of_numbers_is_filtered_by_their_size(page: Any) -> None:
    header(page, "rows", "ratio").locator(".dtcc-button_dropdown").click()
    page.locator(".dtcc-dropdown select").select_option("greater")
    page.locator(".dtcc-dropdown input").fill("9.5")
    page.wait_for_function(
        "document.querySelector('#table-rows_info').innerText.includes('filter')"
    )
    assert set(shown(page, "rows", "provider")) == {"torchvision"}
    page.locator(".dtcc-dropdown input").fill("")
    page.locator("h1").click()


def test_hidden_columns_can_be_shown(page: Any) -> None:
    titles = page.locator("#table-rows thead th .dt-column-title")
    assert "device" not in titles.all_inner_texts()
    page.locator("#table-rows_wrapper .buttons-colvis").click()
    page.locator(".dt-button-collection button", has_text="device").click()
    page.keyboard.press("Escape")
    assert "device" in titles.all_inner_texts()


def test_selectors_change_the_bars(page: Any) -> None:
    def bars() -> list[str]:
        path = "#chart-bars svg g.mark-rect.role-mark > path"
        return [path.get_attribute("aria-label") for path in page.locator(path).all()]

    def select(name: str, value: str) -> list[str]:
        page.select_option(f"#chart-bars select[name=chosen_{name}]", value)
        page.wait_for_timeout(150)  # Vega draws in its own time
        return bars()

    first = bars()
    assert first
    other = select("what", "roi_align, forward")
    assert len(other) == len(first)
    assert other != first
    assert set(other).isdisjoint(select("show", "times the baseline"))
    half = select("dtype", "bfloat16")
    assert half == []  # in this layout there are none
    assert len(select("layout", "all")) == len(first) / 4


def test_on_a_phone_nothing_is_wider_than_the_window(page: Any) -> None:
    page.set_viewport_size({"width": 400, "height": 800})
    page.wait_for_function("document.querySelector('#chart-bars svg.marks').clientWidth <= 400")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.set_viewport_size({"width": 1200, "height": 900})
