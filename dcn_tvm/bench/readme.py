"""The README's tables, made of the results under version control.

`python -m dcn_tvm.bench.readme README.md benchmarks/results` rewrites what stands between
`<!-- bench: NAME -->` and `<!-- bench: end -->`; with `--check` it only tells whether that would
change anything. All numbers are of one machine, that with the most rows, on as many threads as it
has; the other files are named in the table of machines.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from dcn_tvm.bench.tables import Grid, grid_lines, times
from dcn_tvm.results import Results, Row, read, scaling
from dcn_tvm.results.means import Mean, speedups
from dcn_tvm.results.merge import merge

_BLOCK = re.compile(r"(<!-- bench: (?P<name>[a-z]+) -->\n)(?P<old>.*?)(<!-- bench: end -->)", re.S)
_SHORT = {"torchvision": "tv", "openvino": "ov", "onnxruntime": "ort", "mmcv": "mmcv"}
_TIMES = "\N{MULTIPLICATION SIGN}"
_LAYER = "deform_conv2d"
_MODES = {"forward": "Forward", "forward+backward": "Forward + backward"}

Render = Callable[["Chosen"], list[str]]


class Chosen:
    """The files, and the rows that the tables are made of."""

    def __init__(self, files: dict[str, Results]) -> None:
        self.files = files
        self.merged = merge(list(files.values()))
        all_rows = [row for results in self.merged for row in results.rows]
        devices = [row.device for row in all_rows]
        self.device = max(dict.fromkeys(devices), key=devices.count)
        own = [row for row in all_rows if row.device == self.device and row.cache == "warm"]
        self.threads = max(row.threads for row in own)
        self.swept = [row for row in own if row.sweep]
        self.rows = [row for row in own if not row.sweep and row.threads == self.threads]

    def of(self, op: str, mode: str) -> list[Row]:
        """Return the rows of an op in a mode."""
        return [row for row in self.rows if (row.op, row.mode) == (op, mode)]

    @property
    def poolings(self) -> list[str]:
        """The ops beside the convolution."""
        return [op for op in dict.fromkeys(row.op for row in self.rows) if op != _LAYER]


def update(text: str, files: dict[str, Results]) -> str:
    """Return a README with its blocks made anew.

    Raises:
        ValueError: a block has an unknown name.
    """
    chosen = Chosen(files)

    def made(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in BLOCKS:
            raise ValueError(f"a block must be one of {', '.join(BLOCKS)}, got {name}")
        return match[1] + "\n".join(BLOCKS[name](chosen)) + "\n" + match[4]

    return _BLOCK.sub(made, text)


def _machines(chosen: Chosen) -> list[str]:
    """Return a line for each file: where, when, what."""
    lines = []
    for name, results in chosen.files.items():
        dates = sorted(row.date[:10] for row in results.rows)
        kinds = [f"{row.cache} caches" for row in results.rows] + [
            "scaling" for row in results.rows if row.sweep
        ]
        wrong = [r for r in results.rejections if r.kind == "wrong"]
        lines.append(
            [
                f"[{name}](benchmarks/results/{name})",
                results.machine.device,
                str(max((row.threads for row in results.rows), default=results.machine.threads)),
                dates[-1] if dates else "",
                f"{len(results.rows)} rows: {', '.join(dict.fromkeys(kinds))}",
                ", ".join(dict.fromkeys(f"{r.provider} on {r.op}" for r in wrong)) or "none",
            ]
        )
    header = ["file", "device", "threads", "date", "rows", "found wrong"]
    return grid_lines(Grid("", header, lines))


def _peers(chosen: Chosen) -> list[str]:
    """Return how many times as fast as each peer our ops are, and where they stand."""
    lines = []
    for op in dict.fromkeys(row.op for row in chosen.rows):
        for mode in _MODES:
            rows = chosen.of(op, mode)
            found = {(mean.variant, mean.against): mean for mean in speedups(rows)}
            peers = dict.fromkeys(against for _, against in found)
            told = [
                f"{peer} **{_times(found['dcn_tvm', peer].mean)}** "
                f"({_channels_last(found, peer)}least {_times(found['dcn_tvm', peer].worst)})"
                for peer in peers
                if ("dcn_tvm", peer) in found
            ]
            base = next(row.provider for row in rows if row.role == "baseline")
            lines.append(
                [
                    f"`{op}`, {mode}",
                    "; ".join(told) or "none does it",
                    f"{_mean(rows, 'dcn_tvm', 'ratio'):.2f} {_TIMES} {base}",
                    f"{_mean(rows, 'dcn_tvm', 'roofline'):.0%}",
                ]
            )
    header = ["op, mode", "times as fast as", "our time", "part of the roofline"]
    return [_where(chosen), "", *grid_lines(Grid("", header, lines))]


def _convolution(chosen: Chosen) -> list[str]:
    """Return the times of every problem of the convolution."""
    found = []
    for mode, title in _MODES.items():
        grid = times("", chosen.of(_LAYER, mode), roofline=False)
        found += [f"{title}, ms (time over `conv2d`'s):", "", *grid_lines(grid), ""]
    return found[:-1]


def _pooling(chosen: Chosen) -> list[str]:
    """Return a line for each problem of the other ops, both modes in it."""
    ours = ("dcn_tvm", "dcn_tvm cl", "dcn_tvm bf16")
    lines = []
    for op in chosen.poolings:
        problems = dict.fromkeys(row.problem for row in chosen.of(op, "forward"))
        for problem in problems:
            line = [f"{op} {problem}"]
            for mode in _MODES:
                rows = [row for row in chosen.of(op, mode) if row.problem == problem]
                own = {row.variant: row for row in rows}
                line += [f"{own['copy'].bytes_moved / 1e6:.0f}", _ms(own["copy"])]
                wanted = ours if mode == "forward" else ours[:2]
                line += [_ms(own[v], with_ratio=v == ours[0]) if v in own else "" for v in wanted]
                line.append(_fastest_peer(rows))
            lines.append(line)
    forward = ["MB", "copy", "dcn_tvm", "cl", "bf16", "best peer"]
    header = ["op, problem", *forward, *(name for name in forward if name != "bf16")]
    return grid_lines(Grid("", header, lines))


def _scaling(chosen: Chosen) -> list[str]:
    """Return how our time grows with each size, and what more threads bring."""
    grown: dict[tuple[str, str], dict[str, str]] = {}
    for curve in scaling.curves(chosen.swept):
        if curve.variant == "dcn_tvm":
            span = scaling.whole(curve)
            told = f"{span.time:.2f}"
            if curve.sweep == scaling.THREADS:
                told = f"{span.speedup:.2f} {_TIMES} on {scaling.position(span.last):.0f}"
            grown.setdefault((curve.op, curve.mode), {})[curve.sweep] = told
    sweeps = list(dict.fromkeys(sweep for told in grown.values() for sweep in told))
    lines = [
        [f"`{op}`, {mode}", *(told.get(s, "") for s in sweeps)]
        for (op, mode), told in grown.items()
    ]
    return grid_lines(Grid("", ["op, mode", *sweeps], lines))


def _ceilings(chosen: Chosen) -> list[str]:
    """Return the machine's rates on all its threads."""
    limits = next(
        results.limits
        for results in chosen.merged
        if any((c.device, c.threads) == (chosen.device, chosen.threads) for c in results.ceilings)
    )
    lines = []
    for dtype in dict.fromkeys(c.dtype for c in limits.measured):
        gemm = limits.gemm(dtype, chosen.threads)
        if gemm is not None:
            near, far = (
                limits.bandwidth(1 << 19, dtype, chosen.threads, cold=cold)
                for cold in (False, True)
            )
            lines.append([dtype, f"{gemm:.0f}", f"{near:.0f}", f"{far:.0f}"])
    header = ["dtype", "products, GFLOP/s", "copy in a cache, GB/s", "copy beyond all caches, GB/s"]
    return grid_lines(Grid("", header, lines))


