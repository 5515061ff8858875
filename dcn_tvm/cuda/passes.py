"""TVM's passes from a nest with bound threads to a host function and device kernels.

They are those of TVM's pipeline for schedulable functions that nests need, in its order. Left out:
- the pass that sets barriers between reads and writes of shared memory: nests set their own. TVM's
  would be more than are needed where a tile is written through a device function, and it refuses
  conditions around shared memory that are right;
- those that rewrite bfloat16, which CUDA has: nests compute in float32, and only load, store and
  convert it;
- the one that lets buffers share memory: it mixes types that device functions tell apart;
- but for CUDA, the one that moves an array to the innermost block that has all its uses: OpenCL and
  Metal let a kernel declare shared memory only in its outermost scope, which is where nests do.
"""

from __future__ import annotations

import math
from typing import Any


def to_kernels(module: Any, kind: str) -> Any:
    """Apply the passes to a module whose functions are bound to a target of this kind."""
    import tvm
    from tvm import s_tir, tirx

    passes = [
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerInitBlock(),
        *([s_tir.transform.PlanAndUpdateBufferAllocationLocation()] if kind == "cuda" else []),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.LiftThreadBinding(),
        s_tir.transform.UnifyThreadBinding(),
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.NarrowDataType(32),
        tirx.transform.VectorizeLoop(True),
        tirx.transform.UnrollLoop(),
        s_tir.transform.RenormalizeSplitPattern(),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        s_tir.transform.RewriteUnsafeSelect(),
        tirx.transform.VerifyMemory(),
        tirx.transform.AnnotateEntryFunc(),
        s_tir.transform.MergeSharedMemoryAllocations(),
        tirx.transform.SplitHostDevice(),
        tirx.transform.MakePackedAPI(),
    ]
    return tvm.ir.transform.Sequential(passes)(module)


def with_typed_constants(module: Any) -> Any:
    """Device functions for OpenCL, where TVM writes each NaN and infinity as a `float`.

    In its `select`, whose arguments must be of one type, others are cast to what they are.
    """
    import tvm
    import tvm_ffi
    from tvm import tirx

    def typed(constant: Any) -> Any:
        dtype = str(constant.ty)
        if math.isfinite(constant.value) or dtype == "float32":
            return constant
        return tirx.Cast(dtype, tirx.const(constant.value, "float32"))

    functions = {
        variable: function.with_body(
            tvm_ffi.structural_map(function.body, (tirx.FloatImm, typed), order="post")
        )
        for variable, function in module.functions.items()
    }
    return tvm.IRModule(functions)
