"""Output and gradients of the RoI kernels, against the references, for all that a call may vary."""

import dataclasses
import inspect

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dcn_tvm
from dcn_tvm import kernels
from dcn_tvm.build import Request
from tests.cases import Arguments, Results
from tests.ops.test_deform_conv2d import LAYOUTS, assert_same_bits
from tests.roi_cases import ONE_OF_EACH, ROI_CASES, RoICase, channels_last
from tests.roi_oracles import assert_roi_matches_reference

EACH = pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.name)
MOVED = ("deform", "dps_parts")
CHANNELS_LAST = (
    *("max_uneven", "max_point", "avg", "align_64", "aligned", "ps", "rfcn_uneven", "ps_align"),
    *("deform_uneven", "deform_grid", "deform_still", "dps_aware", "dps_uneven", "dps_paper"),
)
# (case, type, whether in channels_last): every op, every type, both layouts.
TYPES = (
    ("max", torch.float64, False),
    ("avg_7", torch.float16, True),
    ("max_uneven", torch.bfloat16, False),
    ("align_adaptive", torch.float64, False),
    ("aligned", torch.bfloat16, True),
    ("ps", torch.float64, False),
    ("rfcn_uneven", torch.float16, False),
    ("ps_align_adaptive", torch.float64, False),
    ("ps_align", torch.bfloat16, True),
    ("rfcn", torch.bfloat16, False),  # 9 bins of 16 channels: LLVM's masked stores wrote a 10th
    ("deform", torch.float64, False),
    ("deform_grid", torch.bfloat16, True),
    ("dps_parts", torch.float64, False),
    ("dps_aware", torch.float16, True),
    ("dps_paper_parts", torch.bfloat16, False),
)
SIZES = [(1, 5, 6, 3), (3, 12, 7, 30), (2, 1, 1, 5), (2, 1, 20, 1), (5, 23, 2, 17)]
SHARED = ("roi_pool", "roi_align", "ps_roi_pool", "ps_roi_align")


def function(case: RoICase) -> object:
    return getattr(dcn_tvm, case.op)


def run(case: RoICase, arguments: Arguments, needed: tuple[str, ...] | None = None) -> Results:
    return arguments.run(function(case), case.needed if needed is None else needed)


def check(case: RoICase, arguments: Arguments, needed: tuple[str, ...] | None = None) -> Results:
    return assert_roi_matches_reference(
        function(case), case.reference, arguments, case.needed if needed is None else needed
    )


@pytest.mark.parametrize("op", SHARED)
def test_is_a_drop_in_for_torchvision(op: str) -> None:
    ours = inspect.signature(getattr(dcn_tvm, op)).parameters
    theirs = inspect.signature(getattr(torchvision.ops, op)).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    for name, parameter in theirs.items():
        assert ours[name].default == parameter.default, name


@pytest.mark.parametrize("case", ROI_CASES.values(), ids=lambda case: case.name)
def test_float32(case: RoICase) -> None:
    results = check(case, case.arguments())
    assert results["output"].is_contiguous()
    assert results["input"].is_contiguous()


@pytest.mark.parametrize("name", CHANNELS_LAST)
def test_channels_last(name: str) -> None:
    case = ROI_CASES[name]
    results = check(case, channels_last(case.arguments()))
    for maps in ("output", "input"):
        assert results[maps].is_contiguous(memory_format=torch.channels_last), maps


def test_channels_last_covers_every_op_and_padded_channels() -> None:
    cases = [ROI_CASES[name] for name in CHANNELS_LAST]
    assert {case.op for case in cases} == {case.op for case in ROI_CASES.values()}
    assert any(case.out_channels > 16 and case.out_channels % 8 for case in cases)


@pytest.mark.parametrize(("name", "dtype", "last"), TYPES, ids=str)
def test_other_types(name: str, dtype: torch.dtype, last: bool) -> None:
    case = ROI_CASES[name]
    arguments = case.arguments(dtype)
    check(case, channels_last(arguments) if last else arguments)


