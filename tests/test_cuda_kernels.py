"""Kernels for GPUs from request to call: built for what is asked, kept, found again, provided."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import emulator
import numpy as np
import pytest
from emulator import Array

from dcn_tvm import build, gpu, kernels, openmp, records, target
from dcn_tvm.build import Request
from dcn_tvm.cuda import compiler
from dcn_tvm.errors import CompileError
from dcn_tvm.gpu import Gpu
from dcn_tvm.knobs import Knobs
from dcn_tvm.ops.roi_align import RoIAlignProblem
from dcn_tvm.problem import Problem
from tests import cuda_kernels

ROOT = Path(__file__).parents[1]
PROBLEM = RoIAlignProblem("float32", "nchw", 4, (2, 2))
DEVICE = gpu.assumed("sm_90,name=NVIDIA H100,multiprocessors=132,l2_bytes=50M")
SIZES = {"batch": 1, "height": 8, "width": 8, "boxes": 2, "stride": 1}

pytestmark = [
    pytest.mark.skipif(emulator.available() is not None, reason=str(emulator.available())),
    pytest.mark.skipif(openmp.find_compiler() is None, reason="no C compiler"),
]


def schedule(problem: Problem, target: Gpu, knobs: Knobs, outputs: tuple[str, ...]) -> Any:
    """A schedule that leaves the problem alone, and has two that are the same."""
    knobs.choice("unit", [1, 2], 1)
    return cuda_kernels.sums()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """Let the emulator be the compiler, and tell for which architectures it was called."""
    archs: list[str] = []

    def compile(source: str, arch: str) -> bytes:
        archs.append(arch)
        return emulator.image(source)

    monkeypatch.setenv("DCN_TVM_HOME", str(tmp_path))
    monkeypatch.setattr(build, "_schedule_of", lambda request, target: schedule)
    monkeypatch.setattr(compiler, "compile", compile)
    monkeypatch.setattr(compiler, "version", lambda: "emulator 1")
    monkeypatch.setattr(kernels, "_functions", {})
    monkeypatch.setattr(kernels, "_finders", [])
    monkeypatch.setattr("dcn_tvm.records.store.shipped_root", lambda: tmp_path / "shipped")
    records.forget()
    with emulator.using():
        yield archs
    records.forget()


def request(device: Gpu = DEVICE, kernel: str = "forward") -> Request:
    return kernels.request(PROBLEM, kernel, ("output",), SIZES, device)


def check(call: Callable[..., None]) -> None:
    x, y = np.arange(5 * 48, dtype=np.float32).reshape(5, 48), Array.empty((5,))
    call(Array(x), y)
    np.testing.assert_allclose(y.numpy(), 2 * x.sum(1))


def libraries(home: Path) -> list[Path]:
    return sorted((home / "builds" / "objects").glob("*.so"))


def notes(home: Path) -> list[dict[str, Any]]:
    files = sorted((home / "builds" / "index").glob("*.json"))
    return [json.loads(file.read_text())["facts"] for file in files]


def test_a_request_is_compiled_once(compiled: list[str], tmp_path: Path) -> None:
    check(kernels.get(request()))
    check(kernels.get(request()))
    kernels._functions.clear()
    check(kernels.get(request()))
    assert compiled == ["sm_90"]
    (note,) = notes(tmp_path)
    assert note["compiler"] == "emulator 1"
    assert note["request"] == "roi_align.forward -> output (float32, nchw, cuda sm_90)"
    assert note["choices"] == {"unit": 1}


def test_devices_of_one_model_share_a_build(compiled: list[str], tmp_path: Path) -> None:
    other = dataclasses.replace(DEVICE, name="another name", memory_bytes=1 << 30)
    for device in (DEVICE, other):
        check(kernels.get(request(device)))
    assert len(compiled) == len(notes(tmp_path)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"arch": "sm_80"},
        {"deterministic": True},
        {"tf32": True},
        {"multiprocessors": 66},
        {"l2_bytes": 1 << 20},
        {"shared_bytes_per_block_optin": 1 << 16},
    ],
    ids=str,
)
def test_other_facts_are_another_request(
    compiled: list[str], tmp_path: Path, change: dict[str, Any]
) -> None:
    check(kernels.get(request()))
    check(kernels.get(request(dataclasses.replace(DEVICE, **change))))
    assert len(notes(tmp_path)) == 2
    # Where only defaults could differ, and do not, one library serves both.
    same = not {"arch", "deterministic", "tf32"} & change.keys()
    assert len(compiled) == len(libraries(tmp_path)) == (1 if same else 2)


def test_another_compiler_builds_again_only_what_is_new(
    compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = build.schedule(request(), DEVICE).content_key(DEVICE)
    check(kernels.get(request()))
    monkeypatch.setattr(compiler, "version", lambda: "emulator 2")
    kernels._functions.clear()
    check(kernels.get(request()))
    assert len(compiled) == 1
    assert build.schedule(request(), DEVICE).content_key(DEVICE) != content
    monkeypatch.setenv("DCN_TVM_CUDA_COMPILER", "nvrtc")  # asked for: then it must be that
    kernels._functions.clear()
    check(kernels.get(request()))
    assert len(compiled) == 2


def test_without_a_c_compiler_the_module_stays_in_memory(
    compiled: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openmp, "find_compiler", lambda: None)
    monkeypatch.setattr(build, "_warned", False)
    with pytest.warns(UserWarning, match="compiled in memory and not kept"):
        call = kernels.get(request())
    check(call)
    assert compiled == ["sm_90"]
    assert not libraries(tmp_path)


def test_without_a_cuda_compiler_it_is_said(
    compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise CompileError("no CUDA compiler was found")

    monkeypatch.setattr(compiler, "version", none)
    with pytest.raises(CompileError, match="no CUDA compiler was found"):
        kernels.get(request())


def test_a_refusal_names_the_kernel(compiled: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, arch: str) -> bytes:
        raise CompileError("nvcc says no")

    monkeypatch.setattr(compiler, "compile", refuse)
    with pytest.raises(CompileError, match=r"roi_align\.forward .* for cuda sm_90: nvcc says no"):
        kernels.get(request())


def test_what_is_provided_is_asked_first(compiled: list[str], tmp_path: Path) -> None:
    check(kernels.get(request()))
    (library,) = libraries(tmp_path)
    kernels._functions.clear()
    asked: list[Request] = []

    def provide(given: Path | None) -> Callable[[Request], Path | None]:
        return lambda request: (asked.append(request), given)[1]

    provided = tmp_path / "provided.so"
    library.rename(provided)
    kernels.provide(provide(None))
    kernels.provide(provide(provided))
    check(kernels.get(request()))
    assert asked == [request()] * 2
    assert len(compiled) == 1


def test_explain(compiled: list[str]) -> None:
    compiled_for = kernels.explain(PROBLEM, SIZES, DEVICE)
    assert [(e.kernel, e.target, e.provenance, e.cached) for e in compiled_for] == [
        ("forward -> output", "sm_90", "default", False),
        ("backward -> grad_input", "sm_90", "default", False),
    ]
    kernels.get(request())
    assert kernels.explain(PROBLEM, SIZES, DEVICE)[0].cached
    assert not kernels.explain(PROBLEM, SIZES)[0].cached, "the CPU has its own"


@pytest.mark.parametrize("place", ["nvidia-h100", "sm_90"])
@pytest.mark.parametrize("device", [DEVICE, gpu.assumed("sm_90,name=NVIDIA H100")])
def test_records_of_the_model_and_of_the_architecture_count(
    compiled: list[str], place: str, device: Gpu
) -> None:
    record = records.Record(
        **{"problem": PROBLEM, "kernel": "forward", "sizes": SIZES, "choices": {"unit": 2}},
        **{"median_us": 1.0, "default_us": 2.0, "noise": 0.01, "trials": 3, "threads": 132},
        **{"device": "a GPU", "versions": {"apache-tvm": "0"}, "date": "2026-01-02"},
    )
    records.append(records.user_root(), place, [record])
    records.forget()
    assert request(device).recorded == ((("unit", 2),),)
    assert kernels.request(PROBLEM, "forward", ("output",), SIZES).recorded == ()
    (found, _) = kernels.explain(PROBLEM, SIZES, device)
    assert found.choices == {"unit": 2}
    assert found.provenance.startswith("user: exact")


SECOND = """
import sys
sys.path.insert(0, "tests")
import numpy as np
from emulator import Array
from dcn_tvm import build, gpu, kernels
from dcn_tvm.cuda import compiler
from dcn_tvm.ops.roi_align import RoIAlignProblem
def refuse(*arguments):
    raise AssertionError("the compiler was looked for")
