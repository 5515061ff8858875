import dataclasses
import json
import re
from pathlib import Path

import pytest

from dcn_tvm import results
from dcn_tvm.report import Machine
from dcn_tvm.results import Ceiling, Ceilings, Finding, Rejection, Results, Row

ROW = Row(
    op="op",
    problem="P0",
    sizes={"height": 5, "stride": (2, 1), "mode": "max"},
    provider="dcn_tvm",
    role="ours",
    version="1",
    mode="forward",
    dtype="float32",
    memory_format="contiguous",
    cache="warm",
    sweep="",
    clock="clock",
    median_us=123.456789,
    p20_us=120.0,
    p80_us=130.0,
    rounds=3,
    flops=10**9,
    bytes_moved=10**6,
    gflop_per_s=1.0,
    gbyte_per_s=1.0,
    floor_us=100.0,
    bound="memory",
    roofline=0.81,
    peak_mib=None,
    faults=0.0,
    ratio=1.5,
    error=1e-7,
    records=("forward: default",),
    device="some CPU",
    threads=2,
    versions={"torch": "2"},
    date="2026-01-01T00:00:00+00:00",
)
OTHER = dataclasses.replace(ROW, problem="P1", median_us=2.0, ratio=None)
WRONG = Rejection(
    *("op", "P0", "liar", "peer", "3", "forward", "float32", "contiguous", "wrong", 0.5, "is off")
)
MACHINE = Machine("some CPU", 2, {"torch": "2"})


def ceiling(kind: str, size: int, rate: float, threads: int = 2) -> Ceiling:
    return Ceiling(kind, "float32", threads, size, rate, "some CPU", ROW.date)


LIMITS = [
    ceiling("gemm", 1024, 80.0),
    ceiling("gemm", 2048, 100.0),
    ceiling("copy", 1 << 20, 50.0),
    ceiling("copy", 1 << 24, 30.0),
    ceiling("copy", 1 << 28, 10.0),
]


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    finding = Finding("import", "dcn_tvm", "", 0.25, "s")
    wrote = Results(MACHINE, (ROW, OTHER), (WRONG,), tuple(LIMITS), (finding,), {"mmcv": "no"})
    path = tmp_path / "new" / "a.json"
    results.write(wrote, path)
    read = results.read(path)
    assert read.rows[0] == dataclasses.replace(ROW, median_us=123.46), "five digits are kept"
    assert read[2:] == wrote[2:]
    assert read.machine == MACHINE
    assert read.rows[0].sizes["stride"] == (2, 1)
    assert hash(read.rows[0].records) == hash(ROW.records)


def test_rows_share_what_is_the_same_and_stand_on_lines_of_their_own() -> None:
    text = results.to_json(Results(MACHINE, [ROW, OTHER]))
    parts = json.loads(text)
    assert parts["common"]["versions"] == {"torch": "2"}
    assert parts["columns"] == ["problem", "median_us", "ratio"]
    assert parts["rows"] == [["P0", 123.46, 1.5], ["P1", 2.0, None]]
    assert '["P1", 2.0, null]' in text.splitlines()


def test_long_values_stand_in_tables(tmp_path: Path) -> None:
    moved = dataclasses.replace(ROW, sizes={"height": 6}, records=("forward: record",))
    text = results.to_json(Results(MACHINE, [ROW, moved, ROW]))
    parts = json.loads(text)
    assert parts["tables"]["records"] == [["forward: default"], ["forward: record"]]
    assert [row[parts["columns"].index("sizes")] for row in parts["rows"]] == [0, 1, 0]
    (tmp_path / "a.json").write_text(text)
    assert [row.sizes for row in results.read(tmp_path / "a.json").rows] == [
        ROW.sizes,
        {"height": 6},
        ROW.sizes,
    ]


