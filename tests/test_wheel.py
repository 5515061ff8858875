"""The wheel holds all that the package needs, and runs away from the checkout."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]

PROGRAM = """
import importlib, json, sys
import torch
import dcn_tvm
from dcn_tvm import _resources, reference

torch.manual_seed(0)
x, weight = torch.randn(2, 6, 9, 8), torch.randn(4, 6, 3, 3)
offset, mask = 2 * torch.randn(2, 18, 9, 8), torch.rand(2, 9, 9, 8)
call = dict(padding=1, mask=mask)
got = dcn_tvm.deform_conv2d(x, offset, weight, **call)
wanted = reference.deform_conv2d(x, offset, weight, **call)
print(json.dumps({
    "package": dcn_tvm.__file__,
    "schedules": str(_resources.root("schedules")),
    "tuning_logs": str(_resources.root("tuning_logs")),
    "schedule": importlib.import_module("dcn_tvm.schedules.cpu.deform_conv2d").__file__,
    "error": (got - wanted).abs().max().item(),
    "size": wanted.abs().max().item(),
}))
"""


def run(*command: str | Path, **settings: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "DCN_TVM"))}
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        cwd="/",
        env=environment | settings,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", folder, CHECKOUT)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean virtual environment with the wheel and, by path, this environment's packages."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    # A path in a .pth file makes no editable install of this environment visible.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    pip = (sys.executable, "-m", "pip", "--python", python, "install")
    run(*pip, "--no-deps", "--no-index", "--no-compile", wheel)
    return folder


def test_wheel_holds_the_package_with_schedules_and_tuning_logs(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"dcn_tvm", "dcn_tvm-0.1.0.dist-info"}
    for folder in ("schedules", "tuning_logs"):
        tree = {
            f"dcn_tvm/_{path.relative_to(CHECKOUT).as_posix()}"
            for path in (CHECKOUT / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert tree
        assert tree == {name for name in names if name.startswith(f"dcn_tvm/_{folder}/")}
    for source in (CHECKOUT / "dcn_tvm").rglob("*"):
        if source.is_file() and "__pycache__" not in source.parts:
            assert source.relative_to(CHECKOUT).as_posix() in names
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)


def test_installed_wheel_runs(environment: Path, tmp_path: Path) -> None:
    python = environment / "bin" / "python"
    found = json.loads(run(python, "-c", PROGRAM, DCN_TVM_HOME=str(tmp_path)).splitlines()[-1])
    for name in ("package", "schedules", "tuning_logs", "schedule"):
        assert environment in Path(found[name]).parents, found
    assert found["error"] < 1e-5 * found["size"]
    assert any(tmp_path.rglob("*.so")) or not sys.platform.startswith("linux")


def test_installed_command_runs(environment: Path) -> None:
    assert "explain" in run(environment / "bin" / "dcn-tvm", "--help")


def test_wheel_claims_no_other_name(environment: Path) -> None:
    program = "import importlib.util as u; print([u.find_spec(n) is None for n in {!r}])"
    names = ["schedules", "tuning_logs", "tests"]
    python = environment / "bin" / "python"
    assert run(python, "-c", program.format(names)).strip() == str([True] * 3)
