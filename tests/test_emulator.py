"""The CUDA emulator tells what a device would compute, and what a device would not forgive."""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import emulator
import numpy as np
import pytest
from emulator import Array, DriverError, Kernels

pytestmark = pytest.mark.skipif(
    emulator.available() is not None, reason=emulator.available() or "the emulator is there"
)


@pytest.fixture(params=emulator.ORDERS)
def order(request) -> Iterator[str]:
    with emulator.using(request.param):
        yield request.param


def source(body: str, *, parameters: str = "float* x, float* y", bound: int = 1024) -> str:
    head = f'extern "C" __global__ void __launch_bounds__({bound}) k({parameters})'
    return f"{head};\n{head} {{\n{body}\n}}\n"


def run(
    body: str,
    *arguments: Any,
    parameters: str = "float* x, float* y",
    grid: int | tuple[int, ...] = 1,
    block: int | tuple[int, ...] = 64,
    shared: int = 0,
) -> None:
    Kernels(source(body, parameters=parameters)).launch("k", grid, block, *arguments, shared=shared)


REVERSE = """
  __shared__ alignas(64) float s[64];
  s[threadIdx.x] = x[threadIdx.x];
  {barrier}
  y[threadIdx.x] = s[63 - threadIdx.x];
"""


def reversed_by(barrier: str) -> bool:
    x, y = np.arange(64, dtype=np.float32), Array.empty((64,))
    run(REVERSE.format(barrier=barrier), Array(x), y)
    return bool((y.numpy() == x[::-1]).all())


def test_barrier(order) -> None:
    assert reversed_by("__syncthreads();")


def test_missing_barrier_is_seen(order) -> None:
    assert not reversed_by("")


@pytest.mark.parametrize(("order", "expected"), [("forward", 0), ("reverse", 3)])
def test_first_block_of_an_order(order, expected) -> None:
    first = Array(np.full(1, -1, np.int32))
    with emulator.using(order):
        run("if (*x < 0) *x = blockIdx.x;", first, parameters="int* x", grid=4, block=1)
    assert first.numpy()[0] == expected


def test_shuffle_is_seeded() -> None:
    def sequence(seed: int) -> list[int]:
        turn, y = Array(np.zeros(1, np.int32)), Array(np.zeros(64, np.int32))
        with emulator.using("shuffle", seed):
            run("y[threadIdx.x] = atomicAdd(x, 1);", turn, y, parameters="int* x, int* y")
        return [int(value) for value in y.numpy()]

    assert sequence(1) == sequence(1) != sequence(2)


@pytest.mark.parametrize(
    "body",
    [
        "if (threadIdx.x < 40) __syncthreads();",
        "if (threadIdx.x < 40) __syncthreads();\nelse\n__syncthreads();",
        "if (threadIdx.x < 40) __syncwarp();",
    ],
    ids=["returned", "two places", "warp"],
)
def test_divergent_barrier(order, body) -> None:
    with pytest.raises(DriverError, match=r"divergent.* 40 threads .*24 threads|warp in line") as e:
        run(body, Array.empty((1,)), Array.empty((1,)))
    assert e.value.code == 719


def test_shared_memory_is_poisoned_for_every_block() -> None:
    y = Array(np.zeros((2, 2), np.float32))
    body = """
      extern __shared__ __align__(64) float d[];
      __shared__ float s[1];
      y[2 * blockIdx.x] = d[0]; y[2 * blockIdx.x + 1] = s[0];
      d[0] = s[0] = 1;
    """
    run(body, y, parameters="float* y", grid=2, block=1, shared=4)
    assert np.isnan(y.numpy()).all()


def test_scratch_memory_is_poisoned_and_watched() -> None:
    pointer, others = ctypes.c_void_p(), emulator.allocations()  # other tests' launchers keep some
    emulator.enter()
    emulator.call("cuMemAllocAsync", ctypes.byref(pointer), ctypes.c_size_t(16), None)
    assert emulator.allocations() == others + 1
    assert np.isnan((ctypes.c_float * 4).from_address(pointer.value)[:]).all()
    emulator.call("cuMemsetD8Async", pointer, 0, ctypes.c_size_t(16), None)
    with pytest.raises(DriverError, match="out of bounds"):
        run("x[4] = 0;", pointer, parameters="float* x")
    with pytest.raises(DriverError, match="out of bounds"):
        emulator.call("cuMemFreeAsync", pointer, None)
    with pytest.raises(DriverError, match="freed before"):
        emulator.call("cuMemFreeAsync", pointer, None)
    emulator.leave()
    assert emulator.allocations() == others


