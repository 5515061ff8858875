"""A session's decisions, with children that are made up: what wins, what is kept, what goes on."""

from __future__ import annotations

import functools
import signal
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import dcn_tvm
from dcn_tvm import build, kernels, records, suites, target
from dcn_tvm.errors import CompileError
from dcn_tvm.examples import example
from dcn_tvm.knobs import Choice, Choices, Knobs
from dcn_tvm.measure import Timing
from dcn_tvm.ops.deform_conv2d import DeformConv2dProblem
from dcn_tvm.ops.roi_align import RoIAlignProblem
from dcn_tvm.records import Record, store
from dcn_tvm.tuning import search, session, trial
from dcn_tvm.tuning.task import Journal, Task, Trial
from dcn_tvm.tuning.trial import Verdict, noise_of
from dcn_tvm.workload import Workload

CONV = DeformConv2dProblem("float32", "nchw", 16, 16)
CONV_SIZES = {"batch": 1, "height": 8, "width": 8}
ROI = RoIAlignProblem("float32", "nchw", 32, (2, 2))
ROI_SIZES = {"batch": 1, "height": 8, "width": 8, "boxes": 4, "stride": 4}
FORWARD = Workload.of(CONV, CONV_SIZES, ["forward"])
WEIGHT = Workload.of(CONV, CONV_SIZES, ["backward_weight"])
DEFAULT_US = 100.0


def key(choices: Choices) -> str:
    return str(sorted(choices.items()))


class Lab:
    """Machines on which every point takes as long as a test says.

    Attributes:
        ratio: a point's time over the default's, or why it fails.
        wrong: what is wrong with a point's results.
        wobble: relative differences between the rounds of each point's times.
        again: the second default's time over the first's.
        built: points that were compiled, in order.
        clock_s: the time, which every batch moves.
        build_s: that the clock is moved by what builds several tasks' points.
        default_us: the time of a task's default.
    """

    def __init__(self) -> None:
        self.ratio: Callable[[Choices], float | str] = lambda choices: 1.0
        self.wrong: Callable[[Choices], str | None] = lambda choices: None
        self.build: Callable[[Task, Choices], str | None] = lambda task, choices: None
        self.wobble: Sequence[float] = (0.0, 0.001, -0.001, 0.0005, -0.0005)
        self.again = 1.0
        self.built: list[dict[str, Choice]] = []
        self.rotated: list[list[str]] = []
        self.clock_s = 0.0
        self.batch_s = 1.0
        self.build_s = 0.0
        self.default_us: Callable[[Task], float] = lambda task: DEFAULT_US
        self.closed: list[str] = []
        self._points: dict[Path, dict[str, Choice]] = {}
        self._defaults: dict[Path, Choices] = {}

    # --- as crew.Compilers

    def make(self, task: Task, points: Sequence[dict[str, Choice]]) -> list[Path | str]:
        made: list[Path | str] = []
        for choices in points:
            path = Path(f"{task.library_name(choices)}.so")
            if path not in self._points:
                self.built.append(choices)
            self._points[path] = choices
            made.append(self.build(task, choices) or path)
        return made

    def make_all(self, points: Sequence[tuple[Task, Choices]]) -> list[Path | str]:
        self.clock_s += self.build_s
        return [self.make(task, [dict(choices)])[0] for task, choices in points]

    # --- as crew.Stations and crew.Station

    @property
    def first(self) -> Lab:
        return self

    def ratios(
        self, task: Task, default: Path, libraries: Sequence[Path], default_us: float
    ) -> list[float | str]:
        self.clock_s += self.batch_s
        assert default_us == self.default_us(task)
        return [self._ratio(task, path) for path in libraries]

    def rotate(
        self, task: Task, libraries: Mapping[str, Path], seconds: float, limit_s: float
    ) -> dict[str, Timing]:
        self.rotated.append(list(libraries))
        found = {}
        for place, (name, path) in enumerate(libraries.items()):
            ratio = self._ratio(task, path) * (self.again if name == "default again" else 1.0)
            turned = self.wobble[place:] + self.wobble[:place]
            us = self.default_us(task) * ratio
            rounds = {n: us * (1 + w) for n, w in enumerate(turned)}
            found[name] = Timing(rounds)
        return found

    def check(self, task: Task, library: Path, default: Path) -> str | None:
        return self.wrong(self._points[library])

    def close(self) -> None:
        self.closed.append("")

    def _ratio(self, task: Task, path: Path) -> Any:
        choices = self._points[path]
        return 1.0 if choices == task.space.default else self.ratio(choices)


