"""What the runs show: plain against deformable, and how filters spread on objects of each size."""

from __future__ import annotations

import datetime
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from dcn_tvm.analysis import DilationRow, DilationTable
from dcn_tvm.report import Machine
from dcn_tvm.training.digits import Scenes
from dcn_tvm.training.loop import Outcome, load_network
from dcn_tvm.training.network import DigitBackbone
from dcn_tvm.training.plan import TaskName
from dcn_tvm.training.tasks import look, portions
from dcn_tvm.viz import SampledLayer, record_offsets

TITLES: dict[TaskName, str] = {
    "segmentation": "DeepLab",
    "rfcn": "R-FCN",
    "faster_rcnn": "Faster R-CNN",
}
# Limits between small, medium and large objects: areas in pixels of a scene.
AREAS = (16.0**2, 30.0**2)


@dataclass(frozen=True)
class Comparison:
    """One number of both variants of a network, in each seed."""

    task: TaskName
    metric: str
    plain: list[float]
    deformable: list[float]

    @property
    def title(self) -> str:
        """The network's name."""
        return TITLES[self.task]

    @property
    def gain(self) -> float:
        """The deformable network's mean less the plain one's."""
        return statistics.mean(self.deformable) - statistics.mean(self.plain)

    @property
    def seeds_better(self) -> int:
        """The seeds in which the deformable network is the better one."""
        return sum(d > p for p, d in zip(self.plain, self.deformable, strict=True))


@dataclass(frozen=True)
class Findings:
    """Everything that the report states; the outcomes are those that are compared.

    Attributes:
        machine: where the report was written.
        date: and when.
        outcomes: of every network in a comparison.
        minutes: that the steps of all runs took, with the one that the others start from.
        dilation: of each task's deformable network, that of the first seed.
    """

    machine: Machine
    date: str
    outcomes: Sequence[Outcome]
    dilation: dict[TaskName, list[DilationRow]]
    minutes: float

    def comparisons(self) -> list[Comparison]:
        """Return each number of each network, plain beside deformable."""
        found = []
        for task in dict.fromkeys(o.run.task for o in self.outcomes):
            sides = {side: self.of(task, side) for side in ("plain", "deformable")}
            for metric in sides["plain"][0].metrics:
                values = {s: [o.metrics[metric] for o in runs] for s, runs in sides.items()}
                found.append(Comparison(task, metric, **values))
        return found

    def of(self, task: TaskName, variant: str) -> list[Outcome]:
        """Return the outcomes of one side of a comparison, by seed."""
        chosen = [o for o in self.outcomes if (o.run.task, o.run.variant) == (task, variant)]
        return sorted(chosen, key=lambda outcome: outcome.run.seed)

    @property
    def workers(self) -> str:
        """The processes that shared the batches, and the threads of each."""
        pairs = dict.fromkeys((o.processes, o.threads) for o in self.outcomes)
        return ", ".join(f"{p} x {t}" for p, t in pairs)

    def growing(self, task: TaskName) -> list[bool]:
        """Return for each layer whether its dilation grows from small to medium to large."""
        layers: dict[str, dict[str, float]] = {}
        for row in self.dilation[task]:
            layers.setdefault(row.layer, {})[row.size] = row.mean
        return [sizes["small"] < sizes["medium"] < sizes["large"] for sizes in layers.values()]

    def save(self, path: Path) -> None:
        """Write everything but the losses as JSON."""
        content = asdict(self)
        for outcome in content["outcomes"]:
            del outcome["losses"]
        text = json.dumps(_without_nan(content), indent=1, allow_nan=False)
        path.write_text(text, encoding="utf-8")


def gather(outcomes: Sequence[Outcome], scenes: Scenes, folder: Path) -> Findings:
    """Return the findings; the first seed's deformable networks look at the scenes once more."""
    minutes = sum(outcome.seconds for outcome in outcomes) / 60
    outcomes = [outcome for outcome in outcomes if not outcome.run.upright]
    dilation = {
        o.run.task: measure_dilation(load_network(o.run, folder), scenes)
        for o in outcomes
        if o.run.deformable and o.run.seed == 0
    }
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return Findings(Machine.here(), date, outcomes, dilation, minutes)


@torch.no_grad()
def measure_dilation(network: nn.Module, scenes: Scenes) -> list[DilationRow]:
    """Return table 2 of the paper for a trained network."""
    table = DilationTable(DigitBackbone.stride, areas=AREAS)
    for part in portions(len(scenes)):
        with record_offsets(network) as recorded:
            look(network, scenes, part)
        layers = {n: r for n, r in recorded.items() if isinstance(r, SampledLayer)}
        height, width = scenes.images.shape[-2:]  # detectors pad small scenes
        table.add(layers, [scenes.boxes[i] for i in part], [(height, width)] * len(part))
    return table.rows()


def _without_nan(value: object) -> object:
    """Return JSON's content with null for numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
