"""64-bit whole numbers as 32-bit ones, for WGSL, which has no others.

Kernels count in 64 bits, and keep some of these numbers in registers. Narrowed, they are right for
tensors of fewer than 2^31 elements.
"""

from __future__ import annotations

from typing import Any

from dcn_tvm.errors import CompileError

WIDE, NARROW = "int64", "int32"
_MISSING = ("float64", "bfloat16")


def to_int32(function: Any) -> Any:
    """The same function with 32-bit indices, sizes and registers.

    Raises:
        CompileError: an argument is of a type that WGSL does not have.
    """
    import tvm
    import tvm_ffi
    from tvm import tirx

    for buffer in filter(tirx.is_buffer_var, function.params):
        if str(buffer.dtype) in _MISSING:
            raise CompileError(f"WebGPU has no {buffer.dtype}")

    name = str(function.attrs["global_symbol"])
    body = _narrow_registers(function.body)
    # TVM's pass takes care of indices, loops and conditions, not of what is stored
    body = tvm_ffi.structural_map(body, (tirx.BufferStore, _narrow_value), order="post")
    module = tvm.IRModule({name: function.with_body(body)})
    return tirx.transform.ForceNarrowIndexToInt32()(module)[name]


def _narrow_registers(body: Any) -> Any:
    """With 32-bit arrays of whole numbers in the place of those that blocks allocate."""
    import tvm
    import tvm_ffi
    from tvm import tirx
    from tvm.s_tir.stmt import SBlock

    narrowed: dict[Any, Any] = {}

    def find(block: Any) -> Any:
        for buffer in block.alloc_buffers:
            if str(buffer.dtype) == WIDE:
                narrowed[buffer] = tirx.decl_buffer(
                    buffer.shape, NARROW, buffer.name, scope=buffer.scope()
                )
        return block

    def load(node: Any) -> Any:
        if node.source not in narrowed:
            return node
        return tirx.BufferLoad(narrowed[node.source], node.indices).astype(WIDE)

    def store(node: Any) -> Any:
        if node.buffer not in narrowed:
            return node
        return tirx.BufferStore(narrowed[node.buffer], node.value.astype(NARROW), node.indices)

    def allocate(block: Any) -> Any:
        return SBlock(
            *(block.iter_vars, block.reads, block.writes, block.name_hint, block.body, block.init),
            [narrowed.get(buffer, buffer) for buffer in block.alloc_buffers],
            *(block.match_buffers, block.annotations),
        )

    for kind, change in (
        (SBlock, find),
        (tvm.ir.TensorLoad, load),
        (tirx.BufferStore, store),
        (SBlock, allocate),
    ):
        body = tvm_ffi.structural_map(body, (kind, change), order="post")
    return body


def _narrow_value(store: Any) -> Any:
    """A store whose value is worked out in 32 bits; values define no variables."""
    import tvm_ffi
    from tvm import tirx

    value = tvm_ffi.structural_map(store.value, _narrow, order="post")
    return tirx.BufferStore(store.buffer, value, store.indices)


def _narrow(node: Any) -> Any:
    """An expression, whose parts are narrow."""
    from tvm import ir, tirx

    wide = isinstance(node, ir.Expr) and str(node.ty) == WIDE
    if isinstance(node, tirx.Var):
        return node.astype(NARROW) if wide else node
    if isinstance(node, tirx.IntImm):
        return tirx.const(node.value, NARROW) if wide else node
    if isinstance(node, tirx.Cast):
        return node.value.astype(NARROW) if wide else node
    if isinstance(node, tirx.Select):
        return tirx.Select(node.condition, node.true_value, node.false_value)
    if hasattr(node, "a") and hasattr(node, "b"):  # of arithmetic, comparison or logic
        return type(node)(node.a, node.b)
    if isinstance(node, ir.Call) and wide:
        return ir.Call(node.op, node.args, node.attrs, node.ty_args, ret_ty=NARROW)
    return node
