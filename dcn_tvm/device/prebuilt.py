"""A bundle of the benchmark's kernels: with it neither checks nor default rows need a compiler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dcn_tvm import gpu, ops, settings, suites
from dcn_tvm.bundles import making
from dcn_tvm.device import correctness, rows
from dcn_tvm.gpu import Gpu
from dcn_tvm.kernels import possible_outputs
from dcn_tvm.problem import LAYOUTS
from dcn_tvm.workload import Workload


def jobs(arch: str, *, small: bool = False) -> list[making.Job]:
    """Return the kernels, each once, in the manners that the steps call them in.

    Raises:
        ValueError: there is no such architecture.
    """
    plain = gpu.assumed(arch)
    found: dict[tuple[Gpu, object], list[Workload]] = {}
    for precision, workload in _workloads(small=small):
        code = replace(plain, tf32=precision == "tf32")
        found.setdefault((code, workload.problem), []).append(workload)
    made = [
        job
        for (code, _), workloads in found.items()
        for job in making.plan(workloads, [code], _all_gradients(workloads))
    ]
    odd = _odd()
    made += making.plan(odd, [plain, replace(plain, deterministic=True)])  # other gradients, too
    return list({str((job.request, job.target, job.request.problem)): job for job in made}.values())


def make(arch: str, say: Callable[[str], None] = lambda text: None) -> Path:
    """Compile the bundle, which is kept in the user's folder, and return where it is.

    Raises:
        ValueError: there is no such architecture.
        CompileError: there is no compiler for it.
    """
    path = settings.home() / "carry" / f"bundle-{arch}"
    wanted = jobs(arch)

    def started(job: making.Job, number: int) -> None:
        say(f"{number + 1} of {len(wanted)}: {job}")

    making.make(path, wanted, overwrite=True, started=started)
    return path


def _workloads(*, small: bool) -> list[tuple[str, Workload]]:
    names = {op: tuple(contract.kernels()) for op, contract in ops.registry().items()}
    checks = [
        (c.precision, Workload.of(c.problem, c.sizes, names[c.case.op]))
        for c in correctness.checks(small=small)
    ]
    return checks + [(spec.precision, spec.workload()) for spec in rows.specs(small=small)]


def _all_gradients(workloads: list[Workload]) -> list[tuple[str, ...]]:
    """Return all gradients of a problem, which are asked for at once; none for forward alone."""
    names = {
        name
        for workload in workloads
        for kernel in ops.registry()[workload.problem.op].backward
        if kernel.name in workload.kernels
        for name in possible_outputs(workload.problem, kernel.outputs)
    }
    return [tuple(sorted(names))] if names else []


def _odd() -> list[Workload]:
    """The gradients of the first odd problems: in parts, and deterministic."""
    found = []
    for op, cases in suites.ODD.items():
        backward = [kernel.name for kernel in ops.registry()[op].backward]
        for layout in LAYOUTS:
            problem = cases[0].problem("float32", layout)
            found.append(Workload.of(problem, cases[0].free_sizes, backward))
    return found