def test_the_types_cover_every_op() -> None:
    assert {ROI_CASES[name].op for name, *_ in TYPES} == {c.op for c in ROI_CASES.values()}


@EACH
def test_sizes_need_no_new_kernel(case: RoICase, monkeypatch: pytest.MonkeyPatch) -> None:
    run(case, case.arguments())
    first = kernels.build_count()
    asked: set[Request] = set()
    get = kernels.get
    monkeypatch.setattr(kernels, "get", lambda request: (asked.add(request), get(request))[1])
    for size in SIZES:
        sized = case.sized(*size)
        check(sized, sized.arguments())
        scaled = dataclasses.replace(sized, spatial_scale=0.5)
        check(scaled, scaled.arguments())
    # No build, and nothing that the disk cache could have hidden: one forward and one backward.
    assert kernels.build_count() == first
    assert len(asked) == 2


def by_image(boxes: Tensor, batch: int) -> list[Tensor]:
    return [boxes[boxes[:, 0] == image, 1:] for image in range(batch)]


@EACH
@pytest.mark.parametrize("kind", [list, tuple])
def test_boxes_as_a_list_are_the_boxes_of_each_image(case: RoICase, kind: type) -> None:
    arguments = case.sized(4, 9, 11, 14).arguments()
    boxes = arguments.tensors["boxes"]
    boxes = boxes[boxes[:, 0].argsort(stable=True)]
    boxes = torch.cat([boxes[boxes[:, 0] != 2], boxes[boxes[:, 0] == 2] + torch.eye(5)[0]])
    boxes = boxes[boxes[:, 0].argsort(stable=True)]  # none is left in image 2
    expected = run(case, arguments.replaced(boxes=boxes))
    parts = kind(by_image(boxes, 4))
    assert [len(part) == 0 for part in parts] == [False, False, True, False]

    def with_list(**tensors: object) -> Tensor:
        return function(case)(**{**tensors, "boxes": parts})

    assert_same_bits(arguments.run(with_list, case.needed), expected)


def test_lists_number_more_images_than_bfloat16_can() -> None:
    images = torch.arange(300.0).reshape(300, 1, 1, 1).expand(300, 1, 2, 2).half()
    boxes = [torch.tensor([[0.0, 0.0, 1.0, 1.0]]).bfloat16()] * 300
    output = dcn_tvm.roi_pool(images, boxes, 1)
    assert torch.equal(output.flatten(), torch.arange(300.0).half())


@EACH
@pytest.mark.parametrize("batch", [0, 2])
def test_no_boxes(case: RoICase, batch: int) -> None:
    results = check(case, case.sized(batch, 5, 6, 0).arguments())
    assert results["output"].shape == (0, case.out_channels, *case.bins)
    assert results["input"].shape == (batch, case.channels, 5, 6)
    assert not results["input"].any()


@pytest.mark.parametrize("batch", [0, 2])
def test_lists_without_boxes(batch: int) -> None:
    maps = torch.randn(batch, 3, 5, 6)
    output = dcn_tvm.roi_align(maps, [torch.zeros(0, 4)] * batch, 3)
    assert output.shape == (0, 3, 3, 3)
    assert output.dtype == torch.float32


@EACH
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_layouts(case: RoICase, layout: object) -> None:
    arguments = case.arguments()
    maps = [name for name in ("input", "offset") if name in arguments.tensors]
    last = layout.__name__ == "channels_last"
    expected = run(case, channels_last(arguments) if last else arguments)
    boxes = arguments.tensors["boxes"].T.contiguous().T
    strided = arguments.mapped(layout, maps).replaced(boxes=boxes)
    assert not strided.tensors["boxes"].is_contiguous()
    assert not strided.tensors["input"].is_contiguous()
    assert_same_bits(run(case, strided), expected)
    grad_output = layout(arguments.grad_output)
    assert_same_bits(run(case, dataclasses.replace(strided, grad_output=grad_output)), expected)


