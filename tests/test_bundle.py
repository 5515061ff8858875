"""What is wrong with a bundle is told, whatever it is, before anything of it is loaded."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dcn_tvm import bundles, gpu, target
from dcn_tvm.build import Request
from dcn_tvm.bundles import manifest, targets
from dcn_tvm.bundles.bundle import Bundle
from dcn_tvm.bundles.targets import Host
from dcn_tvm.errors import BundleError, DcnTvmError
from tests.bundle_files import FORWARD, HERE, PROBLEM, change, write

ELSEWHERE = Host("linux", "aarch64" if HERE.arch == "x86-64" else "x86-64")
FOREIGN = targets.any_of(ELSEWHERE)
LOWEST = targets.any_of(HERE)
LEVELS = {level: target.parse(level, foreign=True) for level in target.levels("x86-64")}
Edit = Callable[[dict[str, Any]], object]

x86 = pytest.mark.skipif(HERE.arch != "x86-64", reason="needs several levels")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("DCN_TVM_TARGET", raising=False)
    monkeypatch.setattr(gpu, "detect", lambda: ())
    yield
    bundles.forget()


def refused(folder: Path, said: str) -> None:
    with pytest.raises(BundleError) as raised:
        bundles.load(folder)
    assert said in str(raised.value), raised.value
    assert isinstance(raised.value, ValueError)
    assert isinstance(raised.value, DcnTvmError)


def test_a_bundle_tells_what_it_holds(tmp_path: Path) -> None:
    made = write(tmp_path, [LOWEST, FOREIGN])
    bundle = bundles.load(tmp_path)
    assert bundle.targets == (LOWEST.level, FOREIGN.level)
    assert bundle.manifest == made
    assert repr(bundle) == (
        f"<Bundle {tmp_path}: 2 kernels of roi_align for {LOWEST.level}, {FOREIGN.level}>"
    )
    assert str(bundle.kernels[0]) == f"roi_align.forward -> output for {LOWEST.level}"
    assert bundles.load(tmp_path, sha256=made.sha256).sha256 == made.sha256


def test_a_kernel_is_found_whatever_records_say(tmp_path: Path) -> None:
    write(tmp_path, [LOWEST])
    bundles.load(str(tmp_path))
    path = bundles.find(replace(FORWARD, recorded=((("vectors", 2),), None)))
    assert path is not None
    assert path.read_bytes() == LOWEST.level.encode()
    assert tmp_path not in path.parents, "the bundle's own file may change while it is used"


def test_other_kernels_are_not_found(tmp_path: Path) -> None:
    write(tmp_path, [LOWEST])
    bundles.load(tmp_path)
    for other in (
        replace(FORWARD, problem=replace(PROBLEM, channels=9)),
        replace(FORWARD, problem=replace(PROBLEM, layout="nhwc")),
        Request(PROBLEM, "backward", ("grad_input",)),
        replace(FORWARD, target=gpu.assumed("sm_90")),
    ):
        assert bundles.find(other) is None


def test_without_a_compiler_a_missing_kernel_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, [LOWEST, FOREIGN])
    bundles.load(tmp_path)
    monkeypatch.setitem(sys.modules, "tvm", None)
    with pytest.raises(BundleError) as raised:
        bundles.find(replace(FORWARD, problem=replace(PROBLEM, output_size=(2, 2))))
    text = str(raised.value)
    assert "roi_align.forward -> output (float32, nchw), dtype float32" in text
    assert f"roi_align.forward -> output for {LOWEST.level} has output_size (3, 3)" in text
    assert "pip install apache-tvm" in text
    with pytest.raises(BundleError, match="is of this problem, but it is for the CPU"):
        bundles.find(replace(FORWARD, target=gpu.assumed("sm_90")))
    with pytest.raises(BundleError, match="DCN_TVM_BUNDLES"):
        bundles.forget()
        bundles.find(FORWARD)


def test_the_latest_bundle_is_asked_first_and_a_path_counts_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, [LOWEST])
    (tmp_path / "b" / LOWEST.level / "kernel.so").write_bytes(b"another one")
    _resign(tmp_path / "b")
    for name, wanted in (("a", LOWEST.level), ("b", "another one"), ("a", LOWEST.level)):
        bundles.load(tmp_path / name)
        path = bundles.find(FORWARD)
        assert path is not None
        assert path.read_bytes() == wanted.encode()


def _resign(folder: Path) -> None:
    import hashlib

    def edit(content: dict[str, Any]) -> None:
        for library in content["kernels"]:
            data = (folder / library["file"]).read_bytes()
            library.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    change(folder, edit)


# Which of several targets serves.


@x86
@pytest.mark.parametrize("here", LEVELS)
def test_the_best_level_that_runs_here_is_taken(
    here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, [LEVELS["x86-64-v2"], LEVELS["x86-64"], LEVELS["x86-64-v4"]])
    bundles.load(tmp_path)
    monkeypatch.setattr(target, "detect", lambda: LEVELS[here])
    path = bundles.find(FORWARD)
    wanted = {"x86-64-v3": "x86-64-v2"}.get(here, here)
    assert path is not None
    assert path.read_text() == wanted


@x86
def test_features_count_and_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = LEVELS["x86-64-v4"]
    more = replace(plain, features=("+avx512bf16",))
    write(tmp_path, [plain, more])
    for machine in (plain, more):
        monkeypatch.setattr(target, "detect", lambda machine=machine: machine)
        bundles.load(tmp_path)
        path = bundles.find(FORWARD)
        assert path is not None
        assert path.read_text() == targets.name(machine)
    assert plain.refusal(more) == "it needs +avx512bf16, which this machine does not have"


def device(spec: str, **manner: bool) -> gpu.Gpu:
    return replace(gpu.assumed(spec), **manner)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (device("sm_80"), "sm_80"),
        (device("sm_86,name=A GPU,multiprocessors=84"), "sm_80"),
        (device("sm_89"), "sm_89"),
        (device("sm_90"), "sm_90"),
        (device("sm_90", tf32=True), "sm_90 tf32"),
        (device("sm_80", tf32=True), "sm_80"),
        (device("sm_90", deterministic=True), "sm_90 deterministic"),
        (device("sm_90", deterministic=True, tf32=True), "sm_90 deterministic"),
        (device("sm_80", deterministic=True), None),
        (device("sm_75"), None),
        (device("sm_100"), None),
    ],
    ids=lambda value: value.key() if isinstance(value, gpu.Gpu) else None,
)
def test_which_kernels_run_on_which_device(
    wanted: gpu.Gpu, found: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nine = device("sm_90")
    manners = [replace(nine, tf32=True), replace(nine, deterministic=True)]
    write(tmp_path, [device("sm_80"), device("sm_89"), nine, *manners])
    monkeypatch.setattr(gpu, "detect", lambda: (nine,))
    path = bundles.load(tmp_path).find(replace(FORWARD, target=wanted))
    assert (path and path.read_text()) == found


def test_a_bundle_for_other_machines_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "arch", [FOREIGN], ELSEWHERE)
    refused(tmp_path / "arch", f"is for {FOREIGN.level} ({ELSEWHERE}), and this machine is {HERE}")
    write(tmp_path / "system", [LOWEST], Host("plan9", HERE.arch))
    refused(tmp_path / "system", f"(plan9 {HERE.arch})")
    write(tmp_path / "cuda", [device("sm_90")])
    refused(tmp_path / "cuda", "and no CUDA device")
    monkeypatch.setattr(gpu, "detect", lambda: (device("sm_80"), device("sm_80")))
    refused(tmp_path / "cuda", "is for sm_90")
    refused(tmp_path / "cuda", "and sm_80")
    write(tmp_path / "host", [device("sm_80")], ELSEWHERE)
    refused(tmp_path / "host", str(ELSEWHERE))
    write(tmp_path / "none", [])
    refused(tmp_path / "none", "is for nothing")


@x86
def test_a_bundle_for_a_higher_level_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, [LEVELS["x86-64-v4"]])
    monkeypatch.setattr(target, "detect", lambda: LEVELS["x86-64-v3"])
    refused(tmp_path, "is for x86-64-v4 (")
    refused(tmp_path, "with x86-64-v3 and no CUDA device")


# Damage.


def test_a_damaged_library_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [LOWEST])
    library = tmp_path / LOWEST.level / "kernel.so"
    good = library.read_bytes()
    library.write_bytes(b"X" + good[1:])
    refused(tmp_path, f"{library} was changed: its sha256 must be ")
    library.write_bytes(good[:-1])
    refused(tmp_path, f"must have {len(good)} bytes, got {len(good) - 1}: it was cut short")
    library.write_bytes(good + bytes(1000))
    refused(tmp_path, f"must have {len(good)} bytes, got more")
    library.unlink()
    refused(tmp_path, f"{library} is missing")
    library.mkdir()
    refused(tmp_path, f"{library} cannot be read")


def test_a_damaged_shim_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [LOWEST])
    (tmp_path / HERE.system / "openmp.so").write_bytes(b"Shim")
    refused(tmp_path, "openmp.so was changed")


def test_links_and_pipes_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    write(folder, [LOWEST])
    library, kept = folder / LOWEST.level / "kernel.so", tmp_path / "kept.so"
    library.rename(kept)
    library.symlink_to(kept)
    refused(folder, f"{library} is a link")
    library.unlink()
    os.mkfifo(library)
    refused(folder, "must be a plain file")
    library.unlink()
    kept.rename(library)
    library.parent.rename(tmp_path / "moved")
    library.parent.symlink_to(tmp_path / "moved")
    refused(folder, f"{library.parent} is a link")


def test_a_library_that_changes_later_is_refused_then(tmp_path: Path) -> None:
    write(tmp_path, [LOWEST])
    bundle = bundles.load(tmp_path)
    library = tmp_path / LOWEST.level / "kernel.so"
    good = library.read_bytes()
    library.write_bytes(good.upper())
    with pytest.raises(BundleError, match="was changed"):
        bundle.find(FORWARD)
    library.write_bytes(good)
    path = bundle.find(FORWARD)
    library.write_bytes(good.upper())
    assert bundle.find(FORWARD) == path
    assert path is not None
    assert path.read_bytes() == good
    (tmp_path / HERE.system / "openmp.so").write_bytes(b"Shim")
    with pytest.raises(BundleError, match="was changed"):
        bundles.shim()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "the manifest must be an object, got []"),
        (b"{}", "format must be a whole number, got None"),
        (b'{"format": true}', "format must be a whole number, got True"),
        (b'{"format": 2}', "must have format 1, got 2: compile the bundle again"),
        (b'{"format": 1}', "sha256 must be a text, got None"),
        (b'{"format": 1, "sha256": "abc"}', "sha256 must be 64 hex digits, got 'abc'"),
    ],
)
def test_a_manifest_that_is_none_is_refused(text: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / manifest.NAME).write_bytes(text)
    refused(tmp_path, said)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, f"{tmp_path / manifest.NAME} is missing")
    refused(tmp_path / "nothing", f"{tmp_path / 'nothing'} is missing")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "a bundle must be a folder")


def test_a_changed_manifest_is_noticed(tmp_path: Path) -> None:
    made = write(tmp_path, [LOWEST])
    change(tmp_path, lambda content: content["kernels"][0].update(kernel="backward"), sign=False)
    refused(
        tmp_path,
        f"manifest.json was changed after it was written: its sha256 must be {made.sha256}",
    )


def test_a_bundle_with_another_checksum_than_told_is_refused(tmp_path: Path) -> None:
    made = write(tmp_path, [LOWEST])
    change(tmp_path, lambda content: content["created"].update(date="tomorrow"))
    assert bundles.load(tmp_path).sha256 != made.sha256
    with pytest.raises(BundleError, match=f"must have the sha256 {made.sha256}, got "):
        bundles.load(tmp_path, sha256=made.sha256)


def _of_kernel(**facts: object) -> Edit:
    return lambda content: content["kernels"][0].update(facts)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (_of_kernel(file="../kernel.so"), "kernels[0]: file must be a path in the bundle"),
        (_of_kernel(file="/etc/passwd"), "file must be a path in the bundle"),
        (_of_kernel(file="a/../../b.so"), "file must be a path in the bundle"),
        (_of_kernel(file="a//b.so"), "file must be a path in the bundle"),
        (_of_kernel(file="a\\b.so"), "file must be a path in the bundle"),
        (_of_kernel(file="a\0.so"), "file must be a path in the bundle"),
        (_of_kernel(file=""), "file must be a path in the bundle"),
        (_of_kernel(file=7), "file must be a text, got 7"),
        (_of_kernel(bytes="7"), "bytes must be a whole number, got '7'"),
        (_of_kernel(bytes=0), "bytes must be positive, got 0"),
        (_of_kernel(sha256="A" * 64), "sha256 must be 64 hex digits"),
        (_of_kernel(op="convolution"), "op must be one of "),
        (_of_kernel(kernel="sideways"), "roi_align has no kernel sideways -> output"),
        (_of_kernel(outputs=[]), "roi_align has no kernel forward -> "),
        (_of_kernel(outputs=["output", "more"]), "has no kernel forward -> output, more"),
        (_of_kernel(outputs=[1]), "outputs must be texts, got 1"),
        (_of_kernel(problem=[]), "problem must be an object, got []"),
        (_of_kernel(problem={"colour": 4}), "has no field 'colour'"),
        (_of_kernel(problem={"dtype": "float32"}), "kernels[0]: "),
        (_of_kernel(target="cpu:skylake"), "level must be one of "),
        (_of_kernel(target="cpu"), "target must say which CPU"),
        (_of_kernel(target="tpu:4"), "a target must be cpu, cpu:LEVEL or cuda:sm_NN"),
        (_of_kernel(manner=["tf32"]), "has no manner tf32"),
        (_of_kernel(target="cuda:sm_90", manner=["fast"]), "cuda:sm_90 has no manner fast"),
        (_of_kernel(system=None), "system must be a text, got None"),
        (_of_kernel(choices=4), "choices must be an object, got 4"),
        (lambda content: content.update(kernels={}), "kernels must be a list, got {}"),
        (lambda content: content.update(kernels=[4]), "kernels[0] must be an object, got 4"),
        (lambda content: content.update(shims=["x"]), "shims[0] must be an object, got 'x'"),
        (lambda content: content.update(versions={"dcn_tvm": 1}), "dcn_tvm must be a text, got 1"),
        (lambda content: content["kernels"].append(content["kernels"][0]), "twice"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(edit: Edit, said: str, tmp_path: Path) -> None:
    write(tmp_path, [LOWEST])
    change(tmp_path, edit)
    refused(tmp_path, said)


@pytest.mark.parametrize("name", ["dcn_tvm", "apache-tvm-ffi"])
def test_a_bundle_of_another_release_is_refused(name: str, tmp_path: Path) -> None:
    write(tmp_path, [LOWEST])
    change(tmp_path, lambda content: content["versions"].update({name: "7.1.2"}))
    refused(tmp_path, f"was compiled for {name} 7.1.2, and ")
    change(tmp_path, lambda content: content["versions"].pop(name))
    refused(tmp_path, f"was compiled for {name} none, and ")


@pytest.mark.parametrize("place", ["content", "kernel", "shim", "problem"])
def test_nothing_that_json_can_say_crashes(place: str, tmp_path: Path) -> None:
    write(tmp_path, [LOWEST])
    good = (tmp_path / manifest.NAME).read_text()
    values = (None, True, -1, 1e400, 10**400, "x" * 10_000, "\ud800", [], [[]], {}, {"": None})
    for name in _place(json.loads(good), place):
        for value in values:
            (tmp_path / manifest.NAME).write_text(good)
            change(tmp_path, lambda c, n=name, v=value: _place(c, place).update({n: v}))
            try:
                bundles.load(tmp_path)
            except BundleError as error:
                assert str(error)


def _place(content: dict[str, Any], place: str) -> dict[str, Any]:
    kernel: dict[str, Any] = content["kernels"][0]
    found = {"kernel": kernel, "problem": kernel["problem"], "shim": content["shims"][0]}
    return found.get(place, content)


# The environment variable.


def test_bundles_of_the_environment_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a", [LOWEST])
    write(tmp_path / "b", [LOWEST], request=Request(PROBLEM, "backward", ("grad_input",)))
    paths = os.pathsep.join(str(tmp_path / name) for name in "ab")
    monkeypatch.setenv("DCN_TVM_BUNDLES", paths)
    for request in (FORWARD, Request(PROBLEM, "backward", ("grad_input",))):
        assert bundles.find(request) is not None
    assert bundles.shim() is not None
    monkeypatch.setenv("DCN_TVM_BUNDLES", "")
    assert bundles.find(FORWARD) is None


def test_a_wrong_environment_is_told_at_every_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DCN_TVM_BUNDLES", str(tmp_path / "nothing"))
    for _ in range(2):
        with pytest.raises(BundleError, match=r"DCN_TVM_BUNDLES=.*nothing is missing"):
            bundles.find(FORWARD)
    write(tmp_path / "nothing", [LOWEST])
    assert bundles.find(FORWARD) is not None


# The manifest, and targets as text.


def test_a_manifest_survives_its_text(tmp_path: Path) -> None:
    codes = [LOWEST, FOREIGN, device("sm_90,name=NVIDIA H200,multiprocessors=132", tf32=True)]
    made = write(tmp_path, codes)
    text = (tmp_path / manifest.NAME).read_bytes()
    assert manifest.read(text) == made
    assert json.loads(text)["sha256"] == made.sha256
    assert [kernel.code for kernel in manifest.read(text).kernels] == codes


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("cpu:aarch64", "armv8"),
        ("cpu:armv8,cores=8", "armv8"),
        ("cpu:x86_64", "x86-64"),
        ("cpu:x86-64-v3", "x86-64-v3"),
        ("cpu:x86-64-v4,features=+avx512bf16", "x86-64-v4+avx512bf16"),
        ("cuda:sm_90", "sm_90"),
        ("cuda:sm_80,multiprocessors=108", "sm_80"),
    ],
)
def test_targets_are_named(text: str, name: str) -> None:
    code = targets.parse(text)
    assert targets.name(code) == name
    assert targets.parse(targets.written(code)) == code


def test_the_plain_cpu_is_this_machine() -> None:
    assert targets.parse("cpu") == target.detect()


@pytest.mark.parametrize("text", ["", "cpu:", "cuda", "cuda:90", "sm_90", "cpu:skylake", "metal:4"])
def test_other_targets_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        targets.parse(text)


def test_verifying_reads_a_bundle_once(tmp_path: Path) -> None:
    """The bundle is opened with what it held then, whatever happens to its manifest."""
    write(tmp_path, [LOWEST])
    bundle = Bundle(tmp_path)
    (tmp_path / manifest.NAME).unlink()
    assert bundle.find(FORWARD) is not None
