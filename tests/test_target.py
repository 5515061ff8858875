"""The facts of recorded machines, and what TVM makes of them."""

from __future__ import annotations

import platform
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@pytest.mark.parametrize(
    ("cpuinfo", "model"),
    [
        ({"vendor_id": "AuthenticAMD", "cpu family": "25", "model": "17"}, "amd-25-17"),
        ({"vendor_id": "GenuineIntel", "cpu family": "6", "model": "143"}, "intel-6-143"),
        ({"vendor_id": "  Shanghai  ", "cpu family": "7", "model": "59"}, "shanghai-7-59"),
        ({"vendor_id": "GenuineIntel", "cpu family": "6", "model": "unknown"}, ""),
        ({"vendor_id": "", "cpu family": "6", "model": "143"}, ""),
        ({"model name": "AMD EPYC"}, ""),  # a virtual machine hides which
        ({"CPU implementer": "0x41", "CPU part": "0xd0c"}, "arm-0x41-0xd0c"),
        ({"machdep.cpu.brand_string": "Apple M2 Pro"}, "apple-m2-pro"),
        ({}, ""),
    ],
)
def test_model_names_the_exact_cpu(cpuinfo: dict[str, str], model: str) -> None:
    found = target.from_facts("x86_64", cpuinfo, {}, cores=1)
    assert found.model == model
    assert found.ids == ((model, "x86-64") if model else ("x86-64",))


def test_names_are_readable() -> None:
    assert recorded("Zen 3").name == "AMD EPYC 7763 64-Core Processor"
    assert recorded("Graviton3").name == "ARM implementer 0x41 part 0xd40"
    assert recorded("Opteron").name == "x86-64"
    with_comma = target.from_facts("x86_64", {"model name": " QEMU,  v2, "}, {}, cores=1)
    assert with_comma.name == "QEMU v2"


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
    assert found.model == "intel-core-i7-9750h-cpu"
    Done.stdout = text.replace("avx2_0: 1", "avx2_0: 0")
    assert target.from_facts("x86_64", *target._read_darwin(), cores=6).level == "x86-64"


def test_a_lower_level_is_a_smaller_machine() -> None:
    found = recorded("Sapphire Rapids").at_level("x86-64-v3")
    assert (found.level, found.lanes, found.registers) == ("x86-64-v3", 8, 16)
    assert found.features == ("+avxvnni",)
    assert found.name == recorded("Sapphire Rapids").name
    assert recorded("Graviton3").at_level("armv8") == recorded("Graviton3")


def test_records_of_a_model_are_for_its_full_instruction_set() -> None:
    machine = replace(recorded("Skylake-X"), model="intel-6-85", lanes=8)
    assert machine.at_level("x86-64-v4") == machine
    assert machine.at_level("x86-64-v3").ids == ("x86-64-v3",)


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
    monkeypatch.setenv("DCN_TVM_TARGET", "x86-64-v3,cores=8,l1_bytes=48K,l2_bytes=2M,l3_bytes=9")
    sizes = {"l1_bytes": 48 << 10, "l2_bytes": 2 << 20, "l3_bytes": 9}
    lower = recorded("Skylake-X").at_level("x86-64-v3")
    assert target.detect() == replace(lower, cores=8, **sizes)


def test_a_spec_changes_this_machine(monkeypatch) -> None:
    machine = replace(recorded("Sapphire Rapids"), model="intel-6-143")
    monkeypatch.setattr(target, "_machine", lambda: machine)
    assert target.parse("") == machine
    assert target.parse("cores=3") == replace(machine, cores=3)
    assert target.parse(" x86-64-v4 , model = amd-25-97 ").ids == ("amd-25-97", "x86-64-v4")
    assert target.parse("x86-64-v3").ids == ("x86-64-v3",)
    assert target.parse("model=").ids == ("x86-64-v4",)
    assert target.parse("lanes=8,registers=16,name=a = b").name == "a = b"
    assert target.parse("features=").features == ()
    some = target.parse("features=+avx512bf16+avx512vnni")
    assert some.features == ("+avx512vnni", "+avx512bf16")  # in the order of any target
    assert target.parse("x86-64-v3,features=+avxvnni").features == ("+avxvnni",)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("x86-64-v4", "level must be one of x86-64, x86-64-v2, x86-64-v3 on this machine"),
        ("colour=4", "fact must be one of model, name, features, cores, .*l3_bytes, got 'colour'"),
        ("arch=armv9", "fact must be one of model"),
        ("cores=0", "cores must be a positive number, got '0'"),
        ("cores=-1", "cores must be a positive number, got '-1'"),
        ("cores=1K", "cores must be a positive number, got '1K'"),
        ("cores=", "cores must be a positive number, got ''"),
        ("lanes=x", "lanes must be a positive number, got 'x'"),
        ("l1_bytes=0K", "l1_bytes must be a positive number, which may end in K, M or G, got '0K'"),
        ("l2_bytes=1T", "l2_bytes must be a positive number, .* got '1T'"),
        ("model=../..", r"model must be made of .*, got '../..'"),
        ("model=Zen 3", "model must be made of .*, got 'Zen 3'"),
        ("name=", "name must not be empty"),
        ("features=avx512bf16", r"features must be some of none .*, got 'avx512bf16'"),
        ("features=+avx512bf16", r"features must be some of none .*, got '\+avx512bf16'"),
        ("cores=1,cores=2", "cores is given twice in 'cores=1,cores=2'"),
        ("x86-64-v3,", "expected FACT=VALUE after a comma, got '' in 'x86-64-v3,'"),
        ("cores=2,x86-64-v3", "expected FACT=VALUE after a comma, got 'x86-64-v3'"),
    ],
)
def test_a_wrong_spec_is_refused(spec: str, said: str, monkeypatch) -> None:
    monkeypatch.setattr(target, "_machine", lambda: recorded("Zen 3"))
    with pytest.raises(ValueError, match=said):
        target.parse(spec)