@EACH
def test_expanded_tensors(case: RoICase) -> None:
    arguments = case.arguments()
    changes = {"input": arguments.tensors["input"][:1, :, :1].expand(2, -1, case.height, -1)}
    if "offset" in arguments.tensors:
        offset = arguments.tensors["offset"]
        changes["offset"] = offset[:, :, :1, :1].expand(offset.shape)
    expanded = arguments.replaced(**changes)
    dense = expanded.mapped(Tensor.contiguous, changes)
    for call in (expanded, dense):
        leaves = call.detached(case.needed)
        leaves.call(function(case)).sum().backward()  # its gradient is an expanded one
        ones = dataclasses.replace(dense, grad_output=torch.ones_like(dense.grad_output))
        expected = run(case, ones)
        for name in case.needed:
            assert torch.equal(leaves.tensors[name].grad, expected[name]), name


@pytest.mark.parametrize("needed", [(), ("input",), ("offset",)], ids=str)
@pytest.mark.parametrize("name", MOVED)
def test_only_the_gradients_needed_are_computed(
    name: str, needed: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = ROI_CASES[name]
    arguments = case.arguments()
    both = run(case, arguments)
    asked: list[Request] = []
    get = kernels.get
    monkeypatch.setattr(kernels, "get", lambda request: (asked.append(request), get(request))[1])
    results = check(case, arguments, needed)
    assert set(results) == {"output", *needed}
    assert torch.equal(results["output"], both["output"])
    outputs = [("output",), tuple(f"grad_{name}" for name in needed)]
    assert [request.outputs for request in asked] == outputs[: 1 + len(needed)]


@EACH
def test_boxes_have_no_gradient(case: RoICase) -> None:
    leaves = case.arguments().detached()
    output = leaves.call(function(case))
    output.sum().backward()
    assert leaves.tensors["boxes"].requires_grad
    assert leaves.tensors["boxes"].grad is None
    assert leaves.tensors["input"].grad is not None
    assert not leaves.detached(("boxes",)).call(function(case)).requires_grad
    with torch.no_grad():
        assert not leaves.call(function(case)).requires_grad


@EACH
def test_a_call_leaves_its_tensors_alone(case: RoICase) -> None:
    arguments = case.arguments()
    before = {name: tensor.clone() for name, tensor in arguments.tensors.items()}
    grad_output = arguments.grad_output.clone()
    run(case, arguments)
    assert_same_bits(arguments.tensors, before)
    assert torch.equal(arguments.grad_output, grad_output)


# Drawn from configurations that other tests compile anyway. None with a moved grid and few outputs:
# how far the rounding of positions goes would be judged by too few numbers of the reference.
DRAWN = [
    *("max", "max_uneven", "avg", "align_adaptive", "aligned_adaptive", "ps", "rfcn_uneven"),
    *("ps_align_adaptive", "deform", "deform_uneven", "dps_parts", "dps_aware", "dps_paper"),
]


@given(
    name=st.sampled_from(DRAWN),
    batch=st.integers(1, 3),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    boxes=st.integers(0, 20),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=80)
def test_random_sizes(
    name: str, batch: int, height: int, width: int, boxes: int, seed: int
) -> None:
    case = ROI_CASES[name].sized(batch, height, width, boxes)
    check(case, case.arguments(seed=seed))


@EACH
def test_a_box_alone_has_the_same_bits(case: RoICase) -> None:
    """Where boxes are few the map is not turned to rows, which must not change the arithmetic."""
    function = getattr(dcn_tvm, case.op)
    arguments = case.sized(1, 24, 26, 60).arguments()
    many = arguments.run(function, case.needed)
    areas = (arguments.tensors["boxes"][:, 3:] - arguments.tensors["boxes"][:, 1:3]).prod(1)
    small = int(torch.where(areas > 0, areas, torch.inf).argmin())
    part = {n: t[small : small + 1] for n, t in arguments.tensors.items() if n != "input"}
    one = dataclasses.replace(
        arguments.replaced(**part), grad_output=arguments.grad_output[small : small + 1]
    )
    alone = assert_roi_matches_reference(function, case.reference, one, case.needed)
    for name in {"output", "offset"} & alone.keys():
        assert torch.equal(alone[name], many[name][small : small + 1]), name
