"""What the kernels of all ops on a GPU share: launches, cells of registers, sums that meet.

A kernel is a nest whose outer loops are bound to blocks and threads; a graph of several nests is
one function that launches them one after the other, and what lies between them is scratch memory.

Index arithmetic is 64-bit where a tensor may exceed 2^31 elements: a block computes its base once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from dcn_tvm.te.nest import int64

Expr = Any
THREADS = 256  # of a block where nothing asks for another number


def int32(value: Expr) -> Expr:
    """A 32-bit constant or cast."""
    return tirx.const(value, "int32") if isinstance(value, int) else value.astype("int32")


def ceil_div(value: Expr, parts: int) -> Expr:
    """How many parts cover `value`, both positive."""
    return div(value + (parts - 1), int64(parts))


def div(value: Expr, by: Expr) -> Expr:
    """Quotient of numbers that are not negative, which TVM cannot always know."""
    return tirx.truncdiv(value, by)


def mod(value: Expr, by: Expr) -> Expr:
    """Remainder of numbers that are not negative."""
    return tirx.truncmod(value, by)


@contextmanager
def launch(grid: Sequence[Expr], block: Sequence[int], name: str) -> Iterator[tuple[Any, ...]]:
    """Bind a kernel's blocks and threads, at most three extents each; yields their 64-bit indices.

    The first extent of the grid may be as large as 2^31; the others are limited to 65,535.
    """
    loops = [
        T.thread_binding(int64(extent), f"blockIdx.{axis}")
        for extent, axis in zip(grid, "xyz", strict=False)
    ]
    loops += [
        T.thread_binding(int64(extent), f"threadIdx.{axis}")
        for extent, axis in zip(block, "xyz", strict=False)
    ]
    yield from _nested(loops, name, ())


def _nested(loops: list[Any], name: str, indices: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    if loops:
        with loops[0] as index:
            yield from _nested(loops[1:], name, (*indices, index))
        return
    with T.sblock(name):
        T.reads()
        T.writes()
        yield indices


@contextmanager
def each(total: Expr, name: str, threads: int = THREADS) -> Iterator[Expr]:
    """A thread for each number below `total`."""
    with launch([ceil_div(total, threads)], [threads], name) as (block, thread):
        index = block * threads + thread
        with T.If(index < total), T.Then():
            yield index


class Cells:
    """Named scalars in registers, which a kernel may assign again."""

    def __init__(self, dtype: str, *names: str) -> None:
        self._buffers = {name: T.sblock_alloc_buffer((1,), dtype, scope="local") for name in names}

    def __getitem__(self, name: str) -> Expr:
        return self._buffers[name][0]

    def __setitem__(self, name: str, value: Expr) -> None:
        T.buffer_store(self._buffers[name], value, [0])


def flat(tensor: Any, index: Expr) -> list[Expr]:
    """Where a dense tensor has element `index`: without a division for each axis."""
    return [*(int64(0) for _ in tensor.shape[1:]), index]


def place(shape: Sequence[Expr], index: Expr) -> list[Expr]:
    """The indices of element `index` of a dense tensor."""
    found: list[Expr] = []
    for extent in reversed(shape[1:]):
        found.append(mod(index, extent))
        index = div(index, extent)
    return [index, *reversed(found)]
