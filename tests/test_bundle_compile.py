"""Bundles that the command line compiles run where there is no compiler, and compute the same."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from dcn_tvm import openmp, suites, target
from dcn_tvm.__main__ import app
from dcn_tvm.bundles import Bundle, linking, making, manifest, targets
from dcn_tvm.bundles.targets import Host
from dcn_tvm.errors import CompileError
from dcn_tvm.ops.deform_conv2d import DeformConv2dProblem
from dcn_tvm.ops.deform_roi_pool import DeformRoIPoolProblem
from dcn_tvm.suites import Case
from dcn_tvm.workload import Workload
from tests.bundle_files import HERE, WITHOUT_TVM, change, run

CHECKOUT = Path(__file__).resolve().parents[1]
CONVOLUTION = {
    **{"in_channels": 6, "out_channels": 8, "kernel_size": (3, 3), "padding": (1, 1)},
    **{"modulated": True, "bias": True, "batch": 2, "height": 7, "width": 9},
}
POOLING = {
    **{"channels": 6, "output_size": (3, 3), "sampling_ratio": 2},
    **{"batch": 2, "height": 9, "width": 8, "boxes": 5, "stride": 4},
}
SUITE = tuple(Case(op, f, op) for op, f in (("deform_conv2d", CONVOLUTION), ("roi_align", POOLING)))

linux = pytest.mark.skipif(
    not sys.platform.startswith("linux") or openmp.find_compiler() is None,
    reason="needs a linker, and torch's OpenMP",
)

TRAIN = """
import torch, dcn_tvm
from dcn_tvm import reference

torch.manual_seed(0)
torch.set_num_threads(2)
x, weight = torch.randn(2, 6, 7, 9), torch.randn(8, 6, 3, 3)
offset, mask, bias = 2 * torch.randn(2, 18, 7, 9), torch.rand(2, 9, 7, 9), torch.randn(8)
boxes = torch.tensor([[0, 1.0, 1.0, 20.0, 25.0], [1, 0.0, 3.0, 30.0, 30.0]])

def convolve(ops, x, offset, weight, bias, mask):
    return ops.deform_conv2d(x, offset, weight, bias, padding=1, mask=mask)

def pool(ops, x):
    return ops.roi_align(x, boxes, 3, 0.25, 2)

def check(call, *tensors, needs_input=True):
    results = []
    for ops in (dcn_tvm, reference):
        leaves = [tensor.clone() for tensor in tensors]
        wanted = leaves if needs_input else leaves[1:]
        for leaf in wanted:
            leaf.requires_grad_()
        output = call(ops, *leaves)
        results.append([output, *torch.autograd.grad((output * output).sum(), wanted)])
    for ours, exact in zip(*results):
        assert (ours - exact).abs().max() <= 1e-5 * exact.abs().max(), (ours, exact)

check(convolve, x, offset, weight, bias, mask)
check(convolve, x, offset, weight, bias, mask, needs_input=False)
check(pool, torch.randn(2, 6, 9, 8))
assert not [name for name in sys.modules if name.partition(".")[0] == "tvm"]
from dcn_tvm import kernels
assert kernels.build_count() == 0
print("trained")
"""


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["compile", *map(str, arguments)])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ops' kernels for this machine and for the lowest level of its kind, from one command."""
    folder = tmp_path_factory.mktemp("compiled") / "bundle"
    lowest = f"cpu:{target.levels(HERE.arch)[0]}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(suites.SUITES, "both", SUITE)
        result = call("--suite", "both", "--target", "cpu", "--target", lowest, "-o", folder)
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    for said in ("roi_align.backward", "grad_offset, grad_mask", "padding (1, 1)", "default"):
        assert said in text
    opened = Bundle(folder)
    assert f"{folder}: {len(opened.kernels)} kernels, " in result.stdout
    assert result.stdout.endswith(f"sha256: {opened.sha256}\n")
    return folder


