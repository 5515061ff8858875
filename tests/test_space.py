"""A space is exactly what its schedule asks, and every kernel's schedule can be asked cheaply."""

import dataclasses
import importlib
import itertools
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st

from dcn_tvm import build, kernels, ops, suites, target
from dcn_tvm.build import Request
from dcn_tvm.knobs import Choice, Knobs
from dcn_tvm.ops.deform_conv2d import DeformConv2dProblem
from dcn_tvm.ops.roi import RoIProblem
from dcn_tvm.problem import LAYOUTS, Problem
from dcn_tvm.space import explore
from tests.cases import CASES

MACHINE = target.detect()
# Few and many registers, narrow vectors, and more cores than there are slices of channels.
TARGETS = (None, "x86-64-v2", "x86-64-v4,cores=64", "armv8,cores=3")
MOST_POINTS = 5000  # of any kernel; a search lists them, and asks each once
NAMES = "abcdef"
# A tree of questions: (place of the default, what is asked after each option), None at its end.
Tree = tuple[int, tuple[Any, ...]] | None


@st.composite
def trees(draw: Any, depth: int = 3) -> Tree:
    """Draw a tree in which some options share what comes after them."""
    if depth == 0 or draw(st.integers(0, 5)) == 0:
        return None
    count = draw(st.integers(1, 4))
    below = draw(st.lists(trees(depth - 1), min_size=1, max_size=count))
    branches = tuple(below[draw(st.integers(0, len(below) - 1))] for _ in range(count))
    return draw(st.integers(0, count - 1)), branches


def ask_tree(tree: Tree, mixed: bool) -> Callable[[Knobs], object]:
    """A schedule that asks a tree; `mixed` names depend on the way, and some options are text."""

    def ask(knobs: Knobs) -> None:
        node, level, before = tree, 0, 0
        while node is not None:
            default, branches = node
            name = NAMES[level] + str(before if mixed else "")
            options: list[Any] = [10 * level + place for place in range(len(branches))]
            if mixed and level % 2:
                options = [f"{option}x2" for option in options]
            before = options.index(knobs.choice(name, options, options[default]))
            node, level = branches[before], level + 1

    return ask


def finishing(ask: Callable[[Knobs], object]) -> Callable[[Knobs], object]:
    def also_finish(knobs: Knobs) -> None:
        ask(knobs)
        knobs.finish()

    return also_finish


def brute_force(ask: Callable[[Knobs], object]) -> list[dict[str, Choice]]:
    """Every point, met by turning the last answer that can still be turned."""
    found, answers = [], list[int]()
    while True:

        class Turned(Knobs):
            def _answer(self, name: str, legal: Any, default: Any) -> Any:
                place = len(self.space) - 1
                if place == len(answers):
                    answers.append(0)
                return legal[answers[place]]

        knobs = Turned()
        ask(knobs)
        found.append(dict(knobs.chosen))
        counts = [len(options) for options in knobs.space.values()]
        while answers and answers[-1] + 1 == counts[len(answers) - 1]:
            answers.pop()
        if not answers:
            return found
        answers[-1] += 1


def key(point: Any) -> frozenset[Any]:
    return frozenset(point.items())


@example_settings(max_examples=150)
@given(trees(), st.booleans())
def test_a_space_is_the_union_of_all_ways_through_the_questions(tree: Tree, mixed: bool) -> None:
    ask = ask_tree(tree, mixed)
    space = explore(ask)
    every = brute_force(ask)
    points = list(space.points())
    assert len({key(point) for point in points}) == len(points) == space.size  # disjoint
    assert {key(point) for point in points} == {key(point) for point in every}
    assert [list(point) for point in points] == [
        next(list(p) for p in every if key(p) == key(point)) for point in points
    ]
    default = Knobs()
    ask(default)
    assert space.default == default.chosen
    assert space.default in space
    assert space == explore(finishing(ask))


@example_settings(max_examples=100)
@given(trees(), st.booleans())
def test_points_are_located_and_strangers_are_not(tree: Tree, mixed: bool) -> None:
    space = explore(ask_tree(tree, mixed))
    for point in space.points():
        assert point in space
        located = space.locate(dict(reversed(point.items())))  # whatever the order
        assert located is not None
        number, places = located
        product = space.products[number]
        assert {
            name: options[place] for (name, options), place in zip(product, places, strict=True)
        } == point
        assert {**point, "stranger": 1} not in space
        for name in point:
            assert {**point, name: -1} not in space
            assert {n: value for n, value in point.items() if n != name} not in space


@example_settings(max_examples=50)
@given(trees(), st.booleans())
def test_each_point_is_asked_once(tree: Tree, mixed: bool) -> None:
    asked = 0
    ask = ask_tree(tree, mixed)

    def counted(knobs: Knobs) -> None:
        nonlocal asked
        asked += 1
        ask(knobs)

    assert asked <= explore(counted).size + 1  # and the default


