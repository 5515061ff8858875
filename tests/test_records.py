"""Records survive what happens to files, and a call finds the right one."""

from __future__ import annotations

import dataclasses
import errno
import json
import multiprocessing
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dcn_tvm import ops, records, suites
from dcn_tvm.problem import Problem
from dcn_tvm.records import Record, RecordError, store, writing

OP = "deform_conv2d"
ID, LOWER = "x86-64-v4", "x86-64-v3"
SIZES = {"batch": 1, "height": 38, "width": 63}


def problem_of(case: suites.Case, **changed: Any) -> Problem:
    cls = ops.registry()[case.op].problem
    names = {field.name for field in dataclasses.fields(cls)}
    values = {name: size for name, size in case.sizes.items() if name in names}
    return cls.from_mapping({"dtype": "float32", "layout": "nchw", **values, **changed})


PROBLEM = problem_of(suites.SUITES[OP][0])
RECORD = Record(
    problem=PROBLEM,
    kernel="forward",
    sizes=SIZES,
    choices={"rows": 4, "order": "yx"},
    median_us=812.3,
    default_us=1204.5,
    noise=0.01,
    trials=64,
    threads=2,
    device="A processor",
    versions={"dcn_tvm": "0.1.0"},
    date="2026-01-02",
)


def wide(width: int, **changed: Any) -> Record:
    return replace(RECORD, sizes={**SIZES, "width": width}, **changed)


def without(record: Record) -> Record:
    return replace(record, choices=None, median_us=record.default_us)


def changed_line(**fields: Any) -> str:
    return json.dumps({**json.loads(RECORD.to_line()), **fields})


NEWER = changed_line(format=2, rows_of_tomorrow=[1]).encode()
HALF = RECORD.to_line()[:50].encode()
BINARY = b"\x00\xff\xfe\x80" * 9


