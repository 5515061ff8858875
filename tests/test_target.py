"""The facts of recorded machines, and what TVM makes of them."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from dcn_tvm import target
from dcn_tvm.target import Target

SSE4 = "fpu sse sse2 cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3"
AVX2 = f"{SSE4} abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"
AVX512 = f"{AVX2} avx512f avx512bw avx512cd avx512dq avx512vl"

# One processor of /proc/cpuinfo, shortened to the lines and flags that matter.
RECORDED = {
    "Skylake-X": ("x86_64", f"model name\t: Intel(R) Core(TM) i9-7900X CPU\nflags\t\t: {AVX512}"),
    "Sapphire Rapids": (
        "x86_64",
        "model name\t: Intel(R) Xeon(R) Platinum 8481C\n"
        f"flags\t\t: {AVX512} avx_vnni avx512_vnni avx512_bf16 avx512_fp16 "
        "amx_bf16 amx_tile amx_int8",
    ),
    "Zen 3": ("x86_64", f"model name\t: AMD EPYC 7763  64-Core Processor\nflags\t\t: {AVX2} sse4a"),
    "Knights Landing": ("x86_64", f"flags\t\t: {AVX2} avx512f avx512cd avx512er"),
    "Nehalem": ("x86_64", f"model name\t: Intel(R) Core(TM) i7 CPU 920\nflags\t\t: {SSE4}"),
    "Opteron": ("AMD64", "flags\t\t: fpu sse sse2 cx16 lahf_lm pni"),
    "Graviton3": (
        "aarch64",
        "processor\t: 0\nFeatures\t: fp asimd fphp asimdhp asimddp sve i8mm bf16\n"
        "CPU implementer\t: 0x41\nCPU part\t: 0xd40",
    ),
    "Raspberry Pi 4": ("aarch64", "Features\t: fp asimd evtstrm crc32"),
    "Apple M2": ("arm64", ""),
    "unknown": ("riscv64", ""),
}
V4_VNNI = ("+avx512vnni", "+avx512bf16", "+avx512fp16", "+amx-tile", "+amx-bf16", "+amx-int8")
EXPECTED = {  # level, lanes, registers, features
    "Skylake-X": ("x86-64-v4", 16, 32, ()),
    "Sapphire Rapids": ("x86-64-v4", 16, 32, ("+avxvnni", *V4_VNNI)),
    "Zen 3": ("x86-64-v3", 8, 16, ()),
    "Knights Landing": ("x86-64-v3", 8, 16, ()),
    "Nehalem": ("x86-64-v2", 4, 16, ()),
    "Opteron": ("x86-64", 4, 16, ()),
    "Graviton3": ("armv8", 4, 32, ("+fullfp16", "+dotprod", "+bf16", "+i8mm")),
    "Raspberry Pi 4": ("armv8", 4, 32, ()),
    "Apple M2": ("armv8", 4, 32, ()),
    "unknown": ("riscv64", 4, 32, ()),
}


def recorded(name: str) -> Target:
    machine, text = RECORDED[name]
    return target.from_facts(machine, target.parse_cpuinfo(text.splitlines()), {}, cores=4)


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_machine(name: str) -> None:
    found = recorded(name)
    assert (found.level, found.lanes, found.registers, found.features) == EXPECTED[name]
    assert found.id == found.level
    assert found.cores == 4


def test_names_are_readable() -> None:
    assert recorded("Zen 3").name == "AMD EPYC 7763 64-Core Processor"
    assert recorded("Graviton3").name == "ARM implementer 0x41 part 0xd40"
    assert recorded("Opteron").name == "x86-64"


def test_only_the_first_processor_is_read() -> None:
    lines = ["flags\t: sse2\n", "\n", "flags\t: avx2\n"]
    assert target.parse_cpuinfo(iter(lines)) == {"flags": "sse2"}


def test_caches_are_read_and_assumed_where_missing(tmp_path: Path) -> None:
    sizes = [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2M")]
    for index, facts in enumerate(sizes):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, value in zip(("level", "type", "size"), facts, strict=True):
            (folder / name).write_text(value + "\n")
    (tmp_path / "index3").mkdir()  # hidden by a container
    caches = target._read_caches(tmp_path)
    assert caches == {1: 48 << 10, 2: 2 << 20}
    found = target.from_facts("x86_64", {}, caches, cores=1)
    assert (found.l1_bytes, found.l2_bytes, found.l3_bytes) == (48 << 10, 2 << 20, 2 << 20)
    assumed = target.from_facts("x86_64", {}, {}, cores=1)
    assert 0 < assumed.l1_bytes < assumed.l2_bytes < assumed.l3_bytes


def test_macs(monkeypatch) -> None:
    text = (
        "machdep.cpu.brand_string: Intel(R) Core(TM) i7-9750H CPU\nhw.optional.avx2_0: 1\n"
        "hw.l1dcachesize: 32768\nhw.l2cachesize: 262144\nhw.l3cachesize: 12582912\n"
    )

    class Done:
        stdout = text

    monkeypatch.setattr(target.subprocess, "run", lambda *args, **kwargs: Done)
    found = target.from_facts("x86_64", *target._read_darwin(), cores=6)
    assert (found.level, found.l2_bytes, found.l3_bytes) == ("x86-64-v3", 262144, 12582912)
    Done.stdout = text.replace("avx2_0: 1", "avx2_0: 0")
    assert target.from_facts("x86_64", *target._read_darwin(), cores=6).level == "x86-64"


def test_a_lower_level_is_a_smaller_machine() -> None:
    found = recorded("Sapphire Rapids").at_level("x86-64-v3")
    assert (found.level, found.lanes, found.registers) == ("x86-64-v3", 8, 16)
    assert found.features == ("+avxvnni",)
    assert found.name == recorded("Sapphire Rapids").name
    assert recorded("Graviton3").at_level("armv8") == recorded("Graviton3")


@pytest.mark.parametrize("level", ["x86-64-v4", "armv8", "skylake"])
def test_a_level_that_the_machine_lacks_is_refused(level: str) -> None:
    required = rf"x86-64, x86-64-v2, x86-64-v3 .*AMD EPYC 7763.*got '{level}'"
    with pytest.raises(ValueError, match=required):
        recorded("Zen 3").at_level(level)


def test_environment_chooses_the_level(monkeypatch) -> None:
    monkeypatch.setattr(target, "_machine", lambda: recorded("Skylake-X"))
    monkeypatch.delenv("DCN_TVM_TARGET", raising=False)
    assert target.detect().level == "x86-64-v4"
    monkeypatch.setenv("DCN_TVM_TARGET", "x86-64-v2")
    assert target.detect() == recorded("Skylake-X").at_level("x86-64-v2")
    monkeypatch.setenv("DCN_TVM_TARGET", "x86-64-v5")
    with pytest.raises(ValueError, match="x86-64-v5"):
        target.detect()


def test_key_is_what_code_depends_on() -> None:
    keys = {recorded(name).key() for name in RECORDED}
    assert len(keys) == 8  # Zen 3 and Knights Landing, Raspberry Pi 4 and Apple M2 share theirs
    machine, text = RECORDED["Zen 3"]
    fields = target.parse_cpuinfo(text.splitlines())
    assert target.from_facts(machine, fields, {2: 1 << 20}, 64).key() == recorded("Zen 3").key()


def test_this_machine_is_detected_quickly(monkeypatch) -> None:
    monkeypatch.delenv("DCN_TVM_TARGET", raising=False)
    times_s = []
    for _ in range(5):
        target._machine.cache_clear()
        start = time.perf_counter()
        found = target.detect()
        times_s.append(time.perf_counter() - start)
    assert found.cores >= 1
    if sys.platform.startswith("linux"):
        assert min(times_s) < 5e-3
    assert target.detect() is target.detect()


@pytest.mark.parametrize("name", [name for name in RECORDED if name != "unknown"])
def test_tvm_takes_every_target(name: str) -> None:
    import tvm

    facts = recorded(name).to_tvm_dict()
    if recorded(name).arch == "aarch64":
        facts["mtriple"] = "aarch64-linux-gnu"
    made = tvm.target.Target(facts)
    assert made.attrs["num-cores"] == 4
    levels = {"x86-64-v4": 64, "x86-64-v3": 32}  # bytes of a vector, as LLVM sees it
    width = tvm.target.codegen.llvm_get_vector_width(made)
    assert width >= 8 * levels.get(recorded(name).level, 16)


@pytest.mark.parametrize(("level", "register"), [("x86-64-v4", "zmm"), ("x86-64-v3", "ymm")])
def test_wide_vectors_make_wide_code(level: str, register: str) -> None:
    import tvm
    from tvm import te

    a, b = (te.placeholder((64, 16), name=name) for name in "ab")
    c = te.compute((64, 16), lambda i, j: a[i, j] * b[i, j] + a[i, j], name="c")
    schedule = tvm.s_tir.Schedule(te.create_prim_func([a, b, c]))
    schedule.vectorize(schedule.get_loops(schedule.get_sblock("c"))[1])
    facts = recorded("Sapphire Rapids").at_level(level).to_tvm_dict()
    code = tvm.compile(schedule.mod, target=facts).mod.inspect_source("asm")
    assert f"%{register}" in code
    assert ("%zmm" in code) == (register == "zmm")
