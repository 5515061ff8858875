"""Examples make exactly the problem they are asked for, off every kink; when results agree."""

import dataclasses
import math
from typing import ClassVar

import pytest
import torch

from dcn_tvm import ops
from dcn_tvm.agreement import TOLERANCES, relative_error
from dcn_tvm.binding import layout_of
from dcn_tvm.examples import Example, example, judged_sizes
from dcn_tvm.ops.deform_conv2d import DeformConv2dProblem
from dcn_tvm.ops.deform_ps_roi_pool import DeformPSRoIPoolProblem
from dcn_tvm.ops.deform_roi_pool import DeformRoIPoolProblem
from dcn_tvm.ops.ps_roi_align import PSRoIAlignProblem
from dcn_tvm.ops.ps_roi_pool import PSRoIPoolProblem
from dcn_tvm.ops.roi import RoIProblem
from dcn_tvm.ops.roi_align import RoIAlignProblem
from dcn_tvm.ops.roi_pool import RoIPoolProblem
from dcn_tvm.problem import DTYPES, LAYOUTS, Problem

SIZES = {"batch": 2, "height": 9, "width": 11, "boxes": 5, "stride": 4}
MAP = {name: SIZES[name] for name in ("batch", "height", "width")}
PLAIN = ("float32", "nchw")
CONV = DeformConv2dProblem(*PLAIN, 4, 6, bias=True)
DEFORM = DeformRoIPoolProblem(*PLAIN, 3, (3, 3))

_UNEVEN = {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
PROBLEMS: tuple[Problem, ...] = (
    *(DeformConv2dProblem(d, f, 4, 6, modulated=True) for d in DTYPES for f in LAYOUTS),
    CONV,
    DeformConv2dProblem(*PLAIN, 6, 4, groups=2, offset_groups=3, modulated=True, bias=True),
    DeformConv2dProblem(*PLAIN, 4, 4, (1, 1), padding=(0, 0), boundary="msra"),
    DeformConv2dProblem("float64", "nhwc", 4, 2, bias=True, **_UNEVEN),
    *(DeformRoIPoolProblem(d, f, 3, (2, 3)) for d in DTYPES for f in LAYOUTS),
    RoIPoolProblem(*PLAIN, 3, (3, 2)),
    RoIPoolProblem("float64", "nhwc", 3, (3, 2), "avg"),
    RoIAlignProblem(*PLAIN, 3, (3, 2)),
    RoIAlignProblem("bfloat16", "nhwc", 3, (3, 2), 2, True),
    PSRoIPoolProblem(*PLAIN, 12, (3, 2)),
    PSRoIPoolProblem("float16", "nhwc", 12, (3, 2), "rfcn"),
    PSRoIAlignProblem(*PLAIN, 12, (3, 2)),
    PSRoIAlignProblem("float32", "nhwc", 12, (3, 2), 2),
    DEFORM,
    DeformRoIPoolProblem(*PLAIN, 3, (2, 3), "grid", 2),
    DeformRoIPoolProblem(*PLAIN, 3, (2, 3), "grid"),
    DeformRoIPoolProblem(*PLAIN, 3, (2, 3), deformed=False),
    DeformPSRoIPoolProblem(*PLAIN, 2 * 49, (7, 7)),
    DeformPSRoIPoolProblem("float64", "nhwc", 4 * 9, (3, 2), (3, 3), (2, 2), 4, 2),
    DeformPSRoIPoolProblem(*PLAIN, 4 * 6, (5, 3), (2, 3), (3, 1), 2),
    DeformPSRoIPoolProblem(*PLAIN, 4 * 4, (3, 3), (2, 2), (3, 3), 2, 1, "paper"),
    DeformPSRoIPoolProblem(*PLAIN, 2 * 9, (3, 3), (3, 3), (3, 3), deformed=False),
)


def name_of(problem: Problem) -> str:
    return f"{problem.op}-{PROBLEMS.index(problem)}"


def sizes_of(problem: Problem) -> dict[str, int]:
    return dict(SIZES if isinstance(problem, RoIProblem) else MAP)


each_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=name_of)


def test_every_op_has_examples() -> None:
    assert {problem.op for problem in PROBLEMS} == set(ops.registry())