@linux
def test_it_trains_without_tvm_or_a_c_compiler(bundle: Path, tmp_path: Path) -> None:
    load = f"import dcn_tvm; print(dcn_tvm.load_bundle({str(bundle)!r}))"
    told = run(f"{WITHOUT_TVM}{load}{TRAIN}", DCN_TVM_HOME=tmp_path)
    assert "kernels of deform_conv2d, roi_align for " in told
    assert "trained" in told


@linux
def test_every_target_of_it_trains(bundle: Path, tmp_path: Path) -> None:
    lowest = target.levels(HERE.arch)[0]
    settings = {"DCN_TVM_BUNDLES": bundle, "DCN_TVM_TARGET": lowest, "DCN_TVM_HOME": tmp_path}
    assert "trained" in run(WITHOUT_TVM + TRAIN, **settings)
    libraries = {path.read_bytes() for path in (tmp_path / "builds" / "objects").glob("*.so")}
    theirs = {path.read_bytes() for path in (bundle / lowest).iterdir()}
    assert theirs <= libraries


@linux
def test_it_needs_few_packages(bundle: Path, tmp_path: Path) -> None:
    """It runs where no more is installed than torch, numpy, tvm-ffi and what these need."""
    site = tmp_path / "site"
    site.mkdir()
    for name in ("dcn_tvm", "schedules", "tuning_logs"):
        (site / name).symlink_to(CHECKOUT / name)
    _install(site, "torch", "numpy", "apache-tvm-ffi", "filelock", "platformdirs")
    assert not (site / "tvm").exists()
    setup = f"import sys; sys.path.insert(0, {str(site)!r})\n"
    settings = {"DCN_TVM_BUNDLES": bundle, "DCN_TVM_HOME": tmp_path / "home"}
    assert "trained" in run(setup + TRAIN, sys.executable, "-I", "-S", **settings)


def _install(site: Path, *wanted: str) -> None:
    """Link packages of this environment, and all that they require, into a folder."""
    names = list(wanted)
    for name in names:  # it grows
        found = importlib.metadata.distribution(name)
        for text in found.requires or ():
            required = Requirement(text)
            known = {*names, *(n.lower() for n in names)}
            if required.name.lower() not in known and _applies(required):
                names.append(required.name)
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(found.locate_file(top))))


def _applies(required: Requirement) -> bool:
    if required.marker is not None and not required.marker.evaluate({"extra": ""}):
        return False
    try:
        importlib.metadata.distribution(required.name)
    except importlib.metadata.PackageNotFoundError:
        return False  # not even here
    return True


@linux
def test_what_is_missing_is_told(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "copy")
    change(tmp_path / "copy", lambda content: content["shims"].clear())
    code = f"""{WITHOUT_TVM}
import torch, dcn_tvm
dcn_tvm.load_bundle({str(tmp_path / "copy")!r})
for size in (4, 3):
    try:
        boxes = torch.tensor([[0.0, 0, 0, 9, 9]])
        dcn_tvm.roi_align(torch.rand(1, 6, 9, 8), boxes, size, 0.25, 2)
    except dcn_tvm.errors.DcnTvmError as error:
        print(type(error).__name__, error)
"""
    told = run(code, DCN_TVM_HOME=tmp_path)
    assert "BundleError no kernel for roi_align.forward -> output (float32, nchw)" in told
    assert "output_size (4, 4)" in told
    assert "has output_size (3, 3)" in told
    assert "pip install apache-tvm" in told
    assert "CompileError kernels are launched by a shim, which needs a C compiler" in told


