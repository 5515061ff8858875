"""RoI pooling of every kind on GPUs: forward and backward.

Pattern: ragged sums. Each bin of each box reads (forward) or adds to (backward) a few pixels, of
all channels; which pixels depends on the data, how many on the size of the box.
Strategy: (1) a block takes a run of bins of one box, and channels: what follows from the box is
worked out once, by a thread for each row and column of bins, into shared memory
(te/gpu/roi_bins.py); (2) samples of a bin share their pixels, so n x n samples cost about (n + 1)^2
reads, or atomic additions, not 4 n^2; (3) a thread does several channels of a bin with each look
into these tables: one vector in channels_last, where 4 neighbours are also one atomic addition;
(4) gradients of the input meet in atomics, of float32 for half types, or of 64-bit whole numbers
where the same bits are asked for; those of the offset are added up by one block, in order.
Without atomics a thread owns a channel of an image (te/gpu/roi_owner.py).

Layout of threads. In nchw the bins of a channel are neighbours in the output: all of them side by
side, then as many channels as the block has room for, each thread `passes` times `channels` of
them. In channels_last units of channels are side by side, then bins.
Gradients of an offset need all channels of a class in one block: fewer bins, more lanes.
Left out: position-sensitive maps in channels_last have neighbours in memory that no bin uses
together, so their reads are single numbers there, as in nchw; several boxes in one block.
"""

from __future__ import annotations

from collections.abc import Sequence

from dcn_tvm.gpu import Gpu
from dcn_tvm.knobs import Knobs
from dcn_tvm.ops.roi import RoIProblem
from dcn_tvm.te.gpu.roi_block import VECTOR_BYTES, Blocking, units_of
from dcn_tvm.te.gpu.roi_graph import Manner

THREADS = (64, 128, 256, 512)
CHANNELS = (1, 2, 4, 8)
REPEATS = (1, 2, 4, 8)
BINS_OF_DOTS = 16  # of a block, so that few boxes still make enough blocks
LANES_OF_DOTS = 32  # whose sums one thread adds up
LISTS_BYTES = {"cuda": 12 << 10}  # of shared memory; other devices may have 16 KiB in all
PARTIAL_BYTES = 16 << 10
BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


def manner(target: Gpu) -> Manner:
    """What the target can do and is asked for."""
    return Manner(target.kind == "cuda", target.deterministic)


def forward_blocking(problem: RoIProblem, target: Gpu, knobs: Knobs) -> Blocking:
    """Return a layout without sums over channels."""
    return _blocking(problem, target, knobs, dots=False)


def backward_blocking(
    problem: RoIProblem, target: Gpu, knobs: Knobs, outputs: Sequence[str]
) -> Blocking:
    """Return a layout; for the offset's gradient with all channels of a class in a block."""
    return _blocking(problem, target, knobs, dots="grad_offset" in outputs)


def _blocking(problem: RoIProblem, target: Gpu, knobs: Knobs, *, dots: bool) -> Blocking:
    most = min(target.max_threads_per_block, 512 if target.kind == "cuda" else 256)
    threads = knobs.choice("threads", [n for n in THREADS if n <= most], 256)
    adjacent = problem.layout == "nhwc" and problem.groups == (1, 1)
    lanes_first = problem.layout == "nhwc"
    channels = _channels(problem, knobs, adjacent=adjacent)
    units, bins = units_of(problem, channels), problem.output_size[0] * problem.output_size[1]
    if lanes_first:
        lanes = min(units, LANES_OF_DOTS if dots else threads)
        side = min(bins, max(1, threads // lanes))
    else:
        side = _even(bins, min(threads, BINS_OF_DOTS if dots else threads))
        lanes = min(units, threads // side)
    room = LISTS_BYTES.get(target.kind, 6 << 10)
    options = [n for n in REPEATS if n == 1 or n * side < 2 * bins]
    if dots:
        wide = BYTES[problem.accumulate]
        options = [n for n in options if 2 * n * side * lanes * wide <= PARTIAL_BYTES]
    wanted = 4 if lanes_first and not dots else 1
    options = options or [1]
    turns = knobs.choice("turns", options, max(n for n in options if n <= wanted))
    passes = 0 if dots else knobs.choice("passes", REPEATS, 4)
    knobs.finish()
    return Blocking(channels, lanes, side, turns, passes, adjacent, lanes_first, room)


def _channels(problem: RoIProblem, knobs: Knobs, *, adjacent: bool) -> int:
    """Channels of a unit: a vector where they are neighbours, else as divides the class."""
    depth = problem.depth
    wanted = VECTOR_BYTES // BYTES[problem.dtype] if adjacent else 4
    options = [n for n in CHANNELS if n <= depth and (depth % n == 0 or not adjacent)]
    fitting = [n for n in options if n <= wanted and depth % n == 0]
    return knobs.choice("channels", options, fitting[-1])


def _even(bins: int, most: int) -> int:
    """Return bins of a block where all blocks of a box have about as many, `most` at most."""
    blocks = -(-bins // most)
    return -(-bins // blocks)