@each_problem
def test_the_operator_takes_it_and_the_reference_gives_what_it_says(problem: Problem) -> None:
    made = example(problem, sizes_of(problem))
    operator = getattr(torch.ops.dcn_tvm, problem.op)
    shapes = (None if t is None else t.to("meta") for t in made.tensors)
    promised = operator(*shapes, *made.attributes)
    for result in (made.reference(*made.tensors), made.make_grad()):
        assert (result.shape, result.dtype) == (promised.shape, promised.dtype)
        assert bool(result.isfinite().all())
        assert result.count_nonzero() > 0.5 * result.numel()
    assert layout_of(promised) == layout_of(made.make_grad()) == problem.layout


@each_problem
def test_it_is_a_call_of_exactly_the_problem_and_the_sizes(problem: Problem) -> None:
    made, op = example(problem, sizes_of(problem)), ops.registry()[problem.op]
    input = made.tensors[0]
    assert input is not None
    dtype = str(input.dtype).removeprefix("torch.")
    facts = op.facts(made.tensors, made.attributes, dtype, layout_of(input))
    assert op.problem(*facts) == problem
    assert dict(op.sizes(made.tensors, op.scalars(made.attributes))) == sizes_of(problem)
    assert made.op == problem.op
    for spec, tensor in zip(op.tensors, made.tensors, strict=True):
        assert (tensor is None) == (spec.name in problem.absent())
        if tensor is not None:
            wanted = problem.accumulate if spec.coordinates else problem.dtype
            assert str(tensor.dtype) == f"torch.{wanted}"
            assert not spec.map or layout_of(tensor) == problem.layout


@each_problem
def test_the_reference_has_every_gradient_in_any_type(problem: Problem) -> None:
    made, op = example(problem, sizes_of(problem)), ops.registry()[problem.op]
    wide = [None if t is None else t.double() for t in made.tensors]
    pairs = zip(op.tensors, wide, strict=True)
    leaves = [t.requires_grad_() for spec, t in pairs if spec.differentiable and t is not None]
    output = made.reference(*wide)
    assert output.dtype == torch.float64
    for gradient in torch.autograd.grad(output, leaves, made.make_grad().double()):
        assert gradient.norm() > 0


