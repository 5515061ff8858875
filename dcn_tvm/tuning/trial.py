"""One task's search: propose, compile, measure, learn; then decide, beyond noise, what is kept."""

from __future__ import annotations

import math
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dcn_tvm.errors import CompileError
from dcn_tvm.knobs import Choice, Choices
from dcn_tvm.measure import Timing, ratio
from dcn_tvm.tuning.crew import DEFAULT, Compilers, Stations
from dcn_tvm.tuning.search import BATCH, Search
from dcn_tvm.tuning.task import Journal, Task, Trial

FINALISTS = 4
LEAST_NOISE = 0.005  # no rotation of some seconds tells times apart better than this
_AGAIN = "default again"
_ROUNDS = 12  # of the last rotation, in which the finalists meet the default twice
_FINAL_S = (2.0, 15.0)
_FIRST_S = 0.3
_PATIENCE_S = 120.0  # with the default, before it is taken to hang


@dataclass(frozen=True)
class Verdict:
    """What a search found.

    Attributes:
        choices: the winner's; None if nothing beat the default by more than the noise.
        median_us: the default's time, times the median ratio of the winner's and the default's
            times in the same round.
        default_us: the default's time in the same rotation.
        noise: what had to be beaten, relative: how far the default's times differ from its own.
        trials: points tried, the default included.
        failures: of them failed, in words.
    """

    choices: dict[str, Choice] | None
    median_us: float
    default_us: float
    noise: float
    trials: int
    failures: tuple[str, ...]


Progress = Callable[[Sequence[Trial]], None]


