"""Block tiles of the products in deformable convolution: the choices and their defaults.

A tile fits if its numbers fit a thread's registers and its operands fit the shared memory of a
block. Without tensor cores a thread owns a small square of the result, spread over the tile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dcn_tvm.gpu import Gpu
from dcn_tvm.knobs import Knobs
from dcn_tvm.te.gpu.product import Shape

SHARED_BYTES = {
    "cuda": 48 << 10,
    "webgpu": 16 << 10,
}  # of a block, where the target does not say; else:
LEAST_SHARED_BYTES = 32 << 10
# Where the target does not say: of the largest common device of an architecture, else of none.
MULTIPROCESSORS = {
    **{"sm_75": 68, "sm_80": 108, "sm_86": 84, "sm_89": 128, "sm_90": 132, "sm_100": 148},
    "sm_120": 170,
}
FEW_MULTIPROCESSORS = 32
THREAD_TILES = (
    # rows, columns, rows and columns of a thread
    *(
        (16, 16, 2, 2),
        (16, 32, 2, 4),
        (32, 32, 2, 4),
        (32, 32, 4, 4),
        (32, 64, 4, 4),
        (64, 32, 4, 4),
        (64, 64, 4, 4),
    ),
    *((64, 64, 8, 4), (128, 64, 8, 4), (64, 128, 4, 8), (128, 128, 8, 8)),
)
Bytes = Callable[[Shape], int]


def room(target: Gpu) -> int:
    """Bytes of shared memory that a block may have."""
    least = SHARED_BYTES.get(target.kind, LEAST_SHARED_BYTES)
    return max(least, target.shared_bytes_per_block_optin) if target.kind == "cuda" else least


def scope(target: Gpu) -> str:
    """Shared memory whose size the launch says, where there is such."""
    return "shared.dyn" if target.kind == "cuda" else "shared"


def thread_shape(
    target: Gpu,
    knobs: Knobs,
    wanted: tuple[int, int],
    need: Bytes,
    *,
    by_rows: bool = False,
    numbers: int = 64,
) -> Shape:
    """A tile for products of single numbers; by default the largest within `wanted`.

    A thread owns at most `numbers` of them, which its registers must hold.
    """
    most = min(target.max_threads_per_block, 256)
    shapes = {}
    for depth in (8, 16, 32):
        for rows, columns, down, across in THREAD_TILES:
            threads = rows // down * (columns // across)
            stages = 1 if target.kind == "webgpu" else 2
            shape = Shape(
                rows,
                columns,
                depth,
                threads,
                down=down,
                across=across,
                stages=stages,
                by_rows=by_rows,
                scope=scope(target),
            )
            few = down * across <= numbers
            if few and 32 <= threads <= most and need(shape) <= room(target):
                shapes[f"{rows}x{columns}/{down}x{across}", depth] = shape
    tiles = list(dict.fromkeys(tile for tile, _ in shapes))
    tile = knobs.choice("tile", tiles, _largest({t: shapes[t, d] for t, d in shapes}, wanted))
    depths = [d for t, d in shapes if t == tile]
    return shapes[tile, knobs.choice("depth", depths, 16 if 16 in depths else depths[-1])]


def warp_shape(
    target: Gpu,
    knobs: Knobs,
    tensor: str,
    wanted: tuple[int, int],
    need: Bytes,
    *,
    by_rows: bool = False,
) -> Shape:
    """A tile for tensor cores; by default the largest within `wanted`."""
    shapes = {}
    for rows in (32, 64, 128):
        for columns in (32, 64, 128, 256):
            for depth in (16, 32, 64):
                for warps in (4, 8):
                    for down in (1, 2, 4):
                        shape = Shape(
                            *(rows, columns, depth, warps * 32, tensor, down),
                            by_rows=by_rows,
                            scope=scope(target),
                        )
                        if _fits(shape) and need(shape) <= room(target):
                            shapes[f"{rows}x{columns}", f"{down}x{warps // down}", depth] = shape
    tiles = list(dict.fromkeys(key[0] for key in shapes))
    tile = knobs.choice(
        "tile", tiles, _largest({key[0]: shape for key, shape in shapes.items()}, wanted)
    )
    grids = list(dict.fromkeys(key[1] for key in shapes if key[0] == tile))
    grid = knobs.choice(
        "warps", grids, next((g for g in ("2x4", "2x2", "4x2", "1x4") if g in grids), grids[0])
    )
    depths = [key[2] for key in shapes if key[:2] == (tile, grid)]
    usual = 16 if tensor == "tf32" else 32  # 64 bytes of a row
    depth = knobs.choice("depth", depths, usual if usual in depths else depths[-1])
    return shapes[tile, grid, depth]


def _fits(shape: Shape) -> bool:
    """Whether warps own whole squares of 16 x 16, of which the registers hold all."""
    across = shape.threads // 32 // shape.warps
    if shape.warps * across * 32 != shape.threads:
        return False
    height, width = shape.rows // shape.warps, shape.columns // across
    whole = height % 16 == 0 and width % 16 == 0 and height > 0 and width > 0
    return whole and shape.rows * shape.columns // shape.threads <= 128


def _largest(shapes: dict[str, Shape], wanted: tuple[int, int]) -> str:
    fitting = {
        name: s for name, s in shapes.items() if s.rows <= wanted[0] and s.columns <= wanted[1]
    }
    return max(
        fitting or shapes,
        key=lambda name: (shapes[name].rows * shapes[name].columns, -shapes[name].threads),
    )


def blocks(target: Gpu, knobs: Knobs, default: int = 2) -> int:
    """Blocks that fill the device: a few for each multiprocessor."""
    each = knobs.choice("blocks", (1, 2, 4, 8), default)
    usual = MULTIPROCESSORS.get(target.arch, FEW_MULTIPROCESSORS)
    return each * (target.multiprocessors or usual)


def round_up(value: int, options: Sequence[int]) -> int:
    """The least option that is at least `value`, else the largest."""
    return next((option for option in sorted(options) if option >= value), max(options))
