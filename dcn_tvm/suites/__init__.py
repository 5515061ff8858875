"""Named suites of problem sizes: plain data for the benchmark, `explain` and the tuner.

A case names the op's own problem fields where the op has them (`in_channels`, `stride` …) and,
beside them, the free sizes of a call (`batch`, `height`, `width` …). A suite belongs to the op of
its name; a new op adds an entry here and nothing else.
"""

from dcn_tvm.suites import deform_conv2d, roi
from dcn_tvm.suites.case import Case, Size

__all__ = ["SUITES", "Case", "Size"]

SUITES: dict[str, tuple[Case, ...]] = {"deform_conv2d": deform_conv2d.CASES, **roi.SUITES}
