"""The facts of GPUs: as torch tells them, and as documented for those that are not here."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from dcn_tvm import gpu
from dcn_tvm.gpu import Gpu

# As torch 2.15 tells of an H200, and what torch 2.3 would leave out.
H200 = {
    "name": "NVIDIA H200",
    "major": 9,
    "minor": 0,
    "multi_processor_count": 132,
    "warp_size": 32,
    "max_threads_per_block": 1024,
    "shared_memory_per_block": 49152,
    "shared_memory_per_block_optin": 232448,
    "shared_memory_per_multiprocessor": 233472,
    "regs_per_multiprocessor": 65536,
    "L2_cache_size": 62914560,
    "total_memory": 150109880320,
}
NEWER = ("warp_size", "max_threads_per_block", "regs_per_multiprocessor", "L2_cache_size")
NEWER += tuple(name for name in H200 if name.startswith("shared"))


def told(without: tuple[str, ...] = (), **changes: object) -> SimpleNamespace:
    facts = {name: value for name, value in H200.items() if name not in without}
    return SimpleNamespace(**{**facts, **changes})


def test_facts_are_as_torch_tells_them() -> None:
    expected = Gpu(
        kind="cuda",
        name="NVIDIA H200",
        arch="sm_90",
        multiprocessors=132,
        warp=32,
        max_threads_per_block=1024,
        shared_bytes_per_block=49152,
        shared_bytes_per_block_optin=232448,
        shared_bytes_per_multiprocessor=233472,
        registers_per_multiprocessor=65536,
        l2_bytes=62914560,
        memory_bytes=150109880320,
    )
    assert gpu.from_properties(told()) == expected
    assert expected.id == "sm_90"
    assert expected.ids == ("nvidia-h200", "sm_90")


def test_what_torch_does_not_tell_is_documented_or_unknown() -> None:
    older = gpu.from_properties(told(without=NEWER))
    full = gpu.from_properties(told())
    assert older.l2_bytes == 0
    assert Gpu(**{**vars(older), "l2_bytes": full.l2_bytes}) == full
    unknown = gpu.from_properties(told(without=NEWER, major=6, minor=1))
    assert (unknown.arch, unknown.warp, unknown.multiprocessors) == ("sm_61", 32, 132)
    assert unknown.shared_bytes_per_block_optin == unknown.registers_per_multiprocessor == 0
    other = gpu.from_properties(told(shared_memory_per_block_optin=7))
    assert other.shared_bytes_per_block_optin == 7  # torch knows better than the table


@pytest.mark.parametrize(
    ("arch", "block_kib", "multiprocessor_kib"),
    [("sm_70", 96, 96), ("sm_75", 64, 64), ("sm_80", 163, 164), ("sm_120", 99, 100)],
)
def test_documented_facts(arch: str, block_kib: int, multiprocessor_kib: int) -> None:
    found = gpu.assumed(arch)
    assert found.shared_bytes_per_block_optin == block_kib << 10
    assert found.shared_bytes_per_multiprocessor == multiprocessor_kib << 10
    assert found.registers_per_multiprocessor == 65536
    assert (found.name, found.multiprocessors, found.l2_bytes, found.memory_bytes) == ("", 0, 0, 0)
    assert found.ids == (arch,)


def test_a_spec_sets_facts() -> None:
    found = gpu.assumed("sm_80, multiprocessors=108, l2_bytes=40M, name=NVIDIA A100-SXM4-80GB")
    assert (found.multiprocessors, found.l2_bytes) == (108, 40 << 20)
    assert found.ids == ("nvidia-a100-sxm4-80gb", "sm_80")
    assert found.shared_bytes_per_block_optin == gpu.assumed("sm_80").shared_bytes_per_block_optin


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("cores=4", "architecture must be sm_NN such as 'sm_90', got ''"),
        ("sm_9x", "architecture must be sm_NN such as 'sm_90', got 'sm_9x'"),
        ("sm_80,colour=4", "fact must be one of name, multiprocessors, .*, got 'colour'"),
        ("sm_80,arch=sm_90", "fact must be one of name"),
        ("sm_80,warp=0", "warp must be a positive number, got '0'"),
        ("sm_80,warp=1K", "warp must be a positive number, got '1K'"),
    ],
)
def test_a_wrong_spec_is_refused(spec: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        gpu.assumed(spec)


@pytest.mark.parametrize("without", [(), NEWER])
@pytest.mark.parametrize("minor", [0, 1])
def test_a_spec_says_all(without: tuple[str, ...], minor: int) -> None:
    found = gpu.from_properties(told(without, minor=minor, name="NVIDIA,  H200 "))
    assert found.name == "NVIDIA H200"
    assert gpu.assumed(found.spec) == found


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A driver with two devices."""
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    properties = (told(), told(name="Tesla T4", major=7, minor=5))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties[index])
    return monkeypatch


def test_devices_are_found_in_order(driver: pytest.MonkeyPatch) -> None:
    assert [device.ids for device in gpu.detect()] == [
        ("nvidia-h200", "sm_90"),
        ("tesla-t4", "sm_75"),
    ]
    driver.setattr(torch.version, "hip", "6.0")
    assert gpu.detect() == ()


@pytest.mark.parametrize("error", [RuntimeError, AssertionError, OSError])
@pytest.mark.parametrize("call", ["is_available", "device_count", "get_device_properties"])
def test_a_broken_driver_is_no_device(
    call: str, error: type[Exception], driver: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise error("CUDA driver version is insufficient")

    driver.setattr(torch.cuda, call, fail)
    assert gpu.detect() == ()


def test_no_driver_is_no_device(driver: pytest.MonkeyPatch) -> None:
    driver.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.detect() == ()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_this_machines_devices_are_as_documented() -> None:
    devices = gpu.detect()
    assert len(devices) == torch.cuda.device_count()
    for device in devices:
        assert gpu.assumed(device.spec) == device
        assert device.multiprocessors > 0
        if device.arch in gpu._SHARED_KIB:
            documented = gpu.assumed(device.arch)
            for name in ("warp", "max_threads_per_block", "registers_per_multiprocessor"):
                assert getattr(device, name) == getattr(documented, name)
            for name in ("per_block", "per_block_optin", "per_multiprocessor"):
                name = f"shared_bytes_{name}"
                assert getattr(device, name) == getattr(documented, name)
