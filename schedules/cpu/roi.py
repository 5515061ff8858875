"""What the schedules of all RoI ops share."""

from __future__ import annotations

from typing import Any

from dcn_tvm.schedules.cpu import gemm
from tvm import tirx
from tvm.s_tir import Schedule

from dcn_tvm.knobs import Knobs
from dcn_tvm.ops.roi import RoIProblem
from dcn_tvm.target import Target
from dcn_tvm.te.roi import RoITiling


def forward_tiling(problem: RoIProblem, target: Target, knobs: Knobs) -> RoITiling:
    """Blocks."""
    return _tiling(problem, target, knobs, by_box=_plain(problem) and problem.layout == "nhwc")


def backward_tiling(problem: RoIProblem, target: Target, knobs: Knobs) -> RoITiling:
    """Blocks."""
    return _tiling(problem, target, knobs, by_box=False)


def _plain(problem: RoIProblem) -> bool:
    return problem.groups == (1, 1) and problem.classes == 1


def _tiling(problem: RoIProblem, target: Target, knobs: Knobs, *, by_box: bool) -> RoITiling:
    lanes = gemm.narrow(problem.depth, gemm.lanes(target, problem.accumulate))
    most = -(-problem.depth // lanes)
    options = [v for v in (1, 2, 3, 4, 6, 8) if v <= most]
    fitting = [v for v in options if v <= (8 if by_box else 4) and most % v == 0]
    vectors = knobs.choice("vectors", options, fitting[-1])
    return RoITiling(lanes, vectors, by_box)


def schedule(graph: Any, problem: RoIProblem, tiling: RoITiling) -> tirx.PrimFunc:
    """Schedule the stages around the nest."""
    function, close = graph
    sch = Schedule(function)
    root = sch.get_sblock("root")
    names = {str(sch.get(block).name_hint) for block in sch.get_child_blocks(root)}
    for name in ("rows", "grad_rows", "grad_input", "move_sums"):
        if name in names:
            sch.parallel(sch.get_loops(sch.get_sblock(name))[0])
    return close(sch.mod["main"])
