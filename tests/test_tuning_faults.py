"""What candidates do to the children that compile and measure them costs the candidates only."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import dcn_tvm
from dcn_tvm import build, records, target
from dcn_tvm.build import Request
from dcn_tvm.knobs import Choice, Choices
from dcn_tvm.ops.deform_conv2d import DeformConv2dProblem
from dcn_tvm.ops.roi_align import RoIAlignProblem
from dcn_tvm.space import Space
from dcn_tvm.target import Target
from dcn_tvm.tuning import crew, session, worker
from dcn_tvm.tuning.bench import Cpu
from dcn_tvm.tuning.crew import DEFAULT, Compilers, Station, Stations
from dcn_tvm.tuning.task import Task, Trial
from dcn_tvm.tuning.trial import Verdict
from dcn_tvm.workload import Workload

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # children cannot import it

CONV = Workload.of(
    DeformConv2dProblem("float32", "nchw", 16, 16),
    {"batch": 1, "height": 8, "width": 8},
    ["forward"],
)
ROI = RoIAlignProblem("float32", "nchw", 32, (2, 2))
ALIGNED = RoIAlignProblem("float32", "nchw", 32, (2, 2), aligned=True)
ROI_SIZES = {"batch": 1, "height": 8, "width": 8, "boxes": 4, "stride": 4}
# Kernels that fail as no kernel of ours does; they are also the fastest there are.
SOURCES = {
    "crashes": "*(volatile int *)0 = 0;",
    "hangs": "for (volatile int i = 0;; i++);",
    "does nothing": "",
}
make_library = worker.make_library


def faulty(
    faults: Mapping[str, str], request: Request, target: Target, choices: Choices, path: Path
) -> None:
    """Make a library of a point, or do what its fault is."""
    fault = faults.get(str(sorted(choices.items())))
    if fault in SOURCES:
        signature = "int __tvm_ffi_dcn_tvm_kernel(void *s, void *a, int n, void *r)"
        source = f"{signature} {{ {SOURCES[fault]} return 0; }}"
        command = ["cc", "-O1", "-shared", "-fPIC", "-x", "c", "-", "-o", str(path)]
        subprocess.run(command, input=source, text=True, check=True)
    elif fault == "hangs the compiler":
        time.sleep(1000)
    elif fault == "kills the compiler":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "is refused":
        raise RuntimeError("first line\nLLVM does not like it")
    else:
        make_library(request, target, choices, path)


def key(choices: Choices) -> str:
    return str(sorted(choices.items()))


@functools.cache
def task_of(problem: RoIAlignProblem) -> Task:
    (task,) = session.plan_tasks(Workload.of(problem, ROI_SIZES, ["forward"]), target.detect(), 1)
    return task


class Told(session.Reporter):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.verdicts: list[Verdict] = []
        self.trials: list[Trial] = []

    def tried(self, task: Task, trials: Any, wanted: int) -> None:
        self.trials = list(trials)

    def finished(self, task: Task, record: records.Record, verdict: Verdict) -> None:
        self.verdicts.append(verdict)


def test_faults_cost_their_candidates_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One search meets all faults at once, and still ends with a record of one that works."""
    monkeypatch.setenv("DCN_TVM_HOME", str(tmp_path))
    monkeypatch.setattr(Cpu, "patience_s", 2.0)
    (task,) = session.plan_tasks(CONV, target.detect(), 1)
    points = list(task.space.points())
    slow = min(points, key=lambda point: (int(point["rows"]), str(point)))  # many small steps
    names = ["hangs the compiler", "kills the compiler", "is refused", *SOURCES]
    others = [point for point in points if point not in (slow, task.space.default)]
    faults = {key(point): fault for point, fault in zip(others, names, strict=False)}
    chosen = [slow, *others[: len(names)], task.space.default]
    product = lambda point: tuple((n, (v,)) for n, v in point.items())  # noqa: E731
    # As if the slow one was the default, so that there is something to be found.
    space = Space(tuple(map(product, chosen)), slow)
    monkeypatch.setattr(build, "space", lambda request, target: space)
    monkeypatch.setattr(crew, "COMPILE_S", 10.0)
    monkeypatch.setattr(worker, "make_library", functools.partial(faulty, faults))
    told = Told()
    (found,) = dcn_tvm.tune(CONV, trials=8, threads=1, reporter=told)
    reasons = {key(t.choices): t.reason for t in told.trials if t.ratio is None}
    assert {faults[point]: reason for point, reason in reasons.items()} == {
        "hangs the compiler": "the compiler took more than 10 s",
        "kills the compiler": "the compiler crashed",
        "is refused": "LLVM does not like it",
        "crashes": "the process that ran it crashed",
        "hangs": reasons[next(point for point, f in faults.items() if f == "hangs")],
    }
    assert any(reason.startswith("no answer in") for reason in reasons.values())
    ratios = {key(t.choices): t.ratio for t in told.trials if t.ratio is not None}
    nothing = next(point for point, fault in faults.items() if fault == "does nothing")
    assert min(ratios, key=lambda point: ratios[point]) == nothing
    (verdict,) = told.verdicts
    assert len(verdict.failures) == 6
    assert "output is wrong: relative error inf" in verdict.failures[-1]
    assert found.choices in (None, task_default(task))
    assert found.trials == 8
    (path,) = records.files(tmp_path / "tuning_logs")
    assert [line.record.choices for line in records.read(path)[0]] == [found.choices]


