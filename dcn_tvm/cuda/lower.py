"""From a scheduled function to a library whose kernels run on a GPU: a host part and a device part.

TVM splits a function into device kernels and a host function that checks the arguments, takes
scratch memory and launches the kernels. TVM's own runtime for CUDA would do the last two; it is
linked to one version of CUDA and stands in the compiler's package. Here both are calls of
`launch.c`, a few functions above CUDA's driver, which are added to the host part together with the
device code. The result is one library that needs only apache-tvm-ffi and a driver: it is compiled
without a GPU, it runs without TVM, and torch's allocator and current stream are its own.

`launch.ll` is `launch.c` as LLVM's text, so that no C compiler is needed here either.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcn_tvm.cuda import narrow, passes
from dcn_tvm.errors import CompileError

ALIGNMENT = 64  # bytes that every tensor's address is a multiple of
_CONFIG = {"tirx.disable_cse_tir": True}
# What a device module calls its source, where that is not what it says when asked for no format.
_FORMATS = {"cuda": "cuda", "rocm": "asm"}
_SHIM = Path(__file__).with_name("launch.ll")
_PLACES = {
    **{f"blockIdx.{axis}": axis.upper() for axis in "xyz"},
    **{f"threadIdx.{axis}": axis for axis in "xyz"},
    "tirx.use_dyn_shared_memory": "s",
}
# The functions of launch.c that a host part calls: results and arguments.
_LAUNCHER = {
    "dcn_tvm_launch": ("int32", ("int32", "int32", "handle", "int32")),
    "dcn_tvm_alloc": ("handle", ("int32", "uint64")),
    "dcn_tvm_free": ("int32", ("int32", "handle")),
}
_POINTER = 15  # TVM's number for the value of an argument on the stack
_KINDS = {"int64": "l", "int32": "i", "float32": "f", "float64": "d", "bool": "i"}
# TVM's preamble leaves CUDA's header for bfloat16 out before sm_80, and uses it all the same. Since
# CUDA 12 the header does in software what such devices cannot do.
_BFLOAT_GUARD = "#if !defined(__CUDA_ARCH__) || (__CUDA_ARCH__ >= 800)\n"
# WGSL has no such constants, and refuses expressions of constants that make one: a block has fewer
# than 2^22 threads.
_WGSL = {
    "nanf": "bitcast<f32>(0x7fc00000u | threadIdx.x)",
    "inff": "bitcast<f32>(0x7f800000u | (threadIdx.x >> 22u))",
}
_lock = threading.Lock()


@dataclass(frozen=True)
class Kernel:
    """A device kernel: its name in the device code, and what a launch passes to it (launch.c)."""

    name: str
    signature: str


@dataclass(frozen=True)
class Lowered:
    """The parts of a function: the host's IR, the device's source and its kernels in order."""

    host: Any
    source: str
    kernels: tuple[Kernel, ...]


def lower(function: Any, target: dict[str, Any], host: dict[str, Any]) -> Lowered:
    """Split a scheduled function for a GPU target, and generate its device code's source.

    Args:
        function: with a `global_symbol`; all that it computes stands under bound threads.
        target: of the device code, as TVM's dictionary.
        host: of the rest.

    Raises:
        CompileError: the function has nothing that runs on the device, or TVM has no code generator
            for it.
    """
    import tvm
    import tvm.tirx.build

    steps = sys.modules["tvm.tirx.build"]  # its package exports a function of this name
    function = _at_offset_zero(function)
    if target["kind"] == "webgpu":
        function = narrow.to_int32(function)
    # The host part only checks arguments and launches: LLVM's optimisations would take seconds.
    device = tvm.target.Target(target, host={**host, "opt-level": 0})
    _, finish_host, finish_device = tvm.tirx.get_default_tir_pipeline(device)
    name = str(function.attrs["global_symbol"])
    with tvm.transform.PassContext(config=_CONFIG):
        module = tvm.tirx.transform.BindTarget(device)(tvm.IRModule({name: function}))
        module = passes.to_kernels(module, target["kind"])
        host_module, device_modules = steps.split_host_device_mods(module)
        if len(device_modules) != 1:
            raise CompileError(f"{name} binds no threads: it has no kernel for {device.kind.name}")
        # the host only passes pointers on, and LLVM has no bfloat16 that TVM could use
        host_module = finish_host()(tvm.tirx.transform.BF16StorageLegalize()(host_module))
        ((_, device_module),) = device_modules.items()
        device_module = finish_device()(device_module)
        if target["kind"] == "opencl":
            device_module = passes.with_typed_constants(device_module)
        kernels = tuple(
            Kernel(str(f.attrs["global_symbol"]), _signature(f))
            for f in device_module.functions.values()
        )
        return Lowered(host_module, _source(device_module, device), kernels)


def assemble(lowered: Lowered, image: bytes) -> Any:
    """Compile the host part with the device code in it, and return TVM's runtime module."""
    import tvm

    names = [kernel.name for kernel in lowered.kernels]
    host = _with_launches(lowered.host, names, shim(lowered.kernels, image))
    target = next(iter(host.functions.values())).attrs["target"]
    return tvm.get_global_func("target.build.llvm")(host, target)


