"""Functions for a GPU that are small enough to be judged at sight: they try the machinery."""

from __future__ import annotations

from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from dcn_tvm import build
from dcn_tvm.cuda import lower
from dcn_tvm.te import nest
from dcn_tvm.te.gpu import grid

COLUMNS = 48
HOST = {"kind": "llvm"}


def _function(arguments: list[Any]) -> Any:
    function, close = nest.prim_func(arguments, {})
    return close(function.with_attr("global_symbol", build.SYMBOL))


def _each(shape: Any, inputs: list[Any], value: Any, name: str, dtype: str) -> Any:
    """[shape]: `value(inputs, index)` in a thread each."""

    def body(ins: list[Any], outs: list[Any]) -> None:
        with grid.each(grid.int64(shape), name) as i:
            T.buffer_store(outs[0], value(ins, i), [i])

    return nest.nest([(shape,)], inputs, body, name, [dtype])[0]


def sums(dtype: str = "float32") -> Any:
    """x [n, COLUMNS], y [n]: the sums of twice the rows, by way of two pieces of scratch."""
    n, accumulate = te.var("n", "int64"), "float64" if dtype == "float64" else "float32"
    x = te.placeholder((n, COLUMNS), dtype, name="x")

    def sum_of(ins: list[Any], outs: list[Any]) -> None:
        with grid.each(n, "sums") as i:
            T.buffer_store(outs[0], tirx.const(0, accumulate), [i])
            with T.serial(grid.int64(0), grid.int64(COLUMNS)) as k:
                T.buffer_store(outs[0], outs[0][i] + ins[0][i, k].astype(accumulate), [i])

    total = nest.nest([(n,)], [x], sum_of, "sums", [accumulate])[0]
    twice = _each(n, [total], lambda ins, i: ins[0][i] * 2, "twice", accumulate)
    y = _each(n, [total, twice], lambda ins, i: ins[1][i].astype(dtype), "y", dtype)
    return _function([x, y])


def scalars() -> Any:
    """x [n], y [n] float64, then a int64, b int32, c float32, d float64: ((x·a + b)·c) + d."""
    n = te.var("n", "int64")
    x = te.placeholder((n,), "float64", name="x")
    kinds = {"a": "int64", "b": "int32", "c": "float32", "d": "float64"}
    a, b, c, d = given = [te.var(name, kind) for name, kind in kinds.items()]

    def value(ins: list[Any], i: Any) -> Any:
        numbers = [number.astype("float64") for number in (a, b, c, d)]
        return (ins[0][i] * numbers[0] + numbers[1]) * numbers[2] + numbers[3]

    y = _each(n, [x], value, "y", "float64")
    return _function([x, y, *given])


def reversed_blocks(count: int) -> Any:
    """x [n, count], y [n, count] float32: rows turned around in dynamic shared memory."""
    n, threads = te.var("n", "int64"), 64
    x = te.placeholder((n, count), "float32", name="x")

    def body(ins: list[Any], outs: list[Any]) -> None:
        with grid.launch([n], [threads], "turned") as (row, thread):
            row_of = T.sblock_alloc_buffer((count,), "float32", scope="shared.dyn")
            with T.serial(grid.int64(0), grid.int64(count // threads)) as i:
                T.buffer_store(row_of, ins[0][row, i * threads + thread], [i * threads + thread])
            T.evaluate(T.tvm_storage_sync("shared.dyn"))
            with T.serial(grid.int64(0), grid.int64(count // threads)) as i:
                place = i * threads + thread
                T.buffer_store(outs[0], row_of[count - 1 - place], [row, place])

    y = nest.nest([(n, count)], [x], body, "turned", ["float32"])[0]
    return _function([x, y])


def without_threads() -> Any:
    """x [n], y [n], in a plain loop: nothing for a device."""
    n = te.var("n", "int64")
    x = te.placeholder((n,), "float32", name="x")
    return te.create_prim_func([x, te.compute((n,), lambda i: x[i] + 1)]).with_attr(
        "global_symbol", build.SYMBOL
    )


def lowered(function: Any, arch: str = "sm_80") -> lower.Lowered:
    """Host part and device source of a function."""
    return lower.lower(function, {"kind": "cuda", "arch": arch}, HOST)
