"""Contenders of position-sensitive RoI align."""

from __future__ import annotations

from typing import Any

from dcn_tvm.bench.roi import roi_bench, torchvision_peer
from dcn_tvm.suites import Case


def _options(case: Case) -> dict[str, Any]:
    return {"sampling_ratio": case.integer("sampling_ratio")}


BENCH = roi_bench("ps_roi_align", _options, (torchvision_peer("ps_roi_align", _options),))
