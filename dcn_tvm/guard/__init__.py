"""The regression guard: what kernels execute, counted, against a budget: `dcn-tvm guard`.

Times differ from machine to machine and from minute to minute; the number of instructions that a
kernel executes does not. Kernels are compiled for a machine that is described in full (`plan`),
called on one thread under valgrind (`counting`), and their counts are compared with those that are
kept beside the tests (`budget`). It sees more work: lost vectors, a tile that spills, a loop that
runs twice. It does not see what makes the same instructions slower, such as cache misses.
"""

from dcn_tvm.guard.budget import Budget, Finding
from dcn_tvm.guard.counting import absent_because, count
from dcn_tvm.guard.plan import Guarded, guarded

__all__ = ["Budget", "Finding", "Guarded", "absent_because", "count", "guarded"]