class Hunt:
    """The search of one task, which can be stopped at any time and still has a verdict.

    Example:
        >>> hunt = Hunt(task, compilers, stations, journal)
        >>> hunt.run(trials=64, seed=0, until=time.monotonic() + 600)
        >>> hunt.decide()
    """

    def __init__(
        self, task: Task, compilers: Compilers, stations: Stations, journal: Journal
    ) -> None:
        self._task, self._compilers, self._stations = task, compilers, stations
        self._journal = journal
        self._default_us = 0.0
        self.tried: list[Trial] = []
        self._default = self._build_default()

    def _build_default(self) -> Path:
        """Build and time what all others are compared with.

        Raises:
            CompileError: it cannot be built, or does not run.
        """
        (made,) = self._compilers.make(self._task, [self._task.space.default])
        if isinstance(made, str):
            raise CompileError(f"{self._task}: the default schedule cannot be built: {made}")
        try:
            timings = self._stations.first.rotate(
                self._task, {DEFAULT: made}, _FIRST_S, _PATIENCE_S
            )
        except RuntimeError as error:
            raise CompileError(f"{self._task}: the default does not run: {error}") from error
        self._default_us = timings[DEFAULT].median_us
        self.tried.append(Trial(dict(self._task.space.default), 1.0))
        return made

    def resume(self) -> None:
        """Take over what an earlier search of this task measured."""
        known = {_key(trial.choices) for trial in self.tried}
        for trial in self._journal.read():
            if trial.choices in self._task.space and _key(trial.choices) not in known:
                known.add(_key(trial.choices))
                self.tried.append(trial)

    def run(
        self,
        trials: int,
        seed: int = 0,
        until: float = float("inf"),
        progress: Progress = lambda tried: None,
        first: Iterable[Choices] = (),
        batch: int = BATCH,
    ) -> None:
        """Try points until there were `trials`, the default included, or the time is over.

        A space that is no larger is tried out completely. Else the search begins with the points
        of `first`, such as those of records: it cannot end worse than they are. Points are tried in
        batches.
        """
        space = self._task.space
        progress(self.tried)
        self._ratios([dict(choices) for choices in first if choices in space], trials - 1)
        if space.size <= trials:
            known = {_key(trial.choices) for trial in self.tried}
            left = [point for point in space.points() if _key(point) not in known]
            while left and time.monotonic() < until:
                self._try(left[:batch])
                left = left[batch:]
                progress(self.tried)
            return
        with _uninterrupted():
            search = Search(space, trials, seed, batch)
            search.learn([(trial.choices, self._seconds(trial.ratio)) for trial in self.tried])
        while len(self.tried) < trials and time.monotonic() < until:
            with _uninterrupted():
                points = search.ask()
            if not points:
                return
            ratios = self._ratios(points, trials - len(self.tried))
            with _uninterrupted():
                search.tell([self._seconds(ratios.get(_key(point))) for point in points])
            progress(self.tried)

    def _ratios(self, batch: Sequence[dict[str, Choice]], most: int) -> dict[str, float | None]:
        """Try the points of a batch that are new, so many at most; return what is known of all."""
        known = {_key(trial.choices) for trial in self.tried}
        new = {_key(point): point for point in batch if _key(point) not in known}
        self._try(list(new.values())[:most])
        return {_key(trial.choices): trial.ratio for trial in self.tried}

    def _seconds(self, ratio_: float | None) -> float | None:
        return None if ratio_ is None else ratio_ * self._default_us / 1e6

    def _try(self, points: Sequence[dict[str, Choice]]) -> None:
        """Compile and measure points, and write down what came of it."""
        if not points:
            return
        made = self._compilers.make(self._task, points)
        built = [path for path in made if isinstance(path, Path)]
        measured = self._stations.ratios(self._task, self._default, built, self._default_us)
        by_path = dict(zip(built, measured, strict=True))
        found = []
        for choices, path in zip(points, made, strict=True):
            outcome = by_path[path] if isinstance(path, Path) else path
            failed = isinstance(outcome, str)
            found.append(
                Trial(choices, None, str(outcome)) if failed else Trial(choices, float(outcome))
            )
        self.tried += found
        self._journal.add(found)

    def decide(self) -> Verdict:
        """Measure the best again, longer, beside the default, and check the winner's results."""
        failures = [trial.reason for trial in self.tried if trial.ratio is None]
        ranked = sorted((t for t in self.tried[1:] if t.ratio is not None), key=_ratio_of)
        points = [trial.choices for trial in ranked[:FINALISTS]]
        made = self._compilers.make(self._task, points)  # resumed ones have no library yet
        finalists = {str(place): path for place, path in enumerate(made) if isinstance(path, Path)}
        timings = self._rotate_finalists(finalists)
        default = timings[DEFAULT]
        rated = {name: ratio(timings[name], default) for name in finalists if name in timings}
        for name in sorted(rated, key=rated.__getitem__):
            noise = noise_of(timings[name], default, timings[_AGAIN])
            if 1 - rated[name] <= noise:
                break
            wrong = self._stations.first.check(self._task, finalists[name], self._default)
            if wrong is None:
                default_us = default.median_us
                won_us = default_us * rated[name]
                choices = points[int(name)]
                return Verdict(choices, won_us, default_us, noise, len(self.tried), tuple(failures))
            failures.append(wrong)
        noise = noise_of(timings[_AGAIN], default, timings[_AGAIN])
        us = default.median_us
        return Verdict(None, us, us, noise, len(self.tried), tuple(failures))

    def _rotate_finalists(self, finalists: dict[str, Path]) -> dict[str, Timing]:
        """The finalists, and the default twice; without those that fail now."""
        both = {DEFAULT: self._default, _AGAIN: self._default}
        least_s, most_s = _FINAL_S
        contenders = len(finalists) + len(both)
        seconds = min(max(contenders * _ROUNDS * self._default_us / 1e6, least_s), most_s)
        try:
            return self._stations.first.rotate(
                self._task, {**both, **finalists}, seconds, 60 + 10 * seconds
            )
        except RuntimeError:
            if not finalists:
                raise
            return self._rotate_finalists(self._fewer(finalists))

    def _fewer(self, finalists: dict[str, Path]) -> dict[str, Path]:
        """Those that run, each tried alone if need be; if now they all do, all but the slowest."""
        paths = list(finalists.values())
        ratios = self._stations.ratios(self._task, self._default, paths, self._default_us)
        left = {
            name: path
            for (name, path), found in zip(finalists.items(), ratios, strict=True)
            if not isinstance(found, str)
        }
        if len(left) == len(finalists):
            left.popitem()
        return left


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back for a moment: in a callback of TVM's it would become another exception."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if held:
        signal.raise_signal(signal.SIGINT)


def noise_of(timing: Timing, default: Timing, again: Timing) -> float:
    """Return what a difference from the default must exceed to be one.

    The larger of how far the default is from itself, and twice the standard error of the medians
    of both ratios.
    """
    own = abs(1 - ratio(again, default))
    return max(LEAST_NOISE, own, 2 * _error(timing, default), 2 * _error(again, default))


def _error(timing: Timing, default: Timing) -> float:
    """Standard error of the median of the rounds' ratios, from their median deviation."""
    shared = timing.rounds.keys() & default.rounds.keys()
    ratios = [timing.rounds[r] / default.rounds[r] for r in shared]
    centre = statistics.median(ratios)
    deviation = statistics.median(abs(r - centre) for r in ratios)
    return 1.2533 * 1.4826 * deviation / math.sqrt(len(ratios))


def _ratio_of(trial: Trial) -> float:
    assert trial.ratio is not None
    return trial.ratio


def _key(choices: Choices) -> str:
    return repr(sorted(choices.items()))
