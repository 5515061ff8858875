"""Sums to which many threads add: with CUDA's atomics, in floating point or in fixed point.

Additions of floating-point numbers round, so their sum depends on their order, which on a GPU
nobody knows. Those of whole numbers do not: `fixed` sums hold `round(value * scale)` in 64 bits,
where the scale is the largest power of two with which no sum can overflow. It follows from a bound
on what is added, and the maximum of numbers does not depend on their order either. The result is
the same bits in every run, and rounded once: 2^-62 of the bound for each addend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from dcn_tvm.te import nest
from dcn_tvm.te.gpu.grid import THREADS, div, each, flat, launch
from dcn_tvm.te.nest import int64

Expr = Any
BITS = 61  # of a fixed-point sum: one for the sign, one because the exponent is rounded
BLOCKS = 264  # of a reduction over a tensor

_ADD = """__device__ __forceinline__ void dcn_add_{name}({type}* sum, {type} value) {{
  atomicAdd(sum, value);
}}
"""
_ADD_FIXED = """__device__ __forceinline__ void dcn_add_fixed(void* sum, double value) {
  atomicAdd((unsigned long long*)sum, (unsigned long long)__double2ll_rn(value));
}
"""
_ADD_FOUR = """__device__ __forceinline__
void dcn_add_four(float* sum, float a, float b, float c, float d) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};"
    ::"l"(sum), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
#else
  atomicAdd(sum, a);
  atomicAdd(sum + 1, b);
  atomicAdd(sum + 2, c);
  atomicAdd(sum + 3, d);
#endif
}
"""
_LARGEST = """__device__ __forceinline__ void dcn_largest_float32(float* sum, float value) {
  atomicMax((int*)sum, __float_as_int(value));
}
__device__ __forceinline__ void dcn_largest_float64(double* sum, double value) {
  atomicMax((long long*)sum, __double_as_longlong(value));
}
"""
_NAMES = {"float32": "float", "float64": "double"}


def add(sums: Any, index: Sequence[Expr], value: Expr, scale: Expr | None = None) -> None:
    """Emit an atomic addition to sums of float32 or float64, or of int64 with their scale."""
    address = T.address_of(sums[tuple(index)])
    if scale is not None:
        call("dcn_add_fixed", address, value.astype("float64") * scale, source=_ADD_FIXED)
        return
    dtype = str(sums.dtype)
    source = _ADD.format(name=dtype, type=_NAMES[dtype])
    call(f"dcn_add_{dtype}", address, value, source=source)


def add_four(
    sums: Any, index: Sequence[Expr], values: Sequence[Expr], scale: Expr | None = None
) -> None:
    """Emit the additions of four values to neighbours, aligned to all four."""
    if scale is not None or str(sums.dtype) != "float32":
        for i, value in enumerate(values):
            add(sums, [*index[:-1], index[-1] + i], value, scale)
        return
    call("dcn_add_four", T.address_of(sums[tuple(index)]), *values, source=_ADD_FOUR)


def call(name: str, *arguments: Any, source: str) -> None:
    """Emit a call of a device function, whose source is in CUDA's C++."""
    T.evaluate(T.cuda.func_call(name, *arguments, source_code=source))


def magnitude(tensor: te.Tensor, dtype: str, name: str) -> te.Tensor:
    """[1]: the largest |x|, infinite or NaN if one is; 0 of no elements."""

    def body(ins: list[Any], outs: list[Any]) -> None:
        total = elements(ins[0].shape)
        zero(outs[0], f"{name}_zero")
        with launch([int64(BLOCKS)], [THREADS], name) as (block, thread):
            best = T.sblock_alloc_buffer((1,), dtype, scope="local")
            shared = T.sblock_alloc_buffer((THREADS,), dtype, scope="shared")
            T.buffer_store(best, tirx.const(0, dtype), [0])
            first = block * THREADS + thread
            step = int64(BLOCKS * THREADS)
            with T.serial(int64(0), div(total - first + step - 1, step)) as i:
                value = ins[0][tuple(flat(ins[0], first + i * step))].astype(dtype)
                size = te.abs(value)
                T.buffer_store(best, _larger(size, best[0]), [0])
            T.buffer_store(shared, best[0], [thread])
            half = THREADS // 2
            while half:
                T.evaluate(T.tvm_storage_sync("shared"))
                with T.If(thread < half), T.Then():
                    here, other = shared[thread], shared[thread + half]
                    T.buffer_store(shared, _larger(other, here), [thread])
                half //= 2
            with T.If(thread == 0), T.Then():
                call(f"dcn_largest_{dtype}", T.address_of(outs[0][0]), shared[0], source=_LARGEST)

    return nest.nest([(int64(1),)], [tensor], body, name, [dtype])[0]


def _larger(value: Expr, best: Expr) -> Expr:
    """The larger number, NaN if one is; TVM would make "larger" of "not at most", and drop NaN."""
    return tirx.Select(tirx.any(tirx.isnan(value), value > best), value, best)


def fixed_scale(
    bound: te.Tensor | Sequence[te.Tensor], count: Expr, name: str = "scale"
) -> te.Tensor:
    """[1] float64: the scale of sums of `count` addends, none larger than all bounds multiplied.

    NaN where a bound is not finite: then so is every sum.
    """
    bounds = list(bound) if isinstance(bound, Sequence) else [bound]

    def body(ins: list[Any], outs: list[Any]) -> None:
        with launch([int64(1)], [1], name):
            size = count.astype("float64")
            for one in ins:
                size = size * one[0].astype("float64")
            power = tirx.exp2(tirx.const(float(BITS), "float64") - te.ceil(tirx.log2(size)))
            known = tirx.Select(
                size <= tirx.const(1e300, "float64"), power, tirx.const(float("nan"), "float64")
            )
            T.buffer_store(outs[0], tirx.Select(size == 0, tirx.const(1.0, "float64"), known), [0])

    return nest.nest([(int64(1),)], bounds, body, name, ["float64"])[0]


def of_fixed(sums: Any, scale: Any, index: Sequence[Expr]) -> Expr:
    """The value of a fixed-point sum, as float64."""
    return sums[tuple(index)].astype("float64") / scale[0]


def zero(sums: Any, name: str, width: int = 1) -> None:
    """Emit the kernel that sets all of a buffer to 0, before the kernel that adds to it.

    `width` divides the number of elements: so many are stored at once.
    """
    with each(div(elements(sums.shape), int64(width)), name) as index:
        with T.vectorized(int64(0), int64(width)) as lane:
            T.buffer_store(sums, tirx.const(0, sums.dtype), flat(sums, index * width + lane))


def elements(shape: Sequence[Expr]) -> Expr:
    """How many elements a tensor has."""
    total = int64(1)
    for extent in shape:
        total = total * extent
    return total
