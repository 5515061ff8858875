"""The plan of `dcn-tvm gpu`: processes that die, hang or run out of time, and runs that go on."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dcn_tvm.__main__ import app
from dcn_tvm.device import machine, plan, report
from dcn_tvm.device.items import DONE, NO_TIME, Context, Item, work
from dcn_tvm.device.journal import FAILED, Journal, plain
from dcn_tvm.device.plan import Step


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """Run the steps of tests/device_steps.py, and compile nothing."""
    monkeypatch.setattr(plan, "_CHILD", "tests.device_steps")
    monkeypatch.setattr(plan, "_PRECOMPILE", "this")
    return Context(tmp_path / "out", "cpu", time.time() + 60)


def results(context: Context, step: str) -> dict[str, Any]:
    return Journal(context.out, step).results()


def run(context: Context, *names: str) -> tuple[int, list[str]]:
    said: list[str] = []
    return plan.run(context, [Step(name, 1.0, timed=True) for name in names], said.append), said


def test_a_step_becomes_one_file_and_is_done_once(context: Context) -> None:
    code, _ = run(context, "passing")
    assert code == plan.FINISHED
    first = results(context, "passing")
    assert first["one"]["outcome"] == "passed"
    assert (first["skipped"]["outcome"], first["skipped"]["why"]) == ("skipped", "not here")
    files = sorted(path.name for path in context.out.iterdir())
    assert files == ["passing.json", report.FILE]
    assert run(context, "passing")[0] == plan.FINISHED
    assert results(context, "passing") == first


def test_what_kills_its_process_has_failed_and_the_rest_is_done(context: Context) -> None:
    code, said = run(context, "crashing")
    assert code == plan.WRONG
    found = results(context, "crashing")
    outcomes = {key: result["outcome"] for key, result in found.items()}
    expected = {"before": "passed", "crash": "failed", "hang": "failed", "after": "passed"}
    assert outcomes == expected
    assert found["before"]["pid"] != found["after"]["pid"]
    assert any("crash: the process that ran it ended" in line for line in said)


def test_a_process_with_a_broken_device_is_replaced(context: Context) -> None:
    code, _ = run(context, "wrong")
    assert code == plan.WRONG
    found = results(context, "wrong")
    assert found["raising"]["why"].startswith("RuntimeError: CUDA error: an illegal memory access")
    assert found["raising"]["traceback"]
    assert found["not a number"]["value"] == "nan"


def test_what_runs_out_of_time_is_dropped_and_begun_again(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "GRACE_S", 0.5)
    monkeypatch.setattr(plan, "_LEAST_S", 5.0)
    hurried = Context(context.out, "cpu", time.time() + plan._RESERVED_S + 8.0)
    assert run(hurried, "slow")[0] == plan.UNFINISHED
    assert set(results(context, "slow")) == {"quick"}
    assert Journal(context.out, "slow").interrupted() is None


def test_what_cannot_end_in_time_is_not_begun(context: Context) -> None:
    journal = Journal(context.out, "step")
    later = [Item("long", lambda: {}, 10_000.0), Item("later", lambda: {})]
    assert work([Item("quick", lambda: {}), *later], journal, context) == NO_TIME
    assert set(journal.results()) == {"quick"}
    soon = [Item("long", lambda: {"wrong": "nonsense"}), *later[1:]]
    assert work(soon, journal, context) == DONE
    assert journal.results()["long"]["outcome"] == FAILED


def test_a_child_that_cannot_start_is_given_up(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "_CHILD", "tests.no_such_module")
    start = time.monotonic()
    code, said = run(context, "passing")
    assert code == plan.UNFINISHED
    assert time.monotonic() - start < 20
    assert any("given up" in line for line in said)
    assert "not finished: passing" in said[-1]
    assert "not finished" in (context.out / report.FILE).read_text()


def test_a_line_that_was_cut_short_is_passed_over(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "step")
    journal.begin("a")
    journal.end("a", {"outcome": "passed"}, 1.0)
    with journal.path.open("a") as file:
        file.write('{"key": "b", "outc')
    assert set(journal.results()) == {"a"}
    journal.begin("c")
    assert journal.interrupted() == "c"
    journal.drop()
    assert journal.interrupted() is None
    journal.finish({"device": "none"})
    told = json.loads(journal.final.read_text())
    assert told["facts"] == {"device": "none"}
    assert [result["key"] for result in told["results"]] == ["a"]
    assert not journal.path.exists()


def test_numbers_that_are_not_finite_are_texts() -> None:
    assert plain({"a": [float("inf"), 1.5], "b": (None, "x")}) == {
        "a": ["inf", 1.5],
        "b": [None, "x"],
    }


def test_time_is_shared_by_what_is_left() -> None:
    left = [Step("a", 1.0), Step("b", 1.0), Step("c", 2.0, timed=True)]
    assert plan._timed_from(left, 0, time.time() + 100) == pytest.approx(time.time() + 50, abs=1)
    assert plan._timed_from(left, 1, time.time() + 90) == pytest.approx(time.time() + 30, abs=1)


def test_steps_are_named() -> None:
    assert [step.name for step in plan.named(["tuning", "machine"])] == ["machine", "tuning"]
    assert plan.named(None) == plan.STEPS
    with pytest.raises(ValueError, match="step must be one of machine, correctness"):
        plan.named(["nothing"])


def test_results_fit_eight_files() -> None:
    records_and_report = 2
    assert len(plan.STEPS) + records_and_report <= 8


def test_without_a_device_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = CliRunner().invoke(app, ["gpu", "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "no CUDA device" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_machine_is_described_without_a_device(tmp_path: Path) -> None:
    facts = machine.facts("cpu")
    assert {"versions", "commit", "date", "compiler", "cores"} <= facts.keys()
    assert "wrong" not in facts
    assert machine.known_facts(tmp_path) == {}
    assert report.headline(tmp_path) == "no machine was looked at"
