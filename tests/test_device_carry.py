"""Carrying: what is packed is found by a Python that has nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dcn_tvm.__main__ import app
from dcn_tvm.device import carry, unpack
from dcn_tvm.device.carry import CarryError
from dcn_tvm.device.unpack import UnpackError

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Carry two small packages, one of which takes precedence."""
    monkeypatch.setenv("DCN_TVM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(carry, "BASE", ("filelock", "platformdirs"))
    monkeypatch.setattr(carry, "COMPILER", "mdurl")
    monkeypatch.setattr(carry, "FIRST", ("mdurl",))


def alone(folder: Path, code: str) -> str:
    """Run code in a Python without site-packages, after the folder's script."""
    command = f'eval "$({sys.executable} -I -S {folder}/unpack.py {folder}/../site)"; '
    command += f"exec {sys.executable} -S -c '{code}'"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.usefixtures("few")
def test_a_bare_python_finds_what_was_carried(tmp_path: Path) -> None:
    bundle = tmp_path / "kernels"
    (bundle / "sm_90").mkdir(parents=True)
    (bundle / "sm_90" / "kernel.so").write_bytes(b"machine code")
    parts = carry.carry(tmp_path / "carried", bundle=bundle)
    assert [part.name for part in parts] == ["filelock", "platformdirs", "mdurl", "bundle"]
    assert all(part.bytes < part.unpacked_bytes for part in parts[:3])
    code = (
        "import filelock, platformdirs, mdurl, os; print(platformdirs.__file__); "
        'print(open(os.environ["DCN_TVM_BUNDLES"] + "/sm_90/kernel.so").read())'
    )
    where, kernel = alone(tmp_path / "carried", code).splitlines()
    assert Path(where).parts[-3] == "site"
    assert kernel == "machine code"
    packed = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "home/carry").iterdir()}
    carry.carry(tmp_path / "carried", bundle=bundle)
    again = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "home/carry").iterdir()}
    assert again == packed  # nothing was packed twice


@pytest.mark.usefixtures("few")
def test_what_is_there_stays_but_for_what_must_match(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry.carry(tmp_path / "carried")
    monkeypatch.setattr(unpack, "is_here", lambda module: module != "filelock")
    site = unpack.unpack(tmp_path / "carried", tmp_path / "site")
    found = {path.name for path in site.iterdir() if path.is_dir()}
    assert {"filelock", "mdurl"} <= found
    assert "platformdirs" not in found
    before = (site / ".ready").stat().st_mtime_ns
    assert unpack.unpack(tmp_path / "carried", tmp_path / "site") == site
    assert (site / ".ready").stat().st_mtime_ns == before


@pytest.mark.usefixtures("few")
def test_damage_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "carried"
    carry.carry(folder)
    archive = folder / "mdurl.tar.xz"
    archive.write_bytes(archive.read_bytes()[:-8])
    with pytest.raises(UnpackError, match=r"mdurl\.tar\.xz was damaged"):
        unpack.unpack(folder, tmp_path / "site")
    (folder / "manifest.json").unlink()
    with pytest.raises(UnpackError, match="must hold what `dcn-tvm gpu carry` packed"):
        unpack.unpack(folder, tmp_path / "site")
    done = subprocess.run(
        ["sh", "-c", f'eval "$({sys.executable} {folder}/unpack.py)"'], capture_output=True
    )
    assert done.returncode != 0
    assert b"error: " in done.stderr


@pytest.mark.usefixtures("few")
def test_what_is_bound_to_another_python_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "carried"
    carry.carry(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["python"] = "3.99"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    unpack.read_manifest(folder)  # all of it runs anywhere
    manifest["parts"][0]["bound"] = True
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UnpackError, match=r"packed for Python 3\.99 \(filelock\), and this is"):
        unpack.read_manifest(folder)


def test_what_another_python_cannot_load_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "wheel.zip"
    shutil.make_archive(str(wheel.with_suffix("")), "zip", root_dir=Path(carry.__file__).parent)
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if "broken" not in command[-1]:
            shutil.copy(wheel, Path(command[command.index("--dest") + 1]) / "x-1.0-py3.whl")
        return subprocess.CompletedProcess(command, 0, "", "ERROR: none")

    monkeypatch.setattr(subprocess, "run", run)
    files = carry._fetched("apache-tvm-ffi", "3.12", "0.1.14")
    assert "unpack.py" in files.read
    assert commands[0][-1] == "apache-tvm-ffi==0.1.14"
    assert commands[0][commands[0].index("--python-version") + 1] == "3.12"
    with pytest.raises(CarryError, match=r"broken for Python 3\.12 cannot be fetched: ERROR: none"):
        carry._fetched("broken", "3.12", None)


def test_what_is_wanted() -> None:
    everything = carry.wanted(tuning=True)
    assert {"apache-tvm", "apache-tvm-ffi", "ml-dtypes", "xgboost-cpu", "tornado"} <= {*everything}
    assert not {"torch", "numpy", "scipy"} & {*everything}
    fewer = carry.wanted(compiler=False, has=("typer", "Rich"))
    assert "apache-tvm" not in fewer
    assert not {"typer", "rich", "pygments"} & {*fewer}
    installed = carry._installed("apache-tvm-ffi")
    assert installed is not None
    assert carry._bound_to(installed) == HERE
    assert not carry._is_carried("apache-tvm", "tvm/3rdparty/cutlass/x.h")
    assert carry._is_carried("apache-tvm", "tvm/lib/libtvm_compiler.so")


def test_the_command_answers_mistakes(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for arguments, said in (
        ([str(tmp_path)], "holds something else"),
        ([str(tmp_path / "new"), "--python", "312"], "such as 3.12"),
        ([str(tmp_path / "new"), "--bundle", "--arch", "hopper"], "sm_NN"),
    ):
        result = CliRunner().invoke(app, ["gpu", "carry", *arguments])
        assert result.exit_code == 2
        assert said in result.stderr
