"""What follows from a box, worked out where it is needed: by a thread, or by a small kernel each.

The rules of RoI pooling are stages of tensor expressions (te/roi.py, te/roi_bins.py). On CUDA a
thread works them out itself, stage in stage, which saves a launch and a pass through memory for
each. Where a product is a stage of its own, so that it is rounded before it is added to, it must
stay so: every product and quotient is a call that no compiler fuses or turns into another.
Elsewhere there is no such call: there a stage is a kernel, and what was rounded lies in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tvm_ffi
from tvm import te, tirx
from tvm.ir import Call
from tvm.script.ir_builder import tirx as T

from dcn_tvm.te import nest
from dcn_tvm.te.gpu import grid, sums
from dcn_tvm.te.nest import int64

Expr = Any
_TYPES = {"float32": "float", "float64": "double"}
_BODIES = {  # by name and type; division is a call so that no reciprocal takes its place
    ("mul", "float32"): "__fmul_rn(a, b)",
    ("mul", "float64"): "__dmul_rn(a, b)",
    **{("div", dtype): "a / b" for dtype in _TYPES},
    **{("min", dtype): "a < b ? a : b" for dtype in _TYPES},
    **{("max", dtype): "a > b ? a : b" for dtype in _TYPES},
}


def _called(name: str, node: Any) -> Any:
    """The call of a device function for an operation on reals; others stay as they are."""
    dtype = str(node.ty.dtype)
    if (name, dtype) not in _BODIES:
        return node
    function, kind = f"dcn_{name}_{dtype}", _TYPES[dtype]
    source = f"""__device__ __forceinline__ {kind} {function}({kind} a, {kind} b) {{
  return {_BODIES[name, dtype]};
}}
"""
    return T.cuda.func_call(function, node.a, node.b, source_code=source, return_type=dtype)


class Values:
    """Elements of stages as expressions, down to the tensors that lie in memory."""

    def __init__(self, stored: Mapping[te.Tensor, Any], *, exact: bool) -> None:
        """`stored` are the tensors in memory; `exact` keeps products apart from sums by calls."""
        self._stored = {tensor.op: buffer for tensor, buffer in stored.items()}
        self._exact = exact

    def __call__(self, stage: te.Tensor, *indices: Expr) -> Expr:
        """Return an element, which its reader should keep: it may be a long expression."""
        buffer = self._stored.get(stage.op)
        return self.inner(stage, *indices) if buffer is None else buffer[indices]

    def inner(self, stage: te.Tensor, *indices: Expr) -> Expr:
        """An element of a stage that is not in memory, or not yet."""
        given = (int64(index) for index in indices)
        axes = dict(zip((axis.var for axis in stage.op.axis), given, strict=True))
        body = tvm_ffi.structural_map(
            stage.op.body[0], (tirx.Var, lambda var: axes.get(var, var)), order="post"
        )
        callbacks = [(Call, self._load), (tirx.Mul, self._product), (tirx.Div, self._quotient)]
        return tvm_ffi.structural_map(body, callbacks, order="pre")

    def product(self, a: Expr, b: Expr) -> Expr:
        """A product that is rounded before anything is added to it."""
        return self._product(a * b)

    def _load(self, call: Any) -> Any:
        if getattr(call.op, "name", "") != "te.tensor_load":
            return call
        return self(call.args[0], *call.args[1:])

    def _product(self, node: Any) -> Any:
        return _called("mul", node) if self._exact else node

    def _quotient(self, node: Any) -> Any:
        return _called("div", node) if self._exact else node


def stored(
    wanted: Sequence[te.Tensor], boxes: te.Tensor
) -> tuple[list[te.Tensor], list[te.Tensor]]:
    """Stages as kernels, a thread for each element: the wanted ones and those they are made of.

    Returns:
        The tensors in memory, the boxes first, and the stages that they are.
    """
    known = [boxes]

    def visit(stage: te.Tensor) -> None:
        if any(stage.op == other.op for other in known):
            return
        for source in stage.op.input_tensors:
            visit(source)
        known.append(stage)

    for stage in wanted:
        visit(stage)
    made = [boxes]
    for number, stage in enumerate(known[1:], 1):
        made.append(_kernel_of(stage, known[:number], made))
    return made, known


def _kernel_of(
    stage: te.Tensor, known: Sequence[te.Tensor], made: Sequence[te.Tensor]
) -> te.Tensor:
    name = f"box_{stage.op.name}"

    def body(ins: list[Any], outs: list[Any]) -> None:
        values = Values(dict(zip(known, ins, strict=True)), exact=False)
        with grid.each(sums.elements(stage.shape), name) as index:
            place = grid.place(stage.shape, index)
            T.buffer_store(outs[0], values.inner(stage, *place), place)

    shape = [int64(extent) if isinstance(extent, int) else extent for extent in stage.shape]
    return nest.nest([shape], made, body, name, [stage.dtype])[0]


def ordered(function: Any, *, calls: bool) -> Any:
    """The function with comparisons for its minima and maxima of reals.

    A GPU's own take whichever operand is a number; the rules count on TVM's, min(a, b) being
    `a if a < b else b`. With `calls` that is a device function, whose operands are written once.
    """

    def chosen(node: Any) -> Any:
        smaller = isinstance(node, tirx.Min)
        if calls:
            return _called("min" if smaller else "max", node)
        if str(node.ty.dtype) not in _TYPES:
            return node
        first = node.a < node.b if smaller else node.a > node.b
        return tirx.Select(first, node.a, node.b)

    callbacks = [(tirx.Min, chosen), (tirx.Max, chosen)]
    return function.with_body(tvm_ffi.structural_map(function.body, callbacks, order="post"))