class Told(session.Reporter):
    """Remembers what it is told; can be made to raise when so many points were tried."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.tried_so_far: list[int] = []
        self.verdicts: list[Verdict] = []
        self.failures: list[str] = []
        self.skips: list[Record] = []
        self.begun: list[str] = []

    def started(self, task: Task, number: int, tasks: int) -> None:
        self.begun.append(task.request.kernel)

    def tried(self, task: Task, trials: Sequence[Trial], wanted: int) -> None:
        self.tried_so_far.append(len(trials))
        if self.stop_at is not None and len(trials) >= self.stop_at:
            raise KeyboardInterrupt

    def finished(self, task: Task, record: Record, verdict: Verdict) -> None:
        self.verdicts.append(verdict)

    def failed(self, task: Task, reason: str) -> None:
        self.failures.append(reason)

    def skipped(self, task: Task, record: Record) -> None:
        self.skips.append(record)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterable[Path]:
    monkeypatch.setenv("DCN_TVM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(store, "shipped_root", lambda: tmp_path / "shipped")
    records.forget()
    yield tmp_path / "home"
    dcn_tvm.bridge.forget()


@pytest.fixture
def lab(home: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    made = Lab()
    monkeypatch.setattr(session, "Compilers", lambda folder, count: made)
    monkeypatch.setattr(session, "Stations", lambda bench: made)
    clock = types.SimpleNamespace(monotonic=lambda: made.clock_s)
    monkeypatch.setattr(session, "time", clock)
    monkeypatch.setattr(trial, "time", clock)
    return made


@functools.cache
def task_of(workload: Workload) -> Task:
    (task,) = session.plan_tasks(workload, target.detect(), 1)
    return task


def others(workload: Workload) -> list[dict[str, Choice]]:
    space = task_of(workload).space
    return [point for point in space.points() if point != space.default]


def faster(speeds: Mapping[int, float], workload: Workload = WEIGHT) -> Callable[[Choices], float]:
    """Some points, by their place, that are faster than the default; the others are slower."""
    ratios = {key(others(workload)[place]): ratio for place, ratio in speeds.items()}
    return lambda choices: ratios.get(key(choices), 1.5)


def tune(problems: Any, **options: Any) -> list[Record]:
    return dcn_tvm.tune(problems, **{"trials": 1000, "threads": 1, **options})


def lines(home: Path) -> list[Record]:
    read = [records.read(path) for path in records.files(home / "tuning_logs")]
    assert not [damage for _, damage in read if damage]
    return [line.record for found, _ in read for line in found]


def journal(home: Path, workload: Workload = WEIGHT) -> Journal:
    return Journal(home / "tuning", task_of(workload))


# --- what a difference must exceed


def timing(*times_us: float) -> Timing:
    return Timing(dict(enumerate(times_us)))


STEADY = timing(100, 100, 100, 100)


@pytest.mark.parametrize(
    ("own", "again", "noise"),
    [
        (timing(90, 90, 90, 90), STEADY, trial.LEAST_NOISE),  # a clear difference is no noise
        (timing(90, 90, 90, 90), timing(103, 103, 103, 103), 0.03),  # the default against itself
        (timing(90, 90, 90, 90), timing(97, 97, 97, 97), 0.03),
        # Deviations 10, 10, 10, 10 about the median 1: 2 * 1.2533 * 1.4826 * 0.1 / sqrt(4).
        (timing(90, 110, 90, 110), STEADY, 0.1858),
        (STEADY, timing(90, 110, 90, 110), 0.1858),
    ],
)
def test_noise(own: Timing, again: Timing, noise: float) -> None:
    assert noise_of(own, STEADY, again) == pytest.approx(noise, rel=1e-3)


def test_noise_is_of_the_rounds_ratios_not_of_a_machine_that_drifts() -> None:
    drifting = timing(100, 200, 400, 800)
    assert noise_of(timing(90, 180, 360, 720), drifting, drifting) == trial.LEAST_NOISE


# --- what becomes a record


def test_the_fastest_becomes_the_record_once_and_replays(lab: Lab, home: Path) -> None:
    lab.ratio = faster({3: 0.9, 5: 0.7, 9: 0.8})
    told = Told()
    (found,) = tune(WEIGHT, reporter=told)
    assert dict(found.choices or {}) == others(WEIGHT)[5]
    assert found.speedup == pytest.approx(1 / 0.7, rel=1e-2)
    assert found.trials == task_of(WEIGHT).space.size == told.tried_so_far[-1]
    assert (found.threads, found.kernel, dict(found.sizes)) == (1, "backward_weight", CONV_SIZES)
    assert found.device == target.detect().name
    assert {"python", "apache-tvm", "apache-tvm-ffi"} <= found.versions.keys()
    (path,) = records.files(home / "tuning_logs")
    assert path.relative_to(home / "tuning_logs").parts == (
        target.detect().ids[0],
        "deform_conv2d.jsonl",
    )
    (line,) = lines(home)
    assert line.key == found.key
    assert line.choices == found.choices
    request = task_of(WEIGHT).request
    replayed = build.schedule(request, target.detect(), Knobs(dict(line.choices or {})))
    assert replayed.choices == line.choices
    assert not journal(home).read()
    assert len(lab.closed) == 2


@pytest.mark.parametrize(
    ("ratio", "again", "wins"),
    [
        (0.99, 1.0, True),
        (0.9965, 1.0, False),  # within LEAST_NOISE
        (0.96, 1.03, True),
        (0.98, 1.03, False),  # the default is further from itself
        (0.98, 0.97, False),
        (1.0, 1.0, False),
        (1.2, 1.0, False),
    ],
)
def test_a_winner_must_beat_the_noise(
    ratio: float, again: float, wins: bool, lab: Lab, home: Path
) -> None:
    lab.ratio, lab.again = faster({3: ratio}), again
    lab.wobble = (0.0, 0.0, 0.0)
    (found,) = tune(WEIGHT)
    assert (found.choices is not None) == wins
    if not wins:
        assert found.median_us == found.default_us == DEFAULT_US
    assert found.noise == pytest.approx(max(abs(1 - again), trial.LEAST_NOISE))
    assert len(lines(home)) == 1
    # The default takes part twice, beside a few others.
    assert lab.rotated[-1][:2] == ["default", "default again"]
    assert len(lab.rotated[-1]) == 2 + trial.FINALISTS


def test_rounds_that_scatter_hide_a_small_win(lab: Lab) -> None:
    lab.ratio, lab.wobble = faster({3: 0.95}), (0.0, 0.2, -0.2, 0.1, -0.1)
    (found,) = tune(WEIGHT)
    assert found.choices is None
    assert found.noise > 0.05


def test_a_wrong_result_is_no_record_however_fast(lab: Lab, home: Path) -> None:
    lab.ratio = faster({3: 0.1, 5: 0.7})
    lab.wrong = lambda choices: "wrong" if choices == others(WEIGHT)[3] else None
    told = Told()
    (found,) = tune(WEIGHT, reporter=told)
    assert found.choices == others(WEIGHT)[5]
    assert told.verdicts[0].failures == ("wrong",)
    lab.wrong = lambda choices: "wrong"
    (found,) = tune(WEIGHT)
    assert found.choices is None
    assert [line.choices is None for line in lines(home)] == [False, True]


def test_failures_are_counted_and_cost_only_themselves(lab: Lab) -> None:
    place = {key(point): number for number, point in enumerate(others(WEIGHT))}
    lab.ratio = lambda c: "it crashed" if place[key(c)] % 3 == 0 else 1 - place[key(c)] / 200
    lab.build = lambda task, c: (
        "no code" if c != task.space.default and place[key(c)] == 1 else None
    )
    told = Told()
    (found,) = tune(WEIGHT, reporter=told)
    best = max(number for number in place.values() if number % 3)
    assert found.choices == others(WEIGHT)[best]
    reasons = told.verdicts[0].failures
    assert reasons.count("it crashed") == len(range(0, len(place), 3))
    assert reasons.count("no code") == 1


def test_a_finalist_that_crashes_at_last_costs_no_other(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.ratio = faster({3: 0.5, 5: 0.7, 9: 0.8})
    crashing = task_of(WEIGHT).library_name(others(WEIGHT)[3])
    rotate = lab.rotate

    def crash(task: Task, libraries: Mapping[str, Path], *limits: float) -> dict[str, Timing]:
        if any(path.stem == crashing for path in libraries.values()):
            lab.ratio = lambda c: "crash" if c == others(WEIGHT)[3] else ratio(c)
            raise RuntimeError("the process that ran it crashed")
        return rotate(task, libraries, *limits)

    ratio = lab.ratio
    monkeypatch.setattr(lab, "rotate", crash)
    (found,) = tune(WEIGHT)
    assert found.choices == others(WEIGHT)[5]
    assert len(lab.rotated[-1]) == 2 + trial.FINALISTS - 1


def test_a_default_that_fails_fails_its_task_only(lab: Lab, home: Path) -> None:
    lab.build = lambda task, choices: "boom" if task.request.kernel == "forward" else None
    lab.ratio = faster({0: 0.5})
    told = Told()
    found = tune([FORWARD, WEIGHT], reporter=told)
    assert [record.kernel for record in found] == ["backward_weight"]
    (reason,) = told.failures
    assert "deform_conv2d.forward" in reason
    assert reason.endswith("the default schedule cannot be built: boom")
    assert len(lines(home)) == 1


# --- how far a search goes


def test_what_records_say_is_tried_first(lab: Lab) -> None:
    best = others(FORWARD)[-1]
    lab.ratio = lambda choices: 0.5 if choices == best else 1.2
    (found,) = tune(FORWARD)
    assert found.choices == best
    lab.built, lab._points = [], {}
    (again,) = tune(FORWARD, trials=3)
    assert again.choices == best
    assert lab.built[1] == best
    for height in (9, 10):  # of neighbours that chose the same, one is tried
        lab.built, lab._points = [], {}
        sizes = dict(FORWARD.sizes) | {"height": height}
        (near,) = tune(Workload.of(FORWARD.problem, sizes, FORWARD.kernels), trials=5)
        assert near.choices == best
        assert near.trials == 5 == len({key(choices) for choices in lab.built})


def test_a_small_space_is_tried_completely_and_once(lab: Lab) -> None:
    tune(WEIGHT, trials=64)
    assert sorted(map(key, lab.built)) == sorted(map(key, task_of(WEIGHT).space.points()))


def test_a_search_tries_as_many_points_as_it_may_and_is_repeatable(lab: Lab) -> None:
    tried = []
    for seed in (0, 0, 1):
        lab.built, lab._points = [], {}
        (found,) = tune(FORWARD, trials=20, seed=seed)
        assert found.trials == 20 == len({key(choices) for choices in lab.built})
        tried.append(list(map(key, lab.built)))
    assert tried[0] == tried[1] != tried[2]


def test_a_search_that_goes_on_tries_no_more_than_it_may(lab: Lab) -> None:
    tune(FORWARD, trials=20, reporter=Told(stop_at=9))
    (found,) = tune(FORWARD, trials=20, resume=True)
    assert found.trials == 20


def test_threads_are_the_records(lab: Lab) -> None:
    (found,) = tune(WEIGHT, threads=3, trials=2)
    assert found.threads == 3
    (found,) = tune(WEIGHT, threads=None, trials=2)
    assert found.threads == target.detect().cores


def test_minutes_are_shared_and_a_later_session_goes_on(lab: Lab, home: Path) -> None:
    lab.batch_s, lab.ratio = 60.0, faster({0: 0.5})
    told = Told()
    found = tune([WEIGHT, FORWARD], minutes=4, reporter=told)
    assert [record.kernel for record in found] == ["backward_weight"]
    assert found[0].trials == 1 + 2 * 8
    # Nothing beat the default of the other by then, which proves nothing: no record.
    assert "stopped before anything beat the default" in told.failures[0]
    assert len(lines(home)) == 1
    built = len(lab.built)
    (found_again,) = tune(WEIGHT, resume=True)
    assert found_again.trials == 64
    assert len(lab.built) == built + 64 - 17
    assert not journal(home).read()


THREE = Workload.of(CONV, CONV_SIZES)
IN_ORDER = ["forward", "backward_data", "backward_weight"]


def slow(**times_us: float) -> Callable[[Task], float]:
    """The times of the defaults of kernels."""
    return lambda task: times_us.get(task.request.kernel, DEFAULT_US)


@pytest.mark.parametrize(
    ("minutes", "build_s", "order"),
    [
        (None, 0.0, IN_ORDER),
        (100.0, 0.0, ["backward_weight", "forward", "backward_data"]),
        (100.0, 1500.0, IN_ORDER),  # that was the quarter in which the order may be found
    ],
)
def test_what_takes_longest_comes_first_where_time_is_short(
    lab: Lab, minutes: float | None, build_s: float, order: list[str]
) -> None:
    lab.default_us, lab.build_s = slow(backward_weight=900.0, backward_data=1.0), build_s
    told = Told()
    found = tune(THREE, minutes=minutes, trials=2, reporter=told)
    assert told.begun == [record.kernel for record in found] == order


def test_a_default_that_cannot_be_timed_comes_last(lab: Lab) -> None:
    lab.build = lambda task, choices: "boom" if task.request.kernel == "forward" else None
    lab.default_us = slow(forward=900.0, backward_weight=500.0)
    told = Told()
    assert len(tune(THREE, minutes=100, trials=2, reporter=told)) == 2
    assert told.begun == ["backward_weight", "backward_data", "forward"]
    assert len(told.failures) == 1


def test_what_was_tuned_before_is_not_timed_again(lab: Lab) -> None:
    tune(WEIGHT, trials=2)
    lab.default_us = slow(forward=900.0, backward_weight=500.0)
    lab.built, lab._points = [], {}
    told = Told()
    tune(THREE, minutes=100, trials=2, resume=True, reporter=told)
    assert told.begun == ["backward_weight", "forward", "backward_data"]
    assert [record.kernel for record in told.skips] == ["backward_weight"]
    assert len(lab.built) == 2 * 2


def test_no_task_is_given_too_little_time(lab: Lab) -> None:
    """Of three in half a minute each would have 10 s: one has 20, another one the rest."""
    lab.batch_s, lab.ratio = 15.0, lambda choices: 0.5
    told = Told()
    found = tune(THREE, minutes=0.5, reporter=told)
    assert told.begun == ["forward"]
    assert [record.trials for record in found] == [1 + 2 * 8]
    lab.batch_s = 21.0
    found = tune(THREE, minutes=0.5, reporter=told)
    assert told.begun == ["forward", "forward", "backward_data"]
    assert [record.kernel for record in found] == ["forward", "backward_data"]


def test_a_task_without_time_needs_no_verdict(lab: Lab) -> None:
    rotate = lab.rotate

    def late(*arguments: Any) -> dict[str, Timing]:
        lab.clock_s += 59
        return rotate(*arguments)

    lab.rotate = late  # type: ignore[method-assign]
    told = Told()
    assert tune(WEIGHT, minutes=0.5, reporter=told) == []
    assert told.failures[0].endswith("stopped before anything but the default ran")
    assert lab.rotated == [["default"]]


# --- Ctrl-C, and going on


def test_an_interrupt_keeps_what_was_found_and_resume_goes_on(lab: Lab, home: Path) -> None:
    lab.ratio = faster({5: 0.7, 50: 0.4})
    told = Told(stop_at=17)
    found = tune([WEIGHT, FORWARD], reporter=told)  # the second task never begins
    assert [record.choices for record in found] == [others(WEIGHT)[5]]
    assert lines(home)[0].trials == 17
    assert len(journal(home).read()) == 16
    built = lab.built
    lab.built, lab._points = [], {}

    (found_again,) = tune(WEIGHT, resume=True)
    assert found_again.choices == others(WEIGHT)[50]
    # None is measured again; the winner is only compiled again, if it had been found before.
    again = {key(c) for c in lab.built} & {key(c) for c in built}
    assert again <= {key(task_of(WEIGHT).space.default), key(others(WEIGHT)[5])} | {
        key(c) for c in others(WEIGHT)[:3]
    }
    assert len(lab.built) < 64 - 16 + 4
    assert not journal(home).read()

    lab.built = []
    told = Told()
    assert tune(WEIGHT, resume=True, reporter=told)[0].choices == found_again.choices
    assert [record.key for record in told.skips] == [found_again.key]
    assert not lab.built
    assert len(lines(home)) == 2


def test_more_trials_than_before_are_no_skip(lab: Lab) -> None:
    tune(WEIGHT, trials=2)
    told = Told()
    (found,) = tune(WEIGHT, trials=1000, resume=True, reporter=told)
    assert not told.skips
    assert found.trials == 64


def test_an_interrupt_of_the_search_itself_is_none_of_a_candidate(
    lab: Lab, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TVM would make another exception of it in a callback."""
    features = search.features

    def interrupted(*arguments: Any) -> list[float]:
        if lab.clock_s == 3:
            signal.raise_signal(signal.SIGINT)
        return features(*arguments)

    monkeypatch.setattr(search, "features", interrupted)
    told = Told()
    assert tune([FORWARD, WEIGHT], trials=100, reporter=told) == []
    (reason,) = told.failures
    assert "stopped before anything beat the default" in reason
    assert 16 <= len(journal(home, FORWARD).read()) <= 24  # three batches, the default in one


