"""Contenders of deformable RoI pooling: no peer runs on the CPU."""

from __future__ import annotations

from typing import Any

from dcn_tvm.bench.roi import roi_bench
from dcn_tvm.suites import Case


def _options(case: Case) -> dict[str, Any]:
    paper = case.text("sampling") == "paper"
    return {"sampling_ratio": None if paper else case.integer("sampling_ratio")}


BENCH = roi_bench("deform_roi_pool", _options)
