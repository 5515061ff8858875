"""Sources of all kernels for every target with threads: generated, within limits, not run here."""

from __future__ import annotations

import functools
import math
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

pytest.importorskip("tvm")

import tvm
import tvm.support.rocm  # registers functions that are replaced here
import tvm_ffi
from tvm import tirx

from dcn_tvm import build
from dcn_tvm.build import Request
from dcn_tvm.bundles import targets
from dcn_tvm.cuda import lower, narrow
from dcn_tvm.errors import CompileError
from dcn_tvm.gpu import SOURCE_ONLY, Gpu
from dcn_tvm.knobs import Knobs
from tests.cases import CASES
from tests.cuda_kernels import sums
from tests.emulator.operators import through
from tests.roi_cases import ROI_CASES, channels_last

# What no other language than CUDA's knows.
CUDA_ONLY = re.compile(
    r"atomicAdd|atomicMax|__device__|__shared__|__syncthreads|\basm\b|dcn_(?!tvm_)\w+\("
)
MARKS = {"opencl": "__kernel void", "metal": "kernel void", "webgpu": "@compute", "rocm": ".amdgcn"}
THREADS = 256  # of a block that every device of these kinds runs
SHARED_BYTES = {"webgpu": 16 << 10}
LEAST_SHARED_BYTES = 32 << 10
# Of a kernel, on WebGPU, which promises 8, and 10 on most devices: all calls but deform_roi_pool's
# and deform_ps_roi_pool's keep to 8, and all but deform_roi_pool's backward to 10.
STORAGE_BUFFERS = {"deform_roi_pool": 11, "deform_ps_roi_pool": 10}
LEAST_STORAGE_BUFFERS = 8
BYTES = {"float64": 8, "int64": 8, "float16": 2, "uint8": 1}
CALLS = (
    *(("groups_crossed", False), ("depthwise", True), ("msra_plain", False)),
    *(("max", False), ("avg", True), ("align_adaptive", True), ("ps", False), ("rfcn", True)),
    *(("ps_align_adaptive", True), ("deform", True), ("deform_grid", False)),
    *(("dps_parts", False), ("dps_paper", True)),
)
OF_AMD = (("msra_plain", True), ("align_adaptive", False), ("dps_parts", True))  # whole assembly
RANDOM = ("groups_crossed", "align_adaptive", "dps_parts")


@functools.cache
def requests(name: str, last: bool, dtype: torch.dtype = torch.float32) -> tuple[Request, ...]:
    """The kernels that a call and its gradients need."""
    found: list[Request] = []

    def note(request: Request, arrays: Any, scalars: Any) -> None:
        found.append(request)

    if name in CASES:
        given = CASES[name].arguments(dtype)
        if last:
            given = given.mapped(
                lambda t: t.contiguous(memory_format=torch.channels_last), ["input"]
            )
        given.run(through("deform_conv2d", note))
    else:
        case = ROI_CASES[name]
        drawn = case.arguments(dtype)
        given = channels_last(drawn) if last else drawn
        given.run(through(case.op, note), case.needed)
    return tuple(found)


def scheduled(request: Request, kind: str, knobs: Knobs | None = None) -> Any:
    return build.schedule(request, Gpu(kind, "", ""), knobs).function


def lowered(function: Any, kind: str) -> lower.Lowered:
    more = {"mcpu": "gfx90a"} if kind == "rocm" else {}
    return lower.lower(function, {"kind": kind, **more}, build.any_host().to_tvm_dict())


def kernels(function: Any) -> Iterator[tuple[int, int]]:
    """Threads of a block and bytes of its shared memory, for each nest that is launched."""
    body = function.body.block.body
    for nest in body.seq if isinstance(body, tirx.SeqStmt) else [body]:
        sizes: dict[str, int] = {}
        arrays: list[int] = []
        tvm_ffi.structural_map(
            nest,
            [
                (tirx.For, functools.partial(_note_threads, sizes)),
                (tvm.s_tir.stmt.SBlock, functools.partial(_note_shared, arrays)),
            ],
        )
        yield math.prod(sizes.values()), sum(arrays)


def _note_threads(sizes: dict[str, int], loop: Any) -> Any:
    tag = "" if loop.thread_binding is None else loop.thread_binding.thread_tag
    if tag.startswith("threadIdx"):
        sizes[tag] = int(loop.extent)
    return loop