@pytest.mark.parametrize("rows", [[], [ROW]])
def test_few_rows(rows: list[Row], tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    results.write(Results(MACHINE, rows), path)
    assert len(results.read(path).rows) == len(rows)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no file of results"),
        ("[1]", "it has no rows"),
        ('{"rows": []}', "schema 1, got None"),
        ('{"rows": [], "schema": 2}', "schema 1, got 2"),
        ('{"rows": [], "schema": 1}', "no file of results: 'machine'"),
        ('{"rows": [{"op": "x"}], "schema": 1, "common": {}, "machine": {}}', "no file of results"),
        ('{"rows": [], "schema": 1, "machine": {"device": 3}}', "device must be str, got 3"),
        ('{"rows": 3, "schema": 1, "common": [], "machine": 1}', "no file of results"),
    ],
)
def test_what_is_no_file_of_results_says_so(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=why) as caught:
        results.read(path)
    assert "a.json" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("median_us", 0, "median_us must be positive, got 0"),
        ("median_us", "1", "median_us must be float, got '1'"),
        ("ratio", "x", "ratio must be float | None, got 'x'"),
        ("flops", 1.5, "flops must be int, got 1.5"),
        ("dtype", "int8", "dtype must be one of float32"),
        ("memory_format", "nhwc", "memory_format must be one of contiguous"),
        ("role", "judge", "role must be one of ours"),
        ("cache", "hot", "cache must be one of warm"),
        ("versions", {"torch": 2}, "versions must be Mapping"),
        ("records", [1], "records must be tuple"),
        ("colour", "red", "colour"),
    ],
)
def test_values_that_cannot_be_are_refused(
    field: str, value: object, why: str, tmp_path: Path
) -> None:
    parts = json.loads(results.to_json(Results(MACHINE, [ROW])))
    parts["common"][field] = value
    (tmp_path / "a.json").write_text(json.dumps(parts))
    with pytest.raises(ValueError, match=re.escape(why)):
        results.read(tmp_path / "a.json")


@pytest.mark.parametrize("values", [["P0"], ["P0", 1.0, None, 3], ["P0", -1.0, None]])
def test_rows_that_do_not_fit_the_columns_are_refused(values: list[object], tmp_path: Path) -> None:
    parts = json.loads(results.to_json(Results(MACHINE, [ROW, OTHER])))
    parts["rows"][0] = values
    (tmp_path / "a.json").write_text(json.dumps(parts))
    with pytest.raises(ValueError, match="no file of results"):
        results.read(tmp_path / "a.json")


def test_what_is_no_json_is_not_written() -> None:
    with pytest.raises(ValueError, match="Out of range"):
        results.to_json(Results(MACHINE, [dataclasses.replace(ROW, error=float("inf"))]))


def test_a_binary_file_is_no_file_of_results(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="no file of results"):
        results.read(tmp_path / "a.json")


def test_the_floor_is_the_longer_one_of_arithmetic_and_memory() -> None:
    limits = Ceilings(LIMITS)
    assert limits.floor(10**9, 10**6, "float32", 2) == (10_000.0, "arithmetic")
    floor = limits.floor(10**6, 1 << 28, "float32", 2)
    assert floor is not None
    assert (floor.us, floor.bound) == (pytest.approx(2**28 / 10e3), "memory")


def test_small_copies_run_in_caches_and_cold_ones_never() -> None:
    limits = Ceilings(LIMITS)
    found = [limits.bandwidth(size, "float32", 2) for size in (1 << 10, 1 << 23, 1 << 24, 1 << 30)]
    assert found == [50.0, 50.0, 30.0, 10.0]
    assert limits.bandwidth(1 << 10, "float32", 2, cold=True) == 10.0


def test_a_small_copy_that_is_slower_than_a_larger_one_is_no_ceiling() -> None:
    limits = Ceilings([*LIMITS, ceiling("copy", 1 << 17, 20.0)])
    assert limits.bandwidth(1 << 17, "float32", 2) == 50.0
    assert limits.bandwidth(1 << 28, "float32", 2) == 10.0


def test_half_types_can_be_computed_in_float32() -> None:
    half = dataclasses.replace(ceiling("gemm", 1024, 3.0), dtype="float16")
    limits = Ceilings([*LIMITS, half, dataclasses.replace(half, dtype="float64")])
    assert limits.gemm("float16", 2) == 100.0
    assert limits.gemm("float64", 2) == 3.0
    assert limits.gemm("bfloat16", 2) is None


def test_ceilings_of_other_types_and_threads_are_others() -> None:
    limits = Ceilings(LIMITS)
    assert limits.gemm("float32", 2) == 100.0
    assert limits.gemm("float64", 2) is None
    assert limits.floor(1, 1, "float32", 1) is None
    assert Ceilings([]).bandwidth(1, "float32", 2) is None
