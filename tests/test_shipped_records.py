"""Every shipped record can be read, replays, and computes what the reference computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dcn_tvm import build, openmp, records
from dcn_tvm.build import Request
from dcn_tvm.kernels import possible_outputs
from dcn_tvm.knobs import Knobs
from dcn_tvm.ops import registry
from dcn_tvm.records import Record
from dcn_tvm.target import Target
from dcn_tvm.tuning import audit
from dcn_tvm.tuning.call import KernelCall, judge

CORES = 2
FILES = records.files(records.shipped_root())


def machine(path: Path) -> Target | None:
    """The target of a file, if this machine runs its code, with the cores of all measurements."""
    here = audit.target_of(path.parent.name)
    return None if here is None else replace(here, cores=CORES)


def request_of(record: Record) -> Request:
    kernel = registry()[record.problem.op].kernels()[record.kernel]
    outputs = possible_outputs(record.problem, kernel.outputs)
    return Request(record.problem, record.kernel, outputs)


def different_code() -> dict[str, tuple[Target, Record]]:
    """One record of each kernel, problem, choices and target: those of other sizes share code."""
    found: dict[tuple[object, ...], tuple[Target, Record]] = {}
    for path in FILES:
        here = machine(path)
        for line in records.read(path)[0] if here else ():
            record = line.record
            if here is not None and record.choices is not None:
                choices = tuple(sorted(record.choices.items()))
                key = (here.key(), record.problem, record.kernel, choices)
                found.setdefault(key, (here, record))
    named: dict[str, tuple[Target, Record]] = {}
    for here, record in found.values():
        named[f"{here.level}-{record.problem.op}.{record.kernel}-{len(named)}"] = (here, record)
    return named


CODE = different_code()


def test_every_op_is_shipped_for_every_level() -> None:
    ids = {path.parent.name for path in FILES}
    assert {"x86-64-v3", "x86-64-v4"} < ids
    for target_id in ids:
        assert {path.stem for path in FILES if path.parent.name == target_id} == set(registry())


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_files_are_whole_sorted_and_without_repetition(path: Path) -> None:
    lines, damage = records.read(path)
    assert lines
    assert not damage
    keys = [line.record.key for line in lines]
    assert keys == sorted(set(keys))
    text = "".join(line.record.to_line() + "\n" for line in lines)
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_record_is_legal_where_it_may_be_used(path: Path) -> None:
    here = machine(path)
    if here is None:
        pytest.skip(f"this machine cannot run code for {path.parent.name}")
    for line in records.read(path)[0]:
        record = line.record
        assert record.threads == CORES
        space = build.space(request_of(record), here)
        assert record.choices is None or record.choices in space, line


@pytest.mark.parametrize("name", CODE)
def test_every_record_is_right(name: str) -> None:
    here, record = CODE[name]
    request = request_of(record)
    assert record.choices is not None
    scheduled = build.schedule(request, here, Knobs(dict(record.choices)))
    assert scheduled.choices == record.choices
    module = build.compile(request, scheduled, here)
    openmp.install()

    def run(call: KernelCall) -> None:
        module[build.SYMBOL](*call.arguments)

    assert judge(request, tuple(sorted(record.sizes.items())), run) is None
