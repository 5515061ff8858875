"""`dcn-tvm records` on files as they may be found: whole, damaged, of later versions, outdated."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dcn_tvm import records, target
from dcn_tvm.__main__ import app
from dcn_tvm.measure import Timing
from dcn_tvm.ops.roi_align import RoIAlignProblem
from dcn_tvm.records import Record
from dcn_tvm.tuning import crew, session
from dcn_tvm.tuning.crew import Station
from dcn_tvm.workload import Workload

PROBLEM = RoIAlignProblem("float32", "nchw", 32, (2, 2))
SIZES = {"batch": 1, "height": 8, "width": 8, "boxes": 4, "stride": 4}
ID = target.detect().ids[0]


def choices_of() -> dict[str, int | str]:
    workload = Workload.of(PROBLEM, SIZES, ["forward"])
    (task,) = session.plan_tasks(workload, target.detect(), 1)
    return next(point for point in task.space.points() if point != task.space.default)


LEGAL = Record(
    problem=PROBLEM,
    kernel="forward",
    sizes=SIZES,
    choices=choices_of(),
    median_us=10.0,
    default_us=15.0,
    noise=0.01,
    trials=64,
    threads=1,
    device="A processor",
    versions={"dcn_tvm": "0.1.0"},
    date="2026-01-02",
)
DEFAULT = replace(LEGAL, kernel="backward", choices=None, median_us=15.0)
ILLEGAL = replace(LEGAL, sizes={**SIZES, "boxes": 9}, choices={"vectors": 977})
STRANGE = replace(LEGAL, sizes={**SIZES, "boxes": 10}, choices={"colour": 3})
NEWER = json.dumps({**json.loads(LEGAL.to_line()), "format": 2})
HALF = LEGAL.to_line()[:40]


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DCN_TVM_HOME", str(tmp_path))
    return tmp_path / "tuning_logs"


def write(root: Path, *lines: Record | str, target_id: str = ID) -> Path:
    path = root / target_id / "roi_align.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = (line if isinstance(line, str) else line.to_line() for line in lines)
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


def call(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["records", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_no_records_are_no_mistake(root: Path) -> None:
    for command in ("list", "check"):
        result = call(command)
        assert result.exit_code == 0, result.output
        assert f"no records in {root}" in result.stdout
    assert call("prune").stdout == "0 kept, 0 added, 0 removed\n"


def test_list_shows_what_won_and_names_what_cannot_be_read(root: Path) -> None:
    path = write(root, LEGAL, HALF, DEFAULT, NEWER)
    result = call("list")
    assert result.exit_code == 0, result.output
    rows = [line for line in result.stdout.splitlines() if line.startswith("│")]
    assert len(rows) >= 2
    text = " ".join(result.stdout.split())
    for said in ("1.50x", "1.00x", "2026-01-02", "boxes 4", "channels 32", "default"):
        assert said in text
    assert f"not used: {path}:2: a record must be JSON" in result.stderr
    assert f"not used: {path}:4: format 2 is newer" in result.stderr


def test_targets_and_roots_can_be_chosen(root: Path, tmp_path: Path) -> None:
    write(root, LEGAL)
    write(root, DEFAULT, target_id="x86-64-v2")
    text = call("list", "--target", "x86-64-v2").stdout
    assert "x86-64-v2" in text
    assert "backward" in text
    assert "forward" not in text
    elsewhere = tmp_path / "elsewhere"
    write(elsewhere, LEGAL)
    assert "forward" in call("list", "--root", str(elsewhere)).stdout
    assert call("list", "--shipped").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--root", "/nowhere"], "--root must be a folder, got /nowhere"),
        (["--root", "/", "--shipped"], "--root and --shipped exclude each other"),
        (["--target", "No Such"], "a target id must be lower-case letters"),
    ],
)
@pytest.mark.parametrize("command", ["list", "check"])
def test_mistakes_are_one_line(command: str, arguments: list[str], said: str) -> None:
    result = call(command, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_check_compiles_and_compares(root: Path) -> None:
    write(root, LEGAL, DEFAULT)
    result = call("check", "--seconds", "0.2")
    assert result.exit_code == 0, result.output
    assert f"{ID}/roi_align.jsonl:1: forward batch 1 boxes 4" in result.stdout
    assert "ok, " in result.stdout
    assert "as fast as the default" in result.stdout
    assert "2 records checked, 0 wrong" in result.stdout
    assert "default time / record time: geometric mean" in result.stdout


def test_check_finds_what_is_wrong(root: Path) -> None:
    path = write(root, ILLEGAL, DEFAULT, HALF, STRANGE, NEWER)
    result = call("check")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{ID}/roi_align.jsonl:1: forward ")
    assert "977" in lines[0]
    assert lines[1].endswith(": ok")
    assert "the record does not choose 'vectors'" in lines[2]
    assert lines[-1] == "3 records checked, 3 wrong"  # the damaged line is one of them
    assert f"not used: {path}:3: " in result.stderr


def test_check_of_a_later_versions_lines_is_no_failure(root: Path) -> None:
    write(root, NEWER, DEFAULT)
    result = call("check")
    assert result.exit_code == 0
    assert ":1: format 2 is newer" in result.stderr


def test_check_passes_over_other_machines_records(root: Path) -> None:
    write(root, ILLEGAL, target_id="some-other-cpu")
    result = call("check")
    assert result.exit_code == 0
    assert "this machine cannot run code for some-other-cpu" in result.stdout
    assert "0 records checked" in result.stdout


@pytest.mark.parametrize(
    "measured", [None, {"record": Timing({0: 2.0}), "default": Timing({0: 1.0})}]
)
def test_check_tells_of_wrong_results_and_crashes(
    measured: Any, root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = [tmp_path / "record.so", tmp_path / "default.so"]
    monkeypatch.setattr(crew.Compilers, "make", lambda *_: made)
    monkeypatch.setattr(Station, "check", lambda *_: None)

    def rotate(*_: Any) -> Any:
        if measured is None:
            raise RuntimeError("the process that ran it crashed")
        return measured

    monkeypatch.setattr(Station, "rotate", rotate)
    write(root, LEGAL)
    result = call("check", "--seconds", "1")
    if measured is None:
        assert result.exit_code == 1
        assert "boxes 4 height 8 stride 4 width 8: the process that ran it crashed" in result.stdout
    else:
        assert result.exit_code == 0
        assert "0.500x as fast as the default" in result.stdout
    monkeypatch.setattr(Station, "check", lambda *_: "output is wrong")
    result = call("check")
    assert result.exit_code == 1
    assert "output is wrong\n1 records checked, 1 wrong" in result.stdout


def test_merge_adds_the_better_and_names_what_it_cannot_read(root: Path, tmp_path: Path) -> None:
    path = write(root, LEGAL)
    other = write(tmp_path / "laptop", replace(LEGAL, median_us=5.0), HALF, DEFAULT)
    result = call("merge", str(tmp_path / "laptop"))
    assert result.exit_code == 0, result.output
    assert result.stdout == "2 kept, 2 added, 1 removed\n"
    assert f"passed over: {other}:2: " in result.stderr
    kept = {line.record.kernel: line.record.median_us for line in records.read(path)[0]}
    assert kept == {"forward": 5.0, "backward": 15.0}
    result = call("merge", str(tmp_path / "nowhere"))
    assert result.exit_code == 2
    assert "a source must be a file or folder of records" in result.stderr


def test_prune_keeps_the_last_that_replays(root: Path) -> None:
    path = write(root, LEGAL, DEFAULT, replace(LEGAL, choices={"vectors": 977}), ILLEGAL, HALF)
    result = call("prune")
    assert result.exit_code == 0, result.output
    assert "2 kept, 0 added, 2 removed" in result.stdout
    assert f"dropped: {path}:4: " in result.stdout
    assert f"dropped: {path}:3: " in result.stdout
    assert f"moved to the .damaged file beside it: {path}:5: " in result.stderr
    lines, damage = records.read(path)
    assert not damage
    assert sorted(line.record.kernel for line in lines) == ["backward", "forward"]
    assert call("prune").stdout == "2 kept, 0 added, 0 removed\n"
