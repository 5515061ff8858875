"""The references of the RoI ops against the formulas written out, one number at a time."""

import itertools
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from dcn_tvm import reference
from tests.cases import Arguments
from tests.roi_cases import ROI_CASES, RoICase

Pixel = tuple[int, int]


def round_half_away(value: float) -> float:
    return math.copysign(math.floor(abs(value) + 0.5), value)


def equation_3(pixels: Tensor, y: float, x: float) -> float:
    """Sum over the pixels, literally: max(0, 1 - |q_y - p_y|) max(0, 1 - |q_x - p_x|) x(q)."""
    height, width = pixels.shape
    return sum(
        (1 - abs(row - y)) * (1 - abs(column - x)) * pixels[row, column].item()
        for row in range(max(math.ceil(y - 1), 0), min(math.floor(y + 1) + 1, height))
        for column in range(max(math.ceil(x - 1), 0), min(math.floor(x + 1) + 1, width))
    )


def clamped(pixels: Tensor, y: float, x: float) -> float:
    """The bilinear value with y and x moved onto the map."""
    height, width = pixels.shape
    return equation_3(pixels, min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0))


def outputs(case: RoICase) -> Iterator[tuple[int, int, int, int]]:
    return itertools.product(
        range(case.boxes), range(case.out_channels), range(case.bins[0]), range(case.bins[1])
    )


def assert_equals_formula(case: RoICase, formula: Callable[..., float]) -> None:
    """Compare every output with `formula(image, box, offset, case, (channel, i, j))`."""
    arguments = case.arguments(torch.float64)
    tensors = arguments.tensors
    expected = torch.empty(case.boxes, case.out_channels, *case.bins, dtype=torch.float64)
    for box, *output in outputs(case):
        index, *corners = tensors["boxes"][box].tolist()
        offset = tensors["offset"][box] if "offset" in tensors else None
        value = formula(tensors["input"][int(index)], corners, offset, case, output)
        expected[(box, *output)] = value
    torch.testing.assert_close(arguments.call(case.reference), expected)


def pixels_of_bin(corners: list[float], case: RoICase, i: int, j: int) -> tuple[list, int, int]:
    """Return the pixels of RoI pooling's bin (i, j) on the map, and the box's size in pixels."""
    x1, y1, x2, y2 = (round_half_away(corner * case.spatial_scale) for corner in corners)
    height, width = max(int(y2 - y1) + 1, 1), max(int(x2 - x1) + 1, 1)
    rows, columns = case.bins
    bin_y = range(math.floor(i * height / rows), math.ceil((i + 1) * height / rows))
    bin_x = range(math.floor(j * width / columns), math.ceil((j + 1) * width / columns))
    inside = [
        (int(y1) + y, int(x1) + x)
        for y in bin_y
        for x in bin_x
        if 0 <= y1 + y < case.height and 0 <= x1 + x < case.width
    ]
    return inside, height, width


def equation_5(
    image: Tensor, corners: list[float], offset: None, case: RoICase, output: list[int]
) -> float:
    """The sum of x(p0 + p) / n_ij over the pixels p of the bin."""
    channel, i, j = output
    pixels, _, _ = pixels_of_bin(corners, case, i, j)
    return sum(image[channel][pixel].item() / len(pixels) for pixel in pixels)


def equation_6(
    image: Tensor, corners: list[float], offset: Tensor, case: RoICase, output: list[int]
) -> float:
    """The sum of x(p0 + p + shift_ij) / n_ij with shift_ij = gamma offset_ij * (w, h)."""
    channel, i, j = output
    pixels, height, width = pixels_of_bin(corners, case, i, j)
    gamma = case.options.get("gamma", 0.1)
    if case.op == "deform_ps_roi_pool":
        channel, offset_x, offset_y = position_sensitive(offset, case, output)
    else:
        offset_x, offset_y = offset[:, i, j].tolist()
    down, across = gamma * offset_y * height, gamma * offset_x * width
    moved = [(y + down, x + across) for y, x in pixels]
    return sum(equation_3(image[channel], *position) / len(pixels) for position in moved)


