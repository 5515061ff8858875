"""From a rule to the kernels of a GPU: the graphs that every RoI op is an instance of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx

from dcn_tvm.ops.roi import RoIProblem
from dcn_tvm.te import nest
from dcn_tvm.te.gpu import roi_ends, sums
from dcn_tvm.te.gpu.roi_backward import Backward
from dcn_tvm.te.gpu.roi_block import Blocking
from dcn_tvm.te.gpu.roi_boxes import ordered
from dcn_tvm.te.gpu.roi_forward import Forward
from dcn_tvm.te.gpu.roi_owner import Owner
from dcn_tvm.te.gpu.roi_sources import Sources
from dcn_tvm.te.nest import int64
from dcn_tvm.te.roi import Frame, RoITiling
from dcn_tvm.te.roi_bins import Rule

MakeRule = Callable[[Frame, te.Tensor], Rule]


@dataclass(frozen=True)
class Manner:
    """What the device can do, and what is asked of it.

    Attributes:
        cuda: kernels are CUDA's: there are atomics and calls of device functions.
        deterministic: sums must be the same bits in every run.
    """

    cuda: bool
    deterministic: bool


def forward(
    problem: RoIProblem,
    blocking: Blocking,
    make_rule: MakeRule,
    manner: Manner,
    *,
    maximum: bool = False,
) -> tirx.PrimFunc:
    """Each bin's mean, or maximum."""
    g = _frame(problem)
    x, boxes, offset = g.input_argument(), g.boxes_argument(), g.offset_argument()
    rule = make_rule(g, boxes)
    sources = Sources(g, boxes, rule, cuda=manner.cuda)
    output = Forward(g, rule, blocking, maximum=maximum).emit(x, offset, sources)
    return _function(g, [output], manner)


def backward(
    problem: RoIProblem,
    blocking: Blocking,
    make_rule: MakeRule,
    manner: Manner,
    outputs: Sequence[str],
    *,
    maximum: bool = False,
    needs_input: bool = False,
) -> tirx.PrimFunc:
    """The gradients of input and offset, any of them; the input is an argument only if needed."""
    g = _frame(problem)
    grad = g.argument("grad", g.output_shape())
    x = g.input_argument() if needs_input or "grad_offset" in outputs else None
    boxes, offset = g.boxes_argument(), g.offset_argument()
    rule = make_rule(g, boxes)
    sources = Sources(g, boxes, rule, cuda=manner.cuda)
    scatters, moves = "grad_input" in outputs, "grad_offset" in outputs
    found: dict[str, te.Tensor] = {}
    scale = None
    if scatters and not manner.cuda:
        owner = Owner(g, rule, blocking.threads, maximum=maximum)
        found["grad_input"] = owner.emit(grad, x, offset, sources)
        scatters = False
    elif scatters and manner.deterministic:
        scale = _scale(g, grad)
    if scatters or moves:
        kernel = Backward(g, rule, blocking, scatters=scatters, moves=moves, maximum=maximum)
        results = kernel.emit(grad, x, offset, scale, sources)
        if scatters:
            found["grad_input"] = results.pop(0)
        if moves:
            move = results.pop(0)
            found["grad_offset"] = move if kernel.finished else roi_ends.offset_sums(g, move)
    if "grad_input" in found and (scale is not None or problem.dtype != problem.accumulate):
        found["grad_input"] = roi_ends.map_of(g, found["grad_input"], scale)
    return _function(g, [found[name] for name in outputs], manner)


def _scale(g: Frame, grad: te.Tensor) -> te.Tensor:
    """The scale of fixed-point sums for the map.

    The shares of a bin's pixels are not negative and add up to 1 at most, and so does the one share
    of a maximum: a pixel gets at most |dy| of each bin that has its channel.
    """
    largest = sums.magnitude(grad, g.problem.accumulate, "largest")
    return sums.fixed_scale(largest, g.boxes_count * int64(g.bins[0] * g.bins[1]))


def _frame(problem: RoIProblem) -> Frame:
    return Frame(problem, RoITiling(1, 1))  # the tiling is that of vectors, which are not here


def _function(g: Frame, results: Sequence[te.Tensor], manner: Manner) -> tirx.PrimFunc:
    scalars: list[Any] = [g.scale, g.gamma] if g.problem.deformable else [g.scale]
    function, close = nest.prim_func([*g.arguments, *results, *scalars], {})
    made: tirx.PrimFunc = ordered(close(function), calls=manner.cuda)
    return made