def shim(kernels: Sequence[Kernel], image: bytes) -> str:
    """The launcher's IR, with the device code and the kernels' signatures as its constants."""
    constants, places = [f"@dcn_tvm_image = hidden constant {_bytes(image)}, align 16"], []
    for i, kernel in enumerate(kernels):
        for field in ("name", "signature"):
            text = getattr(kernel, field).encode() + b"\0"
            constants.append(f"@dcn_tvm_{field}_{i} = private constant {_bytes(text)}")
        places.append(f"%struct.Kernel {{ ptr @dcn_tvm_name_{i}, ptr @dcn_tvm_signature_{i} }}")
    count, table = len(kernels), ", ".join(places)
    constants.append(f"@dcn_tvm_kernels = hidden constant [{count} x %struct.Kernel] [{table}]")
    constants.append(f"@dcn_tvm_kernel_count = hidden constant i32 {count}")
    text = re.sub(r"^@dcn_tvm_.* = external .*\n", "", _SHIM.read_text(), flags=re.MULTILINE)
    types = re.compile(r"^%[\w.]+ = type .*\n", flags=re.MULTILINE)
    return "".join(types.findall(text)) + "\n".join(constants) + "\n" + types.sub("", text)


def _bytes(data: bytes) -> str:
    plain = "".join(chr(b) if 32 <= b < 127 and b not in (34, 92) else f"\\{b:02X}" for b in data)
    return f'[{len(data)} x i8] c"{plain}"'


def _signature(kernel: Any) -> str:
    kinds = [
        "p" if _is_pointer(parameter) else _KINDS[str(parameter.ty.dtype)]
        for parameter in kernel.params
    ]
    places = [_PLACES[str(tag)] for tag in kernel.attrs["tirx.kernel_launch_params"]]
    return "".join((*kinds, *places))


def _is_pointer(parameter: Any) -> bool:
    return "Pointer" in type(parameter.ty).__name__


def _with_launches(module: Any, names: Sequence[str], ir: str) -> Any:
    """The host function with the launcher's calls instead of those of TVM's runtime for GPUs."""
    import tvm
    import tvm_ffi
    from tvm import tirx

    ((variable, function),) = module.functions.items()
    (device,) = _found(function.body, tirx.Var, lambda var: var.name == "dev_id")[:1]
    (stack,) = _found(function.body, tirx.Var, lambda var: var.name == "stack_ffi_any")[:1]
    once = {name: tvm.ir.GlobalVar(f"{name}_once") for name in _LAUNCHER}

    def rename(call: Any) -> Any:
        name = getattr(call.op, "name", "")
        if name == "tirx.TVMBackendAllocWorkspace":
            arguments = [device, call.args[2].astype("uint64"), stack]
            code = tvm.ir.Call(once["dcn_tvm_alloc"], arguments, ret_ty="int32")
            pointer = tirx.tvm_struct_get(stack, 0, _POINTER, call.ty)
            return tvm.ir.Call("prim.if_then_else", [code == 0, pointer, pointer], ret_ty=call.ty)
        if name == "tirx.TVMBackendFreeWorkspace":
            return tvm.ir.Call(once["dcn_tvm_free"], [device, call.args[2]], ret_ty="int32")
        return call

    def launch(statement: Any) -> Any:
        call = statement.value
        if getattr(getattr(call, "op", None), "name", "") != "tirx.tvm_call_packed_lowered":
            return statement
        name, stack, first, _ = call.args
        if name.value == "__tvm_set_device":  # a launch does so itself
            return tirx.Evaluate(tirx.const(0, "int32"))
        index = tirx.const(names.index(name.value), "int32")
        arguments = [index, device, stack, first]
        code = tvm.ir.Call(once["dcn_tvm_launch"], arguments, ret_ty="int32")
        thrown = tirx.Evaluate(tirx.tvm_throw_last_error())
        return tirx.IfThenElse(code != 0, thrown, None)

    body = tvm_ffi.structural_map(function.body, (tvm.ir.Call, rename), order="post")
    body = tvm_ffi.structural_map(body, (tirx.Evaluate, launch), order="post")
    body = tirx.AttrStmt(tirx.const(0, "int32"), "pragma_import_llvm", _text(ir), body)
    target = function.attrs["target"]
    parts = {once[name]: _once(name).with_attr("target", target) for name in _LAUNCHER}
    return tvm.IRModule({variable: function.with_body(body), **parts})


