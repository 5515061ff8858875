"""The third step: does an op behave on the device as torch's own do?

Registration (opcheck), repeatability, CUDA graphs with new inputs, streams, a second device,
autocast, torch.compile, numerical derivatives, a distributed wrapper, memory, and the sanitizer's
tools. Each item is one op and one of these; what cannot be tried here is skipped and says why.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dcn_tvm import ops, suites
from dcn_tvm.agreement import relative_error
from dcn_tvm.device import calls, sanitizer
from dcn_tvm.device.calls import Call
from dcn_tvm.device.correctness import Check
from dcn_tvm.device.items import Context, Item, Skipped
from dcn_tvm.device.journal import Result
from dcn_tvm.device.precision import tolerance
from dcn_tvm.device.rows import shrunk

STEP = "behaviour"
RUNS = 5
_LEAKED_BYTES = 1 << 20
_TRIES = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_dynamic",
)

Trial = Callable[[Call, str], Result]


def items(context: Context) -> Iterator[Item]:
    """Yield the step's items: every trial of an op before the next, which shares its kernels."""
    for op, cases in suites.ODD.items():
        case = shrunk(cases[0]) if context.small else cases[0]
        for name, (trial, precision, most_s) in TRIALS.items():
            run = functools.partial(_run, trial, Check(case, precision, "nchw"), context.device)
            yield Item(f"{op} {name}", run, most_s=most_s)
    yield from sanitizer.items(context)


def _run(trial: Trial, check: Check, device: str) -> Result:
    return trial(calls.make(check.problem, check.sizes, device), device)


def is_registered(call: Call, device: str) -> Result:
    """Let torch check schema, fake kernels and autograd of both operators."""
    attributes = call.example.attributes
    leaves = [_leaf(call, i) for i in range(len(call.tensors))]
    torch.library.opcheck(
        calls.operator(call.example.op), (*leaves, *attributes), test_utils=_TRIES
    )
    specs = ops.registry()[call.example.op].tensors
    needed = [spec.name in call.wanted for spec in specs]
    backward = calls.operator(call.example.op, backward=True)
    arguments = (call.grad, *call.tensors, *attributes, needed)
    torch.library.opcheck(backward, arguments, test_utils=_TRIES[::2])
    return {}


def repeats(call: Call, device: str) -> Result:
    """Give the same bits in every run where torch is asked to be deterministic."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        first = calls.run(call)
        found = [_different(first, calls.run(call)) for _ in range(RUNS - 1)]
    finally:
        torch.use_deterministic_algorithms(before)
    loose = _different(calls.run(call), calls.run(call))
    told: Result = {"runs": RUNS, "differs without being asked": loose}
    return {**told, "wrong": f"{found[0]} differ"} if any(found) else told


def replays(call: Call, device: str) -> Result:
    """Replay a CUDA graph of forward and backward on inputs that changed since."""
    _needs_cuda(device)
    static = call.with_tensors([None if t is None else t.clone() for t in call.tensors])
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            calls.run(static)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        held = calls.run(static)
    other = _other(call, device)
    for into, new in zip(static.tensors, other.tensors, strict=True):
        if into is not None and new is not None:
            into.copy_(new)
    static.grad.copy_(other.grad)
    graph.replay()
    torch.cuda.synchronize(device)
    return _agreement(held, calls.run(other))


def runs_on_a_stream(call: Call, device: str) -> Result:
    """Run on a stream that is not the default one, behind a kernel that makes its input."""
    _needs_cuda(device)
    expected = calls.run(call)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        late = []
        for tensor in call.tensors:
            torch.cuda._sleep(2_000_000)  # what reads too early finds zeros
            late.append(None if tensor is None else torch.zeros_like(tensor).copy_(tensor))
        results = calls.run(call.with_tensors(late))
    stream.synchronize()
    return _agreement(results, expected)


def runs_on_two_streams(call: Call, device: str) -> Result:
    """Run two calls side by side: neither disturbs the other's scratch memory."""
    _needs_cuda(device)
    both = (call, _other(call, device))
    expected = [calls.run(each) for each in both]
    torch.cuda.synchronize(device)
    streams = [torch.cuda.Stream(device) for _ in both]
    results: list[list[dict[str, Tensor]]] = [[], []]
    for _ in range(RUNS):
        for place, (stream, each) in enumerate(zip(streams, both, strict=True)):
            with torch.cuda.stream(stream):
                results[place].append(calls.run(each))
    torch.cuda.synchronize(device)
    found = [
        _agreement(result, wanted)
        for own, wanted in zip(results, expected, strict=True)
        for result in own
    ]
    return next((each for each in found if each.get("wrong")), found[0])


def runs_on_another_device(call: Call, device: str) -> Result:
    """Run on the second device while the first is the current one."""
    if not device.startswith("cuda") or torch.cuda.device_count() < 2:
        raise Skipped("there is no second device")
    there = [None if t is None else t.to("cuda:1") for t in call.tensors]
    results = calls.run(call.with_tensors(there, call.grad.to("cuda:1")))
    return _agreement({n: t.to(device) for n, t in results.items()}, calls.run(call))


def follows_autocast(call: Call, device: str) -> Result:
    """Take the type that autocast says where the contract says so, and the first tensor's else."""
    op = ops.registry()[call.example.op]
    function = calls.operator(op.name)
    with torch.autocast(device.partition(":")[0], torch.bfloat16):
        output = function(*call.tensors, *call.example.attributes)
    expected = torch.bfloat16 if op.autocast else torch.float32
    if output.dtype != expected:
        return {"wrong": f"the result is {output.dtype}, not {expected}"}
    exact = calls.run(call.of(()))["output"]
    precision = "bfloat16" if op.autocast else "float32"
    error = relative_error([output], [exact])
    # Offsets are rounded as well: samples move, by up to a 256th of the offset.
    most = 8 * tolerance(precision)
    return {"error": error, **({} if error <= most else {"wrong": f"error above {most:.1e}"})}


