"""The second step: is every kernel right, in every precision and memory format?

Each op is called with all its gradients on its odd problems and on the least of its suite, and
compared with its reference in float64 on the device. Where a bin's edge falls on a pixel in one
type and misses it in another, two right answers differ; then the reference in the type of the
kernel's sums is the judge, and the result says so. Then come calls that are empty, not finite, not
aligned, for other gradients, and larger than 32 bits can count. (The benchmark judges its own
problems.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dcn_tvm import examples, ops, suites
from dcn_tvm.agreement import relative_error
from dcn_tvm.bench.contender import LAYOUTS
from dcn_tvm.device import calls
from dcn_tvm.device.calls import Call
from dcn_tvm.device.items import Context, Item, Skipped
from dcn_tvm.device.journal import Result
from dcn_tvm.device.precision import PRECISIONS, allowed, dtype_of, tolerance
from dcn_tvm.device.rows import has_products, least, shrunk
from dcn_tvm.problem import Problem
from dcn_tvm.suites import Case

STEP = "correctness"
MANY = 2**31  # elements that an index of 32 bits does not reach
_SLACK = 1.02
_MOST_GROUPS = ("boxes", "batch")  # what makes an output larger, the first that an op has


@dataclass(frozen=True, eq=False)
class Check:
    """A problem in a precision and a layout, at sizes that the reference can do."""

    case: Case
    precision: str
    layout: str
    judged: bool = False

    @property
    def key(self) -> str:
        """What it is, in words."""
        return f"{self.case.op} {self.case.label}, {self.precision} {self.layout}"

    @property
    def problem(self) -> Problem:
        """The static facts."""
        return self.case.problem(dtype_of(self.precision), self.layout)

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of the call."""
        sizes = self.case.free_sizes
        return examples.judged_sizes(self.problem, sizes) if self.judged else sizes


def checks(*, small: bool = False) -> list[Check]:
    """Return the problems that every precision and layout is judged on."""
    found = []
    for op, odd in suites.ODD.items():
        cases = [(shrunk(case), False) for case in odd[:1]] if small else _cases(op)
        precisions = ("float32", "bfloat16") if small else PRECISIONS
        found += [
            Check(case, precision, layout, judged)
            for case, judged in cases
            for precision in precisions
            if precision != "tf32" or has_products(op)
            for layout in LAYOUTS.values()
        ]
    return found


def _cases(op: str) -> list[tuple[Case, bool]]:
    """The odd problems of an op, and the least of its suite."""
    return [*((case, False) for case in suites.ODD[op]), (least(op), True)]


def items(context: Context) -> Iterator[Item]:
    """Yield the step's items."""
    for check in checks(small=context.small):
        yield Item(check.key, functools.partial(judge, check, context.device), most_s=120.0)
    for op, odd in suites.ODD.items():
        case = shrunk(odd[0]) if context.small else odd[0]
        for layout in LAYOUTS.values():
            check = Check(case, "float32", layout)
            for name, function in _SPECIAL.items():
                run = functools.partial(function, check, context.device)
                yield Item(f"{op} {name}, {layout}", run)
    for op in suites.ODD:
        run = functools.partial(judge_many, op, context)
        yield Item(f"{op} more than 2^31 elements", run, least_s=15.0, most_s=120.0)


def judge(check: Check, device: str) -> Result:
    """Compare output and gradients with the reference."""
    call = calls.make(check.problem, check.sizes, device)
    with allowed(check.precision):
        _poison(call)
        results = calls.run(call)
    return compared(call, results, check.precision)


def compared(call: Call, results: dict[str, Tensor], precision: str) -> Result:
    """Return the errors of a call's results, by name, and what is wrong with them."""
    accumulate: torch.dtype = getattr(torch, call.example.problem.accumulate)
    most, errors, judges, wrong = tolerance(precision), {}, {}, []
    with allowed("float64"):
        wanted = calls.wanted(call, torch.float64)
        same: dict[str, Tensor] = {}
        for name, result in results.items():
            errors[name], judges[name] = relative_error([result], [wanted[name]]), "float64"
            if not errors[name] <= most and accumulate != torch.float64:
                same = same or calls.wanted(call, accumulate)
                errors[name] = relative_error([result], [same[name]])
                judges[name] = call.example.problem.accumulate
            if not errors[name] <= most:
                wrong.append(f"{name}: relative error {errors[name]:.1e}, tolerance {most:.1e}")
    found: Result = {"errors": errors, "tolerance": most}
    if set(judges.values()) != {"float64"}:
        found["judges"] = judges
    return {**found, "wrong": "; ".join(wrong)} if wrong else found


