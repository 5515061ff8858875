"""`dcn-tvm tune` as a user meets it: plans, outcomes, and one line for every mistake."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dcn_tvm import records, suites, workload
from dcn_tvm.__main__ import app
from dcn_tvm.errors import CompileError
from dcn_tvm.ops.roi_align import RoIAlignProblem
from dcn_tvm.records import Record
from dcn_tvm.tuning import session
from dcn_tvm.workload import Recording, Workload

ROI = ["roi_align", "channels=32", "output=2"]
ROI_SIZES = ["batch=1", "height=8", "width=8", "boxes=4", "stride=4"]
TINY = [*ROI, *ROI_SIZES]
CONV = ["deform_conv2d", "in=16", "out=16", "padding=1", "batch=1", "height=8", "width=8"]
WORKLOAD = Workload.of(
    RoIAlignProblem("float32", "nchw", 32, (2, 2)),
    {"batch": 1, "height": 8, "width": 8, "boxes": 4, "stride": 4},
)
PROGRAM = """
import argparse, helper, sys, torch, dcn_tvm
assert __name__ == "__main__"
argparse.ArgumentParser().parse_args()
helper.call(dcn_tvm, torch)
"""
HELPER = """
def call(dcn_tvm, torch):
    dcn_tvm.roi_align(torch.rand(1, 32, 8, 8), torch.tensor([[0., 1, 1, 20, 20]]), 2, 0.25)
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DCN_TVM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `session.tune` was asked; it does nothing."""
    asked: list[dict[str, Any]] = []

    def tune(problems: Sequence[Workload], **options: Any) -> list[Record]:
        asked.append({"problems": list(problems), **options})
        return []

    monkeypatch.setattr(session, "tune", tune)
    return asked


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["tune", *arguments])


def refused(*arguments: str, said: str) -> None:
    """Wrong arguments get one line on standard error, exit code 2 and no traceback."""
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_a_plan_is_told_and_nothing_done(tuned: list[Any], home: Path) -> None:
    result = call(*TINY, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "roi_align.forward float32 nchw channels 32" in result.stdout
    assert "vectors 2" in result.stdout
    assert result.stdout.splitlines()[-1] == "2 kernels, 4 trials"
    result = call(*CONV, "--dry-run", "--trials", "7")
    assert result.stdout.splitlines()[-1] == "3 kernels, 21 trials"
    result = call(*CONV, "--dry-run", "--kernel", "backward_weight", "--target", "x86-64-v3")
    if result.exit_code == 0:  # on another machine there is no such level
        assert "for x86-64-v3" in result.stdout
        assert result.stdout.splitlines()[-1].startswith("1 kernels")
    assert not tuned
    assert not home.exists()


def test_suites_have_the_types_asked_for(tuned: list[Any]) -> None:
    types = ["--dtype", "float32", "--dtype", "bfloat16", "--layout", "nhwc"]
    result = call("roi_align", "ps_roi_pool", *types, "--trials", "3", "--seed", "7", "--resume")
    assert result.exit_code == 0, result.output
    (asked,) = tuned
    count = len(suites.SUITES["roi_align"]) + len(suites.SUITES["ps_roi_pool"])
    met = [(w.problem.dtype, w.problem.layout) for w in asked["problems"]]
    assert sorted(met) == [("bfloat16", "nhwc")] * count + [("float32", "nhwc")] * count
    assert (asked["trials"], asked["seed"], asked["resume"]) == (3, 7, True)


def test_a_small_problem_is_tuned(home: Path) -> None:
    result = call(*TINY, "--kernel", "forward", "--trials", "2", "--threads", "1")
    assert result.exit_code == 0, result.output
    assert "roi_align.forward float32 nchw channels 32" in result.stdout
    assert "2 trials" in result.stdout
    assert "of 1 kernels run faster than by default; records: " in result.stdout
    (path,) = records.files(home / "tuning_logs")
    assert str(path.parent) in result.stdout
    (line,) = records.read(path)[0]
    assert (line.record.problem, line.record.trials) == (WORKLOAD.problem, 2)
    again = call(*TINY, "--kernel", "forward", "--trials", "2", "--threads", "1", "--resume")
    assert "tuned before, on " in again.stdout
    assert len(records.read(path)[0]) == 1


def test_what_was_saved_of_a_model_is_tuned(tuned: list[Any], tmp_path: Path) -> None:
    met = Recording()
    for kernel in ("forward", "backward"):
        met.note(WORKLOAD.problem, WORKLOAD.sizes, kernel)
    met.save(tmp_path / "met.jsonl")
    assert call("--from-model", str(tmp_path / "met.jsonl")).exit_code == 0
    assert tuned[0]["problems"] == [WORKLOAD]


def test_a_program_is_run_as_python_does(tuned: list[Any], tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(PROGRAM)
    (tmp_path / "helper.py").write_text(HELPER)
    result = call("--from-model", str(tmp_path / "model.py"), "--trials", "5")
    assert result.exit_code == 0, result.output
    (met,) = tuned[0]["problems"]
    assert (met.problem, met.kernels) == (WORKLOAD.problem, ("forward",))
    assert not workload.listening()
    (tmp_path / "model.py").write_text(f"{PROGRAM}\nsys.exit()")
    assert call("--from-model", str(tmp_path / "model.py")).exit_code == 0
    assert len(tuned) == 2


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import sys; sys.exit(3)", "ended with 3"),
        ("import sys; sys.exit('no weights')", "ended with 'no weights'"),
        ("open('/nowhere/weights.pt')", "raised FileNotFoundError: [Errno 2]"),
        ("1 / 0", "raised ZeroDivisionError: division by zero"),
        ("def", "raised SyntaxError"),
        ("import torch", "calls no op of dcn_tvm"),
    ],
)
def test_a_program_that_fails_is_told(program: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(program)
    result = call("--from-model", str(path))
    assert (result.exit_code, result.stdout) == (2, "")
    *trace, line = result.stderr.splitlines()
    assert line.startswith(f"error: {path} {said}")
    # Whoever must mend the program sees where.
    assert bool(trace) == ("raised" in said)
    assert not trace or f'File "{path}", line 1' in result.stderr
    assert not workload.listening()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a suite, or an op with its fields, or say --from-model FILE"),
        (["nosuch"], "suite must be one of deform_conv2d"),
        (["nosuch", "in=4"], "op must be one of deform_conv2d"),
        (["in=4"], "op must be one of deform_conv2d"),
        (["deform_conv2d", "in=64"], "deform_conv2d also needs out_channels"),
        (["deform_conv2d", "in=64", "out=64"], "tuning also needs the sizes batch, height, width"),
        ([*CONV, "height=0"], "height must be positive, got 0"),
        ([*CONV, "roi_align"], "expected FIELD=VALUE, got roi_align"),
        (
            [*CONV, "--kernel", "sideways"],
            "kernel must be one of backward_data, backward_weight, forward, got sideways",
        ),
        ([*CONV, "--dtype", "float16"], "--dtype and --layout are for suites"),
        ([*CONV, "--target", "x86-64-v9"], "level must be one of"),
        ([*CONV, "--tracker", "host:9190"], "--tracker and --key belong together"),
        ([*CONV, "--key", "boards"], "--tracker and --key belong together"),
        ([*CONV, "--tracker", "host", "--key", "k"], "tracker must be HOST:PORT, got 'host'"),
        (["roi_align", "--dtype", "int8"], "dtype must be one of float32"),
        (["roi_align", "--layout", "chwn"], "layout must be one of nchw"),
        (["--from-model", "/nowhere.py"], "cannot read /nowhere.py: No such file"),
        (["--from-model", "/nowhere.jsonl"], "cannot read /nowhere.jsonl: No such file"),
        (["--from-model", "/"], "cannot read /: Is a directory"),
        (["--from-model", "m.pt", "--dtype", "float16"], "--dtype and --layout are for suites"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], said: str, tuned: list[Any]) -> None:
    refused(*arguments, said=said)
    assert not tuned


@pytest.mark.parametrize("option", ["--trials", "--minutes", "--threads"])
def test_numbers_must_be_positive(option: str) -> None:
    result = call(*TINY, option, "0")
    assert result.exit_code == 2
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x80\x02PK\x03\x04", "must be a .py file or what record_problems saved"),
        (b"some text\n", "met.pt:1: "),
        (b"", "calls no op of dcn_tvm"),
    ],
)
def test_a_file_of_something_else_is_named(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "met.pt").write_bytes(content)
    refused("--from-model", str(tmp_path / "met.pt"), said=said)


def failed(*arguments: str, said: str) -> None:
    """What is not the user's mistake has exit code 1."""
    result = call(*arguments)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_a_tracker_that_is_not_there_is_told() -> None:
    failed(*TINY, "--tracker", "127.0.0.1:9", "--key", "boards", said="no tracker at 127.0.0.1:9: ")


