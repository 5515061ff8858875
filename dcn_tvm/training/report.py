"""The training's report: tables on the console, and a page that needs no other file."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from dcn_tvm.analysis import SIZES
from dcn_tvm.report import write_page
from dcn_tvm.training import pictures
from dcn_tvm.training.digits import VARIED, Scenes
from dcn_tvm.training.findings import TITLES, Comparison, Findings, gather
from dcn_tvm.training.loop import Outcome, load_network
from dcn_tvm.training.plan import TaskName

# Dai et al., table 2: R-FCN on Pascal VOC, the mean for small, medium, large, background.
PAPER_DILATION = {
    "res5a": (2.2, 2.9, 4.2, 3.1),
    "res5b": (2.5, 3.1, 5.1, 3.2),
    "res5c": (5.3, 5.8, 8.4, 6.2),
}
_SHOWN = 6


def write(outcomes: Sequence[Outcome], scenes: Scenes, folder: Path, console: Console) -> Path:
    """Write `results.json` and `index.html`, print the tables, and return the page's path."""
    findings = gather(outcomes, scenes, folder)
    findings.save(folder / "results.json")
    _tell(findings, console)
    return write_page(
        "train.html.j2",
        folder / "index.html",
        findings=findings,
        comparisons=findings.comparisons(),
        dilation=[(TITLES[task], _by_layer(findings, task)) for task in findings.dilation],
        sizes=SIZES,
        sides=VARIED.sides,
        shown_score=pictures.SHOWN_SCORE,
        paper=PAPER_DILATION,
        growth=growth(findings),
        seconds=_seconds(findings),
        pictures=_draw(findings, scenes, folder),
    )


def _draw(findings: Findings, scenes: Scenes, folder: Path) -> dict[str, str]:
    """Return the pictures by name, of what the plan had."""
    networks = {
        (o.run.task, o.run.variant): load_network(o.run, folder)
        for o in findings.outcomes
        if o.run.seed == 0
    }
    busy = _busiest(scenes)
    drawn = {"losses": pictures.draw_losses(findings.outcomes)}
    rows = {TITLES[task]: found for task, found in findings.dilation.items()}
    drawn["dilation"] = pictures.draw_dilation(rows)
    for task, picture in (
        ("segmentation", pictures.draw_segmentations),
        ("rfcn", pictures.draw_detections),
    ):
        pair = {side: net for (name, side), net in networks.items() if name == task}
        if pair:
            drawn[task] = picture(pair, scenes, busy[:_SHOWN])
    looker = networks.get(("rfcn", "deformable"))
    if looker is not None:
        drawn["reach"] = pictures.draw_reach(looker, scenes, busy[0])
        drawn["fields"] = pictures.draw_fields(looker, scenes, busy[0])
        drawn["pooling"] = pictures.draw_pooling(looker, scenes, busy[:4])
    return drawn


def _busiest(scenes: Scenes) -> list[int]:
    """Return the scenes with digits of the most different sizes, the first ones first."""

    def contrast(number: int) -> float:
        boxes = scenes.boxes[number]
        if len(boxes) < 2:
            return 0.0
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        return float(areas.max() / areas.min())

    return torch.tensor([contrast(i) for i in range(len(scenes))]).argsort(descending=True).tolist()


def _by_layer(findings: Findings, task: TaskName) -> dict[str, dict[str, tuple[float, float]]]:
    """Return layer → size → mean and standard deviation."""
    table: dict[str, dict[str, tuple[float, float]]] = {}
    for row in findings.dilation[task]:
        table.setdefault(pictures.short_name(row.layer), {})[row.size] = row.mean, row.std
    return table


def _seconds(findings: Findings) -> dict[str, dict[str, float]]:
    """Return network → variant → milliseconds of a step, and parameters."""
    table: dict[str, dict[str, float]] = {}
    for task in dict.fromkeys(o.run.task for o in findings.outcomes):
        line = table.setdefault(TITLES[task], {})
        for side in ("plain", "deformable"):
            own = findings.of(task, side)
            line[f"{side} ms"] = statistics.median(o.step_ms for o in own)
            line[f"{side} parameters"] = own[0].parameters
    return table


def _tell(findings: Findings, console: Console) -> None:
    console.print(_scores(findings.comparisons()))
    console.print(_dilation(findings))
    console.print(f"Effective dilation grows with the digits' size in {growth(findings)}.")
    console.print(f"{findings.minutes:.1f} minutes of training; {findings.machine.line}")


def _scores(comparisons: Sequence[Comparison]) -> Table:
    table = Table(
        "network", "score", title="plain against deformable, on digits never trained with"
    )
    for column in ("plain", "deformable", "gain", "seeds better"):
        table.add_column(column, justify="right")
    for found in comparisons:
        table.add_row(
            found.title,
            found.metric,
            numbers(found.plain),
            numbers(found.deformable),
            f"{found.gain:+.3f}",
            f"{found.seeds_better} of {len(found.plain)}",
        )
    return table


def _dilation(findings: Findings) -> Table:
    table = Table("network", "layer", title="effective dilation, mean ± std (2 before training)")
    for size in SIZES:
        table.add_column(size, justify="right")
    for task in findings.dilation:
        for layer, sizes in _by_layer(findings, task).items():
            cells = [f"{mean:.2f} ± {std:.2f}" for mean, std in (sizes[s] for s in SIZES)]
            table.add_row(TITLES[task], layer, *cells)
    return table


def growth(findings: Findings) -> str:
    """Return in how many layers the effective dilation grows with the digits."""
    layers = [grows for task in findings.dilation for grows in findings.growing(task)]
    return f"{sum(layers)} of {len(layers)} layers"


def numbers(values: Sequence[float]) -> str:
    """Return each seed's number, and the mean of several."""
    each = " ".join(f"{value:.3f}" for value in values)
    return each if len(values) == 1 else f"{each}, mean {statistics.mean(values):.3f}"