def judge_others(check: Check, device: str) -> Result:
    """Judge the gradients of all but the first tensor, and of the first alone."""
    call = calls.make(check.problem, check.sizes, device)
    found: Result = {}
    for names in (call.wanted[1:], call.wanted[:1]):
        if names and names != call.wanted:
            fewer = call.of(names)
            found = compared(fewer, calls.run(fewer), check.precision)
            if found.get("wrong"):
                return found
    return found or {"why": "it has one gradient only"}


def judge_empty(check: Check, device: str) -> Result:
    """Call with no image and with no boxes; sums over nothing are zero."""
    call = calls.make(check.problem, check.sizes, device)
    tried = []
    for size in _MOST_GROUPS:
        if size not in check.sizes or (size == "batch" and "boxes" in check.sizes):
            continue
        tensors = _cut(call, _grows(check, size, device), 0, 0)
        results = calls.run(tensors)
        for name, result in results.items():
            if not bool((result == 0).all()):
                return {"wrong": f"without {size} {name} is not zero"}
        tried.append(size)
    return {"empty": tried}


def judge_not_finite(check: Check, device: str) -> Result:
    """Compare the output where places are infinite, huge, or no numbers."""
    call = calls.make(check.problem, check.sizes, device).of(())
    specs = ops.registry()[check.case.op].tensors
    names = [spec.name for spec in specs]
    place = "offset" if "offset" in names else "boxes"
    index = names.index(place)
    given = call.tensors[index]
    if given is None:
        raise Skipped(f"it has no {place}")
    poked = given.clone()
    rows = poked.flatten(1)[:, 1:] if place == "boxes" else poked.flatten(1)
    for step, value in enumerate((math.inf, -math.inf, math.nan, 1e30)):
        if step < rows.shape[0] or place != "boxes":
            rows[step % rows.shape[0], step % rows.shape[1]] = value
    tensors = list(call.tensors)
    tensors[index] = poked.clone()
    changed = call.with_tensors(tensors)
    mine, wanted = calls.run(changed)["output"], calls.wanted(changed, torch.float64)["output"]
    if not torch.equal(mine.isnan(), wanted.isnan()):
        return {"wrong": f"NaN in {int(mine.isnan().sum())}, not {int(wanted.isnan().sum())}"}
    error = relative_error([mine.nan_to_num(nan=0.0)], [wanted.nan_to_num(nan=0.0)])
    wrong = not error <= tolerance(check.precision)
    return {
        "error": error,
        "nan": int(mine.isnan().sum()),
        **({"wrong": "values"} if wrong else {}),
    }


def judge_views(check: Check, device: str) -> Result:
    """Call with tensors that are neither dense nor aligned: the same result."""
    call = calls.make(check.problem, check.sizes, device)
    plain = calls.run(call)
    views = calls.run(call.with_tensors([_view(t) for t in call.tensors]))
    error = relative_error(views.values(), list(plain.values()))
    wrong = {} if error <= tolerance(check.precision) else {"wrong": "it differs from dense ones"}
    return {"error": error, **wrong}


