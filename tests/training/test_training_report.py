"""The training's report, and the command that makes it."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from dcn_tvm import training
from dcn_tvm.__main__ import app
from dcn_tvm.analysis import DilationRow
from dcn_tvm.report import Machine
from dcn_tvm.training import pictures
from dcn_tvm.training.digits import make_scenes
from dcn_tvm.training.findings import Comparison, Findings
from dcn_tvm.training.loop import Outcome
from dcn_tvm.training.plan import Run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what the quick command leaves."""
    folder = tmp_path_factory.mktemp("train")
    result = CliRunner().invoke(app, ["train", "--quick", "--output", str(folder)])
    assert result.exit_code == 0, result.output
    assert "seeds better" in result.output
    assert result.output.rstrip().endswith("index.html")
    return folder


def test_the_page_needs_no_other_file(folder: Path) -> None:
    page = (folder / "index.html").read_text()
    sources = re.findall(r'src="([^"]{0,40})', page)
    assert len(sources) == 7
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.findall(r"https?://", page)
    for title in ("DeepLab", "R-FCN", "Faster R-CNN"):
        assert page.count(title) >= 3


def test_the_results_are_complete_json(folder: Path) -> None:
    text = (folder / "results.json").read_text()
    content = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert len(content["outcomes"]) == len(training.quick_plan()) - 1  # one is where all start
    assert {row["size"] for row in content["dilation"]["rfcn"]} == {
        *("small", "medium", "large", "background")
    }
    for outcome in content["outcomes"]:
        assert outcome["seconds"] > 0
        assert all(0 <= value <= 1 or value == -1 for value in outcome["metrics"].values())


def test_an_output_that_is_no_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        result = CliRunner().invoke(app, ["train", "--quick", "--output", str(path)])
        assert result.exit_code == 2
        assert "output must be a folder" in result.output


def test_finished_runs_are_not_trained_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []
    whole = training.train

    def count(run: Run, *rest: object) -> torch.nn.Module:
        trained.append(run.name)
        return whole(run, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "train", count)
    first, *plan = training.quick_plan()[:3]
    console = Console(quiet=True)
    training.run_all(plan, folder, console)
    assert trained == []
    (folder / f"{plan[1].name}.json").unlink()
    training.run_all(plan, folder, console)
    assert trained == [plan[1].name]
    training.run_all([first, *plan], folder, console, fresh=True)
    assert trained[1:] == [first.name, plan[0].name, plan[1].name]


def outcome(deformable: bool, seed: int, score: float) -> Outcome:
    run = Run("rfcn", deformable, seed, steps=2)
    return Outcome(run, [1.0, 0.5], {"mAP@.5": score}, 60.0, 30.0, 10, 1, 1)


def test_comparisons_pair_the_seeds() -> None:
    outcomes = [outcome(d, s, v) for d, s, v in ((True, 1, 0.4), (False, 0, 0.2), (True, 0, 0.3))]
    outcomes.append(outcome(False, 1, 0.5))
    findings = Findings(Machine("m", 1, {}), "2020-01-01", outcomes, {}, 4.0)
    assert findings.comparisons() == [Comparison("rfcn", "mAP@.5", [0.2, 0.5], [0.3, 0.4])]
    only = findings.comparisons()[0]
    assert only.gain == pytest.approx(0)
    assert only.seeds_better == 1
    assert findings.workers == "1 x 1"


def test_growth_is_from_small_to_medium_to_large(tmp_path: Path) -> None:
    means = {"a": (1.0, 2.0, 3.0), "b": (1.0, 3.0, 2.0), "c": (1.0, math.nan, 2.0)}
    rows = [
        DilationRow(layer, size, mean, 0.1, 1)
        for layer, values in means.items()
        for size, mean in zip(("small", "medium", "large"), values, strict=True)
    ]
    findings = Findings(Machine("m", 1, {}), "2020-01-01", [], {"rfcn": rows}, 0.0)
    assert findings.growing("rfcn") == [True, False, False]
    findings.save(tmp_path / "results.json")
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["dilation"]["rfcn"][7]["mean"] is None


def test_the_background_filter_stands_clear_of_digits() -> None:
    scenes = make_scenes(20, 64, train=False, seed=1)
    for boxes in scenes.boxes:
        y, x = pictures._empty_place(boxes, 64)
        inside = (boxes[:, 0] <= x) & (x < boxes[:, 2]) & (boxes[:, 1] <= y) & (y < boxes[:, 3])
        assert 0 < y < 64
        assert 0 < x < 64
        assert not inside.any()
