"""What the kernels become on real architectures: registers, stack, spills, instructions."""

from __future__ import annotations

import functools
import random
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("tvm")

from dcn_tvm import build, kernels, ops, suites
from dcn_tvm.build import Request
from dcn_tvm.cuda import compiler, lower
from dcn_tvm.cuda.compiler import Nvcc
from dcn_tvm.gpu import Gpu, assumed
from dcn_tvm.knobs import Knobs
from dcn_tvm.ops.deform_conv2d import DeformConv2dProblem
from dcn_tvm.problem import Problem
from tests.cuda_resources import resources

pytestmark = pytest.mark.skipif(
    not any(isinstance(found, Nvcc) for found in compiler.found()), reason="no nvcc"
)

ARCHS = ("sm_80", "sm_90")
HALF = DeformConv2dProblem(
    "float16", "nhwc", 256, 256, padding=(1, 1), modulated=True, bias=True, offset_groups=4
)
VARIANTS = (HALF, replace(HALF, dtype="float32", layout="nchw"), replace(HALF, dtype="float64"))
MOST_CALL_STACK_BYTES = 16  # of calls for divisions, which ptxas makes functions of


@functools.cache
def source(problem: Problem, kernel: str, target: Gpu, seed: int | None = None) -> str:
    """The emitted source of a kernel for all its outputs, by default or with random knobs."""
    outputs = kernels.possible_outputs(
        problem, ops.registry()[problem.op].kernels()[kernel].outputs
    )
    knobs = Knobs() if seed is None else Knobs(rng=random.Random(seed))
    function = build.schedule(Request(problem, kernel, outputs), target, knobs).function
    return lower.lower(function, target.to_tvm_dict(), build.any_host().to_tvm_dict()).source


def assert_in_registers(text: str, arch: str, stack_bytes: int = 0) -> None:
    found = resources(text, arch)
    assert found
    for name, used in found.items():
        assert used.stack_bytes <= stack_bytes, (name, used)
        assert used.spill_bytes <= stack_bytes, (name, used)


@pytest.mark.parametrize("kernel", ("forward", "backward_data", "backward_weight"))
@pytest.mark.parametrize("problem", VARIANTS, ids=lambda p: p.dtype)
@pytest.mark.parametrize("arch", ARCHS)
def test_defaults_of_deform_conv2d_stay_in_registers(
    arch: str, problem: DeformConv2dProblem, kernel: str
) -> None:
    assert_in_registers(source(problem, kernel, assumed(arch)), arch)


@pytest.mark.parametrize("kernel", ("forward", "backward_data", "backward_weight"))
@pytest.mark.parametrize("arch", ARCHS)
def test_tf32_and_deterministic_kernels_stay_in_registers(arch: str, kernel: str) -> None:
    manner = {"tf32": True, "deterministic": kernel == "backward_data"}
    problem = replace(HALF, dtype="float32")
    assert_in_registers(source(problem, kernel, replace(assumed(arch), **manner)), arch)


@pytest.mark.parametrize("kernel", ("forward", "backward_data", "backward_weight"))
@pytest.mark.parametrize("arch", ("sm_75", "sm_86", "sm_89", "sm_100", "sm_120"))
def test_other_architectures_compile(arch: str, kernel: str) -> None:
    """Divisions are functions on some of them, whose calls need a few bytes of stack."""
    assert_in_registers(source(HALF, kernel, assumed(arch)), arch, MOST_CALL_STACK_BYTES)


@pytest.mark.parametrize("kernel", ("forward", "backward"))
@pytest.mark.parametrize("op", [name for name in ops.registry() if name != "deform_conv2d"])
def test_defaults_of_roi_ops_stay_in_registers(op: str, kernel: str) -> None:
    problem = suites.SUITES[op][0].problem("float16", "nhwc")
    assert_in_registers(source(problem, kernel, assumed("sm_90")), "sm_90", MOST_CALL_STACK_BYTES)


@pytest.mark.parametrize("kernel", ("forward", "backward_data", "backward_weight"))
@pytest.mark.parametrize("dtype", ("float16", "bfloat16"))
def test_half_types_use_tensor_cores(tmp_path: Path, dtype: str, kernel: str) -> None:
    nvdisasm = find_nvdisasm()
    if nvdisasm is None:
        pytest.skip("no nvdisasm: pip install nvidia-cuda-nvdisasm")
    cubin = tmp_path / "kernel.cubin"
    text = source(replace(HALF, dtype=dtype), kernel, assumed("sm_90"))
    cubin.write_bytes(compiler.compile(text, "sm_90"))
    done = subprocess.run([nvdisasm, "-c", cubin], capture_output=True, text=True, check=True)
    assert len(re.findall(r"\bHMMA\.16816\.F32", done.stdout)) >= 16
    if kernel == "backward_data":
        assert re.search(r"\bREDG\.E\.ADD\.F32x4", done.stdout), "no vector reductions"
    else:
        assert not re.search(r"\b(RED|ATOM)G?\.", done.stdout), "sums have no fixed order"
        assert re.search(r"\bLDG\.E\.128", done.stdout), "channels are not read as vectors"


def find_nvdisasm() -> Path | None:
    from importlib.metadata import PackageNotFoundError, files

    try:
        named = [f for f in files("nvidia-cuda-nvdisasm") or () if f.name == "nvdisasm"]
    except PackageNotFoundError:
        return None
    return Path(str(named[0].locate())) if named else None
