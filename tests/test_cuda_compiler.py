"""Device code is compiled by whatever is installed, and what is missing or refused is said."""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from dcn_tvm import settings
from dcn_tvm.cuda import compiler, nvrtc
from dcn_tvm.cuda.compiler import Compiler, Nvcc
from dcn_tvm.cuda.nvrtc import Nvrtc
from dcn_tvm.errors import CompileError
from tests import cuda_kernels
from tests.cuda_resources import resources

DTYPES = ("float32", "float64", "float16", "bfloat16")
# What TVM writes depends on the types: the oldest, a usual and the newest device for each of them.
WANTED = [(dtype, arch) for dtype in DTYPES for arch in ("sm_75", "sm_90", "sm_120")]
WANTED += [("bfloat16", arch) for arch in ("sm_80", "sm_86", "sm_100")]


def installed(kind: type) -> Compiler:
    try:
        return next(found for found in compiler.found() if isinstance(found, kind))
    except (CompileError, StopIteration):
        pytest.skip(f"no {kind.__name__}")


def bare_nvrtc() -> Compiler:
    """NVRTC with CUDA's own headers alone, as the packages of CUDA 12 have them."""
    full = installed(Nvrtc)
    assert isinstance(full, Nvrtc)
    bare = Nvrtc(full.library, full.includes[:1])
    if (bare.includes[0] / "cuda" / "std").exists():
        pytest.skip("this CUDA has libcu++ among its own headers")
    return bare


COMPILERS: dict[str, Callable[[], Compiler]] = {
    "nvcc": lambda: installed(Nvcc),
    "nvrtc": lambda: installed(Nvrtc),
    "nvrtc without libcu++": bare_nvrtc,
}


@functools.cache
def source(dtype: str, arch: str = "sm_80") -> str:
    return cuda_kernels.lowered(cuda_kernels.sums(dtype), arch).source


@pytest.mark.parametrize(("dtype", "arch"), WANTED)
@pytest.mark.parametrize("name", ["nvcc", "nvrtc"])
def test_every_compiler_takes_what_tvm_writes(name: str, dtype: str, arch: str) -> None:
    cubin = COMPILERS[name]().compile(source(dtype, arch), arch)
    assert cubin.startswith(b"\x7fELF")
    for kernel in ("dcn_tvm_kernel_kernel", "dcn_tvm_kernel_kernel_1", "dcn_tvm_kernel_kernel_2"):
        assert f".text.{kernel}".encode() in cubin


@pytest.mark.parametrize("dtype", DTYPES)
def test_nvrtc_needs_no_more_than_the_packages_of_cuda_12_bring(dtype: str) -> None:
    assert bare_nvrtc().compile(source(dtype), "sm_80").startswith(b"\x7fELF")


@pytest.mark.parametrize("name", COMPILERS)
def test_there_is_no_fast_math(name: str) -> None:
    text = 'extern "C" __global__ void k(float* x) { x[0] = x[1] / x[2]; }'
    fast = text.replace("x[1] / x[2]", "__fdividef(x[1], x[2])")
    exact, approximate = (COMPILERS[name]().compile(kind, "sm_80") for kind in (text, fast))
    assert len(exact) > len(approximate) + 500  # it takes a subroutine


@pytest.mark.parametrize("name", COMPILERS)
def test_a_refusal_says_what_the_compiler_said(name: str) -> None:
    chosen = COMPILERS[name]()
    with pytest.raises(CompileError, match=r"failed: [^$]*undefined_function"):
        chosen.compile('extern "C" __global__ void k() { undefined_function(); }', "sm_80")
    with pytest.raises(CompileError, match=r"failed: .*arch"):
        chosen.compile(source("float32"), "sm_10")


@pytest.mark.parametrize("name", ["nvcc", "nvrtc"])
def test_versions(name: str) -> None:
    kind, number = COMPILERS[name]().version.split()
    assert kind.lower() == name
    assert int(number.split(".")[0]) >= 12


@pytest.mark.parametrize("name", ["nvcc", "nvrtc"])
def test_a_setting_leaves_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = COMPILERS[name]()
    monkeypatch.setenv("DCN_TVM_CUDA_COMPILER", name)
    assert compiler.found() == (wanted,)
    assert compiler.version() == wanted.version


