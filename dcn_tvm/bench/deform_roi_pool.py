"""Contenders of deformable RoI pooling: mmcv has its own grid, on CUDA only; none runs on a CPU."""

from __future__ import annotations

from typing import Any

from dcn_tvm.bench import mmcv_peer
from dcn_tvm.bench.contender import Call, Setting
from dcn_tvm.bench.roi import MODES, roi_bench, torch_call
from dcn_tvm.suites import Case

GAMMA = 0.1


def _samples_grid(case: Case) -> bool:
    return case.text("sampling") == "grid"


def _options(case: Case) -> dict[str, Any]:
    ratio = case.integer("sampling_ratio") if _samples_grid(case) else None
    return {"sampling_ratio": ratio, "gamma": GAMMA}


def _mmcv(case: Case, setting: Setting) -> Call:
    return torch_call(mmcv_peer.deform_roi_pool, _options(case), case, setting)


BENCH = roi_bench(
    "deform_roi_pool",
    _options,
    (mmcv_peer.mmcv_peer(_mmcv, MODES, ("float32", "float64"), _samples_grid, ("cuda",)),),
)
