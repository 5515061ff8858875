"""The launcher in a kernel's library, against a driver that runs kernels on the host."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import emulator
import numpy as np
import pytest
import torch
import tvm_ffi
from emulator import Array
from emulator.array import _DLTensor as DLTensor

from dcn_tvm import build, openmp
from dcn_tvm.cuda import lower
from dcn_tvm.errors import CompileError
from tests import cuda_allocator, cuda_kernels
from tests.cuda_allocator import Allocator
from tests.cuda_kernels import COLUMNS

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    emulator.available() is not None, reason=emulator.available() or "the emulator is there"
)
FUNCTIONS: dict[str, Callable[[], Any]] = {
    "sums": cuda_kernels.sums,
    "scalars": cuda_kernels.scalars,
    "turned": lambda: cuda_kernels.reversed_blocks(64),
    "turned large": lambda: cuda_kernels.reversed_blocks(25 << 10),
    "turned too large": lambda: cuda_kernels.reversed_blocks(64 << 10),
}


@functools.cache
def module(name: str) -> Any:
    """The module in memory, which must live as long as its function."""
    parts = cuda_kernels.lowered(FUNCTIONS[name]())
    return lower.assemble(parts, emulator.image(parts.source))


@functools.cache
def linked(name: str) -> str:
    """The path of the shared library."""
    path = Path(_folder().name) / f"{name.replace(' ', '_')}.so"
    build.link(module(name), path)
    return str(path)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="dcn_tvm_launch_")


@functools.cache
def loaded(name: str) -> Any:
    return tvm_ffi.load_module(linked(name))


def function(name: str, where: str) -> Callable[..., None]:
    if where == "library" and openmp.find_compiler() is None:
        pytest.skip("no C compiler")
    found: Callable[..., None] = (loaded if where == "library" else module)(name)[build.SYMBOL]
    return found


lost: list[int] = []  # scratch that nobody will ever free, because a test lets that fail


@pytest.fixture(autouse=True)
def driver() -> Iterator[None]:
    with emulator.using():
        emulator.launches()
        yield
    assert emulator.allocations() == len(lost), "scratch was not freed"


@pytest.fixture(params=["library", "memory"])
def where(request) -> str:
    return str(request.param)


def rows(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(count, COLUMNS)).astype(np.float32)


def check_sums(call: Callable[..., None], count: int, device: int = 0, seed: int = 0) -> None:
    x, place = rows(count, seed), (emulator.CUDA, device)
    y = Array.empty((count,), device=place)
    call(Array(x, device=place), y)
    np.testing.assert_allclose(y.numpy(), 2 * x.sum(1, dtype=np.float64), atol=1e-4)


def test_several_kernels_with_scratch_between_them(where) -> None:
    check_sums(function("sums", where), 1000)
    launched = emulator.launches()
    assert [launch.grid for launch in launched] == [(4, 1, 1)] * 3
    assert {launch.block for launch in launched} == {(256, 1, 1)}


def test_nothing_is_launched_for_empty_tensors(where) -> None:
    function("sums", where)(Array(rows(0)), Array.empty((0,)))
    assert emulator.launches() == []


def test_scalars_keep_their_types(where) -> None:
    x, y = np.arange(5.0), Array.empty((5,), np.float64)
    a, b, c, d = 2**40 + 1, -(2**31), 0.1, 1 + 2**-40
    function("scalars", where)(Array(x), y, a, b, c, d)
    np.testing.assert_allclose(y.numpy(), (x * a + b) * np.float64(np.float32(c)) + d, rtol=1e-15)


@pytest.mark.parametrize(("name", "count"), [("turned", 64), ("turned large", 25 << 10)])
def test_dynamic_shared_memory(name: str, count: int, where) -> None:
    x = np.arange(3 * count, dtype=np.float32).reshape(3, count)
    for device in (0, 1, 0):  # each must be told that it may have so much
        y = Array.empty((3, count), device=(emulator.CUDA, device))
        function(name, where)(Array(x, device=(emulator.CUDA, device)), y)
        assert (y.numpy() == x[:, ::-1]).all()
    launched = emulator.launches()
    assert {launch.shared_bytes for launch in launched} == {4 * count}
    assert [launch.device for launch in launched] == [0, 1, 0]


def test_more_shared_memory_than_there_is(where) -> None:
    count = 64 << 10
    arguments = Array(np.zeros((1, count), np.float32)), Array.empty((1, count))
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"dcn_tvm_kernel_kernel: .*227 KiB"):
            function("turned too large", where)(*arguments)


def test_both_devices_from_one_library(where) -> None:
    for device in (1, 0, 1):
        check_sums(function("sums", where), 300, device)
    assert [launch.device for launch in emulator.launches()] == [1] * 3 + [0] * 3 + [1] * 3


def test_a_device_that_is_current_already_stays_so(where) -> None:
    emulator.enter(1)
    try:
        check_sums(function("sums", where), 10, 0)
        check_sums(function("sums", where), 10, 1)
        now = ctypes.c_int(-1)
        emulator.call("cuCtxGetDevice", ctypes.byref(now))
        assert now.value == 1
    finally:
        emulator.leave()


def test_kernels_run_on_the_frameworks_stream(where) -> None:
    stream = tvm_ffi.device("cuda:0")
    with tvm_ffi.use_raw_stream(stream, 12345):
        check_sums(function("sums", where), 10)
    check_sums(function("sums", where), 10)
    assert [launch.stream for launch in emulator.launches()] == [12345] * 3 + [0] * 3


@pytest.mark.parametrize(
    ("failing", "text"),
    [
        ("cuLaunchKernel", "dcn_tvm_kernel_kernel: cuLaunchKernel fails because"),
        ("cuMemAllocAsync", "scratch memory: cuMemAllocAsync fails because"),
        ("cuCtxPushCurrent_v2", "the tensors' device cannot be used: cuCtxPushCurrent_v2 fails"),
    ],
)
def test_an_error_is_raised_and_the_library_stays_usable(where, failing: str, text: str) -> None:
    call = function("sums", where)
    check_sums(call, 10)
    with emulator.using(failing=failing), pytest.raises(RuntimeError, match=text):
        call(Array(rows(10)), Array.empty((10,)))
    assert emulator.allocations() == len(lost)
    check_sums(call, 10)


def test_scratch_that_cannot_be_freed_is_an_error(where) -> None:
    call = function("sums", where)
    with emulator.using(failing="cuMemFreeAsync"), pytest.raises(RuntimeError, match="scratch"):
        call(Array(rows(10)), Array.empty((10,)))
    lost.extend(range(emulator.allocations() - len(lost)))
    check_sums(call, 10)


def test_arguments_are_checked(where) -> None:
    call = function("sums", where)
    x, y = Array(rows(10)), Array.empty((10,))
    wrong = {
        "dtype": (Array(rows(10).astype(np.float64)), y),
        "shape": (x, Array.empty((11,))),
        "device_id": (x, Array.empty((10,), device=(emulator.CUDA, 1))),
        "device_type": (Array(rows(10), device=(1, 0)), y),
    }
    for what, arguments in wrong.items():
        with pytest.raises((TypeError, ValueError, RuntimeError), match=what):
            call(*arguments)
    assert emulator.launches() == []


def test_libraries_do_not_mix_up(where) -> None:
    first, second = function("sums", where), function("turned", where)
    x = np.arange(64, dtype=np.float32)[None]
    for _ in range(2):
        check_sums(first, 10)
        y = Array.empty((1, 64))
        second(Array(x), y)
        assert (y.numpy() == x[:, ::-1]).all()


def test_several_threads_at_once(where) -> None:
    call = function("sums", where)

    def work(number: int) -> None:
        for _ in range(10):
            check_sums(call, 50 + 30 * number, device=number % 2, seed=number)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))


@pytest.fixture
def allocator() -> Iterator[Allocator]:
    with cuda_allocator.using(Allocator()) as ours:
        yield ours


def test_scratch_comes_from_the_frameworks_allocator(where, allocator) -> None:
    check_sums(function("sums", where), 10)
    assert allocator.sizes == [40, 40]
    assert allocator.freed == 2
    with emulator.using(failing="cuLaunchKernel"), pytest.raises(RuntimeError, match="fails"):
        function("sums", where)(Array(rows(10)), Array.empty((10,)))
    assert allocator.freed == len(allocator.sizes)


def test_a_framework_without_memory(where, allocator) -> None:
    allocator.left = 1
    with pytest.raises(MemoryError, match="the test gives no more"):
        function("sums", where)(Array(rows(10)), Array.empty((10,)))
    assert allocator.freed == 1


def test_torch_lends_kernels_its_allocator() -> None:
    # With tensors of the CPU, as there may be no GPU: the launcher asks in the same way.
    library = ctypes.CDLL(tvm_ffi.libinfo.find_libtvm_ffi())
    library.TVMFFIEnvGetDLPackManagedTensorAllocator.restype = ctypes.c_void_p
    seen: list[tuple[Any, ...]] = []

    def kernel(tensor: Any) -> None:
        assert library.TVMFFIEnvGetDLPackManagedTensorAllocator()
        shape, strides, made = (
            (ctypes.c_int64 * 1)(1000),
            (ctypes.c_int64 * 1)(1),
            ctypes.c_void_p(),
        )
        prototype = DLTensor(None, 1, 0, 1, 1, 8, 1, shape, strides, 0)
        assert not library.TVMFFIEnvTensorAlloc(ctypes.byref(prototype), ctypes.byref(made))
        tensor = DLTensor.from_address((made.value or 0) + 24)  # OBJECT_BYTES in launch.c
        seen.append((tensor.data % 64, tensor.shape[0], tensor.device_type, tensor.bits))
        assert not library.TVMFFIObjectDecRef(made)

    tvm_ffi.convert(kernel)(torch.zeros(3))
    assert seen == [(0, 1000, 1, 8)]
    assert not library.TVMFFIEnvGetDLPackManagedTensorAllocator()


ALONE = """
import sys
import numpy as np, tvm_ffi
sys.path.insert(0, "tests")
from emulator import Array
call = tvm_ffi.load_module(sys.argv[1])["dcn_tvm_kernel"]
for _ in range(2):
    try:
        call(Array(np.zeros((3, 48), np.float32)), Array.empty((3,)))
    except RuntimeError as error:
        print(error)
