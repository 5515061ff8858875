"""Effective dilation, against the definition worked out by plain loops."""

import math
import statistics
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor

from dcn_tvm.analysis import (
    SIZES,
    DilationTable,
    dilation_table,
    effective_dilation,
    object_sizes,
)
from dcn_tvm.viz import SampledLayer, sampling_points

AREAS = (100.0, 400.0)


@pytest.mark.parametrize("kernel", [(3, 3), (1, 2), (5, 3)])
@pytest.mark.parametrize("dilation", [1, 2, 5])
def test_a_regular_filter_has_its_dilation(kernel: tuple[int, int], dilation: int) -> None:
    offset = torch.zeros(1, 4 * kernel[0] * kernel[1], 2, 3)
    layer = SampledLayer(offset, kernel, dilation=(dilation, dilation))
    assert torch.equal(effective_dilation(layer), torch.full((1, 2, 2, 3), float(dilation)))


def naive(layer: SampledLayer, image: int, group: int, pixel: tuple[int, int]) -> float:
    """The mean over pairs of points whose place in the kernel differs by one row or one column."""
    points = sampling_points([layer], pixel, image=image, offset_group=group).tolist()
    rows, columns = layer.kernel_size
    places = [(a, b) for a in range(rows) for b in range(columns)]
    pairs = [
        math.dist(points[i], points[j])
        for i, (a, b) in enumerate(places)
        for j, (c, d) in enumerate(places)
        if i < j and abs(a - c) + abs(b - d) == 1
    ]
    assert rows != 3 or columns != 3 or len(pairs) == 12
    return sum(pairs) / len(pairs)


@pytest.mark.parametrize("kernel", [(3, 3), (2, 4)])
def test_effective_dilation_is_the_mean_over_adjacent_pairs(kernel: tuple[int, int]) -> None:
    offset = torch.randn(2, 3 * 2 * kernel[0] * kernel[1], 2, 3)
    layer = SampledLayer(offset, kernel, (2, 1), (1, 2), dilation=(2, 3))
    found = effective_dilation(layer)
    assert found.shape == (2, 3, 2, 3)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in found.shape)).tolist():
        image, group, *pixel = index
        wanted = naive(layer, image, group, (pixel[0], pixel[1]))
        assert found[tuple(index)].item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_types_are_measured_in_float32(half: torch.dtype) -> None:
    offset = torch.randn(1, 18, 3, 3).to(half)
    found = effective_dilation(SampledLayer(offset))
    assert found.dtype == torch.float32
    assert torch.equal(found, effective_dilation(SampledLayer(offset.float())))


def test_one_point_has_no_neighbours() -> None:
    with pytest.raises(ValueError, match=r"at least two points, got \(1, 1\)"):
        effective_dilation(SampledLayer(torch.zeros(1, 2, 3, 3), (1, 1), padding=(0, 0)))


def sizes(places: list[tuple[float, float]], boxes: Tensor) -> list[str]:
    return [SIZES[size] for size in object_sizes(torch.tensor(places), boxes, AREAS)]


def test_the_smallest_box_around_a_position_counts() -> None:
    nested = torch.tensor([[0.0, 0, 50, 30], [2, 2, 10, 10], [1, 1, 16, 16.0]])
    places = [(5.0, 5.0), (15.0, 15.0), (29.0, 40.0), (40.0, 29.0), (30.0, 50.0), (10.5, 2.0)]
    wanted = ["small", "medium", "large", "background", "large", "medium"]
    assert sizes(places, nested) == wanted
    assert sizes(places, nested.flip(0)) == wanted
    assert sizes(places[:1], torch.empty(0, 4)) == ["background"]


@pytest.mark.parametrize(
    ("width", "size"), [(9.99, "small"), (10, "medium"), (40, "medium"), (40.1, "large")]
)
def test_the_limits_are_medium(width: float, size: str) -> None:
    assert sizes([(1.0, 1.0)], torch.tensor([[0, 0, width, 10.0]])) == [size]


def some_batch(images: int) -> tuple[dict[str, Any], list[Tensor]]:
    """Return two layers of a network and objects of all sizes."""
    corners = [torch.rand(3, 2) * 60 for _ in range(images)]
    small = torch.tensor([[15.0, 15, 24, 24]])
    boxes = [torch.cat([small, torch.cat([c, c + 5 + torch.rand(3, 2) * 35], 1)]) for c in corners]
    recorded = {
        "res5a": SampledLayer(torch.randn(images, 36, 8, 9), dilation=(2, 2), padding=(2, 2)),
        "no convolution": "is passed over",
        "res5b": SampledLayer(torch.randn(images, 18, 4, 4), stride=(2, 2)),
    }
    return recorded, [*boxes[:-1], torch.empty(0, 4)]


