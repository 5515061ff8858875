import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from dcn_tvm import guard, ops
from dcn_tvm.build import space
from dcn_tvm.cli import guard as command
from dcn_tvm.errors import CompileError
from dcn_tvm.guard import Budget, Guarded, absent_because, count, counting, guarded
from dcn_tvm.guard.budget import PATH
from dcn_tvm.guard.plan import TARGET

COUNTS = {"roi_pool.forward": 1000, "roi_pool.backward": 2000, "roi_align.forward": 3000}
CALLGRIND = """\
version: 1
creator: callgrind-3.19.0
positions: line
events: Ir
ob=/tmp/0.so
fn=kernel
0 100
cob=/tmp/0.so
cfn=task
calls=1 0
0 7000
0 11
fn=task
0 6800
cob=/lib/libc.so.6
cfn=memset
calls=2 0
0 200
ob=/lib/libc.so.6
fn=memset
0 200
ob=/tmp/1.so
fn=kernel
0 5
totals: 7116
"""


def verdicts(counts: dict[str, int]) -> dict[str, str]:
    return {f.name: f.verdict for f in Budget.of(COUNTS).compare(counts)}


def test_a_change_within_the_tolerance_is_none() -> None:
    assert set(verdicts(COUNTS).values()) == {"same"}
    near = {"roi_pool.forward": 1019, "roi_pool.backward": 1961, "roi_align.forward": 3001}
    assert set(verdicts(near).values()) == {"same"}


def test_more_and_fewer_and_new_and_gone() -> None:
    found = verdicts(
        {"roi_pool.forward": 1021, "roi_pool.backward": 1959, "ps_roi_pool.forward": 7}
    )
    assert found == {
        "roi_pool.forward": "more",
        "roi_pool.backward": "fewer",
        "roi_align.forward": "gone",
        "ps_roi_pool.forward": "new",
    }


@pytest.mark.parametrize("name", ["compiler", "target"])
def test_code_of_another_compiler_or_for_another_machine_is_not_compared(name: str) -> None:
    other = dataclasses.replace(Budget.of(COUNTS), **{name: "another"})
    with pytest.raises(ValueError, match=f"budget's {name} must be .*, got another: .*--update"):
        other.compare(COUNTS)
    with pytest.raises(ValueError, match=f"budget's {name} must be"):
        other.updated({}, ["roi_pool"])
    assert other.updated(COUNTS, []) == Budget.of(COUNTS)


def test_a_budget_is_a_file_with_a_line_for_each_kernel(tmp_path: Path) -> None:
    path = tmp_path / "new" / "budget.json"
    Budget.of(COUNTS).write(path)
    assert Budget.read(path) == Budget.of(COUNTS)
    assert sum(line.strip().startswith('"roi_') for line in path.read_text().splitlines()) == 3


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"compiler": "", "target": "", "kernels": 3}'])
def test_a_damaged_budget(tmp_path: Path, text: str) -> None:
    (tmp_path / "budget").write_text(text)
    with pytest.raises(ValueError, match="holds no budget"):
        Budget.read(tmp_path / "budget")


@pytest.mark.parametrize("number", [0, -1, 1.5, "7", True])
def test_a_budget_of_no_number(tmp_path: Path, number: object) -> None:
    facts = {"compiler": "", "target": "", "kernels": {"roi_pool.forward": number}}
    (tmp_path / "budget").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"roi_pool.forward must have a positive number, got"):
        Budget.read(tmp_path / "budget")


def test_a_part_of_a_budget() -> None:
    budget = Budget.of(COUNTS)
    assert budget.only([]) == budget
    assert set(budget.only(["roi_align"]).kernels) == {"roi_align.forward"}
    updated = budget.updated({"roi_pool.forward": 5}, ["roi_pool"])
    assert updated.kernels == {"roi_align.forward": 3000, "roi_pool.forward": 5}


def test_only_what_a_library_executes_itself_is_counted() -> None:
    counts = counting.own_instructions(CALLGRIND.splitlines(keepends=True))
    assert counts == {"/tmp/0.so": 100 + 11 + 6800, "/lib/libc.so.6": 200, "/tmp/1.so": 5}


def test_every_kernel_of_every_op_is_guarded_in_both_layouts() -> None:
    found = {(g.request.problem.op, g.request.kernel, g.request.problem.layout) for g in guarded()}
    assert found == {
        (name, kernel, layout)
        for name, op in ops.registry().items()
        for kernel in op.kernels()
        for layout in ("nchw", "nhwc")
    }
    requests = [each.request for each in guarded()]
    assert len(set(requests)) == len(requests)
    assert all(not request.recorded and request.target is None for request in requests)
    names = [each.name for each in guarded(["roi_pool"]) if each.request.kernel == "forward"]
    assert [(name.split()[1], name.split()[-1]) for name in names] == [
        ("nchw", "max"),
        ("nchw", "avg"),
        ("nhwc", "max"),
    ]
    with pytest.raises(ValueError, match=r"op must be one of .*, got conv2d"):
        guarded(["conv2d"])