assert "tvm" not in sys.modules
"""
OLD = "int cuInit(unsigned flags) { return 0; }"
BROKEN = """
#define OK(name) int name(void) { return 0; }
OK(cuDeviceGet) OK(cuDevicePrimaryCtxRetain) OK(cuCtxGetDevice) OK(cuCtxPushCurrent_v2)
OK(cuCtxPopCurrent_v2) OK(cuLibraryLoadData) OK(cuLibraryGetKernel) OK(cuKernelSetAttribute)
OK(cuLaunchKernel) OK(cuMemAllocAsync) OK(cuMemFreeAsync)
int cuInit(unsigned flags) { return 100; }
int cuGetErrorString(int code, const char **text) { *text = "no CUDA-capable device"; return 0; }
"""


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (None, "CUDA's driver cannot be opened: /nonexistent: cannot open shared object file"),
        (OLD, "CUDA's driver is older than 12.0: it has no function: cuDeviceGet"),
        (BROKEN, "cuInit: no CUDA-capable device"),
    ],
)
def test_without_a_driver_that_works(source: str | None, text: str, tmp_path: Path) -> None:
    compiler = openmp.find_compiler()
    if compiler is None:
        pytest.skip("no C compiler")
    driver = "/nonexistent"
    if source is not None:
        driver = str(tmp_path / "driver.so")
        (tmp_path / "driver.c").write_text(source)
        command = [*compiler, "-shared", "-fPIC", "-o", driver, str(tmp_path / "driver.c")]
        subprocess.run(command, check=True, timeout=60)
    done = subprocess.run(
        [sys.executable, "-c", ALONE, linked("sums")],
        env={**os.environ, "DCN_TVM_CUDA_DRIVER": driver},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(text) == 2, done.stdout


def test_a_function_without_threads_is_refused() -> None:
    with pytest.raises(CompileError, match="binds no threads"):
        cuda_kernels.lowered(cuda_kernels.without_threads())


def test_the_ir_is_made_of_the_c() -> None:
    source, ir = (Path(lower.__file__).with_name(f"launch.{kind}") for kind in ("c", "ll"))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    assert ir.read_text().splitlines()[0] == f"; launch.c {digest}", "make launch.ll again"