def judge_many(op: str, context: Context, elements: int = MANY) -> Result:
    """Call with an output of more elements than 32 bits can count, of equal parts but the last."""
    if context.device == "cpu":
        elements = 2**12
    check = Check(least(op), "bfloat16", "nchw", judged=True)
    size = next(name for name in _MOST_GROUPS if name in check.sizes)
    grows = _grows(check, size, context.device)
    problem, sizes = check.problem, {**check.sizes, size: 1}
    first, last = (calls.make(problem, sizes, context.device, seed) for seed in (0, 1))
    shared = [a if dim is None else b for a, b, dim in _zip(first, last, grows)]
    last = last.with_tensors(shared)
    count = max(3, math.ceil(_SLACK * elements / first.grad.numel()))
    _check_memory(first, grows, count, context.device)
    whole = first.with_tensors(
        [t if dim is None else _repeated(t, o, count) for t, o, dim in _zip(first, last, grows)],
        _repeated(first.grad, last.grad, count),
    )
    results = calls.run(whole)
    parts = {0: calls.run(first), count // 2: calls.run(first), count - 1: calls.run(last)}
    names = ["output", *(f"grad_{name}" for name in _grown(check, grows) if name in first.wanted)]
    errors = {
        name: max(relative_error([results[name][i : i + 1]], [p[name]]) for i, p in parts.items())
        for name in names
    }
    wrong = [name for name, error in errors.items() if not error <= tolerance("bfloat16")]
    told: Result = {"errors": errors, size: count, "elements": results["output"].numel()}
    return {**told, "wrong": ", ".join(wrong)} if wrong else told


_SPECIAL = {
    "empty": judge_empty,
    "not finite": judge_not_finite,
    "views": judge_views,
    "other gradients": judge_others,
}


def _grows(check: Check, size: str, device: str) -> list[int | None]:
    """Return, for each tensor, the dimension that a size of the call decides: always the first."""
    one, two = (
        examples.example(check.problem, {**check.sizes, size: count}).tensors for count in (1, 2)
    )
    return [
        None if a is None or b is None or a.shape[0] == b.shape[0] else 0
        for a, b in zip(one, two, strict=True)
    ]


def _grown(check: Check, grows: list[int | None]) -> list[str]:
    specs = ops.registry()[check.case.op].tensors
    return [spec.name for spec, dim in zip(specs, grows, strict=True) if dim is not None]


def _zip(
    one: Call, other: Call, grows: list[int | None]
) -> Iterator[tuple[Tensor | None, Tensor | None, int | None]]:
    yield from zip(one.tensors, other.tensors, grows, strict=True)


def _cut(call: Call, grows: list[int | None], start: int, stop: int) -> Call:
    tensors = [
        t if t is None or dim is None else t[start:stop]
        for t, dim in zip(call.tensors, grows, strict=True)
    ]
    return call.with_tensors(tensors, call.grad[start:stop])


def _repeated(part: Tensor | None, last: Tensor | None, count: int) -> Tensor | None:
    """Return `count - 1` times a part, and another one."""
    if part is None or last is None:
        return None
    whole = torch.empty((count, *part.shape[1:]), dtype=part.dtype, device=part.device)
    whole[:-1] = part
    whole[-1:] = last
    return whole


def _check_memory(part: Call, grows: list[int | None], count: int, device: str) -> None:
    """Refuse what the device's memory does not hold: all tensors, and their gradients."""
    if not device.startswith("cuda"):
        return
    each = sum(
        t.nbytes for t, d in zip(part.tensors, grows, strict=True) if t is not None and d == 0
    )
    needed = 2.5 * count * (each + part.grad.nbytes)
    free, _ = torch.cuda.mem_get_info(device)
    if needed > free:
        raise Skipped(f"it needs {needed / 2**30:.0f} GiB, and {free / 2**30:.0f} are free")


def _view(tensor: Tensor | None) -> Tensor | None:
    """Return the same numbers, one element off the start of their memory, and every second one."""
    if tensor is None:
        return None
    strides = tuple(2 * stride for stride in tensor.stride())
    span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, strides, strict=True))
    memory = torch.zeros(span + 1, dtype=tensor.dtype, device=tensor.device)
    view = memory.as_strided(tensor.shape, strides, 1)
    view.copy_(tensor)
    return view


def _poison(call: Call) -> None:
    """Leave NaN in the memory that the allocator gives next: what is not written shows."""
    shapes = [call.grad, *(tensor for tensor in call.tensors if tensor is not None)]
    poison = [torch.full_like(tensor, math.nan) for tensor in shapes]
    del poison