compiler.found = compiler.compile = compiler.version = refuse
build.fingerprint = lambda: sys.argv[2]  # as it was, whatever an editor has done since
problem = RoIAlignProblem("float32", "nchw", 4, (2, 2))
call = kernels.get(kernels.request(problem, "forward", ("output",), {}, gpu.assumed(sys.argv[1])))
x, y = np.ones((5, 48), np.float32), Array.empty((5,))
call(Array(x), y)
assert (y.numpy() == 96).all()
print(kernels.build_count(), "tvm" in sys.modules)
"""


def test_a_second_process_loads_no_compiler(compiled: list[str]) -> None:
    kernels.get(kernels.request(PROBLEM, "forward", ("output",), {}, DEVICE))
    done = subprocess.run(
        [sys.executable, "-c", SECOND, DEVICE.spec, build.fingerprint()],
        env=dict(os.environ),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "False"]


def modules(**found: Any) -> Callable[[str], Any]:
    """An import of schedules that finds these, by their families."""

    def load(name: str) -> Any:
        family = name.split(".")[-2]
        if family not in found:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return found[family]

    return load


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"cuda": SimpleNamespace(forward=len), "gpu": SimpleNamespace(forward=abs)}, len),
        ({"cuda": SimpleNamespace(), "gpu": SimpleNamespace(forward=abs)}, abs),
        ({"gpu": SimpleNamespace(forward=abs)}, abs),
        ({"cuda": SimpleNamespace(), "gpu": SimpleNamespace()}, None),
        ({"cpu": SimpleNamespace(forward=abs)}, None),
    ],
)
def test_the_first_family_that_has_the_kernels_schedule_counts(
    found: dict[str, Any], expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build.importlib, "import_module", modules(**found))
    asked = Request(PROBLEM, "forward", ("output",))
    if expected is None:
        with pytest.raises(NotImplementedError, match="roi_align has no schedule for target cuda"):
            build._schedule_of(asked, DEVICE)
    else:
        assert build._schedule_of(asked, DEVICE) is expected


def test_a_schedule_that_cannot_be_imported_is_not_a_missing_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'numpi'", name="numpi")

    monkeypatch.setattr(build.importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="numpi"):
        build._schedule_of(Request(PROBLEM, "forward", ("output",)), DEVICE)


def test_the_host_part_is_for_any_machine_of_the_architecture() -> None:
    here, host = target.detect(), build.any_host()
    assert (host.arch, host.features) == (here.arch, ())
    assert host.level == target.levels(here.arch)[0]
    assert here.refusal(host) is None


def test_other_makers_devices_are_refused() -> None:
    other = dataclasses.replace(DEVICE, kind="opencl")
    asked = Request(PROBLEM, "forward", ("output",), target=other)
    scheduled = build.Scheduled(cuda_kernels.sums(), {})
    with pytest.raises(CompileError, match="launched on cuda, not on opencl"):
        build.compile(asked, scheduled, other)


def test_the_fingerprint_covers_what_makes_a_gpus_code() -> None:
    names = {file.name for file in build._launcher()}
    assert {"lower.py", "launch.ll", "compiler.py"} <= names
