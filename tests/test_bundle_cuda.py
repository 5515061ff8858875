"""Kernels for CUDA devices are compiled without one, and each device gets those that it can run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dcn_tvm import bundles, gpu
from dcn_tvm.build import Request
from dcn_tvm.bundles import making, targets
from dcn_tvm.bundles.targets import Host
from dcn_tvm.cuda import compiler
from dcn_tvm.errors import BundleError, CompileError
from dcn_tvm.ops.roi_align import RoIAlignProblem
from dcn_tvm.workload import Workload
from tests.bundle_files import HERE, WITHOUT_TVM, run

PROBLEM = RoIAlignProblem("float32", "nchw", 8, (3, 3))
FORWARD = Request(PROBLEM, "forward", ("output",))
TRAIN = """
import torch, dcn_tvm
from dcn_tvm import kernels, reference

dcn_tvm.load_bundle({path!r})
torch.manual_seed(0)
x = torch.randn(2, 8, 9, 10)
boxes = torch.tensor([[0, 1.0, 1.0, 7.0, 6.0], [1, 0.0, 2.0, 8.0, 8.0]])
results = []
for ops, device in ((dcn_tvm, "cuda"), (reference, "cpu")):
    leaf = x.to(device).requires_grad_()
    output = ops.roi_align(leaf, boxes.to(device), 3)
    results.append([output, *torch.autograd.grad((output * output).sum(), leaf)])
for ours, exact in zip(*results):
    assert (ours.cpu() - exact).abs().max() <= 1e-5 * exact.abs().max()
assert kernels.build_count() == 0
print("trained")
"""


def _no_compiler() -> str | None:
    try:
        compiler.version()
    except CompileError as error:
        return str(error)
    return None


_MISSING = _no_compiler()
pytestmark = pytest.mark.skipif(_MISSING is not None, reason=str(_MISSING))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cuda") / "bundle"
    codes = [targets.parse(text) for text in ("cuda:sm_80", "cuda:sm_90", "cpu")]
    making.make(folder, making.plan([Workload.of(PROBLEM, {})], codes, inference=True))
    return folder


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    bundles.forget()


@pytest.mark.parametrize(
    ("device", "arch"),
    [("sm_80", "sm_80"), ("sm_86", "sm_80"), ("sm_90,name=NVIDIA H200", "sm_90"), ("sm_75", None)],
)
def test_a_device_gets_the_code_of_its_generation(
    device: str, arch: str | None, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = gpu.assumed(device)
    monkeypatch.setattr(gpu, "detect", lambda: (here,))
    opened = bundles.load(bundle)
    path = opened.find(replace(FORWARD, target=here))
    assert (path is None) == (arch is None)
    if path is not None and arch is not None:
        code = path.read_bytes()
        assert arch.encode() in code
        assert ({b"sm_80", b"sm_90"} - {arch.encode()}).pop() not in code
    assert opened.find(FORWARD) is not None, "the CPU's kernel is there, too"


def test_only_kernels_for_the_cpu_need_a_shim(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "detect", lambda: ())
    assert len(bundles.load(bundle).manifest.shims) == 1
    jobs = making.plan([Workload.of(PROBLEM, {})], [targets.parse("cuda:sm_90")], inference=True)
    assert not making.make(tmp_path / "bundle", jobs).shims
    with pytest.raises(BundleError, match=r"is for sm_90 \(.*and no CUDA device"):
        bundles.load(tmp_path / "bundle")


def test_gpus_of_another_host_are_compiled_for(tmp_path: Path) -> None:
    arch = "aarch64" if HERE.arch == "x86-64" else "x86-64"
    launcher = targets.parse_host(arch)
    assert launcher == Host("linux", arch)
    jobs = making.plan(
        [Workload.of(PROBLEM, {})], [targets.parse("cuda:sm_90")], inference=True, host=launcher
    )
    try:
        made = making.make(tmp_path / "bundle", jobs)
    except CompileError as error:
        pytest.skip(str(error))  # no cross compiler
    (kernel,) = made.kernels
    machine = {"aarch64": 183, "x86-64": 62}[arch]  # ELF's numbers
    head = (tmp_path / "bundle" / kernel.library.file).read_bytes()[:20]
    assert int.from_bytes(head[18:20], "little") == machine
    with pytest.raises(BundleError, match=f"is for sm_90 \\(linux {arch}\\)"):
        bundles.load(tmp_path / "bundle")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_it_trains_on_a_device_without_tvm(tmp_path: Path) -> None:
    code = targets.parse(f"cuda:{gpu.detect()[0].arch}")
    making.make(tmp_path / "bundle", making.plan([Workload.of(PROBLEM, {})], [code]))
    program = WITHOUT_TVM + TRAIN.format(path=str(tmp_path / "bundle"))
    assert "trained" in run(program, DCN_TVM_HOME=tmp_path / "home")