def naive_table(
    recorded: dict[str, Any], boxes: list[Tensor], stride: dict[str, float], origin: float
) -> dict[tuple[str, str], list[float]]:
    found = defaultdict(list)
    for name, scale in stride.items():
        layer = recorded[name]
        images, _, height, width = layer.offset.shape
        for image in range(images):
            for row, column in ((r, c) for r in range(height) for c in range(width)):
                still = SampledLayer(
                    0 * layer.offset, (3, 3), layer.stride, layer.padding, layer.dilation
                )
                y, x = (origin + scale * sampling_points([still], (row, column)).mean(0)).tolist()
                around = [
                    (x2 - x1) * (y2 - y1)
                    for x1, y1, x2, y2 in boxes[image].tolist()
                    if x1 <= x <= x2 and y1 <= y <= y2
                ]
                size = "background"
                if around:
                    area = min(around)
                    size = "small" if area < 100 else "medium" if area <= 400 else "large"
                for group in range(layer.offset_groups):
                    found[name, size].append(naive(layer, image, group, (row, column)))
    return found


def test_the_table_is_mean_and_deviation_by_layer_and_size() -> None:
    recorded, boxes = some_batch(4)
    stride = {"res5a": 8.0, "res5b": 9.0}
    table = dilation_table(recorded, boxes, stride, origin=1.5, areas=AREAS)
    wanted = naive_table(recorded, boxes, stride, 1.5)
    assert [(row.layer, row.size) for row in table.rows()] == [
        (n, s) for n in stride for s in SIZES
    ]
    assert all(values for values in wanted.values())
    assert len(wanted) == 8, "the example should have objects of every size"
    for row in table.rows():
        values = wanted[row.layer, row.size]
        assert row.count == len(values)
        assert (
            row.mean == table.mean(row.layer, row.size) == pytest.approx(statistics.fmean(values))
        )
        assert row.std == table.std(row.layer, row.size)
        assert row.std == pytest.approx(statistics.pstdev(values), rel=1e-5)


def test_images_in_portions_give_the_same_table() -> None:
    recorded, boxes = some_batch(4)
    whole = dilation_table(recorded, boxes, 8.0, areas=AREAS)
    table = DilationTable(8.0, areas=AREAS)
    for portion in (slice(0, 3), slice(3, 3), slice(3, 4)):
        part = {
            name: SampledLayer(layer.offset[portion], *list(vars(layer).values())[1:])
            for name, layer in recorded.items()
            if isinstance(layer, SampledLayer)
        }
        table.add(part, boxes[portion])
    for row, expected in zip(table.rows(), whole.rows(), strict=True):
        assert (row.layer, row.size, row.count) == (expected.layer, expected.size, expected.count)
        assert (row.mean, row.std) == pytest.approx((expected.mean, expected.std))


def test_the_deviation_does_not_cancel() -> None:
    """Sums of squares in float64 would lose a deviation of 1 beside a mean of 1e9."""
    table = DilationTable(1.0)
    for start in (0.0, 2.0):
        offset = torch.zeros(1, 4, 1, 2, dtype=torch.float64)
        offset[0, 3, 0] = 1e9 + torch.tensor([start, start + 1], dtype=torch.float64)
        table.add({"a": SampledLayer(offset, (1, 2))}, [torch.empty(0, 4)])
    assert table.std("a", "background") == pytest.approx(math.sqrt(1.25))
    assert table.mean("a", "background") == 1e9 + 1 + 1.5


def test_padding_of_the_batch_does_not_count() -> None:
    layer = {"a": SampledLayer(torch.zeros(2, 18, 4, 6))}
    box = torch.tensor([[0.0, 0, 20, 20]])
    table = dilation_table(layer, [box, box], 8.0, image_sizes=[(32, 48), (17, 24)], areas=AREAS)
    counts = {row.size: row.count for row in table.rows()}
    # Centres at 0, 8, ..., so the second image has 3 rows and 3 columns, all of them in its box.
    assert counts == {"small": 0, "medium": 9 + 9, "large": 0, "background": 24 - 9}
    assert math.isnan(table.mean("a", "small"))
    assert math.isnan(table.std("a", "large"))


def test_only_named_layers_count() -> None:
    recorded, boxes = some_batch(2)
    table = dilation_table(recorded, boxes, {"res5b": 16.0})
    assert {row.layer for row in table.rows()} == {"res5b"}
    with pytest.raises(ValueError, match="must have layer 'res5c'"):
        dilation_table(recorded, boxes, {"res5b": 16.0, "res5c": 16.0})
    with pytest.raises(ValueError, match=r"layer must be one of \['res5b'\], got 'res5a'"):
        table.mean("res5a", "small")
    with pytest.raises(ValueError, match="size must be one of"):
        table.mean("res5b", "huge")


def test_what_does_not_fit_is_refused() -> None:
    recorded, boxes = some_batch(2)
    with pytest.raises(ValueError, match=r"boxes must be \[L, 4\] for each of 2 images"):
        dilation_table(recorded, boxes[:1], 8.0)
    with pytest.raises(ValueError, match=r"\(3, 5\)"):
        dilation_table(recorded, [torch.zeros(3, 5)] * 2, 8.0)
    with pytest.raises(ValueError, match="image_sizes must be 2 pairs, got 1"):
        dilation_table(recorded, boxes, 8.0, image_sizes=[(9, 9)])
    with pytest.raises(ValueError, match="stride must be positive and finite, got 0"):
        DilationTable({"a": 0.0})
    with pytest.raises(ValueError, match="areas must ascend"):
        DilationTable(1.0, areas=(2.0, 1.0))