@linux
def test_where_tvm_is_installed_it_compiles_the_rest(bundle: Path, tmp_path: Path) -> None:
    code = """
import torch, dcn_tvm
from dcn_tvm import kernels
x, boxes = torch.rand(1, 6, 9, 8), torch.tensor([[0.0, 0, 0, 9, 9]])
for size, compiled in ((3, 0), (2, 1)):
    dcn_tvm.roi_align(x, boxes, size, 0.25, 2)
    assert kernels.build_count() == compiled
"""
    compiler = openmp.find_compiler()
    assert compiler is not None
    run(code, DCN_TVM_BUNDLES=bundle, DCN_TVM_HOME=tmp_path, CC=compiler[0])


def test_kernels_for_all_gradients_and_without_the_input(bundle: Path) -> None:
    found = {(k.problem.op, k.kernel, k.outputs) for k in Bundle(bundle).kernels}
    assert found == {
        ("deform_conv2d", "forward", ("output",)),
        ("deform_conv2d", "backward_data", ("grad_input", "grad_offset", "grad_mask")),
        ("deform_conv2d", "backward_data", ("grad_offset", "grad_mask")),
        ("deform_conv2d", "backward_weight", ("grad_weight", "grad_bias")),
        ("roi_align", "forward", ("output",)),
        ("roi_align", "backward", ("grad_input",)),
    }


def test_the_manifest_tells_what_made_it(bundle: Path) -> None:
    content = json.loads((bundle / manifest.NAME).read_text())
    assert content["created"]["compiler"].startswith("apache-tvm ")
    assert content["versions"] == manifest.versions()
    kernel = content["kernels"][0]
    assert kernel["problem"]["in_channels"] == 6
    assert kernel["target"] == f"cpu:{target.detect().spec}"
    assert kernel["choices"]
    assert kernel["provenance"]
    assert [shim["arch"] for shim in content["shims"]] == [HERE.arch]


