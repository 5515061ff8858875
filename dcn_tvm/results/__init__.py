"""What benchmarks found, as data: rows, ceilings, files of them, and what follows from those.

Nothing here measures. `dcn_tvm.bench` makes `Results` and writes them, `dcn-tvm report` reads any
number of such files, of any machines, and makes a page.
"""

from dcn_tvm.results.ceilings import Ceiling, Ceilings, Floor
from dcn_tvm.results.file import Results, read, to_json, write
from dcn_tvm.results.row import Finding, Rejection, Row

__all__ = [
    "Ceiling",
    "Ceilings",
    "Finding",
    "Floor",
    "Rejection",
    "Results",
    "Row",
    "read",
    "to_json",
    "write",
]
