"""The door between torch and the kernels: binds any op's contract to torch.library, names none.

For each op it defines `dcn_tvm::<op>` and `dcn_tvm::<op>_backward`, with fake kernels (the shape
rule, so that torch.compile and export need no compiler), autograd and autocast.

A warm call is short. torch.library.register_autograd would take every argument through C++ and back
a second time (10 us): the autograd kernel of plain tensors calls the implementation itself, and
dispatches on whatever else there is (fake tensors, modes, other devices). And a call of the CPU
like one that was checked before, which nobody listens to, takes a `Shortcut` past checks and
dispatcher.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from dcn_tvm import ops, records
from dcn_tvm.binding import Args, Binding, layout_of
from dcn_tvm.build import Request
from dcn_tvm.ops import Op

_Run = Callable[..., Any]
_library = torch.library.Library("dcn_tvm", "DEF")
_bindings: dict[str, Binding] = {}
_shortcuts: list[Shortcut] = []
_keys = torch._C.DispatchKey
# What the autograd kernel sees when the tensors are plain ones of a device that has kernels, and no
# mode is around the call.
_PLAIN = frozenset(
    torch._C.DispatchKeySet(key).add(autograd).raw_repr()
    for key, autograd in ((_keys.CPU, _keys.AutogradCPU), (_keys.CUDA, _keys.AutogradCUDA))
)
_REMEMBERED = 1024  # signatures of calls; a program that has more forgets them all, and starts over


@dataclass(frozen=True)
class _Known:
    """What checks and dispatcher found out about a call."""

    request: Request
    attributes: Args
    scalars: tuple[float, ...]
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Shortcut:
    """Repeats calls of an op that `learn` has seen go through its checks and the dispatcher.

    Only plain CPU tensors of the same shapes and types take it, and only where nothing wants to see
    or change the call: no compiler, mode, transform, tracer, autocast or profiler.
    """

    def __init__(self, op: Op) -> None:
        self._binding = _bindings[op.name]
        self._backward = getattr(torch.ops.dcn_tvm, f"{op.name}_backward").default
        self._known: dict[Args, _Known] = {}
        _shortcuts.append(self)

    def forget(self) -> None:
        """Let the next call of every signature go the long way."""
        self._known.clear()

    def __call__(self, tensors: Args, options: Args) -> Tensor | None:
        """The op's output, or None if the call must go the long way."""
        if not _unobserved():
            return None
        try:
            known = self._known.get(_signature(tensors, options))
        except TypeError:  # an option that cannot be hashed, such as a list
            return None
        if known is None:
            return None
        if torch.is_grad_enabled() and _requires_grad(tensors):
            run, specs = functools.partial(self._run, known), self._binding.op.tensors
            output: Tensor = _Differentiable.apply(
                run, self._backward, specs, *tensors, *known.attributes
            )
            return output
        return self._run(known, *tensors)

    def learn(self, tensors: Args, options: Args, attributes: Args, output: Tensor) -> None:
        """Remember a call with `options`, which passed the checks and became `attributes`."""
        if not _unobserved() or not output.numel():
            return
        signature = _signature(tensors, options)
        if not signature or any(isinstance(option, list) for option in options):
            return
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[signature] = _Known(
            self._binding.forward_request(tensors, attributes),
            attributes,
            self._binding.op.scalars(attributes),
            output.shape,
            output.stride(),
        )

    def _run(self, known: _Known, *args: Any) -> Tensor:
        tensors = args[: self._binding.count]
        self._binding.check(tensors)
        output = torch.empty_strided(known.shape, known.strides, dtype=args[0].dtype)
        self._binding.run(known.request, (*tensors, output), known.scalars)
        return output


def _signature(tensors: Args, options: Args) -> Args:
    """Everything on which checks and dispatch depend, or () where a tensor is not plain."""
    signature: list[Any] = [options]
    for tensor in tensors:
        kind = type(tensor)
        if kind is Tensor or kind is Parameter:
            if not tensor.is_cpu or tensor.layout is not torch.strided or tensor.is_neg():
                return ()
            signature += (tensor.shape, tensor.dtype)
        elif tensor is None and len(signature) > 1:  # the first tensor is never optional
            signature.append(None)
        else:
            return ()
    return (*signature, layout_of(tensors[0]))


def _unobserved() -> bool:
    return (
        bool(_QUIET)
        and not torch.compiler.is_compiling()
        and _dispatch_state() in _QUIET
        and not torch._C._autograd._profiler_enabled()
        and not torch._C._is_torch_function_mode_enabled()
        and not _is_forward_mode()
    )


def _is_forward_mode() -> bool:
    """Then tensors may have tangents, for which torch.autograd.Function raises a clear error."""
    return forward_ad._current_level >= 0


def _dispatch_state() -> tuple[int, int]:
    included, excluded = (
        torch._C._dispatch_tls_local_include_set(),
        torch._C._dispatch_tls_local_exclude_set(),
    )
    return included.raw_repr(), excluded.raw_repr()


def _quiet_states() -> Iterator[tuple[int, int]]:
    """The states in which the dispatcher adds nothing of its own, with gradients and without."""
    yield _dispatch_state()
    with torch.inference_mode():
        yield _dispatch_state()


def _learn_quiet_states() -> frozenset[tuple[int, int]]:
    """Ask in a new thread, which has no mode, whatever there is around the import.

    A torch that no longer has these internals gives none: then no call takes the shortcut.
    """
    with ThreadPoolExecutor(1) as thread:
        try:
            return frozenset(thread.submit(lambda: list(_quiet_states())).result())
        except AttributeError:
            return frozenset()


