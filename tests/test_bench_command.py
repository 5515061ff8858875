import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from dcn_tvm import results, suites
from dcn_tvm.__main__ import app
from dcn_tvm.bench import Plan, ceilings, command
from dcn_tvm.bench.runner import Outcome
from dcn_tvm.results import Ceilings, Rejection
from dcn_tvm.suites import SCALING, SUITES, Case


@pytest.fixture(autouse=True)
def quick_ceilings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ceilings, "SIDES", {"cpu": (64,)})
    monkeypatch.setattr(ceilings, "copy_sizes", lambda device: [1 << 12])
    monkeypatch.setattr(ceilings, "_TURNS", 1)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)  # which --threads changes for good


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", *arguments])


def test_a_quick_benchmark_writes_a_file_of_results(tmp_path: Path) -> None:
    path, page = tmp_path / "new" / "rows.json", tmp_path / "rows.md"
    chosen = ("--op", "roi_align", "--mode", "forward", "--against", "torchvision,openvino")
    written = ("--json", str(path), "--markdown", str(page))
    result = invoke("roi_align", "roi_pool", "--quick", "--threads", "1", *chosen, *written)
    assert result.exit_code == 0, result.output
    found = results.read(path)
    assert {row.op for row in found.rows} == {"roi_align"}
    assert {row.mode for row in found.rows} == {"forward"}
    assert {row.provider for row in found.rows} <= {"copy", "dcn_tvm", "torchvision", "openvino"}
    ours = [row for row in found.rows if row.role == "ours"]
    assert {row.dtype for row in ours} == {"float32", "bfloat16"}
    for row in ours:
        assert row.error is not None
        assert row.ratio
        assert row.roofline
        assert row.records
    assert {c.kind for c in found.ceilings} == {"gemm", "copy"}
    assert "roi_align, forward" in page.read_text()


def test_ceilings_alone(tmp_path: Path) -> None:
    path = tmp_path / "limits.json"
    result = invoke("--ceilings", "--dtype", "float64", "--threads", "2", "--json", str(path))
    assert result.exit_code == 0, result.output
    found = results.read(path)
    assert not found.rows
    assert {(c.dtype, c.threads) for c in found.ceilings} == {("float64", 1), ("float64", 2)}
    assert "float64" in result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no_such"], "suite must be one of"),
        (["roi_align", "--op", "roi_pool"], "op must be one of roi_align, got roi_pool"),
        (["--mode", "sideways"], "mode must be one of"),
        (["--dtype", "int8"], "dtype must be one of"),
        (["--memory-format", "nhwc"], "memory format must be one of"),
        (["--device", "tpu9"], "device must be cpu or cuda"),
        (["--against", "caffe"], "contender must be one of"),
        (["--cache", "hot"], "cache must be one of warm, cold"),
        (["--ceilings", "--scaling"], "ceilings have no suites"),
        (["--quick", "--scaling"], "exclude each other"),
        (["--networks", "--mode", "forward"], "networks have no suites"),
        (["--networks", "--scaling"], "networks are timed alone"),
        (["--ceilings", "--cache", "cold"], "ceilings have no memory formats"),
        (["--quick", "--json", "/proc/no/such.json"], "file must be one that can be written"),
        (["--networks", "--json", "/proc/no/such.json"], "file must be one that can be written"),
    ],
)
def test_wrong_arguments(arguments: list[str], says: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert says in " ".join(result.output.split())


def test_half_types_need_the_ceilings_of_float32(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    chosen = ("--mode", "forward", "--dtype", "float16", "--against", "copy", "--no-memory")
    result = invoke("ps_roi_pool", "--quick", "--threads", "1", *chosen, "--json", str(path))
    assert result.exit_code == 0, result.output
    found = results.read(path)
    assert {c.dtype for c in found.ceilings} == {"float32", "float16"}
    assert {row.peak_mib for row in found.rows} == {None}


def test_what_is_timed_is_not_lost_when_a_probe_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise RuntimeError("a probe failed: killed")

    monkeypatch.setattr(command.probe, "measure_imports", fails)
    with pytest.warns(UserWarning, match="not complete: a probe failed: killed"):
        assert command._findings([], lambda _: None) == []


def test_our_own_wrong_results_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    where = ("roi_align", "P0", "dcn_tvm", "ours", "1", "forward", "float32", "contiguous")
    wrong = Rejection(*where, "wrong", 0.5, "relative error 5.0e-01")
    monkeypatch.setattr(command, "run", lambda *_, **__: Outcome([], [wrong]))
    result = invoke("roi_align", "--quick", "--mode", "forward")
    assert result.exit_code == 1
    assert "relative error 5.0e-01" in result.output
    theirs = dataclasses.replace(wrong, role="peer")
    monkeypatch.setattr(command, "run", lambda *_, **__: Outcome([], [theirs]))
    assert invoke("roi_align", "--quick", "--mode", "forward").exit_code == 0


def test_every_suite_has_curves_that_change_one_size() -> None:
    assert SCALING.keys() == SUITES.keys()
    for op, sweeps in SCALING.items():
        boxes = set() if op == "deform_conv2d" else {"boxes"}
        assert sweeps.keys() == {"pixels", "channels", "batch", "threads"} | boxes, op
        for sweep, points in sweeps.items():
            assert len(points) >= (1 if sweep == "threads" else 3)
            assert len({point.label for point in points}) == len(points), (op, sweep)
            for point in points:
                point.problem()


def test_boxes_stay_where_they_are_on_finer_maps() -> None:
    points = SCALING["roi_align"]["pixels"]
    image = {(p.integer("height") * p.integer("stride"), p.integer("boxes")) for p in points}
    assert len(image) == 1


def test_curves_are_run_with_each_size_and_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def run(cases: list[Case], plan: Plan, limits: Ceilings, **options: Any) -> Outcome:
        asked.append((options["sweep"], len(cases), torch.get_num_threads(), plan))
        return Outcome([], [])

    monkeypatch.setattr(command, "run", run)
    torch.set_num_threads(2)
    command.run_scaling("roi_align", Plan(), Ceilings([]), report=lambda _: None)
    found = [(sweep, count, threads) for sweep, count, threads, _ in asked]
    sweeps = suites.SCALING["roi_align"]
    usual = [(sweep, len(points), 2) for sweep, points in sweeps.items() if sweep != "threads"]
    assert found == [*usual, ("threads", 1, 1), ("threads", 1, 2)]
    assert torch.get_num_threads() == 2
    plan = asked[0][3]
    assert "network" not in plan.modes
    assert plan.memory_formats == ("contiguous",)
    assert plan.dtypes["forward"] == ("float32",)
