"""Named calls of the RoI ops that the tests share.

A new combination of op, channels, output size and options costs a compile of every kernel; a new
batch, map or number of boxes nothing: so tests take these cases and vary those with `sized`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import dcn_tvm
from dcn_tvm import reference
from tests.cases import Arguments

# Odd multiples: gamma * size * offset then never is a whole number of pixels where the positions
# before it are multiples of a larger power of 1/2. Exact in bfloat16 up to 2.
_OFFSET_LATTICE = 128
_OFFSET_STD = 1.5
# Boxes lie on quarters of a pixel of a map up to 32 pixels wide, exact in bfloat16, so that float32
# and float64 mostly see the same bins; `_ambiguous` finds the others.
_BOX_LATTICE = 4
_ATTEMPTS = 30
# Shares of the map's width (or height) between which the ends of a box are drawn, (x1, x2).
_INSIDE = ((0.05, 0.45), (0.5, 0.9))
_WHOLE = ((0.0, 0.0), (1.0, 1.0))
_LAST = ((0.2, 0.7), (1.0, 1.0))
_FIRST = ((0.0, 0.0), (0.3, 0.8))
_BEFORE = ((-0.6, -0.2), (0.3, 0.8))
_BEYOND = ((0.3, 0.7), (1.2, 1.7))
_LEFT = ((-1.4, -0.8), (-0.7, -0.4))
_RIGHT = ((1.3, 1.6), (1.7, 2.0))
_LARGER = ((-0.7, -0.2), (1.2, 1.8))
_NEGATIVE = ((0.6, 0.9), (0.1, 0.4))
_POINT = ((0.1, 0.9), None)  # the second end is the first
# (x, y): what the boxes of a call are, in turn.
_KINDS = (
    (_INSIDE, _INSIDE),
    (_WHOLE, _WHOLE),
    (_LAST, _LAST),
    (_BEFORE, _BEYOND),
    (_POINT, _POINT),
    (_NEGATIVE, _NEGATIVE),
    (_FIRST, _FIRST),
    (_LARGER, _LARGER),
    (_RIGHT, _INSIDE),
    (_INSIDE, _LEFT),
    (_NEGATIVE, _INSIDE),
    (_BEYOND, _BEFORE),
    (_INSIDE, _POINT),
    (_LAST, _FIRST),
)


@dataclass(frozen=True)
class RoICase:
    """Everything that decides one call but its numbers."""

    name: str
    op: str
    channels: int
    output_size: int | tuple[int, int]
    options: Mapping[str, Any] = field(default_factory=dict)
    classes: int | None = None  # of the offset; None: no offset
    part_size: int | None = None  # None: offsets for every bin
    batch: int = 2
    height: int = 9
    width: int = 11
    boxes: int = len(_KINDS)
    spatial_scale: float = 1.0

    def sized(self, batch: int, height: int, width: int, boxes: int) -> RoICase:
        return replace(self, batch=batch, height=height, width=width, boxes=boxes)

    @property
    def reference(self) -> Any:
        return getattr(reference, self.op)

    @property
    def bins(self) -> tuple[int, int]:
        size = self.output_size
        return (size, size) if isinstance(size, int) else size

    @property
    def out_channels(self) -> int:
        if self.op.startswith("ps_"):
            return self.channels // (self.bins[0] * self.bins[1])
        if self.op == "deform_ps_roi_pool":
            return self.channels // self.options.get("group_size", self.bins[0]) ** 2
        return self.channels

    @property
    def needed(self) -> tuple[str, ...]:
        """Return the tensors that get gradients."""
        return ("input",) if self.classes is None else ("input", "offset")

    @property
    def parts(self) -> tuple[int, int]:
        return (self.part_size, self.part_size) if self.part_size else self.bins

    def part_of_bins(self) -> tuple[Tensor, Tensor]:
        """Return the part whose offset each row of bins, and each column, uses."""
        row, column = (
            torch.arange(bins) * parts // bins
            for bins, parts in zip(self.bins, self.parts, strict=True)
        )
        return row, column

    def arguments(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> Arguments:
        """Draw the call's numbers so that no rounding decides where a bin or a cell begins."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        tensors = {"input": normal(self.batch, self.channels, self.height, self.width)}
        grad_output = normal(self.boxes, self.out_channels, *self.bins)
        tensors |= self._regions(generator, 0)
        arguments = Arguments(tensors, self._call_options(), grad_output).to(dtype)
        for attempt in range(1, _ATTEMPTS):
            again = _ambiguous(self, arguments)
            if not again.any():
                return arguments
            for name, fresh in self._regions(generator, attempt).items():
                arguments.tensors[name][again] = fresh.to(dtype)[again]
        raise AssertionError(f"{self.name}: no boxes that float32 and float64 agree on")

    def arguments_for(self, boxes: Tensor, dtype: torch.dtype = torch.float32) -> Arguments:
        """Draw the rest of a call with these boxes, without those that dtypes disagree on."""
        sized = replace(self, boxes=len(boxes))
        arguments = sized.arguments(torch.float64).replaced(boxes=boxes.double()).to(dtype)
        agreed = ~_ambiguous(sized, arguments)
        kept = arguments.mapped(lambda t: t[agreed], set(arguments.tensors) - {"input"})
        return replace(kept, grad_output=arguments.grad_output[agreed])

    def _call_options(self) -> dict[str, Any]:
        options = {"output_size": self.output_size, "spatial_scale": self.spatial_scale}
        if self.op.startswith("deform_") and self.classes is None:
            options["offset"] = None
        return {**options, **self.options}

    def _regions(self, generator: torch.Generator, attempt: int) -> dict[str, Tensor]:
        """Draw boxes, whose kinds depend on the attempt, and their offsets."""
        image = torch.randint(max(self.batch, 1), (self.boxes,), generator=generator)
        ends = torch.rand(self.boxes, 4, generator=generator, dtype=torch.float64)
        boxes = torch.zeros(self.boxes, 5, dtype=torch.float64)
        boxes[:, 0] = image
        for index in range(self.boxes):
            kind = _KINDS[(index + attempt) % len(_KINDS)]
            for axis, size in enumerate((self.width, self.height)):
                first, last = kind[axis]
                start = _between(first, ends[index, axis].item()) * (size - 1)
                end = _between(last, ends[index, axis + 2].item()) * (size - 1) if last else start
                boxes[index, 1 + axis], boxes[index, 3 + axis] = start, end
        boxes[:, 1:] = (boxes[:, 1:] * _BOX_LATTICE).floor() / _BOX_LATTICE / self.spatial_scale
        if self.classes is None:
            return {"boxes": boxes}
        steps = torch.randn(self.boxes, 2 * self.classes, *self.parts, generator=generator)
        offset = (2 * (steps.double() * _OFFSET_STD * _OFFSET_LATTICE / 2).floor() + 1).div(
            _OFFSET_LATTICE
        )
        return {"boxes": boxes, "offset": offset}


