"""64-bit whole numbers as 32-bit ones, for WGSL, which has no others.

Kernels count in 64 bits, and keep some of these numbers in registers. Narrowed, they are right for
tensors of fewer than 2^31 elements.
"""

from __future__ import annotations

from typing import Any


def to_int32(function: Any) -> Any:
    """The same function with 32-bit indices, sizes and registers."""
    import tvm
    from tvm import tirx

    name = str(function.attrs["global_symbol"])
    module = tvm.IRModule({name: _narrow_registers(function)})
    return tirx.transform.ForceNarrowIndexToInt32()(module)[name]


def _narrow_registers(function: Any) -> Any:
    """With 32-bit arrays of whole numbers that blocks allocate: TVM's pass leaves them alone."""
    import tvm
    import tvm_ffi
    from tvm import tirx
    from tvm.s_tir.stmt import SBlock

    narrowed: dict[Any, Any] = {}

    def find(block: Any) -> Any:
        for buffer in block.alloc_buffers:
            if str(buffer.dtype) == "int64":
                narrowed[buffer] = tirx.decl_buffer(
                    buffer.shape, "int32", buffer.name, scope=buffer.scope()
                )
        return block

    def load(node: Any) -> Any:
        if node.source not in narrowed:
            return node
        return tirx.BufferLoad(narrowed[node.source], node.indices).astype("int64")

    def store(node: Any) -> Any:
        if node.buffer not in narrowed:
            return node
        return tirx.BufferStore(narrowed[node.buffer], node.value.astype("int32"), node.indices)

    def allocate(block: Any) -> Any:
        return SBlock(
            *(block.iter_vars, block.reads, block.writes, block.name_hint, block.body, block.init),
            [narrowed.get(buffer, buffer) for buffer in block.alloc_buffers],
            *(block.match_buffers, block.annotations),
        )

    body = tvm_ffi.structural_map(function.body, (SBlock, find), order="post")
    body = tvm_ffi.structural_map(body, (tvm.ir.TensorLoad, load), order="post")
    body = tvm_ffi.structural_map(body, (tirx.BufferStore, store), order="post")
    body = tvm_ffi.structural_map(body, (SBlock, allocate), order="post")
    return function.with_body(body)
