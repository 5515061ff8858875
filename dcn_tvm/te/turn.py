"""Transposes inside registers: a map's planes to rows of channels, and back.

Element by element a transpose costs some 3 cycles a number, more than pooling it does. In tiles of
`lanes` x `lanes` numbers it is a load, a store and log2(lanes) shuffles for each vector: pairs of
rows that are d apart swap their lanes that are d apart, for d = lanes / 2, ..., 2, 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from dcn_tvm.te.nest import int64

Expr = Any
Load = Callable[[Expr, Expr], Expr]
Store = Callable[[Expr, Expr, Expr], None]
Guard = Callable[[Expr], Expr]


class Turner:
    """Transposes matrices of one type inside the block that is being emitted."""

    def __init__(self, dtype: str, lanes: int) -> None:
        self.dtype, self.lanes = dtype, lanes
        self._tile = T.sblock_alloc_buffer((lanes, lanes), dtype, scope="local")

    def turn(
        self,
        rows: Expr,
        columns: Expr,
        load: Load,
        store: Store,
        *,
        load_if: Guard | None = None,
        store_if: Guard | None = None,
    ) -> None:
        """Emit `store(c, r, load(r, c))` for every row r and column c.

        Args:
            rows: of the source; the target is contiguous along them.
            columns: of the source, which is contiguous along them.
            load: the value at (row, column), for a column or a vector of them.
            store: stores at (column, row), for a row or a vector of them.
            load_if: rows that exist; others are 0.
            store_if: columns that exist; others are not stored.
        """
        n = self.lanes
        full_rows, full_columns = rows // n, columns // n

        def one(r: Expr, c: Expr) -> None:
            value = load(r, c)
            if load_if is not None:
                value = tirx.if_then_else(load_if(r), value, tirx.const(0, self.dtype))
            if store_if is None:
                store(c, r, value)
            else:
                with T.If(store_if(c)), T.Then():
                    store(c, r, value)

        def each(first_row: Expr, first_column: Expr) -> None:
            with T.serial(first_row, rows) as r, T.serial(first_column, columns) as c:
                one(r, c)

        if n == 1:
            each(int64(0), int64(0))
            return
        with T.serial(int64(0), full_rows) as i:
            with T.serial(int64(0), full_columns) as j:
                self._turn_tile(i * n, j * n, load, store, load_if, store_if)
            with T.serial(int64(0), int64(n)) as r, T.serial(full_columns * n, columns) as c:
                one(i * n + r, c)
        each(full_rows * n, int64(0))

    def _turn_tile(
        self,
        row: Expr,
        column: Expr,
        load: Load,
        store: Store,
        load_if: Guard | None,
        store_if: Guard | None,
    ) -> None:
        n, tile = self.lanes, self._tile
        whole = tirx.Ramp(0, 1, n)
        for i in range(n):
            value = load(row + i, tirx.Ramp(column, int64(1), n))
            if load_if is not None:
                zero = tirx.Broadcast(tirx.const(0, self.dtype), n)
                value = tirx.if_then_else(load_if(row + i), value, zero)
            T.buffer_store(tile, value, [i, whole])
        distance = n // 2
        while distance:
            low, high = _swaps(n, distance)
            for i in (i for i in range(n) if not i & distance):
                pair = [tile[i, whole], tile[i + distance, whole]]
                # Both are read before either is stored: a name for the first keeps it.
                first = T.bind(tirx.Shuffle(pair, low))
                second = T.bind(tirx.Shuffle(pair, high))
                T.buffer_store(tile, first, [i, whole])
                T.buffer_store(tile, second, [i + distance, whole])
            distance //= 2
        for i in range(n):
            target = tirx.Ramp(row, int64(1), n)
            if store_if is None:
                store(column + i, target, tile[i, whole])
            else:
                with T.If(store_if(column + i)), T.Then():
                    store(column + i, target, tile[i, whole])


def _swaps(lanes: int, distance: int) -> tuple[list[Expr], list[Expr]]:
    """Lanes of two joined rows that make the new ones."""
    low = [i if not i & distance else lanes + i - distance for i in range(lanes)]
    high = [i + distance if not i & distance else lanes + i for i in range(lanes)]
    return [tirx.const(i, "int32") for i in low], [tirx.const(i, "int32") for i in high]


def cast(value: Expr, dtype: str) -> Expr:
    """A number, or a vector of them, in another type."""
    _, _, lanes = str(value.ty.dtype).partition("x")
    return value.astype(f"{dtype}x{lanes}" if lanes else dtype)
