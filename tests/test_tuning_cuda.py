"""Tuning for CUDA: the whole search with a driver that runs kernels on the host, and the clock.

Only the bench is another than with a device: it places tensors where the emulated driver finds
them, and its clock says what a test wants, or the host's time. Nothing here tells of speed.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import cloudpickle
import emulator
import pytest
import torch
from emulator.operators import to_array, to_tensor
from torch import Tensor
from typer.testing import CliRunner

import dcn_tvm
from dcn_tvm import build, gpu, kernels, measure, openmp, records
from dcn_tvm.__main__ import app
from dcn_tvm.build import Request
from dcn_tvm.cuda import compiler
from dcn_tvm.errors import CompileError
from dcn_tvm.gpu import Gpu
from dcn_tvm.knobs import Choice, Choices
from dcn_tvm.measure import Timing
from dcn_tvm.ops.deform_conv2d import DeformConv2dProblem
from dcn_tvm.ops.roi_align import RoIAlignProblem
from dcn_tvm.records import Record
from dcn_tvm.space import Space
from dcn_tvm.tuning import cuda, machine, session, worker
from dcn_tvm.tuning.bench import Bench, Cpu
from dcn_tvm.tuning.call import expected, prepare
from dcn_tvm.tuning.cuda import Cuda
from dcn_tvm.tuning.remote import Tracker
from dcn_tvm.tuning.task import Task, Trial
from dcn_tvm.tuning.trial import Verdict
from dcn_tvm.workload import Workload

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # children cannot import it

ROOT = Path(__file__).parents[1]
DEVICE = gpu.assumed("sm_90,name=NVIDIA H200,multiprocessors=4")
OTHER = gpu.assumed("sm_80,name=NVIDIA A100-SXM4,multiprocessors=6")
CONV = Workload.of(
    DeformConv2dProblem("float32", "nchw", 8, 8), {"batch": 1, "height": 5, "width": 6}, ["forward"]
)
ROI = RoIAlignProblem("float32", "nchw", 4, (2, 2), sampling_ratio=1)
ROI_SIZES = {"batch": 1, "height": 6, "width": 6, "boxes": 2, "stride": 4}
FORWARD = Workload.of(ROI, ROI_SIZES, ["forward"])
POINTS = 9  # of a space
BROKEN = "DCN_TVM_TEST_BROKEN"  # a child's, from the kernel on that broke its device

emulated = pytest.mark.skipif(
    emulator.available() is not None or openmp.find_compiler() is None,
    reason=emulator.available() or "no C compiler",
)
make_library = worker.make_library


def key(choices: Choices) -> str:
    return str(sorted(choices.items()))


@dataclass(frozen=True)
class Emulated(Bench):
    """The emulated driver, whose clock says what it is told of a library, else the host's time."""

    gpu: Gpu
    index: int
    faults: Mapping[str, str] = field(default_factory=dict)  # of libraries by their stem
    times_us: Mapping[str, float] = field(default_factory=dict)
    patience_s: ClassVar[float] = 5.0
    runs: ClassVar[int] = 2

    def rotate(
        self, libraries: Mapping[str, Path], arguments: Sequence[Any], seconds: float
    ) -> dict[str, Timing]:
        placed = [_placed(argument) for argument in arguments]

        def turn(path: Path) -> float:
            start_ns = time.perf_counter_ns()
            self._call(path, placed)
            return self.times_us.get(path.stem, (time.perf_counter_ns() - start_ns) / 1e3)

        turns = {name: functools.partial(turn, path) for name, path in libraries.items()}
        return measure.rotate_turns(turns, seconds=0.01, max_rounds=5)

    def run(self, library: Path, arguments: Sequence[Any], outputs: int) -> None:
        placed = [_placed(argument) for argument in arguments]
        self._call(library, placed)
        tensors = [p for p in zip(arguments, placed, strict=True) if isinstance(p[0], Tensor)]
        for here, there in tensors[len(tensors) - outputs :]:
            here.copy_(to_tensor(there))

    def usable(self) -> bool:
        return BROKEN not in os.environ

    def _call(self, path: Path, placed: Sequence[Any]) -> None:
        fault = self.faults.get(path.stem, "")
        if fault == "breaks the device":
            os.environ[BROKEN] = "1"
        if BROKEN in os.environ:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if fault == "crashes":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "hangs":
            time.sleep(1000)
        failing = "cuLaunchKernel" if fault == "is not launched" else ""
        with emulator.using(failing=failing):
            kernels.open_library(path, self.gpu)(*placed)


