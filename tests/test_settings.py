"""Environment variables are read when needed, and nonsense in them is refused."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from dcn_tvm import _resources, settings


def test_home_is_the_folder_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCN_TVM_HOME", str(tmp_path / "not yet there"))
    assert settings.home() == tmp_path / "not yet there"
    monkeypatch.setenv("DCN_TVM_HOME", "~/kept")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert settings.home() == tmp_path / "kept"


@pytest.mark.parametrize("text", ["", "  "])
def test_home_defaults_to_the_user_cache(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCN_TVM_HOME", text)
    assert settings.home().is_absolute()
    assert "dcn_tvm" in settings.home().parts


def test_home_refuses_a_relative_path_and_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DCN_TVM_HOME", "builds")
    with pytest.raises(ValueError, match="DCN_TVM_HOME must be an absolute path, got 'builds'"):
        settings.home()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DCN_TVM_HOME", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="DCN_TVM_HOME must be a folder"):
        settings.home()


def test_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DCN_TVM_TARGET", raising=False)
    assert settings.target() is None
    monkeypatch.setenv("DCN_TVM_TARGET", " x86-64-v3 ")
    assert settings.target() == "x86-64-v3"
    for text in ("x86-64-v3,cores=8,l2_bytes=2M", "cores=4", "armv8, name=Cortex A72, features="):
        monkeypatch.setenv("DCN_TVM_TARGET", text)
        assert settings.target() == text
    for text in ("llvm -mcpu=native", "X86-64", "x86-64-v3,", "cores=4,x86-64-v3", "=4", "a,,b=1"):
        monkeypatch.setenv("DCN_TVM_TARGET", text)
        with pytest.raises(ValueError, match=f"such as 'x86-64-v3,cores=8', got '{text}'"):
            settings.target()


def test_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, wanted in (("0", False), ("1", True)):
        monkeypatch.setenv("DCN_TVM_PROGRESS", text)
        assert settings.progress() is wanted
    monkeypatch.setenv("DCN_TVM_PROGRESS", "auto")
    for terminal in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        assert settings.progress() is terminal
    monkeypatch.setenv("DCN_TVM_PROGRESS", "yes")
    with pytest.raises(ValueError, match="must be auto, 0 or 1, got 'yes'"):
        settings.progress()


def test_resources_are_found_and_others_refused() -> None:
    assert (_resources.root("tuning_logs") / "README.md").is_file()
    assert _resources.root("schedules").is_dir()
    with pytest.raises(ValueError, match="schedules, tuning_logs, got 'tests'"):
        _resources.root("tests")


def test_bundles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DCN_TVM_BUNDLES", raising=False)
    assert settings.bundles() == ()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DCN_TVM_BUNDLES", os.pathsep.join(("~/a", "", f" {tmp_path / 'b'} ")))
    assert settings.bundles() == (tmp_path / "a", tmp_path / "b")
