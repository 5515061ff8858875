"""Loop nests in a graph of tensor expressions, for what `te.compute` cannot say (scatters).

`te.extern` places the nest in the graph; `prim_func` then lifts it out of the opaque block that
TVM wraps around it, so that a schedule can still move its producers into its loops.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tvm_ffi
from tvm import te, tirx
from tvm.s_tir.stmt import SBlock, SBlockRealize
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

Expr = Any


def nest(
    shapes: Sequence[Sequence[Expr]],
    inputs: Sequence[te.Tensor],
    body: Callable[..., None],
    name: str,
    dtypes: Sequence[str],
) -> list[te.Tensor]:
    """Outputs of a hand-written loop nest `body(inputs, outputs)`, which emits into IRBuilder."""

    def emit(ins: Sequence[Any], outs: Sequence[Any]) -> Any:
        with IRBuilder() as builder, T.seq_scope():
            body(list(ins), list(outs))
        return builder.get()

    result = te.extern(
        [tuple(shape) for shape in shapes], list(inputs), emit, name=name, dtype=list(dtypes)
    )
    return list(result) if len(shapes) > 1 else [result]


def int64(value: Expr) -> Expr:
    """A 64-bit constant or cast: all index arithmetic is 64-bit, tensors may exceed 2^31."""
    return tirx.const(value, "int64") if isinstance(value, int) else value.astype("int64")


def vectors(extent: int, lanes: int) -> Iterator[tuple[int, int, int]]:
    """Cut `extent` into (start, count, width): whole vectors first, then halves for the tail.

    >>> list(vectors(30, 16))
    [(0, 1, 16), (16, 1, 8), (24, 1, 4), (28, 1, 2)]
    """
    start = 0
    while start < extent:
        count = (extent - start) // lanes
        if count:
            yield start, count, lanes
            start += count * lanes
        lanes //= 2


def prim_func(
    arguments: Sequence[Any], derived: Mapping[Any, Expr], finishing: Sequence[str] = ()
) -> tuple[tirx.PrimFunc, Callable[[tirx.PrimFunc], tirx.PrimFunc]]:
    """The graph as a schedulable function, and `close`, to be applied once it is scheduled.

    `derived` are free variables (a tile count) that stay opaque while the schedule's proofs run
    and are then replaced by their value, so that callers pass tensors only. `finishing` names the
    stages that read what a nest scattered: TVM cannot prove that a scatter covers what they read
    and would refuse to move any block, so their reads are not declared; they run last anyway.
    """
    function = te.create_prim_func([*arguments, *derived])
    root = function.body.block
    statements = list(root.body.seq) if isinstance(root.body, tirx.SeqStmt) else [root.body]
    lifted = [part for statement in statements for part in _lift(statement)]
    body = tirx.SeqStmt(lifted) if len(lifted) > 1 else lifted[0]
    if finishing:
        hide = functools.partial(_without_reads, names=set(finishing))
        body = tvm_ffi.structural_map(body, (SBlock, hide), order="post")
    block = _rebuilt(root, body=body)
    function = function.with_body(SBlockRealize([], tirx.const(True, "bool"), block))

    def close(scheduled: tirx.PrimFunc) -> tirx.PrimFunc:
        body = tvm_ffi.structural_map(
            scheduled.body, (tirx.Var, lambda var: derived.get(var, var)), order="post"
        )
        kept = [parameter for parameter in scheduled.params if parameter not in derived]
        return tirx.PrimFunc(kept, body, scheduled.ret_type, scheduled.attrs)

    return function, close


def _lift(statement: Any) -> list[Any]:
    """The statements of a nest, without the block and the sequence marker around them."""
    body = statement  # a graph of one nest has no block around it
    if isinstance(statement, SBlockRealize) and not len(statement.iter_values):
        body = statement.block.body
    elif not isinstance(statement, tirx.AttrStmt):
        return [statement]
    if isinstance(body, tirx.AttrStmt):
        body = body.body
    return list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]


def _without_reads(block: SBlock, names: set[str]) -> SBlock:
    return _rebuilt(block, reads=[]) if block.name_hint in names else block


def _rebuilt(block: SBlock, body: Any = None, reads: Any = None) -> SBlock:
    return SBlock(
        block.iter_vars,
        block.reads if reads is None else reads,
        block.writes,
        block.name_hint,
        block.body if body is None else body,
        block.init,
        block.alloc_buffers,
        block.match_buffers,
        block.annotations,
    )
