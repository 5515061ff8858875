"""The RoI operators as torch sees them: schemas, compile, export, autocast, threads, refusals."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import dcn_tvm
from tests.cases import Arguments, Results
from tests.ops.test_deform_conv2d import assert_same_bits
from tests.roi_cases import ONE_OF_EACH, ROI_CASES, RoICase, channels_last, operator_arguments

EACH = pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.name)
MOVED = pytest.mark.parametrize("case", [c for c in ONE_OF_EACH if c.classes], ids=lambda c: c.name)
LAYOUTS = pytest.mark.parametrize(
    "layout", [lambda call: call, channels_last], ids=["nchw", "nhwc"]
)
# No two numbers of the first are equal, nor is one a number of channels or bins: for torch.compile
# they would be the same number.
SIZES = [(6, 9, 11, 14), (3, 12, 7, 5), (5, 6, 20, 30)]


def function(case: RoICase) -> Callable[..., Tensor]:
    return getattr(dcn_tvm, case.op)


def run(case: RoICase, arguments: Arguments) -> Results:
    return arguments.run(function(case), case.needed)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@LAYOUTS
@EACH
def test_opcheck(case: RoICase, layout: Callable[[Arguments], Arguments]) -> None:
    arguments = layout(case.sized(2, 5, 6, 7).arguments())
    operator = getattr(torch.ops.dcn_tvm, case.op).default
    torch.library.opcheck(operator, operator_arguments(case, arguments))
    leaves = arguments.detached(case.needed)
    torch.library.opcheck(operator, operator_arguments(case, leaves))


@pytest.mark.usefixtures("fresh_compiler")
@EACH
def test_compiles_once_for_every_size(case: RoICase) -> None:
    compiled = torch.compile(function(case), fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in SIZES:
            sized = case.sized(*size)
            arguments = sized.arguments()
            assert_same_bits(arguments.run(compiled, case.needed), run(sized, arguments))


@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_with_boxes_by_image() -> None:
    compiled = torch.compile(dcn_tvm.roi_align, fullgraph=True, dynamic=True, backend="aot_eager")
    maps = torch.randn(2, 3, 9, 11)
    for counts in ((3, 5), (4, 2)):
        boxes = [torch.rand(count, 4) * 8 for count in counts]
        assert torch.equal(compiled(maps, boxes, 3), dcn_tvm.roi_align(maps, boxes, 3))


class AllOps(torch.nn.Module):
    """Every op on maps of 16 channels and boxes of one image, their outputs flat in one."""

    def forward(self, maps: Tensor, boxes: Tensor, offset: Tensor) -> Tensor:
        outputs = [
            dcn_tvm.roi_pool(maps, boxes, (2, 3), 0.25),
            dcn_tvm.roi_align(maps, boxes, (2, 3), sampling_ratio=0, aligned=True),
            dcn_tvm.ps_roi_pool(maps, boxes, 1),
            dcn_tvm.ps_roi_align(maps, boxes, 2),
            dcn_tvm.deform_roi_pool(maps, boxes, offset[:, :, :, :3], (2, 3), 0.25),
            dcn_tvm.deform_ps_roi_pool(maps, boxes, offset, (2, 4), group_size=2, part_size=(2, 4)),
        ]
        return torch.cat([output.flatten(1) for output in outputs], 1)


def test_exports_with_free_sizes() -> None:
    def drawn(batch: int, height: int, width: int, count: int) -> tuple[Tensor, ...]:
        image = torch.arange(count).remainder(batch)[:, None]
        boxes = torch.cat([image, torch.rand(count, 4) * 8], 1)
        return torch.randn(batch, 16, height, width), boxes, torch.randn(count, 2, 2, 4)

    batch, height, width, count = map(torch.export.Dim, ("batch", "height", "width", "count"))
    shapes = {"maps": {0: batch, 2: height, 3: width}, "boxes": {0: count}, "offset": {0: count}}
    network = AllOps()
    program = torch.export.export(network, drawn(2, 9, 11, 5), dynamic_shapes=shapes)
    targets = {node.target for node in program.graph.nodes}
    assert targets >= {getattr(torch.ops.dcn_tvm, case.op).default for case in ONE_OF_EACH}
    for size in SIZES:
        tensors = drawn(*size)
        assert torch.equal(program.module()(*tensors), network(*tensors))


def fine_boxes(case: RoICase, arguments: Arguments) -> Tensor:
    """Return boxes of which bfloat16 makes others: 7.49 becomes 7.5, which is rounded to 8."""
    boxes = arguments.tensors["boxes"].float()
    boxes[0] = torch.tensor([0.0, 0.0, 0.0, 7.49, 7.49]) / case.spatial_scale
    return boxes


@MOVED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_keeps_input_and_boxes_and_casts_offsets(
    case: RoICase, dtype: torch.dtype
) -> None:
    other = {torch.float32: torch.bfloat16, torch.bfloat16: torch.float32}[dtype]
    arguments = case.arguments(dtype)
    boxes = fine_boxes(case, arguments)
    offset = arguments.tensors["offset"]
    mixed = arguments.replaced(boxes=boxes, offset=offset.to(other) * 1.0625)
    cast = mixed.mapped(lambda t: t.to(dtype), ["offset"])
    with pytest.raises(TypeError, match="offset must have the input's type"):
        mixed.call(function(case))
    leaves = mixed.detached(case.needed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = leaves.call(function(case))
        with pytest.raises(TypeError, match=r"offset must have.*float64"):
            mixed.replaced(offset=offset.double()).call(function(case))
    expected = run(case, cast)
    assert output.dtype == dtype
    assert torch.equal(output, expected["output"])
    output.backward(arguments.grad_output)
    assert torch.equal(leaves.tensors["input"].grad, expected["input"])
    assert leaves.tensors["offset"].grad.dtype == other
    assert torch.equal(leaves.tensors["offset"].grad, expected["offset"].to(other))
    coarse = cast.mapped(Tensor.bfloat16, ["boxes"])
    assert not torch.equal(output, run(case, coarse)["output"]), "the boxes kept their digits"


@EACH
def test_autocast_lowers_nothing(case: RoICase) -> None:
    arguments = case.arguments()
    for dtype in (torch.float32, torch.float64):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = arguments.to(dtype).call(function(case))
        assert torch.equal(output, arguments.to(dtype).call(function(case)))


@EACH
def test_boxes_are_read_in_the_type_of_sums(case: RoICase) -> None:
    arguments = case.arguments()
    boxes = fine_boxes(case, arguments)
    for given in (boxes.bfloat16(), boxes.half(), boxes.double()):
        expected = run(case, arguments.replaced(boxes=given.float()))
        assert_same_bits(run(case, arguments.replaced(boxes=given)), expected)
    double = arguments.to(torch.float64)
    expected = run(case, double.replaced(boxes=boxes.double()))
    assert_same_bits(run(case, double.replaced(boxes=boxes)), expected)


def test_half_maps_take_boxes_of_any_type() -> None:
    case = ROI_CASES["max_uneven"]
    half = case.arguments(torch.bfloat16)
    boxes = fine_boxes(case, half)
    expected = half.replaced(boxes=boxes).call(function(case))
    assert torch.equal(half.replaced(boxes=boxes.double()).call(function(case)), expected)
    single = half.to(torch.float32).replaced(boxes=boxes).call(function(case))
    assert torch.equal(expected, single.bfloat16())
    coarse = half.replaced(boxes=boxes.bfloat16()).call(function(case))
    assert not torch.equal(expected, coarse), "the boxes kept their digits"


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@LAYOUTS
@EACH
def test_threads_and_repeats_give_the_same_bits(
    case: RoICase, layout: Callable[[Arguments], Arguments]
) -> None:
    arguments = layout(case.sized(3, 17, 19, 40).arguments())
    results = []
    for count in (1, 2, 2, 1):
        torch.set_num_threads(count)
        results.append(run(case, arguments))
    for again in results[1:]:
        assert_same_bits(again, results[0])


@EACH
def test_each_image_alone_gives_the_same_bits(case: RoICase) -> None:
    arguments = case.sized(3, 17, 19, 40).arguments()
    whole = run(case, arguments)
    image_of = arguments.tensors["boxes"][:, 0]
    for image in range(3):
        mine = image_of == image
        assert mine.any()
        tensors = {name: t[mine] for name, t in arguments.tensors.items() if name != "input"}
        tensors["input"] = arguments.tensors["input"][image : image + 1]
        tensors["boxes"] = tensors["boxes"] * torch.tensor([0.0, 1, 1, 1, 1])
        alone = run(case, Arguments(tensors, arguments.options, arguments.grad_output[mine]))
        expected = {name: result[mine] for name, result in whole.items() if name != "input"}
        expected["input"] = whole["input"][image : image + 1]
        assert_same_bits(alone, expected)


@LAYOUTS
@EACH
def test_meta_and_fake_tensors_have_shapes_types_and_strides(
    case: RoICase, layout: Callable[[Arguments], Arguments]
) -> None:
    real = layout(case.arguments())
    expected = run(case, real)

    def compare(convert: Callable[[Tensor], Tensor]) -> None:
        tensors = {name: convert(tensor) for name, tensor in real.tensors.items()}
        for name, result in run(
            case, Arguments(tensors, real.options, convert(real.grad_output))
        ).items():
            assert result.device.type == tensors["input"].device.type
            assert (result.shape, result.dtype) == (expected[name].shape, expected[name].dtype)
            assert result.stride() == expected[name].stride(), name

    compare(lambda tensor: tensor.to("meta"))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        compare(mode.from_tensor)


@EACH
def test_double_backward_is_refused_clearly(case: RoICase) -> None:
    leaves = case.arguments().detached(case.needed)
    output = leaves.call(function(case))
    (gradient,) = torch.autograd.grad(output.sum(), leaves.tensors["input"], create_graph=True)
    with pytest.raises(NotImplementedError, match=f"double backward through dcn_tvm.{case.op}"):
        gradient.square().sum().backward()


@EACH
def test_tensors_without_kernels_are_refused_with_a_way_out(case: RoICase) -> None:
    arguments = case.arguments().mapped(Tensor.to_sparse, ["input"])
    with pytest.raises(NotImplementedError, match=rf"dense tensors on cpu.*reference\.{case.op}"):
        arguments.call(function(case))