def test_a_folder_that_is_none_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    failed(*TINY, "--output", str(tmp_path / "file"), said="Not a directory")
    monkeypatch.setenv("DCN_TVM_HOME", str(tmp_path / "file"))
    refused(*TINY, said="DCN_TVM_HOME must be a folder")
    monkeypatch.setenv("DCN_TVM_HOME", "/proc/nowhere")  # where root cannot write either
    failed(*TINY, said="/proc/nowhere")


def test_a_missing_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "find_compiler", lambda: None)
    failed(*TINY, said="tuning needs a C compiler")


def test_kernels_that_all_fail_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, *_: Any) -> None:
            raise CompileError("the default schedule cannot be built")

    monkeypatch.setattr(session, "Hunt", Broken)
    result = call(*TINY)
    assert result.exit_code == 1
    assert result.stdout.count("not tuned: the default schedule cannot be built") == 2
    assert "left" not in result.stdout


def test_what_is_left_is_told(tuned: list[Any]) -> None:
    assert "2 kernels are left: --resume goes on" in call(*TINY).stdout


def test_help_says_what_matters() -> None:
    text = " ".join(call("--help").stdout.split())
    for said in ("--from-model", "--dry-run", "--resume", "trusted networks", "HOST:PORT"):
        assert said in text


@pytest.mark.parametrize("command", [["tune", "roi_pool"], ["records", "check"]])
def test_a_missing_package_is_told(command: list[str]) -> None:
    code = f"""
import sys
sys.modules["xgboost"] = None
from dcn_tvm.cli import app
app({command!r}, prog_name="dcn-tvm")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == "error: tuning needs xgboost: pip install 'dcn_tvm[tune]'\n"