def test_the_budget_of_the_checkout_is_of_what_is_guarded() -> None:
    budget = Budget.read(PATH)
    budget.refuse_other_code()
    assert set(budget.kernels) == {each.name for each in guarded()}


def test_the_machine_is_described_in_full() -> None:
    named = TARGET.spec.split(",")
    assert named[0] == "x86-64-v3"
    assert {"cores=4", "lanes=8", "registers=16", "l1_bytes=32768"} <= set(named)


needs_valgrind = pytest.mark.skipif(bool(absent_because()), reason=str(absent_because()))


@needs_valgrind
def test_a_kernel_is_counted_and_a_worse_choice_shows() -> None:
    kernel = next(g for g in guarded(["roi_pool"]) if g.request.problem.layout == "nhwc")
    allowed = space(kernel.request, TARGET)
    worse = {**allowed.default, "vectors": 1}
    assert worse in allowed
    assert worse != allowed.default
    recorded = (tuple(sorted(worse.items())),)
    other = Guarded("worse", dataclasses.replace(kernel.request, recorded=recorded), kernel.sizes)
    again = dataclasses.replace(kernel, name="again")
    counts = count([kernel, other, again])
    assert counts[kernel.name] == counts["again"] > 100_000
    assert counts["worse"] > 1.02 * counts[kernel.name]


@needs_valgrind
def test_a_kernel_that_refuses_its_arguments_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = next(g for g in guarded(["roi_pool"]) if g.request.problem.layout == "nhwc")
    whole = counting._call

    def without_scalar(kernel: Guarded, number: int, folder: Path) -> list[str]:
        return [line for line in whole(kernel, number, folder) if "scalar" not in line]

    monkeypatch.setattr(counting, "_call", without_scalar)
    with pytest.raises(CompileError, match=r"(?s)valgrind failed .*Expected 4 arguments"):
        count([kernel])


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run the command with counts instead of valgrind, on a budget of its own."""
    app = typer.Typer()
    command.register(app)
    path = tmp_path / "budget.json"

    def go(*arguments: str, reason: str | None = None, **counts: int) -> Result:
        monkeypatch.setattr(guard, "absent_because", lambda: reason)
        made = {f"{name.replace('__', '.')}": number for name, number in counts.items()}
        monkeypatch.setattr(guard, "count", lambda kernels, started: made)
        return CliRunner().invoke(app, ["--budget", str(path), *arguments])

    return go


def test_the_command_compares_and_updates(run: Run) -> None:
    result = run(roi_pool__forward=1000)
    assert result.exit_code == 2
    assert "checkout" in result.output
    result = run("--update", roi_pool__forward=1000, roi_align__forward=77)
    assert result.exit_code == 0, result.output
    result = run(roi_pool__forward=1010, roi_align__forward=77)
    assert (result.exit_code, "all 2 kernels" in result.output) == (0, True)
    result = run(roi_pool__forward=1100, roi_align__forward=77)
    assert result.exit_code == 1
    for text in ("roi_pool.forward", "1,000", "1,100", "+10.0%", "more instructions", "--update"):
        assert text in result.output
    assert "roi_align.forward" not in result.output


def test_improvements_and_new_and_missing_kernels_do_not_pass_silently(run: Run) -> None:
    run("--update", roi_pool__forward=1000, roi_align__forward=77)
    result = run(roi_pool__forward=900, ps_roi_pool__forward=5)
    assert result.exit_code == 1
    for text in ("-10.0%", "improved", "new: has no budget", "gone: has a budget", "3 of 3"):
        assert text in result.output


def test_one_op_is_compared_and_updated_alone(run: Run) -> None:
    run("--update", roi_pool__forward=1000, roi_align__forward=77)
    assert run("--op", "roi_pool", roi_pool__forward=1000).exit_code == 0
    assert run("--op", "roi_pool", "--update", roi_pool__forward=500).exit_code == 0
    assert run(roi_pool__forward=500, roi_align__forward=77).exit_code == 0
    result = run("--op", "conv2d")
    assert (result.exit_code, "op must be one of" in result.output) == (2, True)


def test_where_nothing_can_be_counted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(reason="there is no valgrind")
    assert (result.exit_code, "there is no valgrind" in result.output) == (2, True)
    result = run("--if-possible", reason="there is no valgrind")
    assert result.exit_code == 0
    assert result.output == "instruction counts: skipped: there is no valgrind\n"
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(counting.target, "detect", lambda: TARGET)
    monkeypatch.setattr(counting.sys, "platform", "linux")
    assert "apt-get install valgrind" in str(counting.absent_because())
    monkeypatch.setattr(
        counting.target, "detect", lambda: counting.target.parse("x86-64-v2", foreign=True)
    )
    assert "it is for x86-64-v3, and this machine has x86-64-v2" in str(counting.absent_because())
    monkeypatch.setattr(counting.sys, "platform", "darwin")
    assert "valgrind counts on Linux" in str(counting.absent_because())