_QUIET = _learn_quiet_states()


class _Differentiable(torch.autograd.Function):
    """Records a call of an op; its backward is the op's second operator."""

    @staticmethod
    def forward(ctx: Any, run: _Run, run_backward: _Run, specs: Args, *args: Any) -> Tensor:
        count = len(specs)
        ctx.run_backward, ctx.specs, ctx.attributes = run_backward, specs, args[count:]
        ctx.save_for_backward(*args[:count])
        output: Tensor = run(*args)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        wanted = ctx.needs_input_grad[3 : 3 + len(ctx.specs)]
        needed = [
            asked and spec.differentiable for asked, spec in zip(wanted, ctx.specs, strict=True)
        ]
        found = iter(ctx.run_backward(*grads, *ctx.saved_tensors, *ctx.attributes, needed))
        gradients = [next(found) if flag else None for flag in needed]
        return (None, None, None, *gradients, *[None] * len(ctx.attributes))


class _Final(torch.autograd.Function):
    """Records a call of an op's gradients, only to say that they have none themselves."""

    @staticmethod
    def forward(ctx: Any, run: _Run, name: str, *args: Any) -> tuple[Tensor, ...]:
        ctx.name = name
        return tuple(run(*args))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        raise NotImplementedError(
            f"double backward through dcn_tvm.{ctx.name} is not implemented: its gradients cannot "
            "be differentiated again"
        )


def forget() -> None:
    """Look records and kernels up again when they are next needed, as after tuning."""
    records.forget()
    for binding in _bindings.values():
        binding.forget()
    for shortcut in _shortcuts:
        shortcut.forget()


def _bind(op: Op) -> None:
    binding, name = Binding(op), op.name
    _bindings[name] = binding
    _library.define(f"{name}({op.schema}) -> Tensor")
    _library.define(f"{name}_backward(Tensor grad, {op.schema}, bool[] needed) -> Tensor[]")
    functions = {name: binding.forward, f"{name}_backward": binding.backward}
    fakes = {name: binding.forward_fake, f"{name}_backward": binding.backward_fake}
    for overload, function in functions.items():
        for device in ("CPU", "CUDA"):
            _library.impl(overload, function, device)
        _library.impl(overload, functools.partial(_refuse, name), "CompositeExplicitAutograd")
        torch.library.register_fake(f"dcn_tvm::{overload}", lib=_library)(fakes[overload])
    _register_autograd(op, binding)
    _register_autocast(op)


def _refuse(name: str, *args: Any) -> None:
    """What every backend does that has neither kernels of ours nor a shape rule."""
    tensor = next(arg for arg in args if isinstance(arg, Tensor))
    raise NotImplementedError(
        f"dcn_tvm.{name} has kernels for dense tensors on cpu and cuda, got {tensor.layout} on "
        f"{tensor.device}; dcn_tvm.reference.{name} runs there"
    )


def _register_autograd(op: Op, binding: Binding) -> None:
    forward = getattr(torch.ops.dcn_tvm, op.name).default
    backward = getattr(torch.ops.dcn_tvm, f"{op.name}_backward").default

    def record(keys: Any, *args: Any) -> Any:
        run = _below_autograd(keys, binding.forward, forward)
        if _is_forward_mode() or (torch.is_grad_enabled() and _requires_grad(args)):
            return _Differentiable.apply(run, backward, op.tensors, *args)
        return run(*args)

    def record_backward(keys: Any, *args: Any) -> Any:
        run = _below_autograd(keys, binding.backward, backward)
        if torch.is_grad_enabled() and _requires_grad(args):
            return list(_Final.apply(run, op.name, *args))
        return run(*args)

    _library.impl(op.name, record, "Autograd", with_keyset=True)
    _library.impl(f"{op.name}_backward", record_backward, "Autograd", with_keyset=True)


def _below_autograd(keys: Any, direct: _Run, dispatched: Any) -> _Run:
    """The implementation where nothing lies between autograd and it, else the rest of dispatch."""
    if keys.raw_repr() in _PLAIN:
        return direct

    def run(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return dispatched.redispatch(keys & torch._C._after_autograd_keyset, *args)

    return run


def _requires_grad(args: Args) -> bool:
    return any(isinstance(arg, Tensor) and arg.requires_grad for arg in args)


def _register_autocast(op: Op) -> None:
    """All tensors but float64 ones and coordinates become the autocast type, or the first's."""
    call = getattr(torch.ops.dcn_tvm, op.name).default
    lowered = [place for place, tensor in enumerate(op.tensors) if not tensor.coordinates]

    def autocast(device: str, key: Any, *args: Any) -> Any:
        cast = list(args)
        dtype = torch.get_autocast_dtype(device) if op.autocast else args[0].dtype
        for place in lowered:
            cast[place] = _cast(args[place], dtype)
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return call(*cast)

    for device in ("CPU", "CUDA"):
        key = getattr(_keys, f"Autocast{device}")
        function = functools.partial(autocast, device.lower(), key)
        _library.impl(op.name, function, f"Autocast{device}")


def _cast(arg: Any, dtype: torch.dtype) -> Any:
    lower = isinstance(arg, Tensor) and arg.is_floating_point() and arg.dtype != torch.float64
    return arg.to(dtype) if lower else arg


for _op in ops.registry().values():
    _bind(_op)