def test_a_grid_that_is_not_square_is_judged_too() -> None:
    (groups, parts), bins = ((2, 3), (3, 1)), (5, 3)
    problem = DeformPSRoIPoolProblem(*PLAIN, 4 * 6, bins, groups, parts, 2)
    made = example(problem, {**SIZES, "height": 40, "width": 40, "stride": 16})
    input, boxes, offset = made.tensors
    assert input is not None
    assert offset is not None
    numbers = torch.arange(24.0)[None, :, None, None].expand_as(input)
    offset[0, 2:, 1, 0] = torch.nan  # part (1, 0) of the second class
    output = made.reference(numbers, boxes, offset)
    for row in range(bins[0]):
        for column in range(bins[1]):
            group = (row * groups[0] // bins[0], column * groups[1] // bins[1])
            channels = torch.arange(4.0) * 6 + group[0] * groups[1] + group[1]
            found = output[:, :, row, column]
            assert torch.allclose(found[1:], channels.expand(4, -1))
            unknown = row * parts[0] // bins[0] == 1
            assert found[0].isnan().tolist() == [False, False, unknown, unknown]


def tensors_of(made: Example) -> list[torch.Tensor]:
    return [*(tensor for tensor in made.tensors if tensor is not None), made.make_grad()]


@each_problem
def test_equal_seeds_give_equal_numbers(problem: Problem) -> None:
    sizes = sizes_of(problem)
    first, second, other = (tensors_of(example(problem, sizes, seed)) for seed in (0, 0, 1))
    assert all(map(torch.equal, first, second))
    assert not any(map(torch.equal, first, other))
    # All tensors are drawn apart: no two share their beginning.
    beginnings = {float(tensor.flatten()[-1]) for tensor in first}
    assert len(beginnings) == len(first)


def test_formats_and_types_share_their_numbers() -> None:
    for plain in (CONV, DEFORM):
        wanted = tensors_of(example(plain, SIZES))
        for changes in ({"layout": "nhwc"}, {"dtype": "float16"}, {"dtype": "bfloat16"}):
            found = tensors_of(example(dataclasses.replace(plain, **changes), SIZES))
            assert all(torch.equal(w.to(f.dtype), f) for w, f in zip(wanted, found, strict=True))


def test_a_convolution_keeps_off_kinks_and_keeps_the_scale() -> None:
    problem = DeformConv2dProblem(*PLAIN, 64, 64, padding=(1, 1), modulated=True, bias=True)
    _, offset, weight, _, mask = example(problem, MAP).tensors
    assert offset is not None
    assert weight is not None
    assert mask is not None
    assert bool((offset * 128 % 2 == 1).all())
    assert 1.4 < float(offset.std()) < 1.6
    assert float(weight.std()) == pytest.approx(1 / math.sqrt(64 * 9), rel=0.02)
    assert 0 <= float(mask.min()) < 0.01
    assert 0.99 < float(mask.max()) < 1


@pytest.mark.parametrize("stride", [4, 16])
def test_boxes_are_like_proposals_and_off_every_kink(stride: int) -> None:
    sizes = {"batch": 3, "height": 600 // stride, "width": 1000 // stride, "boxes": 500}
    sizes["stride"] = stride
    _, boxes, offset = example(DEFORM, sizes).tensors
    assert boxes is not None
    assert offset is not None
    corners = boxes[:, 1:]
    assert bool((corners[:, :2] * 64 % 2 == 1).all())
    assert bool((corners[:, 2:] * 128 % 2 == 1).all())
    sides = corners[:, 2:] - corners[:, :2]
    assert 11.9 < float(sides.min()) < 25
    assert 200 < float(sides.max()) < 240.1
    assert 55 < float(sides.log().mean().exp()) < 80  # 76 without clipping
    ends = torch.tensor([sizes["width"], sizes["height"]]) * stride
    assert 0 < float(corners.min())
    # torchvision's ps_roi_pool has a wrong gradient for what is rounded to the last pixel's end.
    assert bool(((corners[:, 2:] / stride).round() <= ends / stride - 2).all())
    assert boxes[:, 0].unique().tolist() == [0, 1, 2]
    assert bool((offset * 128 % 2 == 1).all())
    assert 0.9 < float(offset.std()) < 1.1


def test_a_map_of_one_pixel_has_boxes() -> None:
    sizes = {"batch": 1, "height": 1, "width": 1, "boxes": 3}
    boxes = example(DEFORM, sizes).tensors[1]
    assert boxes is not None
    assert 0 < float(boxes[:, 1:].min()) <= float(boxes[:, 1:].max()) < 16.1
    assert bool((boxes[:, 3:] > boxes[:, 1:3]).all())


def test_the_stride_may_be_missing() -> None:
    sizes = {name: size for name, size in SIZES.items() if name != "stride"}
    assert example(DEFORM, sizes).attributes[0] == 1 / 16
    assert judged_sizes(DEFORM, sizes)["stride"] == 16


WRONG: tuple[tuple[Problem, str], ...] = (
    *((CONV, name) for name in MAP),
    *((DEFORM, name) for name in SIZES if name != "stride"),
)


@pytest.mark.parametrize(("problem", "name"), WRONG, ids=str)
def test_a_size_that_is_missing_or_wrong_is_named(problem: Problem, name: str) -> None:
    rest = {other: size for other, size in SIZES.items() if other != name}
    for sizes in (rest, {**rest, name: 0}, {**rest, name: -3}):
        for function in (example, judged_sizes):
            with pytest.raises(ValueError, match=f"{name} must be a positive whole number, got"):
                function(problem, sizes)


def test_a_wrong_stride_is_named() -> None:
    with pytest.raises(ValueError, match="stride must be a positive whole number, got 0"):
        example(DEFORM, {**SIZES, "stride": 0})


def test_sizes_without_an_output_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least one row and column, got 0 x 1 from .* 2 x 3"):
        example(CONV, {"batch": 1, "height": 2, "width": 3})


@pytest.mark.parametrize(
    "problem",
    [
        DeformRoIPoolProblem(*PLAIN, 3, (3, 3), "paper", 2),
        DeformPSRoIPoolProblem(*PLAIN, 2 * 9, (3, 3), (3, 3), (2, 2), deformed=False),
        RoIAlignProblem(*PLAIN, 3, (3, 3), -1),
    ],
    ids=["ratio", "parts", "negative"],
)
def test_a_problem_that_no_call_has_is_refused(problem: Problem) -> None:
    with pytest.raises(ValueError, match="no call has the problem"):
        example(problem, SIZES)


def test_an_unknown_op_has_no_examples() -> None:
    class Unknown(Problem):
        op: ClassVar[str] = "no_such_op"

    for function in (example, judged_sizes):
        with pytest.raises(ValueError, match=r"op must be one of deform_conv2d, .* got no_such_op"):
            function(Unknown(*PLAIN), SIZES)


@each_problem
def test_judged_sizes_are_small_and_have_an_output(problem: Problem) -> None:
    names = sizes_of(problem).keys()
    for sizes in ({**SIZES, "height": 800, "width": 1344, "batch": 16, "boxes": 2000}, SIZES):
        judged = judged_sizes(problem, sizes)
        assert judged.keys() == names
        assert all(1 <= judged[name] <= sizes[name] for name in names)
        assert judged["batch"] * judged["height"] * judged["width"] <= 2 * 25 * 24
        assert judged.get("boxes", 0) <= 4
        assert judged == judged_sizes(problem, judged)
        assert example(problem, judged).make_grad().numel()


def test_a_judged_map_holds_the_window() -> None:
    wide = DeformConv2dProblem(*PLAIN, 4, 6, (3, 5), (2, 1), dilation=(24, 1))
    large = {"batch": 1, "height": 100, "width": 100}
    assert judged_sizes(wide, large) == {"batch": 1, "height": 24 + 49, "width": 15}
    small = {"batch": 1, "height": 3, "width": 3}
    assert judged_sizes(wide, small) == {"batch": 1, "height": 49, "width": 5}
    padded = DeformConv2dProblem(*PLAIN, 4, 6, (1, 1), padding=(9, 9))
    assert judged_sizes(padded, large) == {"batch": 1, "height": 13, "width": 11}


SCALES = ((1 / 16, 16), (1 / 3, 3), (1.0, 1), (1.7, 1), (100.0, 1), (math.inf, 1), (0.0, 1))
NO_SCALES = ((-0.25, 1), (math.nan, 1), (5e-324, 1), (1e-300, 1), (-math.inf, 1))


@pytest.mark.parametrize(("scale", "stride"), (*SCALES, *NO_SCALES))
def test_any_scale_has_a_stride(scale: float, stride: int) -> None:
    input, boxes = torch.empty(0, 3, 4, 5), torch.empty(0, 5)
    sizes = (("batch", 0), ("height", 4), ("width", 5), ("boxes", 0), ("stride", stride))
    assert ops.registry()["roi_pool"].sizes((input, boxes), (scale,)) == sizes


def test_every_dtype_has_a_tolerance() -> None:
    assert TOLERANCES.keys() == set(DTYPES)
    for dtype, tolerance in TOLERANCES.items():
        eps = torch.finfo(getattr(torch, dtype)).eps
        assert 1 < tolerance / eps < 1000


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_not_a_number_is_an_error(value: float) -> None:
    number, one = torch.tensor([value]), torch.tensor([1.0])
    assert relative_error([number], [one]) == math.inf
    assert relative_error([one], [number]) == math.inf
    assert relative_error([one, number], [one, one]) == math.inf


def test_the_largest_error_counts() -> None:
    wanted = [torch.tensor([3.0, 4.0]), torch.ones(4)]
    results = [torch.tensor([3.0, 4.5]), torch.ones(4)]
    assert relative_error(results, wanted) == pytest.approx(0.1)
    assert relative_error(results[::-1], wanted[::-1]) == pytest.approx(0.1)
    assert relative_error(wanted, wanted) == 0


def test_zeros_and_nothing_agree_with_themselves_only() -> None:
    zeros, tiny = torch.zeros(3), torch.full((3,), 1e-30)
    assert relative_error([zeros, torch.empty(0, 2)], [zeros, torch.empty(0, 2)]) == 0
    assert relative_error([tiny], [zeros]) == math.inf
    assert relative_error([zeros], [tiny]) == 1
    assert relative_error([], []) == 0


def test_other_results_than_wanted_are_an_error() -> None:
    with pytest.raises(ValueError, match="argument 2 is longer"):
        relative_error([torch.ones(1)], [torch.ones(1), torch.ones(1)])
    with pytest.raises(ValueError, match=r"must have shape \(2,\), got \(1,\)"):
        relative_error([torch.ones(1)], [torch.ones(2)])
