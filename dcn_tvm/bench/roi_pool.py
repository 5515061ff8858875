"""Contenders of RoI pooling: torchvision has the maximum only."""

from __future__ import annotations

from dcn_tvm.bench.roi import roi_bench, torchvision_peer

BENCH = roi_bench(
    "roi_pool",
    lambda case: {"mode": case.text("mode")},
    (torchvision_peer("roi_pool", serves=lambda case: case.text("mode") == "max"),),
)
