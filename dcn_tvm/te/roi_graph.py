"""From a rule to the kernels: the graphs that every RoI op is an instance of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import te

from dcn_tvm.ops.roi import RoIProblem
from dcn_tvm.te import nest
from dcn_tvm.te.roi import Frame, RoITiling
from dcn_tvm.te.roi_bins import Rule
from dcn_tvm.te.roi_gather import Forward
from dcn_tvm.te.roi_scatter import Backward

MakeRule = Callable[[Frame, te.Tensor], Rule]
Graph = tuple[Any, Callable[[Any], Any]]


def forward(
    problem: RoIProblem, tiling: RoITiling, make_rule: MakeRule, *, maximum: bool = False
) -> Graph:
    """Each bin's mean, or maximum."""
    g = Frame(problem, tiling)
    x, boxes, offset = g.input_argument(), g.boxes_argument(), g.offset_argument()
    rule = make_rule(g, boxes)
    output = Forward(g, rule, maximum=maximum).emit(g.rows_of(x), _stages(g, rule, boxes, offset))
    return nest.prim_func([*g.arguments, output, *_scalars(g)], {})


def backward(
    problem: RoIProblem,
    tiling: RoITiling,
    make_rule: MakeRule,
    outputs: Sequence[str],
    *,
    maximum: bool = False,
    needs_input: bool = False,
) -> Graph:
    """The gradients of input and offset, any of them; the input is an argument only if needed."""
    g = Frame(problem, tiling)
    grad = g.argument("grad", g.output_shape())
    x = g.input_argument() if needs_input or "grad_offset" in outputs else None
    boxes, offset = g.boxes_argument(), g.offset_argument()
    rule = make_rule(g, boxes)
    nests = Backward(g, rule, outputs, maximum=maximum)
    rows = g.rows_of(x) if x is not None and nests.reads else None
    results = nests.emit(grad, rows, _stages(g, rule, boxes, offset))
    arguments = [*g.arguments, *(results[name] for name in outputs), *_scalars(g)]
    return nest.prim_func(arguments, {})


def _stages(
    g: Frame, rule: Rule, boxes: te.Tensor, offset: te.Tensor | None
) -> dict[str, te.Tensor]:
    image = g.image_of(boxes)
    given = {} if offset is None else {"offset": offset}
    if g.owned:
        given["covered"] = g.covered(image, rule.box.size)
    return {"image": image, **rule.stages, **given}


def _scalars(g: Frame) -> list[Any]:
    """The op's scalars, in its order."""
    return [g.scale, g.gamma] if g.problem.deformable else [g.scale]