@linux
def test_libraries_name_none_that_they_need(bundle: Path) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("no readelf")
    for path in bundle.rglob("*.so"):
        command = ["readelf", "-d", str(path)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "NEEDED" not in told, path


# What is compiled.


def convolution(**facts: Any) -> Workload:
    return Workload.of(DeformConv2dProblem("float32", "nchw", 4, 8, **facts), {})


LOWEST = targets.any_of(HERE)


def planned(*workloads: Workload, **options: Any) -> list[tuple[str, ...]]:
    jobs = making.plan(workloads, [LOWEST], **options)
    return [(job.request.kernel, *job.request.outputs) for job in jobs]


def test_a_plan_follows_problem_and_gradients() -> None:
    assert planned(convolution(), inference=True) == [("forward", "output")]
    assert planned(convolution(), gradients=[["grad_weight"], ["grad_input", "grad_weight"]]) == [
        ("forward", "output"),
        ("backward_data", "grad_input"),
        ("backward_weight", "grad_weight"),
    ]
    fixed = Workload.of(DeformRoIPoolProblem("float32", "nchw", 8, (2, 2), deformed=False), {})
    assert planned(fixed) == [("forward", "output"), ("backward", "grad_input")]
    forward = Workload.of(convolution().problem, {}, ["forward"])
    assert planned(forward, convolution(), forward)[0] == ("forward", "output")
    assert len(planned(forward, forward)) == 1
    with pytest.raises(ValueError, match=r"outputs must be some of .*, got grad_mask"):
        planned(convolution(), gradients=[["grad_mask"]])
    with pytest.raises(ValueError, match="nothing to compile"):
        planned()


def test_each_target_is_compiled_for_once() -> None:
    codes = [LOWEST, targets.parse("cpu"), targets.parse("cpu")]
    jobs = making.plan([convolution()], codes, inference=True)
    assert len(jobs) == len({targets.name(code) for code in codes})


# Mistakes.

SMALL = ("roi_align", "channels=4", "output=2")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a suite, or an op with its fields"),
        (["--op", "convolution", "in=4"], "op must be one of "),
        (["--suite", "nothing"], "suite must be one of "),
        ([*SMALL, "--suite", "roi_align"], "an op's fields and --suite exclude each other"),
        (["roi_align", "channels=4"], "roi_align also needs output_size"),
        ([*SMALL, "--target", "cpu:skylake"], "level must be one of "),
        ([*SMALL, "--target", "gpu"], "a target must be cpu, cpu:LEVEL or cuda:sm_NN"),
        ([*SMALL, "--target", "cuda:90"], "a GPU's architecture must be sm_NN"),
        ([*SMALL, "--inference", "--outputs", "grad_input"], "exclude each other"),
        (
            [*SMALL, "--outputs", "grad_weight"],
            "outputs must be some of grad_input, got grad_weight",
        ),
        ([*SMALL, "--tf32"], "--deterministic and --tf32 are for CUDA"),
        ([*SMALL, "--host", "mips"], "level must be one of "),
        ([*SMALL, "--dtype", "float16"], "to an op say dtype=float16"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    result = call(*arguments, "-o", tmp_path / "bundle")
    assert result.exit_code == 2, result.output
    assert not (tmp_path / "bundle").exists()
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line


@linux
def test_only_a_bundle_is_replaced_and_only_if_asked(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(bundle, path)
    before = Bundle(path).sha256
    arguments = ("--op", *SMALL, "layout=nhwc", "--inference", "-o", f"{path}/")
    result = call(*arguments)
    assert result.exit_code == 2
    assert "is a bundle already: name another folder, or say --overwrite" in result.stderr
    assert Bundle(path).sha256 == before
    assert call(*arguments, "--overwrite").exit_code == 0
    assert [kernel.kernel for kernel in Bundle(path).kernels] == ["forward"]
    assert [item.name for item in tmp_path.iterdir()] == ["bundle"]
    (path / manifest.NAME).unlink()
    result = call(*arguments, "--overwrite")
    assert result.exit_code == 2
    assert "exists and is no bundle" in result.stderr
    assert path.is_dir()


def test_what_cannot_be_compiled_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise CompileError("no linker")

    monkeypatch.setattr(making, "link", fail)
    monkeypatch.setenv("DCN_TVM_HOME", str(tmp_path / "home"))
    result = call(*SMALL, "--inference", "-o", tmp_path / "bundle")
    assert result.exit_code == 1
    assert result.stderr == "error: no linker\n"
    assert [item.name for item in tmp_path.iterdir()] == ["home"]


# Linkers.


def test_without_a_cross_compiler_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linking.shutil, "which", lambda name: None)
    monkeypatch.setattr(linking.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(linking, "_found", {})
    for name in ("CC", "CC_riscv64_linux_gnu"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(CompileError) as raised:
        linking.link([], tmp_path / "x.so", Host("linux", "riscv64"))
    for said in ("gcc-riscv64-linux-gnu", "pip install ziglang", "CC_riscv64_linux_gnu", "found"):
        assert said in str(raised.value)
    with pytest.raises(CompileError, match="install cc, gcc or clang, or set CC"):
        linking.link([], tmp_path / "x.so", HERE)
    with pytest.raises(CompileError, match="compile on such a machine"):
        linking.link([], tmp_path / "x.so", Host("plan9", HERE.arch))


@linux
def test_the_compiler_of_the_environment_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is: here it writes what it was called with."""
    fake = tmp_path / "cross-cc"
    fake.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done; echo "$@" > "$2"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("CC_riscv64_linux_gnu", f"{fake} --target=riscv64")
    linking.link([Path("a.o")], tmp_path / "x.so", Host("linux", "riscv64"))
    assert (tmp_path / "x.so").read_text().split()[2] == "a.o"
    fake.write_text("#!/bin/sh\necho no such machine >&2; exit 3\n")
    with pytest.raises(CompileError, match="no such machine"):
        linking.link([Path("a.o")], tmp_path / "x.so", Host("linux", "riscv64"))


def test_this_machine_is_its_own_host() -> None:
    assert HERE.arch == target.arch_of(platform.machine())
    assert targets.host_of(target.detect()) == HERE
