"""Evolutionary search with a learned cost model, over the choices of a schedule.

MetaSchedule mutates *traces*: a program of random decisions, applied to a module. Our decisions are
made before there is a module (tile sizes shape the tensor expressions), so the traces are of an
*anchor*, an empty function whose annotations say where each decision fell. Each product of a
`Space` is one of MetaSchedule's design spaces, so every trace is a legal point and no two traces
mean the same. What a point costs is learned from the choices themselves: they are few numbers, and
scheduling a candidate to count its loops would take a hundred times as long.
"""

from __future__ import annotations

import logging
import random
import re
import sys
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import tvm
from tvm import te
from tvm.ir.utils import derived_object
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule.feature_extractor import PyFeatureExtractor
from tvm.s_tir.meta_schedule.mutator import PyMutator
from tvm.s_tir.meta_schedule.search_strategy import EvolutionarySearch, MeasureCandidate

from dcn_tvm.knobs import Choice, Choices
from dcn_tvm.space import Space

BATCH = 8  # candidates between two trainings of the cost model
_BLOCK, _PRODUCT, _KNOB = "anchor", "dcn_tvm.product", "dcn_tvm.knob"
_NUMBER = re.compile(r"\d+")
# Small spaces and few trials: MetaSchedule's own numbers are for spaces of millions of points.
_POPULATION = 128
_EXPLORE = 0.15  # share of candidates taken at random
# A candidate that failed is as slow to the model as this times the fastest. The model weighs points
# by their speed, so MetaSchedule's own 1e10 s weigh nothing: with half of a space failing, 15 of 24
# proposals did, more than by chance; now 2.
_FAILED_TIMES = 4.0
_UNKNOWN_S = 1e9  # the fastest, before any candidate ran


class Search:
    """Proposes points of a space, and learns from what they took.

    Points are proposed once each; a space that is exhausted proposes nothing more.

    Example:
        >>> search = Search(space, trials=64, seed=0)
        >>> while batch := search.ask():
        ...     search.tell([measure(choices) for choices in batch])
    """

    def __init__(self, space: Space, trials: int, seed: int = 0, batch: int = BATCH) -> None:
        self._space = space
        module = _anchor()
        with _no_tensor_intrinsics():
            self._context = ms.TuneContext(
                module,
                target=tvm.target.Target("llvm"),  # of the anchor, which nobody compiles
                space_generator=ms.space_generator.ScheduleFn(
                    self._design_spaces,
                    sch_rules=[],
                    postprocs=[],
                    mutator_probs={_OtherChoice(seed): 1.0},
                ),
                search_strategy=EvolutionarySearch(
                    population_size=_POPULATION,
                    init_measured_ratio=0.25,
                    init_min_unmeasured=batch,
                    genetic_num_iters=3,
                    eps_greedy=_EXPLORE,
                ),
                rand_state=seed + 1,  # -1 and 0 are not seeds to TVM
                num_threads=1,  # the callbacks are Python
                logger=_logger(),
            )
        self._database = ms.database.MemoryDatabase()
        self._workload = self._database.commit_workload(module)
        self._model = ms.cost_model.XGBModel(
            extractor=_ChoiceFeatures(space),
            num_warmup_samples=2 * BATCH,
            num_tuning_cores=1,
            verbose_eval=0,
        )
        self._random_state = np.random.RandomState(seed).get_state()
        self._proposed: list[MeasureCandidate] = []
        self._fastest = _UNKNOWN_S
        self._context.pre_tuning(
            max_trials=trials,
            num_trials_per_iter=batch,
            design_spaces=self._context.generate_design_space(),
            database=self._database,
            cost_model=self._model,
        )

    def ask(self) -> list[dict[str, Choice]]:
        """Return the points to measure next; none when the trials or the space are used up."""
        with self._own_randomness():
            candidates = self._context.generate_measure_candidates()
        self._proposed = list(candidates or [])
        return [self._decode(candidate.sch) for candidate in self._proposed]

    def tell(self, seconds: Sequence[float | None]) -> None:
        """Say what the points just asked for took; None for one that failed."""
        if self._proposed:
            results = [
                ms.runner.RunnerResult(None if s is None else [s], "failed" if s is None else None)
                for s in seconds
            ]
            self._context.notify_runner_results(self._proposed, results)
            self._learn(self._proposed, seconds)
        self._proposed = []

    def learn(self, measured: Iterable[tuple[Choices, float | None]]) -> None:
        """Learn from an earlier search; points that are not in the space are passed over."""
        known = [(self._schedule(choices), s) for choices, s in measured if choices in self._space]
        if known:
            candidates = [MeasureCandidate(schedule, []) for schedule, _ in known]
            self._learn(candidates, [s for _, s in known])

    @contextmanager
    def _own_randomness(self) -> Iterator[None]:
        """Let the cost model, which guesses at first, draw from a state of numpy that is ours."""
        others = np.random.get_state()  # noqa: NPY002
        np.random.set_state(self._random_state)  # noqa: NPY002
        try:
            yield
        finally:
            self._random_state = np.random.get_state()  # noqa: NPY002
            np.random.set_state(others)  # noqa: NPY002

    def _learn(self, candidates: list[Any], seconds: Sequence[float | None]) -> None:
        """Train the model, and keep the points that ran as parents of the next ones."""
        self._fastest = min([self._fastest, *(s for s in seconds if s is not None)])
        for candidate, s in zip(candidates, seconds, strict=True):
            if s is not None:
                record = ms.database.TuningRecord(
                    candidate.sch.trace, self._workload, [s], self._context.target, []
                )
                self._database.commit_tuning_record(record)
        failed = _FAILED_TIMES * self._fastest
        results = [ms.runner.RunnerResult([failed if s is None else s], None) for s in seconds]
        self._model.update(self._context, candidates, results)

    def _design_spaces(self, schedule: Schedule) -> list[Schedule]:
        return [
            self._sample(schedule.copy(), number) for number in range(len(self._space.products))
        ]

    def _sample(
        self, schedule: Schedule, product: int, places: Sequence[int] | None = None
    ) -> Schedule:
        """Decide every knob of a product, at random or as told, and write down where it fell."""
        block = schedule.get_sblock(_BLOCK)
        schedule.annotate(block, _PRODUCT, product)
        for knob, (_, options) in enumerate(self._space.products[product]):
            count = len(options)
            decision = None if places is None else places[knob]
            chosen = schedule.sample_categorical(
                list(range(count)), [1.0 / count] * count, decision
            )
            schedule.annotate(block, f"{_KNOB}{knob}", chosen)
        return schedule

    def _schedule(self, choices: Choices) -> Schedule:
        """The anchor's schedule that means these choices."""
        located = self._space.locate(choices)
        assert located is not None
        return self._sample(Schedule(self._context.mod), *located)

    def _decode(self, schedule: Schedule) -> dict[str, Choice]:
        return decode(self._space, schedule)


