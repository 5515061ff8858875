"""Any point of any schedule's search space computes the same; records replay; lower levels run."""

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

import dcn_tvm
from dcn_tvm import build, ops, target
from dcn_tvm.build import Request, Scheduled
from dcn_tvm.knobs import Knobs
from dcn_tvm.ops.deform_conv2d import DeformConv2dProblem
from tests.cases import CASES, Arguments
from tests.oracles import assert_matches_reference

MACHINE = target.detect()
POINTS = (0, 1, 2)  # seeds; an odd one runs in channels_last
NAMES = ("modulated", "groups_crossed", "uneven", "channels_30")
# All options of one end of every knob, with every type once and both layouts (nhwc: True).
ENDS = (
    ("first", torch.float64, True),
    ("last", torch.float16, False),
    ("first", torch.bfloat16, False),
    ("last", torch.float32, True),
)
PROBLEM = DeformConv2dProblem(
    "float32", "nhwc", 24, 40, padding=(1, 1), offset_groups=2, modulated=True, bias=True
)


def channels_last(arguments: Arguments) -> Arguments:
    maps = [name for name in ("input", "offset", "mask") if name in arguments.tensors]
    return arguments.mapped(lambda t: t.contiguous(memory_format=torch.channels_last), maps)


@pytest.mark.parametrize("seed", POINTS)
@pytest.mark.parametrize("name", NAMES)
def test_random_points_compute_the_same(
    name: str, seed: int, random_point: Callable[..., Any]
) -> None:
    arguments = CASES[name].sized(2, 7, 9).arguments()
    with random_point(f"{name} {seed}") as chosen:
        assert_matches_reference(
            dcn_tvm.deform_conv2d, channels_last(arguments) if seed % 2 else arguments
        )
    assert set(chosen) == set(ops.registry()["deform_conv2d"].kernels())


PLACES = {"first": 0, "second": 1, "last": -1}


class AtPlace(Knobs):
    """Answers every question with the option at a place."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self._place = PLACES[place]

    def _answer(self, name: str, legal: Any, default: Any) -> Any:
        return legal[min(self._place, len(legal) - 1)]


def schedule_at(place: str, met: set[str]) -> Callable[[Request], Scheduled]:
    """Schedule at a place of a space with a choice, and say which kernels were."""

    def make(request: Request) -> Scheduled:
        made = build.schedule(request, MACHINE, AtPlace(place))
        space = build.space(request, MACHINE)
        assert made.choices in space
        assert space.size > 1
        met.add(request.kernel)
        return made

    return make


@pytest.mark.parametrize(("end", "dtype", "last"), ENDS)
def test_the_ends_of_all_knobs_compute_the_same(
    end: str, dtype: torch.dtype, last: bool, scheduled_by: Callable[..., None]
) -> None:
    met: set[str] = set()
    scheduled_by(schedule_at(end, met), MACHINE)
    arguments = CASES["channels_64"].sized(2, 6, 7).arguments(dtype)
    assert_matches_reference(dcn_tvm.deform_conv2d, channels_last(arguments) if last else arguments)
    assert met == set(ops.registry()["deform_conv2d"].kernels())


@pytest.mark.parametrize("level", ["x86-64-v2", "x86-64-v3"])
@pytest.mark.parametrize("name", ["modulated", "channels_30"])
def test_levels_below_the_machines_compute_the_same(
    name: str, level: str, at_level: Callable[[str], None]
) -> None:
    at_level(level)
    assert_matches_reference(
        dcn_tvm.deform_conv2d, channels_last(CASES[name].sized(2, 7, 9).arguments())
    )


def requests() -> list[Request]:
    return [
        Request(PROBLEM, kernel.name, kernel.outputs)
        for kernel in ops.registry()["deform_conv2d"].kernels().values()
    ]


@pytest.mark.parametrize("request_", requests(), ids=lambda request: request.kernel)
class TestRecords:
    def test_choices_replay_to_the_same_code(self, request_: Request) -> None:
        sampled = build.schedule(request_, MACHINE, Knobs(rng=random.Random(3)))
        replayed = build.schedule(request_, MACHINE, Knobs(sampled.choices))
        assert replayed.choices == sampled.choices
        assert replayed.function.script() == sampled.function.script()
        assert replayed.content_key(MACHINE) == sampled.content_key(MACHINE)

    def test_defaults_are_a_point_of_the_space(self, request_: Request) -> None:
        default = build.schedule(request_, MACHINE)
        replayed = build.schedule(request_, MACHINE, Knobs(default.choices))
        assert replayed.function.script() == default.function.script()

    def test_what_does_not_fit_is_refused(self, request_: Request) -> None:
        choices = build.schedule(request_, MACHINE).choices
        first, *_ = choices
        missing = {name: value for name, value in choices.items() if name != first}
        for wrong, word in (
            ({**choices, "colour": 1}, "colour"),
            ({**choices, first: -1}, "-1"),
            (missing, first),
        ):
            with pytest.raises(ValueError, match=word):
                build.schedule(request_, MACHINE, Knobs(wrong))


def test_targets_without_schedules_are_refused() -> None:
    other = dataclasses.replace(MACHINE, kind="hexagon")
    with pytest.raises(NotImplementedError, match="hexagon"):
        build.schedule(requests()[0], other)


def test_a_schedule_answers_for_what_it_asks() -> None:
    knobs = Knobs()
    assert knobs.choice("rows", [8, 16], 8) == 8
    with pytest.raises(ValueError, match="twice"):
        knobs.choice("rows", [8], 8)
    with pytest.raises(ValueError, match=r"32.*\(8, 16\)"):
        knobs.choice("taps", [8, 16], 32)
    with pytest.raises(ValueError, match="not both"):
        Knobs({"rows": 8}, random.Random(0))
