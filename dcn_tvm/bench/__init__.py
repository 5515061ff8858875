"""Benchmarks of every op against its peers: `python -m dcn_tvm bench`.

`runner` and the tables know no op. What an op is compared with stands in the module of its name,
which holds one `OpBench` called `BENCH`; adding that file adds the op to the benchmark.
"""

from dcn_tvm.bench.contender import Contender, OpBench, Setting, bench_of
from dcn_tvm.bench.plan import Plan
from dcn_tvm.bench.runner import run

__all__ = ["Contender", "OpBench", "Plan", "Setting", "bench_of", "run"]