def _placed(argument: Any) -> Any:
    return to_array(argument) if isinstance(argument, Tensor) else argument


def emulate(source: str, arch: str) -> bytes:
    return emulator.image(source)


def make_emulated(
    wrong: Mapping[str, str], request: Request, target: Gpu, choices: Choices, path: Path
) -> None:
    """Make a library for the emulator in a child, that of another problem if it is to be wrong."""
    compiler.compile = emulate
    if "cannot be compiled" in (fault := wrong.get(key(choices), "")):
        raise CompileError("kernel.cu(3): error: too many resources")
    if fault == "is wrong":
        other = replace(request.problem, aligned=True)  # half a pixel off
        request = replace(request, problem=other)
    make_library(request, target, choices, path)


class Told(session.Reporter):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.trials: dict[Task, list[Trial]] = {}
        self.verdicts: list[Verdict] = []
        self.failures: list[str] = []

    def tried(self, task: Task, trials: Sequence[Trial], wanted: int) -> None:
        self.trials[task] = list(trials)

    def finished(self, task: Task, record: Record, verdict: Verdict) -> None:
        self.verdicts.append(verdict)

    def failed(self, task: Task, reason: str) -> None:
        self.failures.append(reason)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("DCN_TVM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("dcn_tvm.records.store.shipped_root", lambda: tmp_path / "shipped")
    dcn_tvm.bridge.forget()
    yield tmp_path / "home"
    dcn_tvm.bridge.forget()


@pytest.fixture
def devices(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A machine with two devices, whose libraries are faulty or fast as a test says.

    Spaces have a few points only.
    """
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT / "tests"), str(ROOT))))
    monkeypatch.setattr(gpu, "detect", lambda: (DEVICE, OTHER))
    monkeypatch.setattr(compiler, "version", lambda: "emulator 1.0")
    monkeypatch.setattr(build, "space", few(build.space))

    def use(
        faults: Mapping[str, str] | None = None,
        times_us: Mapping[str, float] | None = None,
        breaking: Sequence[Workload] = (),
    ) -> None:
        """Faults and times are of points of FORWARD; defaults of others may break the device."""
        task = task_of(FORWARD)
        stems = {key(point): task.library_name(point) for point in task.space.points()}
        broken = [task.library_name(task.space.default) for task in map(task_of, breaking)]
        bench = functools.partial(
            Emulated,
            faults={stems[point]: fault for point, fault in (faults or {}).items()}
            | dict.fromkeys(broken, "breaks the device"),
            times_us={stems[point]: time_us for point, time_us in (times_us or {}).items()},
        )
        monkeypatch.setattr(machine, "Cuda", bench)
        make = functools.partial(make_emulated, faults or {})
        monkeypatch.setattr(worker, "make_library", make)

    use()
    return use


def few(whole: Callable[..., Space]) -> Callable[..., Space]:
    """Spaces of the default and the first others, each point a product of its own."""

    def space(request: Request, target: Gpu) -> Space:
        found = whole(request, target)
        others = (point for point in found.points() if point != found.default)
        points = [found.default, *itertools.islice(others, POINTS - 1)]
        products = [tuple((name, (value,)) for name, value in p.items()) for p in points]
        return Space(tuple(products), found.default)

    return space


def task_of(workload: Workload, device: Gpu = DEVICE) -> Task:
    (task,) = session.plan_tasks(workload, device, device.cores)
    return task


def lines(home: Path) -> list[Record]:
    read = [records.read(path) for path in records.files(home / "tuning_logs")]
    assert not [damage for _, damage in read if damage]
    return [line.record for found, _ in read for line in found]


def points() -> tuple[Choices, list[dict[str, Choice]]]:
    """The default of FORWARD and its other points."""
    space = task_of(FORWARD).space
    return space.default, [point for point in space.points() if point != space.default]


def faster(*fast: Choices) -> dict[str, float]:
    """Times of the points of FORWARD, of which some are twice as fast as the default or so."""
    default, others = points()
    times_us = {key(point): 130.0 for point in others}
    times_us |= {key(point): 50.0 + place for place, point in enumerate(fast)}
    return times_us | {key(default): 100.0}


# --- a whole session


@emulated
def test_faults_cost_their_candidates_only(home: Path, devices: Any) -> None:
    """One search meets all faults, in one batch, and ends with a record of what works.

    The default of the next task breaks the device, and the task after it knows nothing of it: there
    the clock is the host's, so that anything may win.
    """
    names = ["cannot be compiled", "is not launched", "breaks the device", "crashes", "hangs"]
    faulty = points()[1][: POINTS - 2]
    wrong, best = points()[1][len(names) : len(names) + 2]
    faults = {key(p): name for p, name in zip(faulty, [*names, "is wrong"], strict=False)}
    backward = Workload.of(ROI, ROI_SIZES, ["backward"])
    devices(faults, faster(wrong, best), [backward])
    told = Told()
    problems = [FORWARD, backward, CONV]
    found, last = dcn_tvm.tune(problems, target="cuda", trials=POINTS, reporter=told)

    trials = told.trials[task_of(FORWARD)]
    failed = {faults[key(t.choices)]: t.reason for t in trials if t.ratio is None}
    assert failed.keys() == set(names)
    assert failed["cannot be compiled"].endswith("error: too many resources")
    assert "dcn_tvm_kernel_kernel: " in failed["is not launched"]
    assert failed["breaks the device"].endswith("an illegal memory access was encountered")
    assert failed["crashes"] == "the process that ran it crashed"
    assert failed["hangs"].startswith("no answer in")
    ratios = {key(t.choices): t.ratio for t in trials if t.ratio is not None}
    assert min(ratios, key=lambda point: ratios[point]) == key(wrong)
    verdict, _ = told.verdicts
    assert "output is wrong: relative error" in verdict.failures[-1]
    assert found.choices == best

    (reason,) = told.failures
    assert "roi_align.backward" in reason
    assert "the default does not run: " in reason
    assert reason.endswith("an illegal memory access was encountered")

    assert [t.reason for t in told.trials[task_of(CONV)]] == [""] * POINTS
    assert (last.trials, last.threads, last.device) == (POINTS, 4, "NVIDIA H200")
    assert last.versions["emulator"] == "1.0"
    assert {path.parent.name for path in records.files(home / "tuning_logs")} == {"nvidia-h200"}
    assert [line.choices for line in lines(home)] == [last.choices, best]
    assert not list((home / "tuning").iterdir())  # the journals


# --- the command line


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


TINY = ["roi_align", "channels=4", "output=2", "sampling_ratio=1"]
TINY += [f"{name}={size}" for name, size in ROI_SIZES.items()]


@emulated
def test_what_a_command_tunes_is_checked_and_used(
    home: Path, devices: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = points()[1][3]
    devices(times_us=faster(best))
    what = ["tune", *TINY, "--kernel", "forward", "--target", "cuda", "--trials", "100"]
    tuned = call(*what)
    assert tuned.exit_code == 0, tuned.output
    assert "1 of 1 kernels run faster than by default; records: " in tuned.stdout
    (line,) = lines(home)
    assert line.choices == best
    assert line.speedup == pytest.approx(2, rel=1e-2)
    assert "tuned before, on " in call(*what, "--resume").stdout
    checked = call("records", "check", "--target", "cuda:0", "--seconds", "0.1")
    assert checked.exit_code == 0, checked.output
    assert "nvidia-h200/roi_align.jsonl:1: forward" in checked.stdout
    assert "2.000x as fast as the default" in checked.stdout
    assert "no records in" in call("records", "check", "--target", "cuda:1").stdout
    assert "2.00x" in call("records", "list", "--target", "cuda").stdout
    assert call("records", "prune").stdout == "1 kept, 0 added, 0 removed\n"
    assert_used(best, monkeypatch)


def assert_used(best: Choices, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call, or one at near sizes, takes the recorded choices, on this device only."""
    asked = functools.partial(kernels.request, ROI, "forward", ("output",))
    request, chosen = asked(ROI_SIZES, DEVICE), (tuple(sorted(best.items())),)
    assert request.recorded == chosen
    assert asked({**ROI_SIZES, "boxes": 3}, DEVICE).recorded == chosen  # the nearest there is
    assert asked(ROI_SIZES, OTHER).recorded == asked(ROI_SIZES).recorded == ()
    (explained, _) = kernels.explain(ROI, ROI_SIZES, DEVICE)
    assert explained.provenance == "user: exact, nvidia-h200/roi_align.jsonl:1"
    for manner in ({"deterministic": True}, {"tf32": True}):
        device = replace(DEVICE, **manner)
        assert build.schedule_recorded(asked(ROI_SIZES, device), device).choices == best
    monkeypatch.setattr(compiler, "compile", emulate)
    made = prepare(request, FORWARD.sizes)
    placed = [_placed(argument) for argument in made.arguments]
    with emulator.using():
        kernels.get(request)(*placed)
    torch.testing.assert_close(to_tensor(placed[2]), expected(made)["output"])


def test_a_plan_for_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "detect", lambda: (DEVICE, OTHER))
    plan = call("tune", *TINY, "--target", "cuda:1", "--dry-run")
    assert plan.exit_code == 0, plan.output
    assert "for nvidia-a100-sxm4" in plan.stdout
    assert "passes 4" in plan.stdout


def test_choices_that_a_manner_does_not_allow_are_passed_over() -> None:
    """Plain float32 has no tensor cores, and TF32 has."""
    problem = DeformConv2dProblem("float32", "nhwc", 32, 32)
    plain = build.schedule(Request(problem, "forward", ("output",)), DEVICE).choices
    recorded = (tuple(sorted(plain.items())),)
    for tf32 in (False, True):
        device = replace(DEVICE, tf32=tf32)
        request = Request(problem, "forward", ("output",), recorded, device)
        scheduled = build.schedule_recorded(request, device)
        assert scheduled.place == (None if tf32 else 0)
        assert (scheduled.choices == plain) is not tf32


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "cuda"], "torch finds no device cuda on this machine; it finds none"),
        (["--target", "cuda:1"], "torch finds no device cuda:1 on this machine; it finds none"),
        (["--target", "cuda:x"], "level must be one of"),
        (["--target", "cuda", "--threads", "2"], "every kernel has all of cuda"),
        (
            ["--target", "cuda", "--tracker", "host:9190", "--key", "k"],
            "servers behind a tracker measure kernels of CPUs, not of cuda",
        ),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "detect", lambda: ())
    result = call("tune", *TINY, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert said in line


@pytest.mark.parametrize("command", ["list", "check", "prune"])
def test_a_device_that_is_not_there_has_no_records(
    command: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "detect", lambda: ())
    result = call("records", command, "--target", "cuda")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "torch finds no device cuda" in result.stderr


def test_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "detect", lambda: (DEVICE, OTHER))
    first, second = machine.devices()
    assert machine.parse("cuda") == machine.parse("cuda:0") == first
    assert machine.parse("cuda:1") == second
    assert (second.target, second.threads, second.bench) == (OTHER, 6, Cuda(OTHER, 1))
    with pytest.raises(ValueError, match=r"it finds cuda:0 \(NVIDIA H200\), cuda:1 \(NVIDIA A10"):
        machine.parse("cuda:2")
    assert machine.parse(None, threads=3).bench == Cpu(3)
    tracker = Tracker("host", 1, "key")
    assert machine.parse("armv8,cores=2", tracker=tracker).bench is tracker
    assert not any(map(machine.is_device, ("x86-64-v3", "cuda,", None, DEVICE)))


