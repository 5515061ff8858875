"""Where layers look: sampling points of convolutions, bins of RoI pooling, and their pictures."""

import io
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

import dcn_tvm
from dcn_tvm import reference
from dcn_tvm.nn import DeformConv2dPack
from dcn_tvm.viz import (
    SampledBins,
    SampledLayer,
    bin_boxes,
    draw_bins,
    draw_offsets,
    draw_sampling_points,
    sampling_points,
)

PHOTO = torch.zeros(3, 40, 60)


def test_without_offsets_three_layers_read_the_regular_grid() -> None:
    layers = [SampledLayer(torch.zeros(1, 18, 9, 11))] * 3
    points = sampling_points(layers, (4, 5))
    assert points.shape == (9**3, 2)
    wanted = {(y, x) for y in range(1, 8) for x in range(2, 9)}
    assert {(y, x) for y, x in points.tolist()} == wanted


def test_points_of_one_layer_follow_offset_order_and_geometry() -> None:
    offset = torch.zeros(2, 2 * 2 * 6, 5, 4)
    taps = offset[1, 12:].view(3, 2, 2, 5, 4)  # second group of the second image
    taps[2, 1, :, 3, 2] = torch.tensor([0.25, -7.5])
    layer = SampledLayer(offset, (3, 2), stride=(2, 3), padding=(1, 0), dilation=(2, 1))
    points = sampling_points([layer], (3, 2), image=1, offset_group=1)
    regular = [(3 * 2 - 1 + 2 * a, 2 * 3 + b) for a in range(3) for b in range(2)]
    assert points[:5].tolist() == [list(map(float, p)) for p in regular[:5]]
    assert points[5].tolist() == [regular[5][0] + 0.25, regular[5][1] - 7.5]
    others = sampling_points([layer], (3, 2), image=0, offset_group=1)
    assert others.tolist() == [list(map(float, p)) for p in regular]
    assert layer.centres(torch.tensor([3.0, 2])).tolist() == others.mean(0).tolist()


def test_between_pixels_offsets_are_interpolated() -> None:
    offset = torch.zeros(1, 2, 1, 5)
    offset[0, 1, 0] = torch.arange(5.0)  # x moves by its own x
    move_half = torch.zeros(1, 2, 1, 5)
    move_half[0, 1] = 0.5
    layers = [SampledLayer(o, (1, 1), padding=(0, 0)) for o in (offset, move_half)]
    assert sampling_points(layers, (0, 2)).tolist() == [[0.0, 2.5 + 2.5]]


def test_points_are_where_the_op_reads() -> None:
    layer = DeformConv2dPack(2, 1, 3, padding=1, bias=False).double()
    torch.nn.init.normal_(layer.conv_offset.weight, std=0.3)
    torch.nn.init.ones_(layer.weight)
    image = torch.rand(1, 2, 8, 8).double()
    points = sampling_points([SampledLayer.of(layer, image)], (4, 3))
    grid = (points / 7 * 2 - 1).flip(-1)[None, None]
    read = functional.grid_sample(image, grid, align_corners=True).sum()
    offset = layer.conv_offset(image)
    output = reference.deform_conv2d(image, offset, layer.weight, padding=1)
    torch.testing.assert_close(output[0, 0, 4, 3], read)


@pytest.mark.parametrize("pixel", [(-1, 0), (0, 4), (5, 0)])
def test_a_pixel_outside_is_refused(pixel: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="pixel must lie"):
        sampling_points([SampledLayer(torch.zeros(1, 18, 5, 4))], pixel)


def test_what_does_not_exist_is_refused() -> None:
    layer = SampledLayer(torch.zeros(2, 36, 5, 4))
    with pytest.raises(ValueError, match="at least one layer"):
        sampling_points([], (0, 0))
    with pytest.raises(ValueError, match="image must be from 0 to 1, got 2"):
        sampling_points([layer], (0, 0), image=2)
    with pytest.raises(ValueError, match="offset_group must be from 0 to 1, got -1"):
        sampling_points([layer], (0, 0), offset_group=-1)
    for channels in (0, 17, 27):
        with pytest.raises(ValueError, match=r"G \* 18"):
            SampledLayer(torch.zeros(1, channels, 5, 4))


