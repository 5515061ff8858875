"""Named suites of problem sizes: plain data for the benchmark, `explain` and the tuner.

A case names the op's own problem fields where the op has them (`in_channels`, `stride` …) and,
beside them, the free sizes of a call (`batch`, `height`, `width` …). A suite belongs to the op of
its name; a new op adds an entry here and nothing else. `NETWORKS` are suites of several ops,
`LARGE` and `ODD` what a device is measured and judged by, `SCALING` the curves of each op.
"""

from dcn_tvm.suites import deform_conv2d, roi
from dcn_tvm.suites.case import Case, Size
from dcn_tvm.suites.device import LARGE, ODD
from dcn_tvm.suites.networks import NETWORKS
from dcn_tvm.suites.scaling import SCALING

__all__ = ["LARGE", "NETWORKS", "ODD", "SCALING", "SUITES", "Case", "Size", "named"]

SUITES: dict[str, tuple[Case, ...]] = {"deform_conv2d": deform_conv2d.CASES, **roi.SUITES}


def named(name: str) -> tuple[Case, ...]:
    """Return the suite of an op or a network.

    Raises:
        ValueError: there is none of that name.
    """
    known = SUITES | NETWORKS
    if name not in known:
        raise ValueError(f"suite must be one of {', '.join(known)}, got {name}")
    return known[name]