def test_without_a_compiler_for_the_device_nothing_starts(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise CompileError("no CUDA compiler was found")

    monkeypatch.setattr(gpu, "detect", lambda: (DEVICE,))
    monkeypatch.setattr(compiler, "version", none)
    result = call("tune", *TINY, "--target", "cuda")
    assert result.exit_code == 1
    assert result.stderr == "error: no CUDA compiler was found\n"


# --- the device's clock


class Device:
    """Torch's names for a device on which a microsecond passes when a kernel says so."""

    def __init__(self) -> None:
        self.now_us = 0.0
        self.graph: list[float] | None = None  # the one that is captured
        self.graphs: list[list[float]] = []
        self.broken = False
        self.launches = 0

    def kernel(self, time_us: float, *, captures: bool = True) -> Callable[[], None]:
        def launch() -> None:
            if self.graph is None:
                self.launches += 1
                self.now_us += time_us
            elif captures:
                self.graph.append(time_us)
            else:
                raise RuntimeError("operation not permitted when stream is capturing")

        return launch

    def graph_pool_handle(self) -> tuple[int, int]:
        return (0, 1)

    def synchronize(self) -> None:
        assert self.graph is None
        if self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def names(self) -> SimpleNamespace:
        device = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                assert device.graph is None
                self.at_us = device.now_us

            def synchronize(self) -> None:
                device.synchronize()

            def elapsed_time(self, end: Any) -> float:
                return float(end.at_us - self.at_us) / 1e3

        class CUDAGraph:
            def capture_begin(self, pool: Any) -> None:
                assert pool == (0, 1)
                device.graph = self.kernels = []

            def capture_end(self) -> None:
                device.graphs.append(self.kernels)
                device.graph = None

            def replay(self) -> None:
                device.now_us += sum(self.kernels)

        names = ("graph_pool_handle", "synchronize")
        found = {name: getattr(self, name) for name in names}
        return SimpleNamespace(Event=Event, CUDAGraph=CUDAGraph, **found)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()
    monkeypatch.setattr(cuda, "torch", SimpleNamespace(cuda=made.names()))
    return made


def test_a_turn_is_the_mean_of_a_graphs_calls(device: Device) -> None:
    times_us = {"tiny": 3.0, "short": 40.0, "long": 5000.0}
    turns = cuda.turns({name: device.kernel(us) for name, us in times_us.items()})
    assert list(map(len, device.graphs)) == [cuda.MAX_CALLS, 50, 1]
    launches, spent_us = device.launches, device.now_us
    for name, turn in turns.items():
        assert turn() == pytest.approx(times_us[name])
    assert device.launches == launches  # all of it is replayed
    assert device.now_us - spent_us == pytest.approx(2100 + 2000 + 5000)


def test_what_cannot_be_captured_is_called(device: Device) -> None:
    calls = {"one": device.kernel(10.0), "other": device.kernel(20.0, captures=False)}
    turns = cuda.turns(calls)
    launches = device.launches
    assert [turn() for turn in turns.values()] == pytest.approx([10, 20])
    assert device.launches == launches + 200 + 100  # neither in a graph


def test_a_kernel_that_fails_is_no_reason_for_another_clock(device: Device) -> None:
    device.broken = True
    with pytest.raises(RuntimeError, match="illegal memory access"):
        cuda.turns({"one": device.kernel(10.0, captures=False)})


def test_results_are_fetched_and_inputs_are_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(x: Tensor, y: Tensor, z: Tensor, factor: float) -> None:
        torch.add(x, y, out=z).mul_(factor)
        y.mul_(-1)
        x.zero_()

    bench = Cuda(DEVICE, 0)
    monkeypatch.setattr(Cuda, "_stream", lambda self: contextlib.nullcontext())
    place = lambda self, a: a.clone() if isinstance(a, Tensor) else a  # noqa: E731
    monkeypatch.setattr(Cuda, "_place", place)
    monkeypatch.setattr(kernels, "open_library", lambda path, target: kernel)
    x, y, z = torch.ones(2), torch.full((2,), 2.0), torch.full((2,), float("nan"))
    bench.run(Path("a.so"), (x, y, z, 3.0), outputs=2)
    assert x.tolist() == [1, 1]
    assert y.tolist() == [-2, -2]
    assert z.tolist() == [9, 9]


def test_a_device_that_is_not_there_is_not_usable() -> None:
    if not torch.cuda.is_available():
        assert not Cuda(DEVICE, 0).usable()


# --- where there is a device


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_device_is_tuned(home: Path) -> None:
    problems = [Workload.of(ROI, ROI_SIZES), CONV]
    told = Told()
    found = dcn_tvm.tune(problems, target="cuda", trials=4, reporter=told)
    assert not told.failures
    assert len(found) == len(lines(home)) == 3
    here = gpu.of_device(0)
    assert {(r.device, r.threads) for r in found} == {(here.name, here.multiprocessors)}
    checked = call("records", "check", "--target", "cuda", "--seconds", "0.5")
    assert checked.exit_code == 0, checked.output
    assert "3 records checked, 0 wrong" in checked.stdout
