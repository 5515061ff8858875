"""RoI pooling of every kind on CPUs: forward and backward.

Pattern: ragged sums. Each bin of each box reads (forward) or adds to (backward) a few pixels, of
all channels; which pixels depends on the data, how many on the size of the box.
Strategy: (1) vectors run over channels, so that a pixel is one load and all of a bin's shares are
scalars; (2) samples of a bin share their pixels: shares of rows and columns are added up apart
(te/roi_bins.py), so n x n samples cost about (n + 1)^2 reads, not 4 n^2; (3) where channels are not
contiguous, a worker takes a *block* of channels of an image, turns its planes to rows in registers
(te/turn.py), and pools all boxes of the image from rows that stay in L2; in channels_last a plain
op needs no rows, and workers take boxes; (4) gradients: a worker owns its rows, so plain stores do.

Position-sensitive maps. Bin (i, j) needs channels (c k + i) k + j, a stride of k^2. Tried with 81
classes, 7 x 7 bins, a 38 x 63 map, 300 boxes, `ps_roi_pool` forward, one thread of a Zen 4:
- from nchw, one group's rows, made by a worker for its block: 18 ms element by element, 5 ms turned
  in registers. A group's channels are planes k^2 apart, so they cost no more than any 16 planes;
- from channels_last, rows [group][block][pixel][lane] of the whole map first: 51 ms element by
  element, 30 ms turned in registers: 45 MB leave every cache;
- from channels_last, a worker takes a vector of groups, which are neighbours in memory, and turns
  16 classes x 16 groups at a time: 19 ms. One group at a time would read a line for a number.
Outputs in nchw are written [bin][box][class] and turned at the end: direct stores, 196 bytes apart,
would share cache lines between workers.

Blocks, same thread, 256 channels, 300 boxes: with 1 vector `roi_align` takes 4.6 ms, with 4 3.0,
as each block computes the shares of its boxes anew. With 8 the rows of a 200 x 336 map are 34 MB,
and 18 ms become 55. Adding gradients of a maximum lane by lane gained nothing over masked vectors.
Left out: vectors across classes whose offsets differ (class-aware deformable pooling with a channel
a class is scalar); several workers for one block's scatter; blocks that follow the map's size.
"""

from __future__ import annotations

from typing import Any

from dcn_tvm.schedules.cpu import gemm
from tvm import tirx
from tvm.s_tir import Schedule

from dcn_tvm.knobs import Knobs
from dcn_tvm.ops.roi import RoIProblem
from dcn_tvm.target import Target
from dcn_tvm.te.roi import RoITiling

VECTORS = (1, 2, 3, 4, 6, 8, 12, 16)
ROW_STAGES = ("rows", "grad_rows", "grad_input", "move_sums")


def forward_tiling(problem: RoIProblem, target: Target, knobs: Knobs) -> RoITiling:
    """Workers take boxes if all can read the map as it is, else blocks of channels."""
    plain = problem.groups == (1, 1) and problem.classes == 1
    if plain and problem.layout == "nhwc":
        return _tiling(problem, target, knobs, target.registers // 2, by_box=True)
    return backward_tiling(problem, target, knobs)


def backward_tiling(problem: RoIProblem, target: Target, knobs: Knobs) -> RoITiling:
    """Workers own blocks of channels, narrow ones where they have rows of many groups at once."""
    together = problem.layout == "nhwc" and problem.groups != (1, 1)
    return _tiling(problem, target, knobs, 2 if together else 4, by_box=False)


def _tiling(
    problem: RoIProblem, target: Target, knobs: Knobs, wanted: int, *, by_box: bool
) -> RoITiling:
    """Blocks of at most `wanted` vectors, which the channels of a class fill if they can."""
    lanes = gemm.narrow(problem.depth, gemm.lanes(target, problem.accumulate))
    whole = -(-problem.depth // lanes)
    options = [v for v in VECTORS if v <= whole]
    fitting = [v for v in options if v <= wanted and whole % v == 0]
    vectors = knobs.choice("vectors", options, fitting[-1])
    knobs.finish()
    return RoITiling(lanes, vectors, by_box)


def schedule(graph: Any) -> tirx.PrimFunc:
    """Share the stages around the nest out over the cores; the nest itself already is."""
    function, close = graph
    sch = Schedule(function)
    blocks = sch.get_child_blocks(sch.get_sblock("root"))
    names = {str(sch.get(block).name_hint) for block in blocks}
    for name in ROW_STAGES:
        if name in names:
            sch.parallel(sch.get_loops(sch.get_sblock(name))[0])
    return close(sch.mod["main"])
