"""Where the choices come from of the kernels that a call runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

from dcn_tvm import kernels
from dcn_tvm.build import Request
from dcn_tvm.suites import Case

Run = tuple[Request, Callable[..., None], tuple[Any, ...]]


def recorded(call: Callable[[], object]) -> list[Run]:
    """Return the kernels that a call runs: what was asked for, its function and its tensors."""
    runs: list[Run] = []
    get = kernels.get

    def recording_get(request: Request) -> Callable[..., None]:
        function = get(request)

        def kernel(*tensors: Any) -> None:
            runs.append((request, function, tensors))
            function(*tensors)

        return kernel

    with mock.patch.object(kernels, "get", recording_get):
        call()
    return runs


def of(call: Callable[[], object], case: Case) -> tuple[str, ...]:
    """Return, for each kernel that a call of a case runs, whose choices it follows."""
    requests = dict.fromkeys(request for request, _, _ in recorded(call))
    return tuple(
        f"{r.kernel}: {explained.provenance}"
        for r in requests
        for explained in [
            kernels.explain_kernel(r.problem, r.kernel, r.outputs, case.free_sizes, r.target)
        ]
    )