BLOCKS: dict[str, Render] = {
    "machines": _machines,
    "peers": _peers,
    "convolution": _convolution,
    "pooling": _pooling,
    "scaling": _scaling,
    "ceilings": _ceilings,
}


def _channels_last(found: Mapping[tuple[str, str], Mean], peer: str) -> str:
    mean = found.get(("dcn_tvm cl", peer))
    return "" if mean is None else f"channels_last {_times(mean.mean)}; "


def _where(chosen: Chosen) -> str:
    row = max(chosen.rows, key=lambda row: row.date)
    versions = ", ".join(f"{name} {version}" for name, version in row.versions.items())
    threads = f"{chosen.threads} thread{'s' * (chosen.threads != 1)}"
    return f"{chosen.device}, {threads}, {row.date[:10]}; {versions}."


def _mean(rows: Sequence[Row], variant: str, name: str) -> float:
    values = [getattr(row, name) for row in rows if row.variant == variant]
    return statistics.geometric_mean(value for value in values if value)


def _times(value: float) -> str:
    return f"{value:.0f} {_TIMES}" if value >= 10 else f"{value:.1f} {_TIMES}"


def _ms(row: Row, *, with_ratio: bool = False) -> str:
    time = f"{row.median_us / 1e3:.3g}"
    return f"{time} ({row.ratio:.1f})" if with_ratio and row.ratio is not None else time


def _fastest_peer(rows: Iterable[Row]) -> str:
    peers = [row for row in rows if row.role == "peer" and row.dtype == "float32"]
    if not peers:
        return ""
    best = min(peers, key=lambda row: row.median_us)
    return f"{_ms(best)} {_SHORT[best.provider]}"


def files_in(folder: Path) -> dict[str, Results]:
    """Return the results of a folder by the names of their files.

    Raises:
        ValueError: there are none, or one is no file of results.
    """
    found = {path.name: read(path) for path in sorted(folder.glob("*.json"))}
    if not any(results.rows for results in found.values()):
        raise ValueError(f"{folder} must have files of results")
    return found


def main(arguments: Sequence[str]) -> int:
    """Rewrite a README, or check it; return the exit code."""
    check = "--check" in arguments
    path, folder = (Path(text) for text in arguments if text != "--check")
    old = path.read_text(encoding="utf-8")
    new = update(old, files_in(folder))
    if check:
        return int(old != new)
    path.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