@pytest.mark.parametrize(("index", "place"), [(64, "behind"), (-1, "before")])
def test_array_red_zones(index, place) -> None:
    x = Array(np.zeros(64, np.float32))
    x.check()
    run(f"x[{index}] = 1;", x, parameters="float* x", block=1)
    with pytest.raises(AssertionError, match=f"nearest 1 bytes {place}"):
        x.check()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("__shared__ float s[8]; float* p = s; p[n] = 0;", "array in shared memory"),
        ("__shared__ float s[8]; s[n] = 0;", "index out of bounds"),
        ("float s[8]; s[n] = x[0]; x[1] = s[n - 1];", "index out of bounds"),
        ("extern __shared__ float d[]; d[n] = 0;", "array in shared memory"),
        ("*(float4*)(x + n + 1) = make_float4(1, 2, 3, 4);", "misaligned access.* line 3"),
        ("x[(long long)n << 40] = 1;", "no memory"),
        ("float s[90000]; for (int i = 0; i < 9 * n; i++) s[i * 999] = i; x[0] = s[n];", "stack"),
        ("x[0] = n / (n - 8);", "division by zero"),
        ("__trap();", r"trap, thread \(0, 0, 0\) of block \(0, 0, 0\)"),
    ],
)
def test_faults_are_errors_of_the_launch(body, message) -> None:
    x = Array(np.zeros(64, np.float32))
    with pytest.raises(DriverError, match=f"k: .*{message}"):
        run(body, x, ctypes.c_int(8), parameters="float* x, int n", block=1, shared=32)


@pytest.mark.parametrize(
    ("grid", "block", "shared", "message"),
    [
        (1, 1025, 0, "1024"),
        (1, (32, 33), 0, "1024 threads"),
        (1, 257, 0, "__launch_bounds__"),
        ((1, 65536), 1, 0, "65535"),
        ((1, 1, 65536), 1, 0, "65535"),
        (2**31, 1, 0, "2\\^31"),
        (0, 1, 0, "zero"),
        (1, 0, 0, "zero"),
        (1, (1, 1, 65), 0, "64"),
        (1, 1, (227 << 10) + 1, "227 KiB"),
    ],
)
def test_limits(grid, block, shared, message) -> None:
    kernels = Kernels(source("x[0] = 1;", parameters="float* x", bound=256))
    with pytest.raises(DriverError, match=message) as error:
        kernels.launch("k", grid, block, Array.empty((1,)), shared=shared)
    assert error.value.code == 1


def test_limits_of_shared_memory() -> None:
    kernels = Kernels(source("__shared__ float s[256]; s[0] = 1;", parameters=""))
    kernels.launch("k", 1, 1, shared=226 << 10)
    with pytest.raises(DriverError, match="227 KiB"):
        kernels.launch("k", 1, 1, shared=227 << 10)
    too_much = Kernels(source("__shared__ float s[12289]; s[0] = 1;", parameters=""))
    with pytest.raises(DriverError, match="48 KiB of static"):
        too_much.launch("k", 1, 1)
    emulator.enter()
    ones = [ctypes.c_uint(1)] * 6
    with pytest.raises(DriverError, match="cuKernelSetAttribute"):
        emulator.call("cuLaunchKernel", kernels.kernel("k"), *ones, 49153, None, None, None)
    emulator.leave()


def test_driver_is_strict() -> None:
    kernels = Kernels(source("x[0] = 1;", parameters="float* x"))
    kernel, ones = kernels.kernel("k"), [ctypes.c_uint(1)] * 6
    with ThreadPoolExecutor(1) as thread:  # a context is current in a thread: this one is new
        launch = thread.submit(emulator.call, "cuLaunchKernel", kernel, *ones, 0, None, None, None)
        with pytest.raises(DriverError, match="without a current context"):
            launch.result()
    emulator.enter()
    with pytest.raises(DriverError, match="no parameters"):
        emulator.call("cuLaunchKernel", kernel, *ones, 0, None, None, None)
    emulator.leave()
    with pytest.raises(DriverError, match="no kernel is called"):
        kernels.kernel("other")
    with pytest.raises(DriverError, match="not an image"):
        Kernels(b"\x7fELF")
    with pytest.raises(DriverError, match="two devices"):
        emulator.enter(2)
    with emulator.using(failing="cuInit"), pytest.raises(DriverError, match="the test asks"):
        emulator.enter()


