"""Results as a benchmark would find them, made up: small, and with something of everything."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from dcn_tvm.report import Machine
from dcn_tvm.results import Ceiling, Ceilings, Rejection, Results, Row

DEVICE, DATE = "Some CPU (Zen 9)", "2026-11-20T10:00:00+00:00"
VERSIONS = {"python": "3.11.7", "dcn_tvm": "0.1.0", "torch": "2.15.0"}
GEMM, DRAM, CACHE = 100.0, 10.0, 50.0  # GFLOP/s and GB/s
PROVIDERS = {"conv2d": "baseline", "dcn_tvm": "ours", "torchvision": "peer", "copy": "floor"}


def row(**changed: Any) -> Row:
    """Return a row of our own that takes a millisecond, with some fields changed."""
    fields: dict[str, Any] = {
        "op": "roi_align",
        "problem": "P0",
        "sizes": {"height": 10, "width": 10, "channels": 64, "batch": 1, "boxes": 100},
        "provider": "dcn_tvm",
        "role": "ours",
        "version": "0.1.0",
        "mode": "forward",
        "dtype": "float32",
        "memory_format": "contiguous",
        "cache": "warm",
        "sweep": "",
        "clock": "clock",
        "median_us": 1000.0,
        "p20_us": None,
        "p80_us": None,
        "rounds": 9,
        "flops": 40_000_000,
        "bytes_moved": 4_000_000,
        "gflop_per_s": None,
        "gbyte_per_s": None,
        "floor_us": 400.0,
        "bound": "arithmetic",
        "roofline": None,
        "peak_mib": 4.0,
        "faults": 0.0,
        "ratio": 1.5,
        "error": 1e-7,
        "records": ("shipped",),
        "device": DEVICE,
        "threads": 2,
        "versions": VERSIONS,
        "date": DATE,
    }
    assert changed.keys() <= fields.keys()
    fields |= changed
    time = fields["median_us"]
    rates = {
        "p20_us": 0.98 * time,
        "p80_us": 1.02 * time,
        "gflop_per_s": fields["flops"] / time / 1e3,
        "gbyte_per_s": fields["bytes_moved"] / time / 1e3,
        "roofline": fields["floor_us"] and fields["floor_us"] / time,
    }
    return Row(**{**fields, **{k: v for k, v in rates.items() if fields[k] is None}})


def sweep(name: str, times_us: Mapping[int, float], **changed: Any) -> list[Row]:
    """Return rows of a scaling curve: position → time; other fields may be functions of it."""
    sizes = {"height": 1, "width": 1, "channels": 64, "batch": 1, "boxes": 100}
    varied = {"pixels": "width"}.get(name, name)
    rows = []
    for x, us in times_us.items():
        more = {k: v(x) if callable(v) else v for k, v in changed.items()}
        more = {"sizes": {**sizes, varied: x}, "problem": f"{varied} {x}"} | more
        if name == "threads":
            more["threads"] = x
        rows.append(row(sweep=name, median_us=us, **more))
    return rows


def linear(name: str, **changed: Any) -> list[Row]:
    """Return a curve whose time, work, roofline and memory all grow linearly."""
    grown = {
        "flops": lambda x: 40_000 * x,
        "bytes_moved": lambda x: 4_000 * x,
        "floor_us": lambda x: 0.4 * x,
        "peak_mib": lambda x: 2.0 * x,
    }
    return sweep(name, {x: 10.0 * x for x in (1, 2, 4, 8)}, **{**grown, **changed})


def ceilings(threads: int = 2, device: str = DEVICE) -> tuple[Ceiling, ...]:
    """Return what a machine can do at most: a cache of 1 MiB and memory."""
    gemm = GEMM * threads / 2
    rates = (("gemm", 2048, gemm), ("copy", 1 << 20, CACHE), ("copy", 1 << 28, DRAM))
    return tuple(
        Ceiling(kind, dtype, threads, size, rate, device, DATE)
        for dtype in ("float32", "bfloat16")
        for kind, size, rate in rates
    )


def _ranked(threads: int) -> Iterable[Row]:
    """Yield rows of two ops, two modes and three problems, of everyone who can do them."""
    factors = {"conv2d": 1.0, "dcn_tvm": 1.5, "torchvision": 12.0, "copy": 0.8}
    for op in ("deform_conv2d", "roi_align"):
        for mode in ("forward", "forward+backward"):
            for n, (provider, role) in enumerate(PROVIDERS.items()):
                for p in range(3):
                    flops = 10_000_000 * 5**p * (1 if op == "roi_align" else 30)
                    moved = 4_000_000 * 5**p
                    floor = Ceilings(ceilings(threads)).floor(flops, moved, "float32", threads)
                    assert floor is not None
                    us = floor.us * (1.6 + 0.05 * n + 0.1 * p) * factors[provider]
                    yield row(
                        op=op,
                        mode=mode,
                        provider=provider,
                        role=role,
                        problem=f"{2**p}x256x38x63->256",
                        threads=threads,
                        median_us=us,
                        flops=flops,
                        bytes_moved=moved,
                        floor_us=floor.us,
                        bound=floor.bound,
                        ratio=factors[provider] * (1 + 0.01 * p),
                    )


def results(threads: int = 2, **changed: Any) -> Results:
    """Return what one benchmark found, with some of it changed."""
    half = [
        dataclasses.replace(r, dtype="bfloat16", memory_format="channels_last")
        for r in _ranked(threads)
        if r.role == "ours"
    ]
    squares = sweep(
        "channels",
        {64: 100.0, 128: 390.0, 256: 1600.0},
        threads=threads,
        flops=lambda x: 1000 * x * x,
        floor_us=lambda x: 0.01 * x * x,
        peak_mib=lambda x: x / 16,
    )
    found = Results(
        Machine(DEVICE, threads, VERSIONS),
        (*_ranked(threads), *half, *squares, *linear("batch", threads=threads)),
        (
            Rejection(
                "roi_align",
                "P9",
                "liar",
                "peer",
                "1.0",
                "forward",
                "float32",
                "contiguous",
                "wrong",
                0.25,
                "relative error 0.25 is above 1e-5",
            ),
        ),
        ceilings(threads),
        (),
        {"openvino": "openvino is not installed: pip install openvino"},
    )
    return found._replace(**changed)