def position_sensitive(
    offset: Tensor | None, case: RoICase, output: list[int]
) -> tuple[int, float, float]:
    """Return the channel and the offset (x, y) of an output, as the released code finds them."""
    ctop, ph, pw = output
    pooled_h, pooled_w = case.bins
    group_size = case.options.get("group_size", pooled_h)
    part_size = case.options.get("part_size", pooled_h)
    gh = min(max(math.floor(ph * group_size / pooled_h), 0), group_size - 1)
    gw = min(max(math.floor(pw * group_size / pooled_w), 0), group_size - 1)
    channel = (ctop * group_size + gh) * group_size + gw
    if offset is None:
        return channel, 0.0, 0.0
    part_h = math.floor(ph / pooled_h * part_size)
    part_w = math.floor(pw / pooled_w * part_size)
    classes = offset.shape[0] // 2
    cls = ctop // (case.out_channels // classes)
    trans_x = offset[2 * cls, part_h, part_w].item()
    trans_y = offset[2 * cls + 1, part_h, part_w].item()
    return channel, trans_x, trans_y


def released_deform_psroi(
    image: Tensor, corners: list[float], offset: Tensor | None, case: RoICase, output: list[int]
) -> float:
    """The kernel of Deformable R-FCN (deformable_psroi_pooling.cu)."""
    _, ph, pw = output
    samples, scale = case.options.get("sample_per_part", 4), case.spatial_scale
    channel, trans_x, trans_y = position_sensitive(offset, case, output)
    trans_std = case.options.get("gamma", 0.1)
    start_w, start_h = (round_half_away(corner) * scale - 0.5 for corner in corners[:2])
    end_w, end_h = ((round_half_away(corner) + 1) * scale - 0.5 for corner in corners[2:])
    roi_w, roi_h = max(end_w - start_w, 0.1), max(end_h - start_h, 0.1)
    bin_h, bin_w = roi_h / case.bins[0], roi_w / case.bins[1]
    hstart = ph * bin_h + start_h + trans_y * trans_std * roi_h
    wstart = pw * bin_w + start_w + trans_x * trans_std * roi_w
    total, count = 0.0, 0
    for ih, iw in itertools.product(range(samples), repeat=2):
        h, w = hstart + ih * bin_h / samples, wstart + iw * bin_w / samples
        if h < -0.5 or h > case.height - 0.5 or w < -0.5 or w > case.width - 0.5:
            continue
        total += clamped(image[channel], h, w)
        count += 1
    return total / count if count else 0.0


def released_psroi(
    image: Tensor, corners: list[float], offset: None, case: RoICase, output: list[int]
) -> float:
    """The kernel of R-FCN (psroi_pooling_layer.cu)."""
    channel, i, j = output
    rows, columns = case.bins
    scale = case.spatial_scale
    start_w, start_h = (round_half_away(corner) * scale for corner in corners[:2])
    end_w, end_h = ((round_half_away(corner) + 1) * scale for corner in corners[2:])
    bin_h, bin_w = max(end_h - start_h, 0.1) / rows, max(end_w - start_w, 0.1) / columns
    hstart, hend = math.floor(i * bin_h + start_h), math.ceil((i + 1) * bin_h + start_h)
    wstart, wend = math.floor(j * bin_w + start_w), math.ceil((j + 1) * bin_w + start_w)
    hstart, hend = (min(max(edge, 0), case.height) for edge in (hstart, hend))
    wstart, wend = (min(max(edge, 0), case.width) for edge in (wstart, wend))
    if hend <= hstart or wend <= wstart:
        return 0.0
    return image[(channel * rows + i) * columns + j, hstart:hend, wstart:wend].mean().item()


def mmcv_deform_roi_pool(
    image: Tensor, corners: list[float], offset: Tensor | None, case: RoICase, output: list[int]
) -> float:
    """The kernel of mmcv (deform_roi_pool_cuda_kernel.cuh)."""
    channel, ph, pw = output
    start_w, start_h, end_w, end_h = (corner * case.spatial_scale - 0.5 for corner in corners)
    roi_w, roi_h = end_w - start_w, end_h - start_h
    bin_h, bin_w = roi_h / case.bins[0], roi_w / case.bins[1]
    ratio = case.options["sampling_ratio"]
    grid_h = ratio if ratio > 0 else math.ceil(bin_h)
    grid_w = ratio if ratio > 0 else math.ceil(bin_w)
    if offset is not None:
        gamma = case.options.get("gamma", 0.1)
        start_w += gamma * roi_w * offset[0, ph, pw].item()
        start_h += gamma * roi_h * offset[1, ph, pw].item()
    total = 0.0
    for iy, ix in itertools.product(range(grid_h), range(grid_w)):
        y = start_h + ph * bin_h + (iy + 0.5) * bin_h / grid_h
        x = start_w + pw * bin_w + (ix + 0.5) * bin_w / grid_w
        if -1 <= y <= case.height and -1 <= x <= case.width:
            total += clamped(image[channel], y, x)
    return total / max(grid_h * grid_w, 1)