def test_without_resume_a_session_starts_anew(lab: Lab, home: Path) -> None:
    lab.ratio = faster({5: 0.7})
    tune(WEIGHT, reporter=Told(stop_at=17))
    lab.built, lab._points = [], {}
    tune(WEIGHT, reporter=Told(stop_at=9))
    assert len(lab.built) == 10  # the default, the recorded one, a batch
    assert len(journal(home).read()) == 9


def test_an_interrupt_that_found_nothing_leaves_no_record(lab: Lab, home: Path) -> None:
    """It would say that the default is best, and keep calls from shipped records."""
    assert tune(WEIGHT, reporter=Told(stop_at=9)) == []
    assert not lines(home)
    assert len(journal(home).read()) == 8


def test_an_interrupt_between_trials_returns_what_there_is(
    lab: Lab, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(task: Task, *_: Any) -> str | None:
        if task.request.kernel == "forward":
            raise KeyboardInterrupt
        return None

    lab.ratio, lab.build = faster({0: 0.5}), interrupt  # while the second's default is built
    assert [record.kernel for record in tune([WEIGHT, FORWARD])] == ["backward_weight"]

    def second(*_: Any) -> str | None:
        raise KeyboardInterrupt

    lab.build, lab.wrong = lambda *_: None, second  # another one while the verdict is found
    assert tune(WEIGHT, reporter=Told(stop_at=9)) == []
    assert len(lab.closed) == 4
    assert len(lines(home)) == 1


def test_a_damaged_journal_loses_its_damaged_lines_only(lab: Lab, home: Path) -> None:
    tune(WEIGHT, reporter=Told(stop_at=17))
    (path,) = (home / "tuning").iterdir()
    whole = path.read_text().splitlines(keepends=True)
    assert len(whole) == 16
    foreign = '{"choices": {"no": 1}, "ratio": 0.1, "reason": ""}\n'
    wrong = '[]\n{}\n{"choices": 3, "ratio": 1.0, "reason": ""}\n\x00\xff\n'
    path.write_text("".join(whole[:8]) + foreign + wrong + whole[9][:20])  # and no newline
    told = Told(stop_at=17)
    tune(WEIGHT, resume=True, reporter=told)
    assert told.tried_so_far == [9, 17]
    assert len(journal(home).read()) == 8 + 1 + 8


# --- what can be tuned, and what is refused


def kernels_of(problems: Any) -> list[tuple[str, dict[str, int], str]]:
    tasks = session.plan_tasks(problems, target.detect(), 1)
    return [(t.request.problem.op, dict(t.sizes), t.request.kernel) for t in tasks]


def test_all_forms_of_problems() -> None:
    pair = kernels_of((ROI, ROI_SIZES))
    assert pair == [("roi_align", ROI_SIZES, kernel) for kernel in ("forward", "backward")]
    assert kernels_of([ROI, ROI_SIZES]) == kernels_of([(ROI, ROI_SIZES)]) == pair
    assert kernels_of([(ROI, ROI_SIZES), Workload.of(ROI, ROI_SIZES)]) == pair  # each once
    assert kernels_of(FORWARD) == [("deform_conv2d", CONV_SIZES, "forward")]
    assert kernels_of([FORWARD, (ROI, ROI_SIZES)]) == kernels_of(FORWARD) + pair
    case = suites.SUITES["roi_align"][0]
    assert kernels_of(case) == kernels_of((case.problem(), case.free_sizes))
    suite = kernels_of("roi_align")
    assert suite[:2] == kernels_of(case)
    assert len(suite) == 2 * len(suites.SUITES["roi_align"])
    assert kernels_of(["roi_align", "roi_align"]) == suite
    assert kernels_of([]) == []


def test_what_a_model_met_can_be_tuned(lab: Lab) -> None:
    made = example(ROI, ROI_SIZES)
    with dcn_tvm.record_problems() as met:
        torch.ops.dcn_tvm.roi_align(*made.tensors, *made.attributes)
    (found,) = tune(met, trials=2)
    assert (found.problem, found.kernel) == (ROI, "forward")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"trials": 0}, "trials must be positive, got 0"),
        ({"trials": 1}, "trials must be at least 2"),
        ({"minutes": -1.0}, r"minutes must be positive, got -1.0"),
        ({"threads": 0}, "threads must be positive, got 0"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"target": "x86-64-v9"}, "level must be one of"),
        ({"problems": "no-such-suite"}, "suite must be one of .*got no-such-suite"),
        ({"problems": (CONV, {"batch": 1})}, "height must be a positive whole number, got none"),
        (
            {"problems": (CONV, {**CONV_SIZES, "batch": 0})},
            "batch must be a positive number, got 0",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], said: str, lab: Lab) -> None:
    with pytest.raises(ValueError, match=said):
        tune(**{"problems": WEIGHT, **options})
    assert not lab.built