def _note_shared(arrays: list[int], block: Any) -> Any:
    for buffer in block.alloc_buffers:
        if buffer.scope().startswith("shared"):
            count = math.prod(int(extent) for extent in buffer.shape)
            arrays.append(count * BYTES.get(str(buffer.dtype), 4))
    return block


@contextmanager
def amd_compiler_replaced() -> Iterator[None]:
    """Generate AMD's code where ROCm is not installed: no device library, and no linker."""
    names = {
        "tvm_callback_rocm_bitcode_path": lambda: [],
        "tvm_callback_rocm_link": bytes,
    }
    before = {name: tvm_ffi.get_global_func(name, allow_missing=True) for name in names}
    for name, function in names.items():
        tvm_ffi.register_global_func(name, function, override=True)
    try:
        yield
    finally:
        for name, function in before.items():
            if function is not None:
                tvm_ffi.register_global_func(name, function, override=True)


def generated(function: Any, kind: str) -> lower.Lowered:
    if kind != "rocm":
        return lowered(function, kind)
    with amd_compiler_replaced():
        return lowered(function, kind)


def check(request: Request, kind: str, knobs: Knobs | None = None) -> None:
    function = scheduled(request, kind, knobs)
    room = SHARED_BYTES.get(kind, LEAST_SHARED_BYTES)
    launched = list(kernels(function))
    assert launched
    for threads, shared in launched:
        assert 0 < threads <= THREADS, f"{request}: {threads} threads"
        assert shared <= room, f"{request}: {shared} bytes of shared memory"
    made = generated(function, kind)
    assert MARKS[kind] in made.source
    assert all(kernel.name in made.source for kernel in made.kernels)
    assert not (found := CUDA_ONLY.search(made.source)), f"{request}: {found}"
    if kind == "webgpu":
        assert not re.search(r"\b(i64|u64|f64|nanf|inff)\b", made.source)
        most = STORAGE_BUFFERS.get(request.problem.op, LEAST_STORAGE_BUFFERS)
        assert all(kernel.signature.count("p") <= most for kernel in made.kernels)


@pytest.mark.parametrize("kind", ("opencl", "metal", "webgpu"))
@pytest.mark.parametrize(("name", "last"), CALLS)
def test_every_kernel_has_a_source(name: str, last: bool, kind: str) -> None:
    for request in requests(name, last):
        check(request, kind)


@pytest.mark.parametrize(("name", "last"), OF_AMD)
def test_rocm(name: str, last: bool) -> None:
    for request in requests(name, last):
        check(request, "rocm")


@pytest.mark.parametrize("kind", ("opencl", "metal", "webgpu"))
@pytest.mark.parametrize("name", RANDOM)
def test_random_points_have_a_source(name: str, kind: str) -> None:
    for seed in range(2):
        for request in requests(name, seed % 2 == 0):
            knobs = Knobs(rng=random.Random(f"{request} {kind} {seed}"))
            try:
                check(request, kind, knobs)
            except AssertionError as error:
                raise AssertionError(f"{error}; chosen: {knobs.chosen}") from error


@pytest.mark.parametrize("kind", ("opencl", "metal", "webgpu"))
@pytest.mark.parametrize("name", ("groups_crossed", "max"))
def test_half_precision(name: str, kind: str) -> None:
    for request in requests(name, True, torch.float16):
        check(request, kind)


def test_webgpu_has_no_float64() -> None:
    (request, *_) = requests("groups_crossed", False, torch.float64)
    with pytest.raises(CompileError, match="WebGPU has no float64"):
        lowered(scheduled(request, "webgpu"), "webgpu")


def test_narrow_functions_have_no_wide_numbers() -> None:
    function = narrow.to_int32(sums())
    assert "int64" in sums().script()
    assert "int64" not in function.script()


def test_a_generator_that_is_not_there_is_said() -> None:
    if tvm.get_global_func("target.build.vulkan", allow_missing=True) is not None:
        pytest.skip("this build of TVM generates code for Vulkan")
    with pytest.raises(CompileError, match="generates no code for vulkan"):
        lowered(sums(), "vulkan")


@pytest.mark.parametrize("kind", SOURCE_ONLY)
def test_bundles_are_not_made_for_these_targets(kind: str) -> None:
    with pytest.raises(ValueError, match=f"for {kind} only source is generated"):
        targets.parse(f"{kind}:4")