def channels_last(arguments: Arguments) -> Arguments:
    """Return the call with the maps in this memory format."""

    def last(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=torch.channels_last)

    return replace(arguments.mapped(last, ["input"]), grad_output=last(arguments.grad_output))


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).startswith("dcn_tvm."):
            self.calls.append(args)
        return func(*args, **(kwargs or {}))


def operator_arguments(case: RoICase, arguments: Arguments) -> tuple[Any, ...]:
    """Return what the public function hands to torch.ops' operator."""
    with _Recorder() as recorder:
        arguments.call(getattr(dcn_tvm, case.op))
    (call,) = recorder.calls
    return call


def _between(ends: tuple[float, float], share: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * share


def _ambiguous(case: RoICase, arguments: Arguments) -> Tensor:
    """Return which boxes float32 and float64 disagree on: a bin, a count or a cell differs."""
    different = torch.zeros(case.boxes, dtype=torch.bool)
    needed = tuple(name for name in case.needed if name == "offset")
    wide = arguments.to(torch.float64).run(case.reference, needed)
    narrow = arguments.to(torch.float32).run(case.reference, needed)
    for name, result in narrow.items():
        error = (result.double() - wide[name]).abs().flatten(1)
        # A sample that moves to another cell changes a result by about a hundredth at least,
        # rounding by less than a thousandth.
        different |= (error > 1e-3).any(1)
    return different


_STRIDE_16 = {"spatial_scale": 1 / 16}
_ALL = (
    RoICase("max", "roi_pool", 3, 3, **_STRIDE_16),
    RoICase("max_point", "roi_pool", 1, 1),
    RoICase("max_uneven", "roi_pool", 16, (2, 3), {"mode": "max"}, spatial_scale=0.25),
    RoICase("max_64", "roi_pool", 64, 7, **_STRIDE_16),
    RoICase("avg", "roi_pool", 30, 3, {"mode": "avg"}, **_STRIDE_16),
    RoICase("avg_7", "roi_pool", 16, 7, {"mode": "avg"}),
    RoICase("align_64", "roi_align", 64, 7, {"sampling_ratio": 2}, **_STRIDE_16),
    RoICase("align_adaptive", "roi_align", 3, 3),
    RoICase("aligned_adaptive", "roi_align", 16, (2, 3), {"sampling_ratio": 0, "aligned": True}),
    RoICase("aligned", "roi_align", 30, 3, {"sampling_ratio": 3, "aligned": True}, **_STRIDE_16),
    RoICase("align_point", "roi_align", 1, 1, spatial_scale=0.5),
    RoICase("ps", "ps_roi_pool", 21 * 9, 3, **_STRIDE_16),
    RoICase("ps_7", "ps_roi_pool", 21 * 49, 7, **_STRIDE_16),
    RoICase("ps_point", "ps_roi_pool", 16, 1),
    RoICase("rfcn", "ps_roi_pool", 16 * 9, 3, {"convention": "rfcn"}, **_STRIDE_16),
    RoICase("rfcn_uneven", "ps_roi_pool", 30, (2, 3), {"convention": "rfcn"}, spatial_scale=0.5),
    RoICase("ps_align", "ps_roi_align", 3 * 49, 7, {"sampling_ratio": 2}, **_STRIDE_16),
    RoICase("ps_align_adaptive", "ps_roi_align", 30, (2, 3)),
    RoICase("deform_64", "deform_roi_pool", 64, 7, classes=1, **_STRIDE_16),
    RoICase("deform", "deform_roi_pool", 3, 3, {"gamma": 0.2}, classes=1),
    RoICase("deform_uneven", "deform_roi_pool", 16, (2, 3), classes=1, spatial_scale=0.25),
    RoICase("deform_still", "deform_roi_pool", 30, 3, **_STRIDE_16),
    RoICase(
        "deform_grid", "deform_roi_pool", 64, 7, {"sampling_ratio": 2}, classes=1, **_STRIDE_16
    ),
    RoICase("deform_adaptive", "deform_roi_pool", 3, (2, 3), {"sampling_ratio": 0}, classes=1),
    RoICase("deform_grid_still", "deform_roi_pool", 1, 1, {"sampling_ratio": 3}),
    RoICase("dps_7", "deform_ps_roi_pool", 21 * 49, 7, classes=1, **_STRIDE_16),
    RoICase("dps_aware", "deform_ps_roi_pool", 21 * 9, 3, classes=21, **_STRIDE_16),
    # Two output channels per class, one offset for four bins.
    RoICase("dps_parts", "deform_ps_roi_pool", 64, 4, {"part_size": 2}, classes=2, part_size=2),
    RoICase(
        "dps_groups",
        "deform_ps_roi_pool",
        16 * 4,
        7,
        {"group_size": 2, "output_dim": 16, "part_size": 3, "sample_per_part": 2, "gamma": 0.2},
        classes=4,
        part_size=3,
        **_STRIDE_16,
    ),
    RoICase(
        "dps_uneven",
        "deform_ps_roi_pool",
        30 * 4,
        (2, 3),
        {"group_size": 2, "part_size": 3},
        classes=1,
        part_size=3,
        spatial_scale=0.5,
    ),
    RoICase("dps_still", "deform_ps_roi_pool", 3, 1, spatial_scale=0.25),
    RoICase("dps_paper", "deform_ps_roi_pool", 6 * 9, 3, {"sampling": "paper"}, classes=3),
    RoICase(
        "dps_paper_parts",
        "deform_ps_roi_pool",
        16 * 4,
        (4, 3),
        {"sampling": "paper", "group_size": 2, "part_size": 2},
        classes=1,
        part_size=2,
        **_STRIDE_16,
    ),
)
ROI_CASES = {case.name: case for case in _ALL}
# One call of every op, with offsets where it takes any, of which few channels make short work.
ONE_OF_EACH = tuple(
    ROI_CASES[name]
    for name in ("max", "align_adaptive", "ps", "ps_align_adaptive", "deform", "dps_parts")
)
