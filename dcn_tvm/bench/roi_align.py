"""Contenders of RoI align."""

from __future__ import annotations

from typing import Any

from dcn_tvm.bench.roi import roi_bench, torchvision_peer
from dcn_tvm.suites import Case


def _options(case: Case) -> dict[str, Any]:
    ratio, aligned = case.integer("sampling_ratio"), bool(case.integer("aligned"))
    return {"sampling_ratio": ratio, "aligned": aligned}


BENCH = roi_bench("roi_align", _options, (torchvision_peer("roi_align", _options),))