def compiles(call: Call, device: str) -> Result:
    """Pass torch.compile as one graph, forward and backward."""
    op, attributes = calls.operator(call.example.op), call.example.attributes

    def function(*tensors: Tensor | None) -> Any:
        return op(*tensors, *attributes).sin()

    torch._dynamo.reset()
    found = []
    for made in (function, torch.compile(function, fullgraph=True)):
        leaves = [_leaf(call, i) for i in range(len(call.tensors))]
        output = made(*leaves)
        inputs = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
        gradients = torch.autograd.grad(output, inputs, call.grad)
        found.append(dict(zip(("output", *call.wanted), (output, *gradients), strict=True)))
    torch._dynamo.reset()
    return _agreement(found[1], found[0])


def is_derivative(call: Call, device: str) -> Result:
    """Compare gradients with numerical derivatives in float64."""
    op, attributes = calls.operator(call.example.op), call.example.attributes
    leaves: Any = [_leaf(call, i) for i in range(len(call.tensors))]  # some may be absent
    torch.autograd.gradcheck(
        lambda *tensors: op(*tensors, *attributes), leaves, fast_mode=True, nondet_tol=1e-10
    )
    return {}


def is_distributed(call: Call, device: str) -> Result:
    """Train under DistributedDataParallel in a group of one process."""
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    if not distributed.is_available():
        raise Skipped("torch was built without torch.distributed")
    layer = _Layer(call).to(device)
    on_device = device.startswith("cuda")
    backend = "nccl" if on_device and distributed.is_nccl_available() else "gloo"
    store = torch._C._distributed_c10d.HashStore()
    distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(layer)
        wrapped().backward(call.grad)
    finally:
        distributed.destroy_process_group()
    names = [f"grad_{name}" for name in call.wanted]
    results = {f"grad_{name}": p.grad for name, p in layer.named_parameters() if p.grad is not None}
    expected = calls.run(call)
    return _agreement(results, {name: expected[name] for name in names})


def keeps_no_memory(call: Call, device: str) -> Result:
    """Hold as much memory after many calls as after a few."""
    _needs_cuda(device)
    for _ in range(RUNS):
        calls.run(call)
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    free_before = torch.cuda.mem_get_info(device)[0]
    for _ in range(20 * RUNS):
        calls.run(call)
    torch.cuda.synchronize(device)
    held = torch.cuda.memory_allocated(device) - before
    taken = free_before - torch.cuda.mem_get_info(device)[0]
    wrong = (
        {"wrong": "memory grows"} if max(held, taken - 64 * _LEAKED_BYTES) > _LEAKED_BYTES else {}
    )
    return {"held_bytes": held, "taken_bytes": taken, **wrong}


# Name: what is tried, the precision of its tensors, and the seconds after which it hangs.
TRIALS: dict[str, tuple[Trial, str, float]] = {
    "opcheck": (is_registered, "float32", 120.0),
    "determinism": (repeats, "float32", 60.0),
    "graph capture": (replays, "float32", 60.0),
    "a stream": (runs_on_a_stream, "float32", 60.0),
    "two streams": (runs_on_two_streams, "float32", 60.0),
    "a second device": (runs_on_another_device, "float32", 60.0),
    "autocast": (follows_autocast, "float32", 60.0),
    "torch.compile": (compiles, "float32", 180.0),
    "gradcheck": (is_derivative, "float64", 120.0),
    "distributed": (is_distributed, "float32", 90.0),
    "memory": (keeps_no_memory, "float32", 60.0),
}


class _Layer(nn.Module):
    """A module whose parameters are all tensors of a call that have gradients."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self._call = call
        specs = ops.registry()[call.example.op].tensors
        self._names = [spec.name for spec in specs]
        for name, tensor in zip(self._names, call.tensors, strict=True):
            if tensor is not None and name in call.wanted:
                self.register_parameter(name, nn.Parameter(tensor.clone()))

    def forward(self) -> Any:
        """Return the op's output."""
        own = dict(self.named_parameters())
        pairs = zip(self._names, self._call.tensors, strict=True)
        tensors = [own.get(name, tensor) for name, tensor in pairs]
        return calls.operator(self._call.example.op)(*tensors, *self._call.example.attributes)


def _leaf(call: Call, place: int) -> Tensor | None:
    spec, tensor = ops.registry()[call.example.op].tensors[place], call.tensors[place]
    return (
        None if tensor is None else tensor.detach().clone().requires_grad_(spec.name in call.wanted)
    )


def _other(call: Call, device: str) -> Call:
    """Return the same call of other numbers."""
    made = call.example
    op = ops.registry()[made.op]
    sizes = dict(op.sizes(made.tensors, op.scalars(made.attributes)))
    return calls.make(made.problem, sizes, device, made.seed + 1)


def _different(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    return [name for name in one if not torch.equal(one[name], other[name])]


def _agreement(results: dict[str, Tensor], expected: dict[str, Tensor]) -> Result:
    """Return the error of results of the same kernels, whose sums may be added in another order."""
    errors = {name: relative_error([results[name]], [expected[name]]) for name in expected}
    wrong = [name for name, error in errors.items() if not error <= tolerance("float32")]
    return {"error": max(errors.values()), **({"wrong": ", ".join(wrong)} if wrong else {})}


def _needs_cuda(device: str) -> None:
    if not device.startswith("cuda"):
        raise Skipped(f"{device} has no streams, graphs and memory to ask for")
