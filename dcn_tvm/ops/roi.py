"""What the contracts of all RoI ops share: boxes, channels, shape rule, kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from dcn_tvm.ops.contract import Kernel, Op, Tensor
from dcn_tvm.problem import Problem

Pair = tuple[int, int]
_MOST_PIXELS = 2**31  # of the image for one of the map; a scale that says more says nothing


@dataclass(frozen=True)
class RoIProblem(Problem):
    """Static facts of an op that pools boxes into bins; the scale of the boxes is free.

    The input's channels are ordered (class, channel of the class, group row, group column), where
    position-sensitive ops have as many groups as `groups` says, and all others one.
    """

    deformable: ClassVar[bool] = False  # the op takes offsets, which a call may leave out

    channels: int
    output_size: Pair

    def __post_init__(self) -> None:
        """Refuse what no call can mean."""
        super().__post_init__()
        if len(self.output_size) != 2 or min(self.output_size) < 1:
            raise ValueError(f"output_size must be two positive numbers, got {self.output_size}")
        parts = self.groups[0] * self.groups[1] * self.classes
        if self.channels < 1 or self.channels % parts:
            raise ValueError(
                f"channels must be a positive multiple of {parts}, got {self.channels}"
            )

    @property
    def groups(self) -> Pair:
        """Rows and columns of the grid of position-sensitive groups."""
        return (1, 1)

    @property
    def classes(self) -> int:
        """Runs of output channels that move apart."""
        return 1

    @property
    def parts(self) -> Pair:
        """Rows and columns of the grid of offsets."""
        return self.output_size

    @property
    def moves(self) -> bool:
        """Whether bins are moved by offsets."""
        return False

    @property
    def output_channels(self) -> int:
        """Channels of the output."""
        return self.channels // (self.groups[0] * self.groups[1])

    @property
    def depth(self) -> int:
        """Output channels of a class: those that share their bins."""
        return self.output_channels // self.classes


def check(tensors: Sequence[Any]) -> None:
    """Refuse boxes of images that the batch does not have.

    Raises:
        ValueError: a batch index is negative, not below N, or NaN.
    """
    input, boxes = tensors[:2]
    if not boxes.shape[0]:
        return
    lowest, highest = (float(bound) for bound in boxes[:, 0].aminmax())
    if not (lowest >= 0 and highest < input.shape[0]):
        raise ValueError(
            f"the boxes' batch indices must be in 0 ... {input.shape[0] - 1} for a batch of "
            f"{input.shape[0]}, got {lowest:g} ... {highest:g}"
        )


def claim(tensors: Sequence[Any]) -> tuple[Any, str] | None:
    """What `check` says, for a device to find out.

    Raises:
        ValueError: there are boxes, and no image at all.
    """
    input, boxes = tensors[:2]
    if not boxes.shape[0]:
        return None
    batch, index = input.shape[0], boxes[:, 0]
    text = f"the boxes' batch indices must be in 0 ... {batch - 1} for a batch of {batch}"
    if not batch:
        raise ValueError(text)
    return ((index >= 0) & (index < batch)).all(), text


def needs(kernel: Kernel, outputs: tuple[str, ...]) -> tuple[str, ...]:
    """Averages are linear in the input: only the gradient of the offset reads it."""
    if kernel.name == "forward" or "grad_offset" in outputs:
        return kernel.inputs
    return tuple(name for name in kernel.inputs if name != "input")


def sizes(tensors: Sequence[Any], scalars: tuple[float, ...]) -> tuple[tuple[str, int], ...]:
    """Batch, map, boxes and the stride: the pixels of the image that make one of the map."""
    batch, _, height, width = tensors[0].shape
    scale = scalars[0]
    pixels = 1 / scale if scale > 0 else 1.0
    stride = round(pixels) if 1 < pixels < _MOST_PIXELS else 1
    return (
        *(("batch", batch), ("height", height), ("width", width)),
        *(("boxes", tensors[1].shape[0]), ("stride", stride)),
    )


def roi_op(
    problem: type[RoIProblem],
    attributes: str,
    facts: Callable[[Sequence[Any], Sequence[Any]], tuple[Any, ...]],
    *,
    needs: Callable[[Kernel, tuple[str, ...]], tuple[str, ...]] = needs,
) -> Op:
    """Return the contract of a RoI op.

    Args:
        problem: its class; `groups` of an instance decides the output's channels.
        attributes: beside `float spatial_scale, int[2] output_size`, which come first, and, with
            offsets, `float gamma`, which comes third.
        facts: `(tensors, attributes)` to the problem's own fields.
        needs: the inputs that a backward kernel takes.
    """
    moved = ("offset",) if problem.deformable else ()
    common = "float spatial_scale, int[2] output_size" + (", float gamma" if moved else "")
    own = 3 if moved else 2

    def all_facts(
        tensors: Sequence[Any], attributes: Sequence[Any], dtype: str, layout: str
    ) -> tuple[Any, ...]:
        channels, size = tensors[0].shape[1], tuple(attributes[1])
        return (dtype, layout, channels, size, *facts(tensors, attributes[own:]))

    def shape(tensors: Sequence[Any], attributes: Sequence[Any]) -> tuple[Any, ...]:
        """Output shape [K, channels of the output, bins, bins]."""
        made = problem(*all_facts(tensors, attributes, "float32", "nchw"))
        return (tensors[1].shape[0], made.output_channels, *made.output_size)

    def scalars(attributes: Sequence[Any]) -> tuple[float, ...]:
        return (attributes[0], attributes[2]) if moved else (attributes[0],)

    return Op(
        name=problem.op,
        problem=problem,
        tensors=(
            Tensor("input", map=True),
            Tensor("boxes", differentiable=False, coordinates=True),
            *(Tensor(name, optional=True) for name in moved),
        ),
        attributes=", ".join(filter(None, (common, attributes))),
        facts=all_facts,
        shape=shape,
        forward=Kernel("forward", ("input", "boxes", *moved), ("output",)),
        backward=(
            Kernel(
                "backward",
                ("grad", "input", "boxes", *moved),
                ("grad_input", *(f"grad_{name}" for name in moved)),
            ),
        ),
        needs=needs,
        sizes=sizes,
        scalars=scalars,
        check=check,
        claim=claim,
        autocast=False,
    )
