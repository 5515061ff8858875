"""What the offsets of a trained network tell: how far its filters spread on objects of each size.

Source: Dai et al., Deformable Convolutional Networks, table 2: the effective dilation of a filter
grows with the object that it is centred on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dcn_tvm.viz import SampledLayer

Pair = tuple[int, int]

SIZES = ("small", "medium", "large", "background")


def effective_dilation(layer: SampledLayer) -> Tensor:
    """Return the mean distance between adjacent sampling points of every filter.

    Adjacent are the neighbours along the rows and along the columns of the kernel, 12 pairs of a
    3 × 3 kernel. Filters that do not move have their dilation, if that is square.

    Args:
        layer: a deformable convolution with the offsets that it used.

    Returns:
        `[N, G, Ho, Wo]` in pixels of the layer's input, in the offset's type, at least float32.

    Raises:
        ValueError: the kernel has one point only.

    Source: Dai et al., Deformable Convolutional Networks, table 2.

    Example:
        >>> layer = SampledLayer(torch.zeros(1, 18, 1, 2), dilation=(2, 2))
        >>> effective_dilation(layer)
        tensor([[[[2., 2.]]]])
    """
    rows, columns = layer.kernel_size
    if rows * columns < 2:
        raise ValueError(f"kernel_size must have at least two points, got {layer.kernel_size}")
    dtype = torch.promote_types(layer.offset.dtype, torch.float32)
    # [N, G, rows, columns, (y, x), Ho, Wo]
    offset = layer.offset.to(dtype).unflatten(1, (layer.offset_groups, rows, columns, 2))
    distances = []
    for dim, spacing in ((2, (layer.dilation[0], 0)), (3, (0, layer.dilation[1]))):
        regular = offset.new_tensor(spacing).view(2, 1, 1)
        way = offset.diff(dim=dim) + regular
        distances.append(torch.linalg.vector_norm(way, dim=4).flatten(2, 3))
    return torch.cat(distances, dim=2).mean(2)


@dataclass(frozen=True)
class DilationRow:
    """The effective dilation of one layer's filters on objects of one size.

    Attributes:
        layer: its name.
        size: "small", "medium", "large" or "background".
        mean: in pixels of the layer's input; NaN where there was no filter.
        std: standard deviation over the filters, in the same pixels.
        count: of the filters; each offset group at each position is one.
    """

    layer: str
    size: str
    mean: float
    std: float
    count: int


class DilationTable:
    """Table 2 of the paper, gathered image by image: effective dilation by layer and object size.

    A filter whose centre lies in a box belongs to the size of the smallest such box, one that lies
    in none to the background. Sizes are areas in pixels of the image: "small" below the first,
    "large" above the second, "medium" between and at the two.

    Args:
        stride: of the layers' inputs in the image, one number for all, or one for each layer by its
            name: then only those layers count.
        origin: where in the image the first pixel of those maps is centred, along both axes.
        areas: the two limits in pixels of the image.

    Raises:
        ValueError: a stride is not positive, or the areas do not ascend.

    Source: Dai et al., Deformable Convolutional Networks, table 2.

    Example:
        >>> table = DilationTable(stride=16)
        >>> layer = SampledLayer(torch.zeros(1, 18, 8, 8), padding=(2, 2), dilation=(2, 2))
        >>> table.add({"res5a": layer}, [torch.tensor([[0.0, 0.0, 60.0, 60.0]])])
        >>> [(row.size, row.mean, row.count) for row in table.rows()][:2]
        [('small', 2.0, 16), ('medium', nan, 0)]
    """

    def __init__(
        self,
        stride: float | Mapping[str, float],
        *,
        origin: float = 0.0,
        areas: tuple[float, float] = (96.0**2, 224.0**2),
    ) -> None:
        for value in stride.values() if isinstance(stride, Mapping) else [stride]:
            if not 0 < value < math.inf:
                raise ValueError(f"stride must be positive and finite, got {value}")
        if not areas[0] <= areas[1]:
            raise ValueError(f"areas must ascend, got {areas}")
        self._stride = stride
        self._origin = origin
        self._areas = areas
        self._found: dict[str, dict[str, _Moments]] = {}

    def add(
        self,
        recorded: Mapping[str, object],
        boxes: Sequence[Tensor],
        image_sizes: Sequence[Pair] | None = None,
    ) -> None:
        """Take in what the layers did for a batch of images.

        Args:
            recorded: from a layer's name to what it did, as `viz.record_offsets` gives it; what is
                no convolution is passed over.
            boxes: for each image its objects `[L, 4]`, rows of (x1, y1, x2, y2) in pixels of the
                image that the network saw.
            image_sizes: (height, width) of each image where the batch is padded to the largest:
                filters centred on padding do not count.

        Raises:
            ValueError: a named layer was not recorded, or boxes or sizes do not fit the images.
        """
        for name, layer, stride in self._chosen(recorded):
            images = layer.offset.shape[0]
            if len(boxes) != images or any(b.dim() != 2 or b.shape[1] != 4 for b in boxes):
                raise ValueError(
                    f"boxes must be [L, 4] for each of {images} images, "
                    f"got shapes {[tuple(b.shape) for b in boxes]}"
                )
            if image_sizes is not None and len(image_sizes) != images:
                raise ValueError(f"image_sizes must be {images} pairs, got {len(image_sizes)}")
            dilation = effective_dilation(layer).double().flatten(2).cpu()
            centres = self._origin + stride * layer.centres(_grid(layer))
            for number, (values, objects) in enumerate(zip(dilation, boxes, strict=True)):
                size = object_sizes(centres, objects, self._areas)
                if image_sizes is not None:
                    on_image = (centres < torch.tensor(image_sizes[number])).all(1)
                    size = torch.where(on_image, size, len(SIZES))
                self._take(name, values, size)

    def mean(self, layer: str, size: str) -> float:
        """Return the mean effective dilation, NaN where there was no filter."""
        return self._row(layer, size).mean

    def std(self, layer: str, size: str) -> float:
        """Return the standard deviation over the filters, NaN where there was none."""
        return self._row(layer, size).std

    def rows(self) -> list[DilationRow]:
        """Return the sizes and the background of every layer, in the order of the strides given.

        With one stride for all, layers come as they were recorded.
        """
        return [self._row(layer, size) for layer in self._found for size in SIZES]

    def _chosen(self, recorded: Mapping[str, object]) -> Iterator[tuple[str, SampledLayer, float]]:
        chosen = self._stride
        if not isinstance(chosen, Mapping):
            convolutions = [n for n, layer in recorded.items() if isinstance(layer, SampledLayer)]
            chosen = dict.fromkeys(convolutions, chosen)
        for name, stride in chosen.items():
            layer = recorded.get(name)
            if not isinstance(layer, SampledLayer):
                raise ValueError(f"recorded must have layer {name!r}, got {list(recorded)}")
            yield name, layer, stride

    def _take(self, layer: str, values: Tensor, size: Tensor) -> None:
        sums = self._found.setdefault(layer, {name: _Moments() for name in SIZES})
        for index, name in enumerate(SIZES):
            sums[name].add(values[:, size == index])

    def _row(self, layer: str, size: str) -> DilationRow:
        if layer not in self._found:
            raise ValueError(f"layer must be one of {list(self._found)}, got {layer!r}")
        if size not in SIZES:
            raise ValueError(f"size must be one of {SIZES}, got {size!r}")
        sums = self._found[layer][size]
        return DilationRow(layer, size, *sums.mean_and_std(), sums.count)


def dilation_table(
    recorded: Mapping[str, object],
    boxes: Sequence[Tensor],
    stride: float | Mapping[str, float],
    *,
    image_sizes: Sequence[Pair] | None = None,
    origin: float = 0.0,
    areas: tuple[float, float] = (96.0**2, 224.0**2),
) -> DilationTable:
    """Return the table of one batch; its arguments are those of `DilationTable` and its `add`.

    Example:
        >>> layer = SampledLayer(torch.zeros(1, 18, 8, 8), padding=(2, 2), dilation=(2, 2))
        >>> table = dilation_table({"res5a": layer}, [torch.empty(0, 4)], stride=16)
        >>> table.mean("res5a", "background")
        2.0
    """
    table = DilationTable(stride, origin=origin, areas=areas)
    table.add(recorded, boxes, image_sizes)
    return table


def object_sizes(
    positions: Tensor, boxes: Tensor, areas: tuple[float, float] = (96.0**2, 224.0**2)
) -> Tensor:
    """Return the index in `SIZES` of the smallest object around each position.

    Args:
        positions: `[P, 2]`, (y, x) in pixels of the image.
        boxes: `[L, 4]`, (x1, y1, x2, y2) in the same pixels, borders included.
        areas: of the smallest and the largest "medium" object.

    Returns:
        `[P]` int64.

    Example:
        >>> places, box = torch.tensor([[5.0, 5.0], [50.0, 5.0]]), torch.tensor([[0, 0, 10, 10.0]])
        >>> [SIZES[size] for size in object_sizes(places, box)]
        ['small', 'background']
    """
    y, x = positions.cpu()[:, :, None].unbind(1)
    x1, y1, x2, y2 = boxes.detach().to(positions.dtype).cpu().unbind(1)
    inside = (x >= x1) & (x <= x2) & (y >= y1) & (y <= y2)
    around = torch.where(inside, (x2 - x1) * (y2 - y1), torch.inf)
    smallest = torch.cat([around, torch.full_like(y, torch.inf)], 1).amin(1)
    return (smallest >= areas[0]).long() + (smallest > areas[1]) + ~inside.any(1)


class _Moments:
    """Count, mean and squared distance from it of numbers that come in portions.

    Portions are joined as Chan, Golub and LeVeque do: sums of squares alone would cancel.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = 0.0
        self._squares = 0.0

    def add(self, values: Tensor) -> None:
        fresh = values.numel()
        if fresh == 0:
            return
        mean = values.mean().item()
        away, count = mean - self._mean, self.count + fresh
        self._squares += (
            values - mean
        ).square().sum().item() + away**2 * self.count * fresh / count
        self._mean += away * fresh / count
        self.count = count

    def mean_and_std(self) -> tuple[float, float]:
        if self.count == 0:
            return math.nan, math.nan
        return self._mean, math.sqrt(self._squares / self.count)


def _grid(layer: SampledLayer) -> Tensor:
    """Return all positions (row, column) of a layer's output, `[Ho * Wo, 2]`."""
    return torch.cartesian_prod(*(torch.arange(n).double() for n in layer.offset.shape[2:]))