@pytest.fixture(autouse=True)
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home and an empty folder of shipped records."""
    monkeypatch.setenv("DCN_TVM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(store, "shipped_root", lambda: tmp_path / "shipped")
    records.forget()
    yield tmp_path / "shipped"
    records.forget()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "logs"


@pytest.fixture
def path(root: Path) -> Path:
    path = root / ID / f"{OP}.jsonl"
    path.parent.mkdir(parents=True)
    return path


def read(path: Path) -> list[Record]:
    lines, damage = records.read(path)
    assert not damage
    return [line.record for line in lines]


# --- one line


@pytest.mark.parametrize("case", [c for s in suites.SUITES.values() for c in s], ids=str)
def test_a_record_of_any_op_comes_back_from_its_line(case: suites.Case) -> None:
    for kernel in ops.registry()[case.op].kernels():
        for dtype, layout in (("float32", "nchw"), ("bfloat16", "nhwc")):
            problem = problem_of(case, dtype=dtype, layout=layout)
            record = replace(RECORD, problem=problem, kernel=kernel)
            assert Record.from_line(record.to_line()) == record
            none = without(record)
            assert Record.from_line(none.to_line()) == none


def test_a_line_can_be_read_by_people() -> None:
    line = replace(RECORD, median_us=1234.5678, default_us=98765.4321, noise=0.0123456).to_line()
    assert line.startswith(f'{{"format": 1, "op": "{OP}", "kernel": "forward", "problem": {{')
    values = json.loads(line)
    assert list(values)[4:] == [f.name for f in dataclasses.fields(Record)][2:]
    assert (values["median_us"], values["default_us"], values["noise"]) == (
        1234.6,
        98765.4,
        0.01235,
    )
    assert json.loads(replace(RECORD, median_us=0.123456).to_line())["median_us"] == 0.1235
    assert "groups" not in values["problem"]
    assert values["problem"]["in_channels"] == 512


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "format": ({"format": "1"}, "format must be a positive integer, got '1'"),
    "kernel": ({"kernel": "sideways"}, "kernel of deform_conv2d must be one of forward, backw"),
    "no op": ({"op": ["deform_conv2d"]}, "op must be one of deform_conv2d, roi_pool"),
    "problem": ({"problem": 3}, "problem must be an object, got 3"),
    "problem is empty": ({"problem": {}}, "must have the field 'dtype', which is missing"),
    "sizes": ({"sizes": {"batch": 0}}, "sizes must be positive integers by name"),
    "sizes are true": ({"sizes": {"batch": True}}, "sizes must be positive integers by name"),
    "choice": ({"choices": {"rows": 1.5}}, "choices must be integers or texts by name"),
    "choice is true": ({"choices": {"rows": True}}, "choices must be integers or texts by name"),
    "choices": ({"choices": ["rows"]}, "choices must be integers or texts by name"),
    "time": ({"median_us": -1.0}, "median_us must be a positive number, got -1.0"),
    "time is nan": ({"median_us": float("nan")}, "median_us must be a positive number, got nan"),
    "time is huge": ({"default_us": 10**400}, "default_us must be a positive number"),
    "time is true": ({"default_us": True}, "default_us must be a positive number"),
    "slower": ({"median_us": 2000.0}, r"median_us must be at most the default's \(1204.5\)"),
    "default": ({"choices": None}, "median_us must be the default's without choices"),
    "noise": ({"noise": -0.1}, "noise must be a number from 0 up"),
    "trials": ({"trials": 6.0}, "trials must be a positive integer"),
    "device": ({"device": ""}, "device must be a text"),
    "versions": ({"versions": {"tvm": 0.27}}, "versions must be texts by name"),
    "date": ({"date": "20260102"}, "date must be a date as YYYY-MM-DD"),
}


@pytest.mark.parametrize(("fields", "reason"), WRONG.values(), ids=WRONG)
def test_a_wrong_value_is_named(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecordError, match=reason):
        Record.from_line(changed_line(**fields))


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("in_channels", "512", "problem: in_channels must be of type int, got '512'"),
        ("bias", 1, "problem: bias must be of type bool, got 1"),
        ("stride", [1, 1.0], r"problem: stride must be of type tuple\[int, int\]"),
        ("stride", [1], r"problem: stride must be of type tuple\[int, int\]"),
        ("stride", [0, 1], "problem: stride must be two numbers of at least 1"),
        ("dtype", "int8", "problem: dtype must be one of float32"),
    ],
)
def test_a_wrong_field_of_the_problem_is_named(field: str, value: object, reason: str) -> None:
    plain = {**json.loads(RECORD.to_line())["problem"], field: value}
    with pytest.raises(RecordError, match=reason):
        Record.from_line(changed_line(problem=plain))


def test_a_record_that_could_not_be_read_again_is_not_made() -> None:
    with pytest.raises(RecordError, match="trials must be a positive integer, got 0"):
        replace(RECORD, trials=0)
    with pytest.raises(RecordError, match="problem: in_channels must be of type int"):
        replace(RECORD, problem=replace(PROBLEM, in_channels=512.0))  # type: ignore[call-arg]


# --- files


def test_what_cannot_be_read_is_reported_with_file_and_line(path: Path) -> None:
    good = RECORD.to_line().encode()
    misplaced = replace(RECORD, problem=problem_of(suites.SUITES["roi_align"][0])).to_line()
    deep = b"[" * 100_000
    data = (good, NEWER, b"", BINARY, good, b'{"a": 1}', misplaced.encode(), deep, HALF)
    path.write_bytes(b"\n".join(data))
    lines, damage = records.read(path)
    assert [(line.record, line.number) for line in lines] == [(RECORD, 1), (RECORD, 5)]
    assert [item.number for item in damage] == [2, 4, 6, 7, 8, 9]
    assert str(damage[0]) == f"{path}:2: format 2 is newer than this dcn_tvm knows (1)"
    assert [item.newer for item in damage] == [True, *[False] * 5]
    for item, reason in zip(
        damage[1:], ("UTF-8", "begins with", "op must be", "JSON", "JSON"), strict=True
    ):
        assert reason in item.reason


@pytest.mark.parametrize(
    "fields", [{"op": "of_tomorrow"}, {"kernel": "backward_all"}, {"energy_j": 1.5}]
)
def test_names_that_are_not_known_may_be_those_of_a_later_version(
    path: Path, fields: dict[str, Any]
) -> None:
    path.write_text(changed_line(**fields))
    assert [item.newer for item in records.read(path)[1]] == [True]


def test_a_missing_file_is_empty_and_an_unreadable_one_is_damage(path: Path) -> None:
    assert records.read(path) == ([], [])
    path.mkdir()
    lines, damage = records.read(path)
    assert not lines
    assert str(damage[0]).startswith(f"{path}: cannot be read: ")


def test_files_are_listed_without_drafts_locks_and_other_folders(root: Path, path: Path) -> None:
    hidden = path.with_name(f".{path.name}")
    for item in (path, hidden, path.with_suffix(".txt"), root / ".git" / path.name):
        item.parent.mkdir(exist_ok=True)
        item.touch()
    assert records.files(root) == records.files(root, [LOWER, ID]) == [path]


def append_many(root: Path, first: int, go: Any) -> None:
    go.wait()
    for width in range(first, first + 200):
        records.append(root, ID, [wide(width)])


def test_two_processes_append_at_once_and_nothing_is_lost(root: Path, path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    go = context.Barrier(3)
    workers = [context.Process(target=append_many, args=(root, n, go)) for n in (1, 1001)]
    for worker in workers:
        worker.start()
    go.wait()
    while any(worker.is_alive() for worker in workers):  # and a third rewrites what is there
        records.prune(root)
        assert not records.read(path)[1]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    widths = {record.sizes["width"] for record in read(path)}
    assert widths == {*range(1, 201), *range(1001, 1201)}


def test_a_half_written_line_costs_only_itself(root: Path, path: Path) -> None:
    path.write_bytes(RECORD.to_line().encode() + b"\n" + HALF)
    records.append(root, ID, [wide(7), wide(8)])
    lines, damage = records.read(path)
    assert [line.record for line in lines] == [RECORD, wide(7), wide(8)]
    assert [item.number for item in damage] == [2]


def test_a_write_that_fails_leaves_the_file_as_it_was(
    root: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records.append(root, ID, [RECORD])
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        records.append(root, ID, [wide(7)])
    with pytest.raises(OSError, match="No space"):
        records.rewrite(path, [wide(8)])
    assert path.read_bytes() == before
    assert {item.name for item in path.parent.iterdir()} == {path.name, f".{path.name}.lock"}


@pytest.mark.parametrize("error", [NotImplementedError(), OSError(errno.ENOLCK, "No locks")])
def test_without_file_locks_records_are_kept_with_a_warning(
    root: Path, path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(writing.FileLock, "acquire", refuse)
    with pytest.warns(UserWarning, match="no file locks"):
        records.append(root, ID, [RECORD])
    with pytest.warns(UserWarning, match="no file locks"):
        records.rewrite(path, [*read(path), wide(7)])
    assert read(path) == [wide(7), RECORD]


def test_a_file_that_is_held_takes_new_lines_but_is_not_replaced(
    root: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_WAIT_S", 0.05)
    with writing.locked(path, necessary=True):
        with pytest.warns(UserWarning, match="was held by another process"):
            records.append(root, ID, [RECORD])
        with pytest.raises(TimeoutError, match="was held by another process"):
            records.rewrite(path, [])
    assert read(path) == [RECORD]


@pytest.mark.parametrize("target_id", ["", "..", ".hidden", "a/b", "X86", "x86\n"])
def test_a_target_id_is_a_plain_name(root: Path, target_id: str) -> None:
    for use in (
        lambda: records.append(root, target_id, [RECORD]),
        lambda: records.prune(root, [target_id]),
        lambda: records.find(PROBLEM, "forward", SIZES, (target_id,), 2),
    ):
        with pytest.raises(ValueError, match="a target id must be"):
            use()
    assert not root.exists()


# --- upkeep


def test_a_rewritten_file_is_sorted_and_loses_no_line(path: Path) -> None:
    path.write_bytes(b"\n".join((NEWER, wide(9).to_line().encode(), BINARY, HALF)))
    for _ in range(2):
        summary = records.rewrite(path, [wide(9), wide(7)])
        assert path.read_bytes().split(b"\n") == [
            *(wide(width).to_line().encode() for width in (7, 9)),
            NEWER,
            b"",
        ]
        assert (path.parent / f"{OP}.jsonl.damaged").read_bytes() == BINARY + b"\n" + HALF + b"\n"
    assert (summary.kept, summary.added, summary.removed) == (2, 0, 0)
    assert not summary.moved and [item.text for item in summary.newer] == [NEWER]


def test_a_file_is_replaced_whole(root: Path, path: Path) -> None:
    records.append(root, ID, [RECORD])
    with path.open() as reader:
        records.rewrite(path, [wide(7)])
        assert reader.read() == RECORD.to_line() + "\n"
    records.rewrite(path, [])
    assert not path.exists()


def test_rewriting_says_what_became_of_the_lines(path: Path) -> None:
    path.write_bytes(b"\n".join((NEWER, wide(9).to_line().encode(), BINARY)))
    summary = records.rewrite(path, [wide(7), wide(8)])
    assert (summary.kept, summary.added, summary.removed) == (2, 2, 1)
    assert [item.number for item in summary.newer] == [1]
    assert [item.number for item in summary.moved] == [3]


def test_prune_keeps_the_last_line_of_each_key(root: Path, path: Path) -> None:
    first, last = replace(RECORD, date="2026-03-01"), replace(RECORD, median_us=900.0)
    other_threads = replace(RECORD, threads=4)
    records.append(root, ID, [wide(99), first, other_threads, last])
    records.append(root, LOWER, [first, last])
    summary = records.prune(root, [ID])
    assert (summary.kept, summary.removed) == (3, 1)
    assert read(path) == [last, other_threads, wide(99)]
    assert len(read(root / LOWER / path.name)) == 2
    assert records.prune(root).kept == 4


def test_prune_drops_what_is_not_legal_and_falls_back_to_what_is(root: Path, path: Path) -> None:
    old, new = RECORD, replace(RECORD, choices={"rows": 5})
    records.append(root, ID, [new, old, new, wide(9, choices={"rows": 5})])
    asked = []

    def legal(record: Record) -> str | None:
        asked.append(record.sizes["width"])
        records.append(root, LOWER, [record])  # no lock is held
        return "rows = 5 is not in the space" if record.choices == {"rows": 5} else None

    summary = records.prune(root, [ID], legal)
    assert read(path) == [old]
    assert [str(item) for item in summary.dropped] == [
        f"{path}:4: rows = 5 is not in the space",
        f"{path}:3: rows = 5 is not in the space",
    ]
    assert asked == [9, 63, 63]  # what is replaced anyway is not asked for


def test_merge_keeps_the_best_evidence(root: Path, path: Path, tmp_path: Path) -> None:
    later, faster = (
        replace(RECORD, date="2026-03-01", median_us=1200.0),
        replace(wide(9), median_us=700.0),
    )
    slower, earlier = replace(wide(8), median_us=1000.0), wide(7, date="2025-01-01", median_us=1.0)
    records.append(root, ID, [RECORD, wide(9), wide(8), wide(7)])
    other = tmp_path / "laptop"
    records.append(other, ID, [later, faster, slower, earlier])
    summary = records.merge([other], root)
    assert read(path) == [wide(7), wide(8), faster, later]
    assert (summary.kept, summary.added, summary.removed) == (4, 2, 2)


def test_of_a_merged_file_only_the_last_line_of_a_key_competes(
    root: Path, path: Path, tmp_path: Path
) -> None:
    last = replace(RECORD, median_us=1100.0)
    for folder, width in ((root, 63), (tmp_path / "laptop", 64)):
        records.append(folder, ID, [wide(width, median_us=500.0), wide(width, median_us=1100.0)])
    records.merge([tmp_path / "laptop"], root)
    assert read(path) == [last, wide(64, median_us=1100.0)]


def test_merge_takes_roots_folders_and_files_and_leaves_them(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "laptop"
    records.append(other, ID, [wide(1)])
    records.append(other, LOWER, [wide(2)])
    source = other / ID / f"{OP}.jsonl"
    source.write_bytes(source.read_bytes() + NEWER + b"\n" + HALF)
    mine = other / "mine" / "found today.jsonl"
    mine.parent.mkdir()
    mine.write_text(wide(3).to_line())
    before = source.read_bytes()
    summary = records.merge([other, other / LOWER, mine, other], root)
    assert source.read_bytes() == before
    assert [str(item)[: len(str(source)) + 2] for item in summary.skipped] == [f"{source}:3"] * 2
    merged = root / ID / f"{OP}.jsonl"
    assert merged.read_bytes().split(b"\n") == [wide(1).to_line().encode(), NEWER, b""]
    assert read(root / LOWER / f"{OP}.jsonl") == [wide(2)]
    assert read(root / "mine" / f"{OP}.jsonl") == [wide(3)]


def test_merge_refuses_a_source_without_records(root: Path, tmp_path: Path) -> None:
    for source, reason in ((tmp_path, "holds no .jsonl file"), (tmp_path / "none", "no such")):
        with pytest.raises(ValueError, match=reason):
            records.merge([source], root)


# --- look-up


def look(threads: int = 2, ids: tuple[str, ...] = (ID, LOWER), **changed: int) -> list[str]:
    """Return for each candidate its source, id, width, and whether it is exact."""
    records.forget()
    found = records.find(PROBLEM, "forward", {**SIZES, **changed}, ids, threads)
    return [
        f"{f.source} {f.target_id} {f.record.sizes['width']}{' exact' * f.exact}" for f in found
    ]


def test_the_user_comes_before_the_shipped_and_the_exact_before_the_near(shipped: Path) -> None:
    assert look() == []
    records.append(shipped, ID, [wide(50)])
    assert look() == [f"shipped {ID} 50"]
    records.append(shipped, LOWER, [RECORD])
    assert look() == [f"shipped {LOWER} 63 exact", f"shipped {ID} 50"]
    records.append(store.user_root(), LOWER, [wide(80), wide(90), wide(70)])
    expected = [f"shipped {LOWER} 63 exact", f"shipped {ID} 50"]
    assert look() == [f"user {LOWER} 70", f"user {LOWER} 80", *expected]
    records.append(store.user_root(), ID, [RECORD])
    assert look() == [f"user {ID} 63 exact", f"user {LOWER} 70", *expected]
    assert look(ids=(ID,)) == [f"user {ID} 63 exact", f"shipped {ID} 50"]
    assert look(ids=("armv8",)) == []


def test_at_the_same_distance_the_more_specific_id_wins(shipped: Path) -> None:
    for target_id in (LOWER, ID):
        records.append(shipped, target_id, [wide(50), RECORD])
    assert look() == [f"shipped {i} 63 exact" for i in (ID, LOWER)] + [
        f"shipped {i} 50" for i in (ID, LOWER)
    ]
    assert look(ids=(LOWER, ID))[0] == f"shipped {LOWER} 63 exact"


def test_the_exact_record_of_as_many_threads_is_the_first(shipped: Path) -> None:
    records.append(shipped, ID, [replace(RECORD, threads=n) for n in (1, 2, 8, 32, 33)])
    records.forget()
    found = records.find(PROBLEM, "forward", SIZES, (ID,), 8)
    assert [f.record.threads for f in found] == [8, 2, 32]  # not 1 and 33: too few, too many
    assert [f.exact for f in found] == [True] * 3
    assert found[0].provenance == f"shipped: exact, {ID}/{OP}.jsonl:3"
    assert found[1].provenance == f"shipped: exact (but on 2 threads), {ID}/{OP}.jsonl:2"


def test_the_last_line_of_a_key_counts(shipped: Path) -> None:
    records.append(shipped, ID, [RECORD, replace(RECORD, choices={"rows": 8})])
    (found,) = records.find(PROBLEM, "forward", SIZES, (ID,), 2)
    assert found.record.choices == {"rows": 8}
    assert found.number == 2


def test_a_record_without_choices_ends_the_list(shipped: Path) -> None:
    records.append(shipped, ID, [RECORD, wide(60)])
    records.append(store.user_root(), ID, [without(wide(70)), wide(90)])
    assert look() == [f"user {ID} 70"]
    assert look(width=90) == [f"user {ID} 90 exact", f"user {ID} 70"]
    records.append(store.user_root(), ID, [without(RECORD)])
    assert look() == [f"user {ID} 63 exact"]
    (found,) = records.find(PROBLEM, "forward", SIZES, (ID,), 2)
    assert found.provenance == f"user: exact, {ID}/{OP}.jsonl:3: the default was the best"


def test_the_provenance_of_a_neighbour_says_how_near_it_is(shipped: Path) -> None:
    records.append(shipped, ID, [wide(126)])
    (found,) = records.find(PROBLEM, "forward", SIZES, (ID,), 2)
    where = "(batch 1, height 38, width 126; distance 0.5)"
    assert found.provenance == f"shipped: nearest {where}, {ID}/{OP}.jsonl:1"


def test_other_kernels_and_what_is_far_are_not_found(shipped: Path) -> None:
    far = replace(PROBLEM, in_channels=32, out_channels=32)  # type: ignore[call-arg]
    records.append(
        shipped, ID, [replace(RECORD, problem=far), replace(RECORD, kernel="backward_data")]
    )
    assert look() == []


def test_an_empty_call_finds_what_is_near(shipped: Path) -> None:
    records.append(shipped, ID, [wide(2)])
    assert look(width=0) == [f"shipped {ID} 2"]


def test_damage_is_warned_of_once_and_files_are_read_once(shipped: Path) -> None:
    records.append(shipped, ID, [RECORD])
    path = shipped / ID / f"{OP}.jsonl"
    path.write_bytes(path.read_bytes() + HALF + b"\n" + NEWER)
    with pytest.warns(UserWarning) as caught:
        assert len(look()) == 1
    (warning,) = caught
    assert f"{path}:2: a record must be JSON" in str(warning.message)
    assert "1 more" in str(warning.message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(look()) == 1
        path.unlink()
        assert len(records.find(PROBLEM, "forward", SIZES, (ID,), 2)) == 1
        assert look() == []


# --- distance


def distance(a: Record, b: Record) -> float | None:
    one, other = (records.locate(r.problem, r.kernel, r.sizes, r.threads) for r in (a, b))
    assert records.distance(one, other) == records.distance(other, one)
    return records.distance(one, other)


def with_fields(**fields: object) -> Record:
    return replace(RECORD, problem=replace(PROBLEM, **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (RECORD, 0.0),
        (wide(126), 0.5),
        (replace(RECORD, threads=8), 1.0),
        (with_fields(modulated=True), 0.5),
        (with_fields(dtype="bfloat16"), 1.0),
        (with_fields(padding=(5, 5)), 2.0),
        (replace(RECORD, sizes={"batch": 1, "height": 38}), 1.0),
        (with_fields(dtype="float64"), None),
        (with_fields(layout="nhwc"), None),
        (with_fields(boundary="msra"), None),
        (replace(RECORD, kernel="backward_data"), None),
    ],
)
def test_distance(other: Record, expected: float | None) -> None:
    assert distance(RECORD, other) == pytest.approx(expected)


def test_an_image_of_another_size_is_nearer_than_other_channels() -> None:
    image, channels = wide(100), with_fields(in_channels=256)
    assert distance(RECORD, image) < distance(RECORD, channels) < records.FAR  # type: ignore[operator]