def decode(space: Space, schedule: Schedule) -> dict[str, Choice]:
    """Return the choices that an anchor's annotations mean."""
    notes = schedule.get(schedule.get_sblock(_BLOCK)).annotations
    product = space.products[int(notes[_PRODUCT])]
    return {
        name: options[int(notes[f"{_KNOB}{knob}"])] for knob, (name, options) in enumerate(product)
    }


def features(space: Space, choices: Mapping[str, Choice]) -> list[float]:
    """Return what the cost model sees: each knob's place among its options and its numbers."""
    row = [0.0]  # the model refuses to learn from nothing, such as a space of one point
    for name, options in space.knobs.items():
        value = choices.get(name)
        row.append(-1.0 if value is None else float(options.index(value)))
        width = max(len(_NUMBER.findall(str(option))) for option in options)
        numbers = [float(n) for n in _NUMBER.findall(str(value))] if value is not None else []
        row += numbers + [-1.0] * (width - len(numbers))
    return row


@contextmanager
def _no_tensor_intrinsics() -> Iterator[None]:
    """Keep a TuneContext from importing TVM's tensor intrinsics: 23 s, and the anchor has none."""
    name = "tvm.s_tir.tensor_intrin"
    absent = name not in sys.modules
    sys.modules.setdefault(name, types.ModuleType(name))
    try:
        yield
    finally:
        if absent:
            del sys.modules[name]


def _anchor() -> Any:
    """A module to hang decisions on."""
    nothing = te.compute((1,), lambda i: tvm.tirx.const(0, "int32"), name=_BLOCK)
    function = te.create_prim_func([nothing]).with_attr("global_symbol", "main")
    return tvm.IRModule({"main": function})


def _logger() -> logging.Logger:
    logger = logging.getLogger("dcn_tvm.tuning")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    return logger


@derived_object
class _OtherChoice(PyMutator):
    """Moves one decision of a trace: to a neighbouring option as often as to any other."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._seed = seed

    def _initialize_with_tune_context(self, context: Any) -> None:
        pass

    def apply(self, trace: Any, random_state: int) -> Any:
        """Return the trace with another decision, or None where there is no other option."""
        decided = ((i, trace.get_decision(i)) for i in trace.insts)  # in the order of the program
        movable = [
            (instruction, int(decision), len(instruction.attrs[0]))
            for instruction, decision in decided
            if decision is not None and len(instruction.attrs[0]) > 1
        ]
        if not movable:
            return None
        instruction, place, count = self._random.choice(movable)
        near = [p for p in (place - 1, place + 1) if 0 <= p < count]
        far = [p for p in range(count) if p != place]
        other = self._random.choice(near if self._random.random() < 0.5 else far)
        return trace.with_decision(instruction, tvm.runtime.convert(other), remove_postproc=True)

    def clone(self) -> Any:
        """Return a copy with a seed of its own."""
        return _OtherChoice(self._seed + 1)


@derived_object
class _ChoiceFeatures(PyFeatureExtractor):
    """One row for each candidate: its choices."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self._space = space

    def extract_from(self, context: Any, candidates: list[Any]) -> list[Any]:
        """Return a 1 x features array for each candidate."""
        rows = (features(self._space, decode(self._space, c.sch)) for c in candidates)
        return [cast("Any", tvm.runtime.tensor(np.array([row], dtype="float64"))) for row in rows]
