import dataclasses

import pytest

from dcn_tvm.bench import tables
from dcn_tvm.report import Machine
from dcn_tvm.results import Ceiling, Finding, Rejection, Results, Row
from dcn_tvm.results.means import mean_ratio, speedups

MACHINE = Machine("some CPU", 2, {"torch": "2"})


def _rows(times_us: dict[str, tuple[str, list[float]]]) -> list[Row]:
    """Return rows of provider → (role, times on the problems P0, P1 …), ratios to `base`."""
    shared = {"version": "1", "mode": "forward", "dtype": "float32", "memory_format": "contiguous"}
    where = {"device": "some CPU", "threads": 2, "versions": {}, "date": "2026", "rounds": 3}
    shared |= {
        "cache": "warm",
        "clock": "clock",
        "sweep": "",
        "sizes": {"height": 5, "stride": (1, 1)},
    }
    unknown = ("floor_us", "bound", "roofline", "peak_mib", "faults", "error")
    shared |= {**dict.fromkeys(unknown), "records": (), "flops": 1, "bytes_moved": 1}
    return [
        Row(
            op="op",
            problem=f"P{index}",
            provider=provider,
            role=role,
            median_us=us,
            p20_us=us,
            p80_us=us,
            gflop_per_s=1.0,
            gbyte_per_s=1.0,
            ratio=us / times_us["base"][1][index],
            **shared,
            **where,
        )
        for provider, (role, times) in times_us.items()
        for index, us in enumerate(times)
    ]


ROWS = _rows(
    {
        "base": ("baseline", [1000.0, 1000.0]),
        "mine": ("ours", [1000.0, 4000.0]),
        "theirs": ("peer", [9000.0, 4000.0]),
    }
)


def test_means_are_geometric_and_tell_the_worst() -> None:
    assert mean_ratio(ROWS, "mine") == pytest.approx(2.0)
    (mean,) = speedups(ROWS)
    assert (mean.variant, mean.against, mean.worst_problem) == ("mine", "theirs", "P1")
    assert (mean.mean, mean.worst, mean.problems) == (pytest.approx(3), pytest.approx(1), 2)


def test_a_mean_is_over_the_problems_that_the_peer_can_do() -> None:
    rows = [row for row in ROWS if (row.provider, row.problem) != ("theirs", "P1")]
    (mean,) = speedups(rows)
    assert (mean.mean, mean.worst_problem, mean.problems) == (pytest.approx(9.0), "P0", 1)
    alone = [row for row in rows if (row.provider, row.problem) != ("mine", "P0")]
    assert speedups(alone) == []


def test_means_compare_types_with_themselves() -> None:
    wide = [dataclasses.replace(row, dtype="float64") for row in ROWS if row.provider != "mine"]
    half = [dataclasses.replace(row, dtype="bfloat16", median_us=1.0) for row in ROWS[2:4]]
    (mean,) = speedups([*ROWS, *wide, *half])
    assert (mean.variant, mean.against, mean.mean) == ("mine", "theirs", pytest.approx(3))


def test_markdown_says_everything() -> None:
    findings = [Finding("import", "dcn_tvm", "", 0.05, "s")]
    where = ("op", "P0", "liar", "peer", "3", "forward", "float32", "contiguous")
    rejected = [Rejection(*where, "wrong", 0.5, "relative error 5.0e-01")]
    limits = [Ceiling("copy", "float32", 2, 1 << 20, 33.3, "some CPU", "2026")]
    absent = {"onnxruntime": "no; pip install onnxruntime"}
    text = tables.markdown(Results(MACHINE, ROWS, rejected, limits, findings, absent))
    assert text.startswith("some CPU, 2 threads, torch 2")
    assert "| P1 | 1 (1.00) | 4 (4.00) | 4 (4.00) |" in text
    assert "| mean ratio | 1.00 | 2.00 | 6.00 |" in text
    assert "| op, forward | mine | theirs | 3.00 | 1.00 | P1 | 2 |" in text
    assert (
        "| op, forward | liar 3 | float32 contiguous | wrong | relative error 5.0e-01 | P0 |"
        in text
    )
    assert "| float32 | 2 | 33.3 |" in text
    assert "pip install onnxruntime" in text
    assert "0.05 s" in text


def test_the_roofline_is_in_the_cells() -> None:
    row = dataclasses.replace(ROWS[2], roofline=0.5)
    assert tables.times("", [row]).lines[0] == ["P0", "1 (1.00) 50%"]


def test_a_curve_is_a_line_of_its_table() -> None:
    first, second = (
        dataclasses.replace(ROWS[2], sweep="batch", sizes={"batch": n}, median_us=us)
        for n, us in ((1, 1000.0), (4, 8000.0))
    )
    text = tables.markdown(Results(MACHINE, [first, second]))
    assert "| op, forward | mine | batch | 1 | 4 | batch^1.50 | 1, 8 |" in text
    assert "part of the roofline" not in text, "a curve's rows are in no other table"