FORMULAS = {
    "avg": equation_5,
    "avg_7": equation_5,
    "deform_still": equation_5,
    "deform": equation_6,
    "deform_uneven": equation_6,
    "dps_paper": equation_6,
    "dps_paper_parts": equation_6,
    "rfcn": released_psroi,
    "rfcn_uneven": released_psroi,
    "dps_aware": released_deform_psroi,
    "dps_parts": released_deform_psroi,
    "dps_groups": released_deform_psroi,
    "dps_uneven": released_deform_psroi,
    "dps_still": released_deform_psroi,
    "deform_adaptive": mmcv_deform_roi_pool,
    "deform_grid_still": mmcv_deform_roi_pool,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_equals_the_formula_written_out(name: str) -> None:
    assert_equals_formula(ROI_CASES[name].sized(2, 5, 6, 14), FORMULAS[name])


def test_no_offsets_are_zero_offsets_are_the_mean() -> None:
    still = ROI_CASES["deform_still"].arguments(torch.float64)
    zero = still.replaced(offset=torch.zeros(still.grad_output.shape[0], 2, 3, 3).double())
    options = {name: value for name, value in still.options.items() if name != "offset"}
    moved = Arguments(zero.tensors, options, still.grad_output)
    mean = Arguments(still.tensors, {**options, "mode": "avg"}, still.grad_output)
    expected = mean.run(reference.roi_pool, ("input",))
    torch.testing.assert_close(moved.run(reference.deform_roi_pool, ("input",)), expected)
    torch.testing.assert_close(still.run(reference.deform_roi_pool, ("input",)), expected)


POSITIONS = [-1.0, -0.6, -0.5, -0.25, 0.0, 0.25, 1.0, 2.5, 3.0, 3.25, 4.0, 4.25, 4.5, 4.75, 5.0]


def slope(op: str, options: dict, box: list[float], y: float) -> float:
    """Return the slope at y of one sample on the column of pixels 0, 1, 4, 9, 16."""
    pixels = (torch.arange(5.0).double() ** 2).reshape(1, 1, 5, 1)
    offset = torch.tensor([0.0, y]).double().reshape(1, 2, 1, 1).requires_grad_()
    boxes = torch.tensor([[0.0, *box]]).double()
    call = getattr(reference, op)
    call(pixels, boxes, offset, 1, gamma=1.0, **options).sum().backward()
    return offset.grad[0, 1].item()


@pytest.mark.parametrize("y", POSITIONS)
def test_slopes_at_integers_are_those_of_the_cell_that_begins_there(y: float) -> None:
    column = [0.0, 1.0, 4.0, 9.0, 16.0]
    padded = dict(enumerate([0.0, *column, 0.0], start=-1))
    low = math.floor(y)
    zeros = padded[low + 1] - padded[low] if -1 <= y < 5 else 0.0
    inner = padded[low + 1] - padded[low] if 0 <= y < 4 else 0.0
    # One pixel at row 0; one sample at row 0 of a box of size 1.
    assert slope("deform_roi_pool", {}, [0.0, 0.0, 0.0, 0.0], y) == zeros
    assert slope("deform_ps_roi_pool", {"sampling": "paper"}, [0.0, 0.0, 0.0, 0.0], y) == zeros
    assert slope("deform_roi_pool", {"sampling_ratio": 1}, [0.0, 0.0, 1.0, 1.0], y) == inner
    # R-FCN's sample is the bin's left edge, at -0.5.
    grid = {"sample_per_part": 1}
    assert slope("deform_ps_roi_pool", grid, [0.0, 0.0, 0.0, 0.0], y + 0.5) == inner