def test_the_setting_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCN_TVM_CUDA_COMPILER", "clang")
    with pytest.raises(ValueError, match="must be nvcc or nvrtc, got 'clang'"):
        compiler.found()
    for text, expected in (("", None), (" NVCC ", "nvcc"), ("nvrtc", "nvrtc")):
        monkeypatch.setenv("DCN_TVM_CUDA_COMPILER", text)
        assert settings.cuda_compiler() == expected


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No compiler, until a test puts one into the folder `bin`, which is on the PATH."""
    for name in ("CUDA_HOME", "CUDA_PATH", "DCN_TVM_CUDA_COMPILER"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(nvrtc, "toolkits", lambda: [tmp_path / "none"] * 2)
    monkeypatch.setattr(nvrtc, "_package_folders", lambda: [])
    return tmp_path


@pytest.mark.usefixtures("nothing_installed")
def test_without_any_compiler_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CompileError) as caught:
        compiler.compile("", "sm_80")
    for text in ("CUDA_HOME", "PATH", "CUDA toolkit", "pip install nvidia-cuda-nvrtc"):
        assert text in str(caught.value)
    monkeypatch.setenv("DCN_TVM_CUDA_COMPILER", "nvrtc")
    with pytest.raises(CompileError, match="=nvrtc leaves the other out") as caught:
        compiler.compile("", "sm_80")
    assert "nvcc in" not in str(caught.value)


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_nvcc_is_looked_for_where_the_user_says(
    nothing_installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path = script(nothing_installed / "bin" / "nvcc", "echo nvcc: release 12.4, V12.4.1")
    assert [str(found) for found in compiler.found()] == [f"nvcc ({on_path})"]
    assert compiler.version() == "nvcc 12.4"
    named = script(nothing_installed / "cuda" / "bin" / "nvcc", "echo release 13.1,")
    monkeypatch.undo()
    monkeypatch.setenv("CUDA_HOME", str(nothing_installed / "cuda"))
    assert Nvcc(named) in compiler.found()
    assert compiler.version() == "nvcc 13.1"


def test_a_compiler_that_fails_gives_way_to_the_next(
    nothing_installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(nothing_installed / "bin" / "nvcc", "echo cannot find gcc >&2; exit 1")

    class Other:
        version = "other 1.0"

        def compile(self, source: str, arch: str) -> bytes:
            if source == "wrong":
                raise CompileError("the other says no")
            return b"cubin"

    with pytest.raises(CompileError, match="cannot find gcc"):
        compiler.compile("right", "sm_80")
    monkeypatch.setattr(nvrtc, "find", Other)
    assert compiler.compile("right", "sm_80") == b"cubin"
    with pytest.raises(CompileError, match=r"cannot find gcc; the other says no"):
        compiler.compile("wrong", "sm_80")


def test_a_compiler_that_does_not_end_is_stopped(
    nothing_installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(nothing_installed / "bin" / "nvcc", f"PATH={os.defpath}; exec sleep 60")
    monkeypatch.setattr(compiler, "_TIMEOUT_S", 0.2)
    with pytest.raises(CompileError, match=r"took more than 0\.2 s"):
        compiler.compile("", "sm_80")


def test_a_library_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "libnvrtc.so.13").write_bytes(b"no library")
    broken = Nvrtc(tmp_path / "libnvrtc.so.13", (tmp_path,))
    with pytest.raises(CompileError, match=r"NVRTC cannot be opened: .*libnvrtc"):
        broken.compile("", "sm_80")


@pytest.mark.parametrize(
    ("library", "headers"),
    [
        ("nvidia/cu13/lib/libnvrtc.so.13", "nvidia/cu13/include"),
        ("nvidia/cuda_nvrtc/lib/libnvrtc.so.12", "nvidia/cuda_runtime/include"),
        ("toolkit/lib64/libnvrtc.so.12", "toolkit/include"),
        ("toolkit/targets/sbsa-linux/lib/libnvrtc.so.13", "toolkit/targets/sbsa-linux/include"),
        ("toolkit/lib/libnvrtc.so.12", "toolkit/include"),
    ],
)
def test_nvrtc_is_found_in_packages_and_toolkits(
    nothing_installed: Path, monkeypatch: pytest.MonkeyPatch, library: str, headers: str
) -> None:
    assert nvrtc.find() is None
    for place in (library, f"{headers}/cuda_fp16.h"):
        (nothing_installed / place).parent.mkdir(parents=True, exist_ok=True)
        (nothing_installed / place).touch()
    monkeypatch.setattr(nvrtc, "_package_folders", lambda: [nothing_installed / "nvidia"])
    monkeypatch.setattr(nvrtc, "toolkits", lambda: [nothing_installed / "toolkit"] * 2)
    expected = Nvrtc(nothing_installed / library, (nothing_installed / headers,))
    assert nvrtc.find() == expected


def test_resources_of_kernels() -> None:
    text = """
    extern "C" __global__ void plain(float* x) { x[threadIdx.x] *= 2; }
    extern "C" __global__ void shared(float* x) {
      __shared__ float s[100];
      s[threadIdx.x] = x[threadIdx.x];
      __syncthreads();
      x[threadIdx.x] = s[99 - threadIdx.x];
    }
    extern "C" __global__ void stack(float* x, int i) {
      float kept[50] = {};
      for (int k = 0; k < i; k++) kept[int(x[k])] += k;
      x[i] = kept[i];
    }
    """
    installed(Nvcc)
    found = resources(text, "sm_80")
    assert found is not None
    assert {name: (r.stack_bytes, r.spill_bytes, r.shared_bytes) for name, r in found.items()} == {
        "plain": (0, 0, 0),
        "shared": (0, 0, 400),
        "stack": (200, 0, 0),
    }
    assert all(0 < r.registers < 64 for r in found.values())
