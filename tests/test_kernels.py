"""Kernels across processes: kept on disk, rebuilt when they must be, without a C compiler too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dcn_tvm
from dcn_tvm import kernels, ops
from dcn_tvm.errors import CompileError
from tests.cases import CASES

ROOT = Path(__file__).parents[1]
CASE = CASES["point"]  # the quickest to compile

CALL = """
import sys, warnings
import torch, dcn_tvm
from dcn_tvm import build, kernels
from tests.cases import CASES
{before}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    call = CASES["point"].arguments()
    results = call.run(dcn_tvm.deform_conv2d)
expected = call.run(dcn_tvm.reference.deform_conv2d)
for name, tensor in expected.items():
    torch.testing.assert_close(results[name], tensor, rtol=1e-4, atol=1e-4, msg=name)
said = [str(warning.message) for warning in caught if "compiled in memory" in str(warning.message)]
print(kernels.build_count(), "tvm" in sys.modules, len(said))
"""


def start(home: Path, before: str = "", **environment: str) -> subprocess.Popen[str]:
    """Start a process of its own that calls the op."""
    return subprocess.Popen(
        [sys.executable, "-c", CALL.format(before=before)],
        cwd=ROOT,
        env={**os.environ, "DCN_TVM_HOME": str(home), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, bool, int]:
    """Return its builds, whether TVM was loaded, and warnings."""
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, output + errors
    builds, loaded, warnings = output.split()[-3:]
    return int(builds), loaded == "True", int(warnings)


def call(home: Path, before: str = "", **environment: str) -> tuple[int, bool, int]:
    return finish(start(home, before, **environment))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the kernels of the call: forward and both backward ones."""
    folder = tmp_path_factory.mktemp("home")
    assert call(folder) == (3, True, 0)
    return folder


def libraries(home: Path) -> list[Path]:
    return sorted(home.glob("builds/objects/*.so"))


def test_a_second_process_compiles_nothing_and_loads_no_compiler(home: Path) -> None:
    assert call(home) == (0, False, 0)


def test_processes_that_start_together_build_each_kernel_once(tmp_path: Path) -> None:
    processes = [start(tmp_path) for _ in range(3)]
    results = [finish(process) for process in processes]
    assert sum(builds for builds, _, _ in results) == 3


@pytest.mark.parametrize("damage", [b"", b"no library", None], ids=["empty", "garbage", "gone"])
def test_a_damaged_library_is_built_again(home: Path, damage: bytes | None) -> None:
    assert call(home) == (0, False, 0)
    library = libraries(home)[0]
    if damage is None:
        library.unlink()
    else:
        library.write_bytes(damage)
    builds, _, _ = call(home)
    assert builds <= 1  # none if it was the launcher's library
    assert call(home) == (0, False, 0)


def test_changed_sources_are_seen(home: Path) -> None:
    changed = "build.fingerprint = lambda: 'the schedules were edited'"
    kept = libraries(home)
    # They schedule to the same text, so the libraries that exist are found by content.
    assert call(home, changed) == (0, True, 0)
    assert libraries(home) == kept
    assert call(home, changed) == (0, False, 0)


def test_another_compiler_version_builds_again(home: Path) -> None:
    changed = "build.versions = lambda: ('apache-tvm 99',)"
    assert call(home, changed) == (3, True, 0)


@pytest.mark.parametrize(
    "environment",
    [{"CC": "/nonexistent/cc"}, {"CC": "", "PATH": ""}, {"CC": "false"}],
    ids=["missing", "none", "broken"],
)
def test_without_a_c_compiler(tmp_path: Path, environment: dict[str, str]) -> None:
    assert call(tmp_path, **environment) == (3, True, 1)
    assert not libraries(tmp_path)


def test_a_refusal_of_the_compiler_names_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tvm

    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("LLVM says no")

    monkeypatch.setattr(tvm, "compile", refuse)
    monkeypatch.setenv("DCN_TVM_HOME", str(tmp_path))
    arguments = CASES["strided"].arguments(torch.float16)
    monkeypatch.setattr(kernels, "_functions", {})
    with pytest.raises(CompileError, match=r"deform_conv2d\.forward.*float16.*LLVM says no"):
        arguments.call(dcn_tvm.deform_conv2d)


SIZES = {"batch": 1, "height": 5, "width": 6}


def problem() -> ops.deform_conv2d.DeformConv2dProblem:
    return ops.deform_conv2d.DeformConv2dProblem(
        "float32", "nchw", 3, 2, kernel_size=(1, 1), modulated=True, bias=True
    )


def test_explain_compiles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCN_TVM_HOME", str(tmp_path))
    before = kernels.build_count()
    found = kernels.explain(problem(), SIZES)
    assert [entry.kernel for entry in found] == [
        "forward -> output",
        "backward_data -> grad_input, grad_offset, grad_mask",
        "backward_weight -> grad_weight, grad_bias",
    ]
    for entry in found:
        assert (entry.cached, entry.path, entry.provenance) == (False, None, "default")
        assert entry.choices
        assert all(isinstance(value, int | str) for value in entry.choices.values())
    assert kernels.build_count() == before


def test_explain_finds_what_is_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(home)  # whatever other tests broke
    fresh = {entry.kernel: entry.choices for entry in kernels.explain(problem(), SIZES)}
    monkeypatch.setenv("DCN_TVM_HOME", str(home))
    for entry in kernels.explain(problem(), SIZES):
        assert entry.cached
        assert entry.path is not None
        assert Path(entry.path).is_file()
        assert entry.choices == fresh[entry.kernel]


def test_explain_leaves_out_gradients_of_absent_tensors() -> None:
    plain = ops.deform_conv2d.DeformConv2dProblem("float32", "nchw", 3, 2, kernel_size=(1, 1))
    names = [entry.kernel for entry in kernels.explain(plain, SIZES)]
    assert names[1:] == [
        "backward_data -> grad_input, grad_offset",
        "backward_weight -> grad_weight",
    ]