def test_another_machine_is_described_without_asking_this_one(monkeypatch) -> None:
    monkeypatch.setattr(target, "_machine", lambda: pytest.fail("this machine was asked"))
    for level, lanes, registers in (("x86-64-v4", 16, 32), ("x86-64-v2", 4, 16), ("armv8", 4, 32)):
        found = target.parse(level, foreign=True)
        assert (found.level, found.lanes, found.registers) == (level, lanes, registers)
        assert (found.name, found.model, found.features) == (f"any {level}", "", ())
    pi = target.parse("armv8,cores=2,features=+dotprod,model=arm-0x41-0xd08", foreign=True)
    assert (pi.arch, pi.cores, pi.features) == ("aarch64", 2, ("+dotprod",))
    for spec in ("", "cores=4", "x86-64-v5", "skylake"):
        with pytest.raises(ValueError, match=r"must be one of x86-64, .*, armv8, got"):
            target.parse(spec, foreign=True)
    with pytest.raises(ValueError, match=r"some of \+avxvnni at this level, got '\+amx-tile'"):
        target.parse("x86-64-v3,features=+amx-tile", foreign=True)


@st.composite
def targets(draw) -> Target:
    """A recorded machine, at one of its levels, with any facts."""
    machine, text = RECORDED[draw(st.sampled_from([n for n in RECORDED if n != "unknown"]))]
    fields = target.parse_cpuinfo(text.splitlines())
    fields["model name"] = draw(st.text(st.characters(min_codepoint=32, max_codepoint=382)))
    found = target.from_facts(machine, fields, {}, cores=4)
    known = target._LEVELS[found.arch]
    found = found.at_level(draw(st.sampled_from(known[: known.index(found.level) + 1])))
    kept = draw(st.sets(st.sampled_from(found.features))) if found.features else ()
    names = ("cores", "lanes", "registers", "l1_bytes", "l2_bytes", "l3_bytes")
    return replace(
        found,
        model=draw(st.from_regex(r"([a-z0-9][a-z0-9._-]{0,12})?", fullmatch=True)),
        features=tuple(name for name in found.features if name in kept),
        **{name: draw(st.integers(1, 2**40)) for name in names},
    )


@given(targets())
def test_a_spec_says_all(found: Target) -> None:
    assert target.parse(found.spec, foreign=True) == found
    with pytest.MonkeyPatch.context() as patch:
        full = next(m for m in map(recorded, RECORDED) if _could_be(m, found))
        patch.setattr(target, "_machine", lambda: full)
        patch.setenv("DCN_TVM_TARGET", found.spec)
        assert target.detect() == found


def _could_be(machine: Target, found: Target) -> bool:
    try:
        return set(found.features) <= set(machine.at_level(found.level).features)
    except ValueError:
        return False


def test_key_is_what_code_depends_on() -> None:
    keys = {recorded(name).key() for name in RECORDED}
    assert len(keys) == 8  # Zen 3 and Knights Landing, Raspberry Pi 4 and Apple M2 share theirs
    machine, text = RECORDED["Zen 3"]
    fields = target.parse_cpuinfo(text.splitlines())
    zen = recorded("Zen 3")
    assert target.from_facts(machine, fields, {2: 1 << 20}, 64).key() == zen.key()
    assert replace(zen, model="amd-25-1", name="another").key() == zen.key()
    # Schedules compute their defaults from these, so builds must not be shared.
    assert len({zen.key(), replace(zen, lanes=4).key(), replace(zen, registers=32).key()}) == 3


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

    made = tvm.target.Target(recorded(name).to_tvm_dict())
    assert made.attrs["num-cores"] == 4
    levels = {"x86-64-v4": 64, "x86-64-v3": 32}  # bytes of a vector, as LLVM sees it
    width = tvm.target.codegen.llvm_get_vector_width(made)
    assert width >= 8 * levels.get(recorded(name).level, 16)


def assembly(machine: Target) -> str:
    """A product and a sum of vectors, compiled for a machine."""
    import tvm
    from tvm import te

    a, b = (te.placeholder((64, 16), name=name) for name in "ab")
    c = te.compute((64, 16), lambda i, j: a[i, j] * b[i, j] + a[i, j], name="c")
    schedule = tvm.s_tir.Schedule(te.create_prim_func([a, b, c]))
    schedule.vectorize(schedule.get_loops(schedule.get_sblock("c"))[1])
    compiled = tvm.compile(schedule.mod, target=tvm.target.Target(machine.to_tvm_dict()))
    text: str = compiled.mod.inspect_source("asm")
    return text


@pytest.mark.parametrize(("level", "register"), [("x86-64-v4", "zmm"), ("x86-64-v3", "ymm")])
def test_wide_vectors_make_wide_code(level: str, register: str) -> None:
    code = assembly(recorded("Sapphire Rapids").at_level(level))
    assert f"%{register}" in code
    assert ("%zmm" in code) == (register == "zmm")


@pytest.mark.parametrize(("level", "said"), [("armv8", "fmla\tv"), ("x86-64-v3", "vfmadd")])
def test_code_for_another_architecture(level: str, said: str) -> None:
    assert said in assembly(target.parse(level, foreign=True))


def test_only_another_architecture_needs_a_name(monkeypatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert "mtriple" not in recorded("Graviton3").to_tvm_dict()
    assert recorded("Zen 3").to_tvm_dict()["mtriple"] == "x86_64-unknown-linux-gnu"