# Boxes as the network gives them, with scale 1/4: far inside the map, off its lattice, and over its
# borders.
INSIDE = torch.tensor([[0, 41.0, 32, 110, 97], [0, 61.3, 45.9, 102.2, 83.7]])
OVER = torch.tensor([[0, -30.0, 99, 41, 190]])
MAP = (40, 50)


def ramps(channels: int) -> Tensor:
    """Return maps `[1, 2 * channels, 40, 50]`: x itself, then y itself."""
    y, x = torch.meshgrid(*(torch.arange(float(n)) for n in MAP), indexing="ij")
    return torch.stack([x, y]).repeat_interleave(channels, 0)[None].double()


def sampled(sampling: Any, boxes: Tensor, offset: Tensor, bins: tuple[int, int]) -> SampledBins:
    return SampledBins(boxes, offset, MAP, bins, 0.25, 0.1, sampling)


def every_bin(bins: SampledBins, **chosen: Any) -> Tensor:
    return torch.stack([bin_boxes(bins, index, **chosen) for index in range(len(bins.boxes))])


def centres(edges: Tensor) -> Tensor:
    """Return the middles of `[K, rows, columns, 4]` bins as `[K, (x, y), rows, columns]`."""
    return ((edges[..., :2] + edges[..., 2:]) / 2).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("sampling", "ratio"), [("paper", None), ("mmcv", 3)])
def test_the_mean_over_a_moved_bin_is_its_centre(sampling: str, ratio: int | None) -> None:
    offset = torch.randn(2, 2, 2, 3).double()
    pooled = dcn_tvm.deform_roi_pool(ramps(1), INSIDE.double(), offset, (2, 3), 0.25, ratio)
    found = every_bin(sampled(sampling, INSIDE.double(), offset, (2, 3)))
    torch.testing.assert_close(centres(found), pooled)
    assert not torch.allclose(
        found, every_bin(sampled(sampling, INSIDE.double(), 0 * offset, (2, 3)))
    )


@pytest.mark.parametrize("sampling", ["paper", "rfcn"])
def test_every_class_has_its_bins_and_every_part_its_offset(sampling: str) -> None:
    """Six bins along each axis share three offsets; the channels of two classes are alike."""
    offset, per_part = torch.randn(2, 4, 3, 3).double(), 4
    pooled = dcn_tvm.deform_ps_roi_pool(
        ramps(2),  # x for both classes, then y for both
        INSIDE.double(),
        offset,
        6,
        0.25,
        group_size=1,
        part_size=3,
        sample_per_part=per_part,
        sampling="paper" if sampling == "paper" else "grid",
    )
    bins = sampled(sampling, INSIDE.double(), offset, (6, 6))
    for group in range(2):
        edges = every_bin(bins, offset_class=group)
        # The released code samples the left edges of a grid in the bin: half a step too early.
        step = (edges[..., 2:] - edges[..., :2]).permute(0, 3, 1, 2) / per_part
        expected = centres(edges) - (step / 2 if sampling == "rfcn" else 0)
        # Outputs: two classes of two channels each move apart, so x with class 0 and y with 1.
        torch.testing.assert_close(expected[:, group], pooled[:, 2 * group])
    assert bins.classes == 2


@pytest.mark.parametrize("sampling", ["mmcv", "rfcn"])
def test_regular_bins_of_equal_parts_fill_the_box(sampling: str) -> None:
    bins = sampled(sampling, INSIDE, torch.randn(2, 2, 3, 3), (3, 3))
    edges = every_bin(bins, moved=False).double()
    torch.testing.assert_close(edges[:, :, :-1, 2], edges[:, :, 1:, 0])
    torch.testing.assert_close(edges[:, :-1, :, 3], edges[:, 1:, :, 1])
    filled = torch.cat([edges[:, 0, 0, :2], edges[:, -1, -1, 2:]], 1)
    on_image = bins.origin + filled / 0.25
    corners = INSIDE[:, 1:].double()
    if sampling == "mmcv":  # corners from the edge of the image, pixel 0 from -1/2
        expected = corners - 0.5
    else:
        expected = corners.round() + torch.tensor([-0.5, -0.5, 0.5, 0.5])
    torch.testing.assert_close(on_image, expected, atol=1e-4, rtol=0)
    moved = every_bin(bins)
    torch.testing.assert_close(
        moved[..., 2:] - moved[..., :2], (edges[..., 2:] - edges[..., :2]).float()
    )