def task_default(task: Task) -> dict[str, Choice]:
    return dict(build.schedule(task.request, task.target).choices)


@pytest.fixture(scope="module")
def compilers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compilers]:
    made = Compilers(tmp_path_factory.mktemp("libraries"), 1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def libraries(compilers: Compilers) -> tuple[Path, Path]:
    """A right one for `ROI`, and one that shifts its boxes by half a pixel."""
    found = []
    for problem in (ROI, ALIGNED):
        task = task_of(problem)
        found += compilers.make(task, [task.space.default])
    right, wrong = found
    assert isinstance(right, Path)
    assert isinstance(wrong, Path)
    return right, wrong


def test_a_wrong_result_is_found(libraries: tuple[Path, Path]) -> None:
    right, wrong = libraries
    task, bench = task_of(ROI), Cpu(1)
    arguments = (bench, task.request, task.sizes)
    assert worker.check(*arguments, right, right) is None
    reason = worker.check(*arguments, wrong, right) or ""
    assert reason.startswith("output is wrong: relative error")
    assert reason.endswith("against the reference")
    # Right where the reference can be asked, and wrong at full size.
    reason = worker.check(*arguments, right, wrong) or ""
    assert reason.endswith("against the default schedule")


def test_a_library_is_made_once(
    compilers: Compilers, libraries: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "make_library", None)
    assert compilers.make(task_of(ROI), [task_of(ROI).space.default]) == [libraries[0]]
    assert not list(libraries[0].parent.glob("*.*.so"))  # no drafts


def sleep(seconds: float, *_: object) -> None:
    time.sleep(seconds)


def test_an_interrupt_ends_what_children_do(
    libraries: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes next, the verdict, has the machine to itself, and no answer is taken for it."""
    right = libraries[0]
    task = task_of(ROI)
    stations, compilers = Stations(Cpu(1)), Compilers(tmp_path, 1)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(worker, "rotate", functools.partial(sleep, 1000))
            patch.setattr(worker, "make_library", functools.partial(sleep, 1000))
            for call in (
                lambda: stations.ratios(task, right, [right], 1.0),
                lambda: compilers.make(task, list(task.space.points())),
            ):
                threading.Timer(1, os.kill, [os.getpid(), signal.SIGINT]).start()
                start = time.monotonic()
                with pytest.raises(KeyboardInterrupt):
                    call()
                assert time.monotonic() - start < 20
        timings = stations.first.rotate(task, {DEFAULT: right, "again": right}, 0.1, 60)
        assert timings.keys() == {DEFAULT, "again"}
        assert all(isinstance(made, Path) for made in compilers.make(task, [task.space.default]))
    finally:
        stations.close()
        compilers.close()


def test_a_closed_station_stays_closed() -> None:
    station = Station(Cpu(1))
    station.close()
    with pytest.raises(InterruptedError):
        station.rotate(task_of(ROI), {}, 0.1, 1)


def test_sigint_to_the_command_ends_it_well(tmp_path: Path) -> None:
    """As Ctrl-C does, it reaches the children too, those that compile and those that link."""
    what = ["deform_conv2d", "in=16", "out=16", "padding=1", "batch=1", "height=8", "width=8"]
    command = [sys.executable, "-m", "dcn_tvm", "tune", *what, "--trials", "150", "--threads", "1"]
    environment = {**os.environ, "DCN_TVM_HOME": str(tmp_path)}
    process = subprocess.Popen(
        [*command, "--kernel", "forward"],
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 90
        while not (journals := list((tmp_path / "tuning").glob("*.jsonl"))):
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert "Traceback" not in output + errors
    assert process.returncode in (0, 1)
    assert len(journals[0].read_text().splitlines()) >= 8
    found = [
        line.record for p in records.files(tmp_path / "tuning_logs") for line in records.read(p)[0]
    ]
    if process.returncode == 0:  # something was faster
        (record,) = found
        assert 9 <= record.trials < 150
        assert "1 of 1 kernels run faster than by default" in output
    else:
        assert not found
        assert "stopped before anything beat the default" in output
