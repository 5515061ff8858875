"""Deformable convolution on CPUs: forward, and two backward kernels.

Pattern: a GEMM whose left operand is sampled (forward, backward_weight) or whose result is
scattered (backward_data), so the full column matrix never needs to exist.
Strategy, in every kernel: (1) pack the weight once per call into panels of whole vectors, (2) let
one worker take a tile of rows: its positions, then a chunk of taps, sampled with one vector of
channels per corner, (3) consume the chunk at once by the register-tiled GEMM, from L2, (4) store
what exists of the last tile.
Measured (1 thread of a Cascade Lake, 256 channels): 83 % of the forward's time is the GEMM, at the
rate of MKL's; sampling 8 %, packing 3 %. With 8 groups of 8 channels the samples, half a cache line
each, take as long as the GEMM; tried without gain: rows as [group][pixel], one tap at a time,
smaller tiles.
Left out: transposes inside registers for NCHW; vectors across groups where a convolution group has
fewer channels than a vector (depthwise); splitting one image's scatter over more workers than it
has channel slices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dcn_tvm.schedules.cpu import gemm
from tvm import tirx
from tvm.s_tir import Schedule

from dcn_tvm.knobs import Knobs
from dcn_tvm.ops.deform_conv2d import DeformConv2dProblem
from dcn_tvm.target import Target
from dcn_tvm.te import deform_conv2d as te
from dcn_tvm.te.deform_tiles import Graph, Tiling, legal_slices, padded_channels, sample_lanes

ROW_LIMIT = 256


def forward(
    problem: DeformConv2dProblem, target: Target, knobs: Knobs, outputs: Sequence[str]
) -> tirx.PrimFunc:
    """One worker per row tile; taps in chunks that fit the cache."""
    lanes = gemm.lanes(target, problem.accumulate)
    width = problem.out_channels // problem.groups
    vector = gemm.narrow(width, lanes)
    rows, vectors = gemm.register_tile(knobs, target, -(-width // vector))
    item = gemm.item_bytes(problem)
    row_bytes = (problem.in_channels + problem.out_channels) * item
    # The weights of a tap that do not stay in L2 are streamed once per tile: then tiles are larger.
    streamed = problem.in_channels * width * item > target.l2_bytes // 2
    tile = _rows(knobs, rows, 224 if streamed else 112, target.l2_bytes // row_bytes)
    corners = 30 * problem.offset_groups  # numbers that place one sample, beside its channels
    tiling = Tiling(
        rows=tile,
        lanes=vector,
        columns=vector * vectors,
        sample_lanes=sample_lanes(problem, lanes),
        taps=_taps(knobs, problem, target, tile * (problem.in_channels + corners)),
    )
    knobs.finish()
    function, close, graph = te.forward(problem, tiling)
    sch = Schedule(function)
    worker = sch.get_loops(sch.get_sblock("store"))[0]
    sums, partial = sch.get_sblock("sums"), sch.get_sblock("partial")
    sch.compute_at(sums, worker, preserve_unit_loops=True)
    group, q, o, chunk = sch.get_loops(sums)[-4:]
    sch.reorder(chunk, group, q, o)
    register = gemm.tile_rows(sch, sums, rows, tiling.columns, vector)
    gemm.multiply(sch, partial, register, vector)
    sch.decompose_reduction(sums, chunk)
    _sample(sch, graph, chunk, worker)
    _pack(sch, tap=2, row=3, vector=vector)
    _copy_to_rows(sch, "input_rows", lanes)
    return close(sch.mod["main"])


def backward_data(
    problem: DeformConv2dProblem, target: Target, knobs: Knobs, outputs: Sequence[str]
) -> tirx.PrimFunc:
    """One worker per image and channel slice; the GEMM of a chunk of taps feeds its scatter."""
    lanes = gemm.lanes(target, problem.accumulate)
    samples = sample_lanes(problem, lanes)
    width = _slice(knobs, problem, target, samples, 128)
    inner = min(width, padded_channels(problem, samples) // problem.groups)
    vector = gemm.narrow(inner, lanes)
    rows, vectors = gemm.register_tile(knobs, target, -(-inner // vector))
    row_bytes = (width + problem.out_channels) * gemm.item_bytes(problem)
    tile = _rows(knobs, rows, 112, target.l2_bytes * 3 // 4 // row_bytes)
    tiling = Tiling(
        rows=tile,
        lanes=vector,
        columns=vector * vectors,
        sample_lanes=samples,
        taps=_taps(knobs, problem, target, tile * width),
        slice=width,
    )
    knobs.finish()
    function, close, graph = te.backward_data(problem, tiling, outputs)
    sch = Schedule(function)
    _, tile_loop, chunk = sch.get_loops(sch.get_sblock("scatter"))
    _multiply_products(sch, chunk, rows, tiling)
    sch.compute_at(sch.get_sblock("grad_tile"), tile_loop, preserve_unit_loops=True)
    _positions(sch, graph, chunk, tile_loop)
    _pack(sch, tap=2, row=4, vector=vector)
    _copy_to_rows(sch, "input_rows", lanes)
    for name in outputs:
        _finish(sch, name, problem.layout)
    return close(sch.mod["main"])


def _multiply_products(sch: Schedule, chunk: Any, rows: int, tiling: Tiling) -> None:
    """w^T dy of a chunk of taps: accumulators in registers, stored once."""
    products = sch.get_sblock("products")
    sch.compute_at(products, chunk, preserve_unit_loops=True)
    q, c, o = sch.get_loops(products)[-3:]
    result = sch.cache_write(products, 0, "local")
    row_outer, row_inner = sch.split(q, [None, rows])
    panel, inside = sch.split(c, [None, tiling.columns])
    vector, lane = sch.split(inside, [None, tiling.lanes])
    sch.reorder(panel, row_outer, o, row_inner, vector, lane)
    sch.reverse_compute_at(result, row_outer, preserve_unit_loops=True)
    sch.vectorize(sch.split(sch.get_loops(result)[-1], [None, tiling.lanes])[1])
    sch.unroll(row_inner)
    sch.unroll(vector)
    sch.vectorize(lane)
    sch.decompose_reduction(products, o)


def backward_weight(
    problem: DeformConv2dProblem, target: Target, knobs: Knobs, outputs: Sequence[str]
) -> tirx.PrimFunc:
    """One worker per channel slice with all taps, which adds up all tiles of the batch."""
    lanes = gemm.lanes(target, problem.accumulate)
    samples = sample_lanes(problem, lanes)
    width = _slice(knobs, problem, target, samples, 32)
    inner = min(width, padded_channels(problem, samples) // problem.groups)
    columns = problem.out_channels // problem.groups
    vector = gemm.narrow(columns, lanes)
    rows, vectors = gemm.register_tile(knobs, target, -(-columns // vector), multiple_of=inner)
    tile = _rows(knobs, 16, 128, ROW_LIMIT)
    tiling = Tiling(
        rows=tile,
        lanes=vector,
        columns=vector * vectors,
        sample_lanes=samples,
        slice=width,
    )
    knobs.finish()
    function, close, graph = te.backward_weight(problem, tiling, outputs)
    sch = Schedule(function)
    if "grad_weight" in outputs:
        _sum_over_tiles(sch, graph, rows, vector)
    if "grad_bias" in outputs:
        _sum_bias(sch, graph)
    _copy_to_rows(sch, "input_rows", lanes)
    _copy_to_rows(sch, "grad_rows", lanes)
    return close(sch.mod["main"])


def _sum_over_tiles(sch: Schedule, graph: Graph, rows: int, vector: int) -> None:
    sums, partial = sch.get_sblock("sums"), sch.get_sblock("partial")
    worker, t, *rest, image, tile = sch.get_loops(sums)
    sch.reorder(worker, image, tile, t, *rest)
    sch.parallel(worker)
    register = gemm.tile_rows(sch, sums, rows, graph.tiling.columns, vector)
    gemm.multiply(sch, partial, register, vector)
    _sample(sch, graph, t, tile)
    grad_tile = sch.get_sblock("grad_tile")
    sch.compute_at(grad_tile, tile, preserve_unit_loops=True)
    sch.vectorize(sch.split(sch.get_loops(grad_tile)[-1], [None, vector])[1])
    sch.decompose_reduction(sums, image)
    # Transposed in blocks of 16 outputs: their sums share cache lines, and so do their taps.
    o, c, a, b = sch.get_loops(sch.get_sblock("grad_weight"))
    o_outer, o_inner = sch.split(o, [None, 16])
    sch.reorder(o_outer, c, o_inner, a, b)
    sch.parallel(o_outer)
    for loop in (a, b):
        sch.unroll(loop)


def _sum_bias(sch: Schedule, graph: Graph) -> None:
    partial, total = sch.get_sblock("bias_partial"), sch.get_sblock("bias_sums")
    n, tile, o, q = sch.get_loops(partial)
    sch.reorder(n, tile, q, o)
    sch.parallel(sch.fuse(n, tile))
    sch.vectorize(sch.split(o, [None, graph.tiling.lanes])[1])
    sch.decompose_reduction(partial, q)
    o, n, tile = sch.get_loops(total)
    sch.reorder(n, tile, o)
    sch.decompose_reduction(total, n)


def _rows(knobs: Knobs, register_rows: int, wanted: int, limit: int) -> int:
    """Rows of a tile: whole register tiles, and whole groups of 8 for the position vectors."""
    step = math.lcm(register_rows, 8)
    options = list(range(step, max(ROW_LIMIT, step) + 1, step))
    fitting = [rows for rows in options if rows <= min(wanted, limit)]
    return knobs.choice("rows", options, fitting[-1] if fitting else options[0])


def _taps(knobs: Knobs, problem: DeformConv2dProblem, target: Target, tap_items: int) -> int:
    """Taps sampled at once: as many as a third of L2 holds."""
    taps = problem.kernel_size[0] * problem.kernel_size[1]
    options = [t for t in range(1, taps + 1) if taps % t == 0]
    budget = target.l2_bytes * 3 // 10 // gemm.item_bytes(problem)
    fitting = [t for t in options if t * tap_items <= budget]
    return knobs.choice("taps", options, fitting[-1] if fitting else 1)


def _slice(
    knobs: Knobs, problem: DeformConv2dProblem, target: Target, lanes: int, wanted: int
) -> int:
    """Channels of a backward worker: by default at most `wanted`, always work for every core.

    Where two cores share one unit for vectors a single worker is as fast as two, and would win a
    search: a record of it would leave all other cores of a larger machine idle.
    """
    legal = legal_slices(problem, lanes)
    options = [width for width in legal if width <= legal[-1] // target.cores] or legal[:1]
    fitting = [width for width in options if width <= wanted]
    return knobs.choice("slice", options, fitting[-1] if fitting else options[0])


def _sample(sch: Schedule, graph: Graph, chunk: Any, tile: Any) -> None:
    """Samples of a chunk of taps, one vector of channels per corner."""
    samples = sch.get_sblock("samples")
    sch.compute_at(samples, chunk, preserve_unit_loops=True)
    q, t, channel = sch.get_loops(samples)[-3:]
    span = min(graph.channels // graph.slices, graph.group_channels)
    groups, channel = sch.split(channel, [None, span])
    block, lane = sch.split(channel, [None, graph.tiling.sample_lanes])
    q_outer, q_inner = sch.split(q, [None, _wide(graph)])
    sch.reorder(q_outer, groups, t, q_inner, block, lane)
    sch.vectorize(lane)
    _positions(sch, graph, chunk, tile)


def _wide(graph: Graph) -> int:
    """Rows whose corners are one vector, and so lie together in the cache."""
    return math.gcd(graph.tiling.rows, 16 if graph.problem.accumulate == "float32" else 8)


def _positions(sch: Schedule, graph: Graph, chunk: Any, tile: Any) -> None:
    """Positions to corners in vectors across rows, per chunk; offsets are gathered per tile."""
    present = _names(sch)
    wide = _wide(graph)
    consumers_first = (
        *("slope_y", "slope_x", "slope_mask", "share", "pixel"),
        *("slope", "weight", "index", "position"),
    )
    for name in consumers_first:
        if name in present:
            block = sch.get_sblock(name)
            sch.compute_at(block, chunk, preserve_unit_loops=True)
            *_, which, q = sch.get_loops(block)
            q_outer, lane = sch.split(q, [None, wide])
            if name != "position":  # corners and sides share most of their arithmetic
                sch.reorder(q_outer, which, lane)
                sch.unroll(which)
            sch.vectorize(lane)
    for name in ("mask_tile", "moved", "origins"):
        if name in present:
            block = sch.get_sblock(name)
            sch.compute_at(block, tile, preserve_unit_loops=True)
            if name != "origins" and graph.problem.layout == "nhwc":
                channel, q = sch.get_loops(block)[-2:]
                sch.reorder(q, channel)
                sch.unroll(sch.split(channel, [None, 8])[1])


def _pack(sch: Schedule, tap: int, row: int, vector: int) -> None:
    """Pack panels; taps innermost but for the columns, as they are what memory holds together."""
    loops = sch.get_loops(sch.get_sblock("packed"))
    t, k, column = loops[tap], loops[row], loops[-1]
    outer = [loop for number, loop in enumerate(loops[:-1]) if number not in (tap, row)]
    sch.reorder(*outer, k, t, column)
    sch.vectorize(sch.split(column, [None, vector])[1])
    sch.parallel(sch.fuse(*outer, k))


def _names(sch: Schedule) -> set[str]:
    root = sch.get_sblock("root")
    return {str(sch.get(block).name_hint) for block in sch.get_child_blocks(root)}


def _copy_to_rows(sch: Schedule, name: str, lanes: int) -> None:
    """A map to rows: 16 pixels share the cache lines that a vector of channels is gathered from."""
    if name not in _names(sch):
        return
    image, pixel, channel = sch.get_loops(sch.get_sblock(name))
    pixel_outer, pixel_inner = sch.split(pixel, [None, 16])
    width = sch.get(channel).extent.value
    block, lane = sch.split(channel, [None, math.gcd(width, lanes)])
    sch.reorder(image, pixel_outer, block, pixel_inner, lane)
    sch.vectorize(lane)
    sch.parallel(sch.fuse(image, pixel_outer))


def _finish(sch: Schedule, name: str, layout: str) -> None:
    """Rows to a map, where the scatter did not write the map itself."""
    if name not in _names(sch):
        return
    loops = sch.get_loops(sch.get_sblock(name))
    if layout == "nhwc":
        sch.parallel(sch.fuse(*loops[:2]))
        return
    image, channel, y, x = loops
    x_outer, x_inner = sch.split(x, [None, 16])
    sch.reorder(image, y, x_outer, channel, x_inner)
    sch.parallel(sch.fuse(image, y))