def test_launches_are_told() -> None:
    emulator.launches()
    run("", parameters="", grid=(3, 2), block=(32, 4), shared=16)
    assert emulator.launches() == [emulator.Launched("k", (3, 2, 1), (32, 4, 1), 16, 0, 0)]
    assert emulator.launches() == []


def test_using_restores_the_environment() -> None:
    before = dict(os.environ)
    with emulator.using("reverse") as path:
        assert os.environ["DCN_TVM_CUDA_DRIVER"] == str(path)
    assert dict(os.environ) == before
    with pytest.raises(ValueError, match="order must be one of"), emulator.using("backward"):
        pass


def edges(floating: Any) -> np.ndarray[Any, Any]:
    """Numbers at and beside every midpoint of a 16-bit format, and the special ones."""
    exact = np.arange(1 << 16, dtype=np.uint16).view(floating).astype(np.float32)
    exact = np.unique(exact[np.isfinite(exact)])
    middle = ((exact[1:].astype(np.float64) + exact[:-1]) / 2).astype(np.float32)
    beside = [np.nextafter(middle, np.float32(side)) for side in (-np.inf, np.inf)]
    top = np.float32([1e30, -1e30, np.inf, -np.inf, np.nan, -0.0])
    return np.concatenate([exact, middle, *beside, exact[-1:] * np.float32(1.001), top])


@pytest.mark.parametrize("name", ["half", "nv_bfloat16"])
def test_rounding(name) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    floating = np.float16 if name == "half" else ml_dtypes.bfloat16
    values = edges(floating)
    x, y, z = Array(values), Array.empty(values.shape, np.uint16), Array.empty(values.shape)
    run(
        "for (int i = 0; i < n; i++)\n"
        f"{{ {name} h = x[i]; y[i] = *(unsigned short*)&h; z[i] = h; }}",
        *(x, y, z, ctypes.c_int(len(values))),
        parameters="float* x, unsigned short* y, float* z, int n",
        block=1,
    )
    with np.errstate(over="ignore"):
        expected = values.astype(floating)
    numbers = ~np.isnan(values)
    assert (y.numpy().view(floating)[numbers] == expected[numbers]).all()
    np.testing.assert_array_equal(z.numpy(), expected.astype(np.float32))


def test_16_bit_arithmetic_rounds_every_operation() -> None:
    a, b, c = (np.random.default_rng(i).standard_normal(512).astype(np.float16) for i in range(3))
    y = Array.empty((512,), np.float16)
    body = "int i = threadIdx.x; y[i] = x[i] * x[512 + i] + x[1024 + i];"
    run(body, Array(np.stack([a, b, c])), y, parameters="half* x, half* y", block=512)
    np.testing.assert_array_equal(y.numpy(), a * b + c)


def test_double_to_half_rounds_once() -> None:
    value = 1 + 2.0**-11 + 2.0**-40  # in float a tie, which would go to even
    y = Array.empty((1,), np.float16)
    run("*y = x;", ctypes.c_double(value), y, parameters="double x, half* y", block=1)
    assert y.numpy()[0] == np.float16(1 + 2.0**-10)


