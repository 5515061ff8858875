"""The register-tiled GEMM that every deformable kernel ends in, and its default tile.

Pattern: out[row, column] += left[row, k] * packed[panel, k, lane], left sampled, right packed.
Strategy: (1) hold a tile of `rows` x `vectors` accumulators in registers, (2) walk k innermost with
one vector load per column vector and one broadcast per row, (3) unroll the tile completely.
The tile must leave registers for the operands: 14 x 2 of 32 reaches the GEMM rate with AVX-512,
6 x 2 of 16 with AVX2. Larger tiles spill, and LLVM takes over 30 s for tiles of 64 vectors.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.s_tir import Schedule

from dcn_tvm.knobs import Knobs
from dcn_tvm.problem import Problem
from dcn_tvm.target import Target

# (rows, vectors) of accumulators, best first, by the number of vector registers
TILES = {
    32: ((14, 2), (8, 3), (6, 4), (28, 1), (12, 2), (8, 2), (16, 1), (8, 1), (4, 4), (4, 2)),
    16: ((6, 2), (4, 3), (12, 1), (4, 2), (8, 1), (4, 1), (2, 2)),
}


def lanes(target: Target, dtype: str) -> int:
    """Elements of an accumulator vector: `target.lanes` counts float32."""
    return max(target.lanes // 2 if dtype == "float64" else target.lanes, 1)


def narrow(extent: int, width: int) -> int:
    """The smallest power of two that holds `extent`, at most `width`."""
    return min(width, 1 << max(extent - 1, 0).bit_length())


def item_bytes(problem: Problem) -> int:
    """Bytes of one packed or sampled number."""
    return 8 if problem.accumulate == "float64" else 4


def register_tile(
    knobs: Knobs, target: Target, vectors: int, multiple_of: int = 0
) -> tuple[int, int]:
    """Choose (rows, vectors) for an output that is `vectors` vectors wide.

    With `multiple_of`, the output has that many rows and the tile's rows must divide them.
    """
    options = list(TILES[32 if target.registers >= 32 else 16])
    if multiple_of:
        narrow_tiles = [(rows, width) for rows in (2, 1) for width in (4, 2, 1)]
        options = [t for t in options + narrow_tiles if multiple_of % t[0] == 0]
    options = [t for t in options if t[1] <= vectors] or options
    waste = [-(-vectors // width) * width - vectors for _, width in options]
    names = {f"{rows}x{width}": (rows, width) for rows, width in options}
    default = options[waste.index(min(waste))]
    return names[knobs.choice("register_tile", list(names), f"{default[0]}x{default[1]}")]


def tile_rows(sch: Schedule, block: Any, register_rows: int, width: int, lane_count: int) -> Any:
    """Split an output-shaped block's last loops (.., row, column) into register tiles.

    Returns the loop over the tiles of a panel; below it the tile is unrolled and vectorised.
    """
    row, column = sch.get_loops(block)[-2:]
    row_outer, row_inner = sch.split(row, [None, register_rows])
    panel, inside = sch.split(column, [None, width])
    vector, lane = sch.split(inside, [None, lane_count])
    sch.reorder(panel, row_outer, row_inner, vector, lane)
    sch.vectorize(lane)
    sch.unroll(vector)
    sch.unroll(row_inner)
    return row_outer


def multiply(sch: Schedule, partial: Any, register: Any, vector: int) -> None:
    """Compute a register tile of `partial` (.., row, column) at loop `register`, in registers."""
    sch.compute_at(partial, register, preserve_unit_loops=True)
    sch.set_scope(partial, 0, "local")
    axes = sch.get(partial).iter_vars
    reductions = sum(1 for axis in axes if axis.iter_type == tirx.IterVar.CommReduce)
    *_, row, column = sch.get_loops(partial)[:-reductions]
    depth = sch.get_loops(partial)[-reductions:]
    outer, lane = sch.split(column, [None, vector])
    sch.reorder(*depth, row, outer, lane)
    # Annotated before the reduction is decomposed: afterwards TVM refuses.
    sch.vectorize(lane)
    sch.unroll(outer)
    sch.unroll(row)
    sch.decompose_reduction(partial, depth[0])