def test_a_target_of_another_family_is_refused(lab: Lab) -> None:
    other = "armv8" if target.detect().arch == "x86-64" else "x86-64-v3"
    with pytest.raises(ValueError, match=r"must be one of|another machine"):
        tune(WEIGHT, target=other)


@pytest.mark.parametrize("nothing", [3, CONV, None])
def test_what_is_no_problem_is_refused(nothing: object, lab: Lab) -> None:
    with pytest.raises(TypeError, match="cannot tune"):
        tune(nothing)


def test_nothing_to_tune_is_nothing(lab: Lab, home: Path) -> None:
    assert tune([]) == []
    assert not home.exists()


def test_a_c_compiler_is_needed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "find_compiler", lambda: None)
    with pytest.raises(CompileError, match="needs a C compiler: install cc"):
        tune(WEIGHT)


def test_a_folder_that_cannot_be_written_is_told_before_the_search(
    lab: Lab, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        tune(WEIGHT, root=tmp_path / "file")
    assert not lab.built


# --- what later calls do with it


def test_this_process_uses_its_records_at_once(lab: Lab, home: Path, tmp_path: Path) -> None:
    problem = RoIAlignProblem("float32", "nchw", 32, (3, 3))  # of no other test
    made = example(problem, ROI_SIZES)

    def provenances(**sizes: int) -> list[str]:
        return [e.provenance for e in kernels.explain(problem, {**ROI_SIZES, **sizes})]

    def call() -> tuple[torch.Tensor, int]:
        before = kernels.build_count()
        output = dcn_tvm.roi_align(*made.tensors, 3, 1 / ROI_SIZES["stride"])
        torch.testing.assert_close(output, made.reference(*made.tensors))
        return output, kernels.build_count() - before

    assert provenances() == ["default", "default"]
    assert call()[1] == 1
    assert call()[1] == 0
    lab.ratio = lambda choices: 0.5
    cores = target.detect().cores
    found = tune((problem, ROI_SIZES), threads=cores)
    assert all(record.choices for record in found)
    file = f"{target.detect().ids[0]}/roi_align.jsonl"
    assert provenances() == [f"user: exact, {file}:1", f"user: exact, {file}:2"]
    assert all("user: nearest" in text for text in provenances(boxes=5))
    assert call()[1] == 1  # another kernel than before
    # A root of one's own is written, and not looked up.
    elsewhere = tmp_path / "elsewhere"
    tune((problem, {**ROI_SIZES, "boxes": 3}), root=elsewhere)
    assert len(records.files(elsewhere)) == 1
    assert all("boxes 4" in text for text in provenances(boxes=3))