def test_warp_operations(order) -> None:
    y = Array.empty((9, 48), np.int32)
    body = """
      int i = threadIdx.x, v = i * i, at = 0;
      y[48 * at++ + i] = __shfl_xor_sync(0xffffffff, v, 1);
      y[48 * at++ + i] = __shfl_down_sync(0xffffffff, v, 3, 16);
      y[48 * at++ + i] = __shfl_up_sync(0xffffffff, v, 2, 8);
      y[48 * at++ + i] = __shfl_sync(0xffffffff, v, 5, 16);
      y[48 * at++ + i] = (int)__ballot_sync(0xffffffff, i % 3 == 0);
      y[48 * at++ + i] = __any_sync(0xffffffff, i == 40);
      y[48 * at++ + i] = __all_sync(0xffffffff, i < 40);
      if (i % 32 < 16) v += __shfl_xor_sync(0xffff, v, 1);
      y[48 * at++ + i] = v;
      for (int mask = 8; mask; mask >>= 1) v += __shfl_xor_sync(0xffffffff, v, mask);
      y[48 * at++ + i] = v;
    """
    run(body, y, parameters="int* y", block=48)
    lane = np.arange(48)
    square = lane**2
    down = np.where(lane % 16 < 13, np.append(square[3:], [0] * 3), square)
    up = np.where(lane % 8 > 1, np.append([0] * 2, square[:-2]), square)
    bits = lane % 3 == 0
    ballot = [sum(1 << i % 32 for i in range(a, min(a + 32, 48)) if bits[i]) for a in (0, 32)]
    half_warp = np.where(lane % 32 < 16, square + square[lane ^ 1], square)
    group = [half_warp[i // 16 * 16 : i // 16 * 16 + 16].sum() for i in lane]
    expected = [
        square[lane ^ 1],
        down,
        up,
        square[lane // 16 * 16 + 5],
        np.take(ballot, lane // 32),
    ]
    expected += [lane >= 32, lane < 32, half_warp, group]
    np.testing.assert_array_equal(y.numpy(), np.stack(expected).astype(np.uint32).view(np.int32))


@pytest.mark.parametrize("kind", ["float", "double", "int", "unsigned", "unsigned long long"])
def test_shared_atomics(order, kind) -> None:
    numpy = {"float": "f4", "double": "f8", "int": "i4", "unsigned": "u4"}.get(kind, "u8")
    y = Array(np.zeros(4, numpy))
    body = f"""
      __shared__ {kind} s[4];
      if (threadIdx.x < 4) s[threadIdx.x] = 0;
      __syncthreads();
      atomicAdd(&s[threadIdx.x % 4], ({kind})threadIdx.x);
      __syncthreads();
      if (threadIdx.x < 4) atomicAdd(y + threadIdx.x, s[threadIdx.x]);
    """
    run(body, y, parameters=f"{kind}* y", block=256, grid=2)
    assert y.numpy().tolist() == (2 * np.arange(256).reshape(64, 4).sum(0)).tolist()


def test_functions_of_numbers() -> None:
    y = Array.empty((8,))
    body = """
      y[0] = max(NAN, 1.0f); y[1] = (float)__float2ll_rn(2.5f); y[2] = __float2int_rn(3e10f);
      y[3] = __int_as_float(0x40000000); y[4] = fmaf(3.0f, 4.0f, 5.0f); y[5] = isnan(y[6]);
      y[6] = (float)__float2ll_rn(NAN); y[7] = rsqrtf(4.0f);
    """
    run(body, y, parameters="float* y", block=1)
    assert y.numpy().tolist() == [1, 2, 2.0**31, 2, 17, 1, 0, 0.5]


# As TVM writes them.
COPY = """
__forceinline__ __device__ void copy_16(uint32_t __dst, const void* __src) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :  : "r"(__dst), "l"(__src) : "memory");
}
__forceinline__ __device__ void commit() {
  asm volatile("cp.async.commit_group;" :  : );
}
__forceinline__ __device__ void wait() {
  asm volatile("cp.async.wait_group 0;" :  :  : "memory");
}
"""


@pytest.mark.parametrize("waits", [True, False])
def test_asynchronous_copies_arrive_when_waited_for(waits) -> None:
    body = f"""
      __shared__ alignas(16) float s[256];
      copy_16(__cvta_generic_to_shared(s + 4 * threadIdx.x), x + 4 * threadIdx.x);
      commit();
      {"wait();" if waits else ""}
      __syncthreads();
      for (int i = 0; i < 4; i++) y[4 * threadIdx.x + i] = s[255 - 4 * threadIdx.x - i];
    """
    x, y = np.arange(256, dtype=np.float32), Array.empty((256,))
    Kernels(COPY + source(body)).launch("k", 1, 64, Array(x), y)
    assert (y.numpy() == x[::-1]).all() == waits
    assert waits or np.isnan(y.numpy()).all()


def test_assembly_is_refused_by_name() -> None:
    portable = """
      __device__ float twice(float x) {
      #if defined(__CUDA_ARCH__)
        asm volatile("add.f32 %0, %1, %1;" : "=f"(x) : "f"(x)); return x;
      #else
        return x + x;
      #endif
      }
    """
    x = Array(np.ones(1, np.float32))
    scale = source("x[0] = twice(x[0]);", parameters="float* x")
    Kernels(portable + scale).launch("k", 1, 1, x)
    assert x.numpy()[0] == 2
    with pytest.raises(emulator.CompileError, match=r'line 3: asm\("nanosleep'):
        emulator.image(source('asm("nanosleep.u32 20;");', parameters=""))
    with pytest.raises(emulator.CompileError, match="not_there"):
        emulator.image(source("not_there();", parameters=""))


def test_array_is_a_tensor_to_tvm() -> None:
    tvm_ffi = pytest.importorskip("tvm_ffi")
    told = tvm_ffi.convert(lambda x: f"{x.device} {x.dtype} {tuple(x.shape)}")
    assert told(Array(np.zeros((2, 3), np.float16))) == "cuda:0 float16 (2, 3)"
    bfloat16 = Array(np.zeros(4, np.uint16), dtype="bfloat16", device=(emulator.CUDA, 1))
    assert told(bfloat16) == "cuda:1 bfloat16 (4,)"
    tensor = tvm_ffi.from_dlpack(Array(np.zeros((0, 3), np.int64)))
    assert str(tensor.device) == "cuda:0" and tuple(tensor.shape) == (0, 3)


def test_shifted_array_is_misaligned() -> None:
    body = "*(float4*)y = *(float4*)x;"
    x = np.arange(4, dtype=np.float32)
    run(body, Array(x), Array.empty((4,)), block=1)
    with pytest.raises(DriverError, match="misaligned") as error:
        run(body, Array(x, shift=4), Array.empty((4,)), block=1)
    assert error.value.code == 716


@pytest.fixture
def emit(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], str]:
    """The CUDA source of a primitive function, as TVM emits it."""
    tvm = pytest.importorskip("tvm")
    importlib.import_module("tvm.tirx.build")
    steps = sys.modules["tvm.tirx.build"]  # its package exports a function of this name
    monkeypatch.setenv("TVM_COMPILE_FORCE_FALLBACK", "1")  # no GPU is asked for

    def emitted(function: Any) -> str:
        target = tvm.target.Target({"kind": "cuda", "arch": "sm_80"}, host={"kind": "llvm"})
        module = tvm.tirx.transform.BindTarget(target)(tvm.IRModule({"main": function}))
        pipeline, _, finish = tvm.tirx.get_default_tir_pipeline(target)
        _, devices = steps.split_host_device_mods(pipeline(module))
        ((target, module),) = devices.items()
        built = tvm.get_global_func("target.build.cuda")(finish()(module), target)
        return str(built.inspect_source())

    return emitted


@pytest.mark.parametrize(
    ("dtype", "lanes"),
    [("float32", 4), ("float64", 2), ("float16", 4), ("float16", 8), ("bfloat16", 8)],
)
@pytest.mark.parametrize("scope", ["shared", "shared.dyn"])
def test_source_of_tvm(emit, order, dtype, lanes, scope) -> None:
    from tvm.script import tirx as T

    @T.prim_func
    def mirror(a: T.handle, b: T.handle, n: T.int64):  # noqa: ANN202 (TVM reads it)
        A = T.match_buffer(a, (n * lanes,), dtype)
        B = T.match_buffer(b, (n * lanes,), dtype)
        for bx in T.thread_binding((n + 31) // 32, "blockIdx.x"):
            for tx in T.thread_binding(32, "threadIdx.x"):
                S = T.alloc_buffer((32 * lanes,), dtype, scope=scope)
                if bx * 32 + tx < n:
                    for v in T.vectorized(lanes):
                        S[tx * lanes + v] = A[(bx * 32 + tx) * lanes + v] * T.Cast(dtype, 3)
                T.evaluate(T.tvm_storage_sync("shared"))
                if bx * 32 + tx < n:
                    for v in T.vectorized(lanes):
                        B[(bx * 32 + tx) * lanes + v] = T.max(
                            S[(31 - tx) * lanes + v], T.Cast(dtype, 0)
                        )

    code = emit(mirror)
    kernel = code.split("__launch_bounds__(32) ")[1].split("(")[0]
    ml_dtypes = pytest.importorskip("ml_dtypes")
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    x = np.random.default_rng(0).standard_normal((64, lanes)).astype(kind)
    y = Array.empty((64, lanes), kind)
    bytes_shared = 32 * lanes * x.itemsize if scope == "shared.dyn" else 0
    Kernels(code).launch(kernel, 2, 32, Array(x), y, ctypes.c_int64(64), shared=bytes_shared)
    expected = np.maximum(x * x.dtype.type(3), x.dtype.type(0)).reshape(2, 32, lanes)[:, ::-1]
    np.testing.assert_array_equal(y.numpy(), expected.reshape(64, lanes))