@pytest.mark.parametrize("boxes", [INSIDE, OVER])
def test_a_bin_of_the_paper_is_the_pixels_that_the_op_reads(boxes: Tensor) -> None:
    offset = torch.zeros(len(boxes), 2, 2, 3).double()
    map_ = ramps(1).requires_grad_()
    pooled = dcn_tvm.deform_roi_pool(map_, boxes.double(), offset, (2, 3), 0.25)
    bins = every_bin(sampled("paper", boxes.double(), offset, (2, 3)))
    for index in ((k, i, j) for k in range(len(boxes)) for i in range(2) for j in range(3)):
        (slope,) = torch.autograd.grad(pooled[:, 0][index], map_, retain_graph=True)
        read = slope[0, 0].nonzero()
        if len(read) == 0:
            assert bins[index].isnan().all()
            continue
        (top, left), (bottom, right) = read.amin(0).tolist(), read.amax(0).tolist()
        assert bins[index].tolist() == [left - 0.5, top - 0.5, right + 0.5, bottom + 0.5]
    assert bins.isnan().any() == (boxes is OVER)


def test_what_is_unknown_is_nowhere() -> None:
    offset = torch.zeros(2, 2, 2, 2)
    offset[0, 1, 0, 1] = torch.nan
    boxes = INSIDE.clone()
    boxes[1, 2] = torch.inf
    for sampling in ("paper", "mmcv", "rfcn"):
        unknown = every_bin(sampled(sampling, boxes, offset, (2, 2))).isnan().all(-1)
        assert unknown.tolist() == [[[False, True], [False, False]], [[True, True], [True, True]]]


def test_bins_that_do_not_exist_are_refused() -> None:
    bins = sampled("paper", INSIDE, torch.zeros(2, 4, 3, 3), (3, 3))
    with pytest.raises(ValueError, match="index must be from 0 to 1, got 2"):
        bin_boxes(bins, 2)
    with pytest.raises(ValueError, match="offset_class must be from 0 to 1, got 2"):
        bin_boxes(bins, 0, offset_class=2)
    with pytest.raises(ValueError, match=r"boxes must be \[K, 5\]"):
        sampled("paper", INSIDE[:, 1:], torch.zeros(2, 2, 3, 3), (3, 3))
    for shape in ((1, 2, 3, 3), (2, 3, 3, 3), (2, 2, 3)):
        with pytest.raises(ValueError, match=r"offset must be \[2, 2 \* classes"):
            sampled("paper", INSIDE, torch.zeros(shape), (3, 3))


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=30)
    return buffer.getvalue()


def test_points_are_drawn_in_pixels_of_the_image() -> None:
    torch.manual_seed(1)
    layers = [
        SampledLayer(torch.randn(2, 36, 5, 7), padding=(0, 0)),
        SampledLayer(torch.randn(2, 36, 3, 4), stride=(2, 2)),
    ]
    figure = Figure()
    axes = figure.subplots()
    chosen = {"image": 1, "offset_group": 1}
    draw_sampling_points(
        axes, PHOTO, layers, [(2, 1), (0, 0)], stride=8, origin=3.5, goals=[(9.0, 2.0)], **chosen
    )
    drawn = [torch.as_tensor(c.get_offsets().data) for c in axes.collections]
    points = 3.5 + 8 * sampling_points(layers, (2, 1), **chosen)
    torch.testing.assert_close(drawn[0].flip(1), points)
    assert drawn[1].tolist() == [[3.5 + 8 * 3, 3.5 + 8 * 5]]  # 2 * (2, 1), and then 1 more
    assert [len(d) for d in drawn] == [81, 1, 81, 1, 1]
    assert drawn[4].tolist() == [[2.0, 9.0]]
    assert axes.get_xlim() == (-0.5, 59.5)
    assert axes.get_ylim() == (39.5, -0.5)
    assert len(png(figure)) > 1000