def test_points_with_the_same_questions_below_are_one_product() -> None:
    def ask(knobs: Knobs) -> None:
        tile = knobs.choice("tile", ["4x2", "8x1", "3x3", "4x4"], "8x1")
        step = 24 if tile == "3x3" else 8
        knobs.choice("rows", range(step, 49, step), step)
        knobs.choice("taps", [1, 3, 3, 9], 9)

    space = explore(ask)
    rows, taps = (8, 16, 24, 32, 40, 48), ("taps", (1, 3, 9))
    assert set(space.products) == {
        (("tile", ("4x2", "8x1", "4x4")), ("rows", rows), taps),
        (("tile", ("3x3",)), ("rows", (24, 48)), taps),
    }
    assert space.size == (3 * 6 + 2) * 3
    assert space.default == {"tile": "8x1", "rows": 8, "taps": 9}
    assert {name: set(options) for name, options in space.knobs.items()} == {
        "tile": {"4x2", "8x1", "3x3", "4x4"},
        "rows": set(rows),
        "taps": {1, 3, 9},
    }


def test_a_schedule_without_questions_has_one_point() -> None:
    space = explore(lambda knobs: None)
    assert (space.size, list(space.points()), space.default) == (1, [{}], {})
    assert {} in space
    assert {"rows": 8} not in space


def test_schedules_are_left_at_finish() -> None:
    def ask(knobs: Knobs) -> None:
        knobs.choice("rows", [8, 16], 16)
        knobs.finish()
        raise AssertionError("this would be the expensive part")

    assert list(explore(ask).points()) == [{"rows": 8}, {"rows": 16}]


def test_what_goes_wrong_in_a_schedule_comes_out() -> None:
    def ask(knobs: Knobs) -> None:
        rows = knobs.choice("rows", [8, 16], 16)
        knobs.choice("taps", [1, 3], 1 if rows == 16 else 9)  # no option, and not by default

    with pytest.raises(ValueError, match=r"taps.*9"):
        explore(ask)


def problems() -> list[Problem]:
    """Problems of every op, in both layouts; float64 has other lanes."""
    kinds = itertools.product(("float32", "float64"), LAYOUTS)
    return list(dict.fromkeys(p for kind in kinds for p in (*conv_problems(*kind), *roi(*kind))))


def conv_problems(dtype: str, layout: str) -> Iterator[Problem]:
    for case in suites.SUITES["deform_conv2d"]:
        yield case.problem(dtype, layout)
    for small in CASES.values():
        yield DeformConv2dProblem(
            *(dtype, layout, small.in_channels, small.out_channels, small.kernel),
            groups=small.groups,
            offset_groups=small.offset_groups,
            modulated=small.modulated,
            bias=small.bias,
        )


def roi(dtype: str, layout: str) -> Iterator[Problem]:
    for op, cases in suites.SUITES.items():
        for case in cases if op != "deform_conv2d" else ():
            problem = case.problem(dtype, layout)
            assert isinstance(problem, RoIProblem)
            parts = math.prod(problem.groups) * problem.classes
            yield problem
            for depth in (1, 3, 30):  # less than a vector, a part of one more, two with a rest
                yield dataclasses.replace(problem, channels=parts * depth)


def requests(problem: Problem) -> list[Request]:
    return [
        Request(problem, kernel.name, kernels.possible_outputs(problem, kernel.outputs))
        for kernel in ops.registry()[problem.op].kernels().values()
    ]


@pytest.fixture
def only_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let whatever a schedule does after its questions fail."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("an expression was made")

    for name, op in ops.registry().items():
        te = importlib.import_module(f"dcn_tvm.te.{name}")
        for kernel in op.kernels():
            monkeypatch.setattr(te, kernel, refuse)


@pytest.mark.usefixtures("only_questions")
class TestQuestionsOnly:
    def test_expressions_are_refused(self) -> None:
        for case in suites.SUITES.values():
            for request in requests(case[0].problem()):
                with pytest.raises(AssertionError, match="expression"):
                    build.schedule(request, MACHINE)

    @pytest.mark.parametrize("spec", TARGETS)
    def test_every_kernel_of_every_op_has_a_space_with_its_default(self, spec: str | None) -> None:
        machine = target.parse(spec, foreign=True) if spec else MACHINE
        asked = set()
        some = problems()[:: 3 if spec else 1]
        for request in itertools.chain.from_iterable(map(requests, some)):
            space = build.space(request, machine)
            assert space.default in space, request
            assert space.size <= MOST_POINTS, request
            asked.add((request.problem.op, request.kernel))
        assert asked == {
            (name, kernel) for name, op in ops.registry().items() for kernel in op.kernels()
        }

    def test_what_runs_by_default_is_worth_a_search(self) -> None:
        """The kernels of the suites have a choice, but where a class has a single channel."""
        for case in itertools.chain.from_iterable(suites.SUITES.values()):
            for request in requests(case.problem()):
                depth = getattr(request.problem, "depth", 512)
                assert (build.space(request, MACHINE).size > 1) == (depth > MACHINE.lanes), request


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", ops.registry())
def test_no_question_comes_after_finish(op: str, layout: str) -> None:
    """What a schedule chooses when it runs to its end is a point of the space that stops early."""
    for request in requests(suites.SUITES[op][0].problem("float32", layout)):
        space = build.space(request, MACHINE)
        assert build.schedule(request, MACHINE).choices == space.default
        sampled = build.schedule(request, MACHINE, Knobs(rng=random.Random(1)))
        assert sampled.choices in space