def _once(name: str) -> Any:
    """A function that does nothing but call one of the launcher's; memory is left on the stack.

    TVM has LLVM inline all of an imported module at each call. Of a graph with eleven kernels that
    was 3 MB of code: 2 s to an object, 9 s in memory.
    """
    from tvm import tirx

    result, kinds = _LAUNCHER[name]
    parameters = [tirx.Var(f"argument_{i}", kind) for i, kind in enumerate(kinds)]
    called = tirx.call_extern(result, name, *parameters)
    if result == "handle":
        stack = tirx.Var("stack", "handle")
        parameters.append(stack)
        body = tirx.Evaluate(tirx.tvm_struct_set(stack, 0, _POINTER, called))
    else:
        body = tirx.IfThenElse(called != 0, tirx.Evaluate(tirx.tvm_throw_last_error()), None)
    return tirx.PrimFunc(parameters, body, tirx.const(0, "int32").ty)


def _at_offset_zero(function: Any) -> Any:
    """The same function for tensors that start where their memory does, as torch's all do.

    An offset that may be anything would keep the code generator from reading more than one element
    at once.
    """
    import tvm_ffi
    from tvm import tirx

    def whole(buffer: Any) -> Any:
        if not tirx.is_buffer_var(buffer):
            return buffer
        return tirx.decl_buffer(
            *(buffer.shape, buffer.dtype, buffer.name),
            scope=buffer.scope(),
            data_alignment=ALIGNMENT,
        )

    parameters = {parameter: whole(parameter) for parameter in function.params}
    replaced = (tirx.Var, lambda var: parameters.get(var, var))
    body = tvm_ffi.structural_map(function.body, replaced, order="post")
    return tirx.PrimFunc(list(parameters.values()), body, function.ret_type, function.attrs)


def _text(value: str) -> Any:
    import tvm

    return tvm.ir.StringImm(value)


def _found(body: Any, kind: type, wanted: Any) -> list[Any]:
    import tvm_ffi

    found: list[Any] = []

    def look(node: Any) -> Any:
        if wanted(node):
            found.append(node)
        return node

    tvm_ffi.structural_map(body, (kind, look), order="post")
    return found


def _source(module: Any, target: Any) -> str:
    """The device module's source; TVM compiles none of it."""
    import tvm

    kind = target.kind.name
    generate = tvm.get_global_func(f"target.build.{kind}", allow_missing=True)
    if generate is None:
        raise CompileError(f"this build of TVM generates no code for {kind}")
    with _environment("TVM_COMPILE_FORCE_FALLBACK", "1"):
        built = generate(module, target)
    source = str(built.inspect_source(_FORMATS.get(kind, "")))
    if kind == "webgpu":
        return re.sub(r"\b(nanf|inff)\b", lambda found: _WGSL[found[1]], source)
    return source.replace(_BFLOAT_GUARD, "#if 1\n")


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    with _lock:
        before = os.environ.get(name)
        os.environ[name] = value
        try:
            yield
        finally:
            os.environ.pop(name)
            if before is not None:
                os.environ[name] = before