def test_an_offset_field_is_arrows_from_the_centres() -> None:
    offset = torch.zeros(1, 2, 6, 2, 4, 5)  # image, group, tap, (y, x), rows, columns
    offset[0, 1, 3] = torch.tensor([3.0, -4.0]).view(2, 1, 1)
    layer = SampledLayer(offset.flatten(1, 3), (2, 3), (2, 2), (0, 1), (1, 1))
    axes = Figure().subplots()
    arrows = draw_offsets(axes, PHOTO, layer, stride=4, origin=1, offset_group=1, every=2)
    # Every second output pixel from (1, 1): two rows, two columns.
    assert [(a.item(), b.item()) for a, b in zip(arrows.Y, arrows.X, strict=True)] == [
        (1 + 4 * (y * 2 + 0.5), 1 + 4.0 * (x * 2)) for y in (1, 3) for x in (1, 3)
    ]
    for values, mean in (
        (arrows.V, 4 * 3.0 / 6),
        (arrows.U, 4 * -4.0 / 6),
        (arrows.get_array(), 4 * 5 / 6),
    ):
        assert torch.as_tensor(values).tolist() == pytest.approx([mean] * 4)
    one = draw_offsets(axes, PHOTO, layer, stride=4, offset_group=1, tap=(1, 0))
    assert len(one.U) == 20
    assert (one.V[0], one.U[0], one.get_array()[0]) == pytest.approx((12, -16, 20))
    assert draw_offsets(axes, PHOTO, layer, tap=(1, 2), offset_group=1).U.max() == 0
    assert len(png(axes.figure)) > 1000
    wide = SampledLayer(torch.zeros(1, 18, 3, 100))
    assert len(draw_offsets(axes, PHOTO, wide).U) <= 18
    with pytest.raises(ValueError, match=r"tap must lie in the kernel \(2, 3\)"):
        draw_offsets(axes, PHOTO, layer, tap=(2, 0))
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        draw_offsets(axes, PHOTO, layer, every=0)


@pytest.mark.parametrize(("sampling", "origin"), [("paper", 0.0), ("mmcv", 1.5), ("rfcn", 1.5)])
def test_bins_are_drawn_over_their_regular_places_and_the_box(sampling: str, origin: float) -> None:
    boxes = torch.tensor([[0, 9.0, 9, 9, 9], [0, 8, 12, 39, 35]])
    bins = sampled(sampling, boxes, torch.randn(2, 4, 3, 3), (3, 3))
    axes = Figure().subplots()
    draw_bins(axes, PHOTO, bins, 1, offset_class=1)
    lines = {
        line.get_label(): torch.tensor(line.get_xydata()).view(-1, 6, 2) for line in axes.lines
    }
    for label, moved in (("regular bins", False), ("moved bins", True)):
        edges = origin + 4 * bin_boxes(bins, 1, offset_class=1, moved=moved).view(9, 4).double()
        torch.testing.assert_close(lines[label][:, 0], edges[:, :2])
        torch.testing.assert_close(lines[label][:, 2], edges[:, 2:])
        assert lines[label][:, 5].isnan().all()
    end = 0 if sampling == "mmcv" else 1
    assert lines["box"][0, [0, 2]].tolist() == [[7.5, 11.5], [38.5 + end, 34.5 + end]]
    elsewhere = Figure().subplots()
    draw_bins(elsewhere, PHOTO, bins, 1, offset_class=1, origin=origin + 7)
    shift = elsewhere.lines[1].get_xydata()[0] - axes.lines[1].get_xydata()[0]
    assert shift.tolist() == pytest.approx([7, 7])
    assert len(png(axes.figure)) > 1000
