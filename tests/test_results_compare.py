import dataclasses
from typing import Any

import pytest
from results_cases import DEVICE, VERSIONS, ceilings, results, row

from dcn_tvm.report import Machine
from dcn_tvm.results import Rejection, Results, Row, read, write
from dcn_tvm.results.compare import Change, across, changes
from dcn_tvm.results.merge import Place, merge


def of(*rows: Row, threads: int = 2, **changed: Any) -> Results:
    """Return what one machine found."""
    return Results(Machine(DEVICE, threads, VERSIONS), rows, **changed)


def rejection(**changed: Any) -> Rejection:
    """Return the rejection of what `row()` asks for."""
    names = ("op", "problem", "provider", "role", "version", "mode", "dtype", "memory_format")
    fields = {name: getattr(row(), name) for name in names}
    return Rejection(**{**fields, "kind": "wrong", "error": 0.5, "reason": "it is off", **changed})


def change(new: Results, old: Results, tolerance: float = 0.1) -> Change:
    """Return what became of the one old row."""
    (found,) = changes([new], [old], tolerance)
    return found


def verdict(new_ratio: float, old_ratio: float, **noise: Any) -> str:
    old, new = (of(row(ratio=ratio, **noise)) for ratio in (old_ratio, new_ratio))
    return change(new, old).verdict


def test_a_ratio_within_the_tolerance_is_the_same() -> None:
    assert verdict(1.09, 1.0) == verdict(1.0, 1.09) == "same"
    assert verdict(1.12, 1.0) == "slower"
    assert verdict(1.0, 1.12) == "faster"


def test_a_ratio_within_the_noise_is_the_same() -> None:
    assert verdict(1.3, 1.0, p20_us=800.0, p80_us=1200.0) == "same"
    assert verdict(1.3, 1.0, p20_us=900.0, p80_us=1100.0) == "slower"
    assert verdict(1.0, 1.3, p20_us=800.0, p80_us=1200.0) == "same"


def test_times_decide_nothing() -> None:
    old, new = of(row(median_us=1000.0)), of(row(median_us=5000.0))
    found = change(new, old)
    assert (found.verdict, found.time, found.regression) == ("same", 5.0, False)
    bare = dataclasses.replace(row(median_us=5000.0), ratio=None)
    found = change(of(bare), old)
    assert (found.verdict, found.ratio, found.time) == ("no ratio", None, 5.0)


def test_ratios_are_compared_across_machines_and_times_are_not() -> None:
    new = of(row(ratio=3.0, device="Other CPU"))
    found = change(new, of(row(ratio=1.5)))
    assert (found.verdict, found.ratio, found.time) == ("slower", 2.0, None)


def test_the_same_machine_comes_first() -> None:
    here, there = row(ratio=1.5), row(ratio=9.0, device="Other CPU")
    (found,) = changes([of(there), of(here)], [of(row(ratio=1.5))])
    assert found.new == here


def test_only_ours_are_regressions() -> None:
    for role, counts in {"ours": True, "peer": False, "baseline": False, "floor": False}.items():
        old, new = (of(row(role=role, ratio=ratio)) for ratio in (1.0, 2.0))
        found = change(new, old)
        assert (found.verdict, found.regression) == ("slower", counts)


@pytest.mark.parametrize("kind", ["wrong", "failed"])
def test_who_was_right_and_is_not_any_more(kind: str) -> None:
    found = change(of(rejections=[rejection(kind=kind)]), of(row()))
    assert (found.verdict, found.regression, found.reason) == (kind, True, "it is off")
    other = rejection(problem="P1")
    assert change(of(row(), rejections=[other]), of(row())).verdict == "same"


def test_a_rejection_on_another_machine_is_not_ours() -> None:
    elsewhere = of(threads=8, rejections=(rejection(),))
    (found,) = changes([of(row(ratio=1.5)), elsewhere], [of(row(ratio=1.5))])
    assert found.verdict == "same"
    here, there = of(rejections=(rejection(),)), of(row(ratio=1.5, threads=8), threads=8)
    (found,) = changes([here, there], [of(row(ratio=1.5))])
    assert found.verdict == "wrong"


def test_a_ratio_that_is_lost_is_a_regression() -> None:
    lost = change(of(row(ratio=None)), of(row(ratio=1.5)))
    assert (lost.verdict, lost.regression, lost.judged) == ("no ratio", True, False)
    never = change(of(row(ratio=None)), of(row(ratio=None)))
    assert (never.regression, never.judged) == (False, False)


def test_a_newer_file_without_rows_is_newer() -> None:
    new = of(ceilings=(dataclasses.replace(ceilings()[0], date="2030", rate=7.0),))
    old = of(row(), ceilings=ceilings())
    for files in ([new, old], [old, new]):
        (merged,) = merge(files)
        assert merged.ceilings[0].rate == 7.0


def test_what_is_gone_is_told_and_no_regression() -> None:
    for other in ({"problem": "P1"}, {"dtype": "bfloat16"}, {"cache": "cold"}, {"sweep": "batch"}):
        found = change(of(row(**other)), of(row()))
        assert (found.verdict, found.regression) == ("gone", False)
    threads = of(row(sweep="threads", threads=4, ratio=9.0))
    assert change(threads, of(row(sweep="threads", threads=2))).verdict == "gone"


def test_regressions_come_first() -> None:
    old = of(row(problem="A"), row(problem="B"), row(problem="C"))
    new = of(row(problem="A"), row(problem="B", ratio=2.0), row(problem="C", ratio=4.0))
    assert [found.old.problem for found in changes([new], [old])] == ["C", "B", "A"]


def test_the_tolerance_is_checked() -> None:
    assert change(of(row(ratio=1.3)), of(row(ratio=1.0)), 0.5).verdict == "same"
    with pytest.raises(ValueError, match=r"tolerance must be finite and at least 0, got -0\.1"):
        changes([], [], -0.1)
    with pytest.raises(ValueError, match="got nan"):
        changes([], [], float("nan"))


def test_across_machines_are_rows_of_no_sweep_in_several_places() -> None:
    here, there = row(), row(threads=8)
    found = across(
        [here, row(problem="P1"), there, row(sweep="batch"), row(sweep="batch", threads=8)]
    )
    (places,) = found.values()
    assert places == {Place(DEVICE, 2): here, Place(DEVICE, 8): there}


def test_the_later_row_stays() -> None:
    old, new = row(date="2025", median_us=1.0), row(date="2026", median_us=2.0)
    for files in ([of(old), of(new)], [of(new), of(old)]):
        (merged,) = merge(files)
        assert merged.rows == (new,)


def test_machines_stay_apart() -> None:
    merged = merge([results(2), results(8), results(2)])
    assert [found.machine.threads for found in merged] == [2, 8]
    first, alone = merged[0], results(2)
    assert first.rows == alone.rows
    assert (first.rejections, first.ceilings) == (alone.rejections, alone.ceilings)
    assert first.absent == alone.absent


def test_the_later_judgement_stays() -> None:
    timed, other = of(row(date="2025")), row(problem="P1", date="2026")
    (merged,) = merge([timed, of(other, rejections=[rejection()])])
    assert (merged.rows, len(merged.rejections)) == ((other,), 1)
    earlier = of(row(problem="P1", date="2024"), rejections=[rejection()])
    (merged,) = merge([earlier, timed])
    assert (len(merged.rows), merged.rejections) == (2, ())


def test_files_give_back_what_was_written(tmp_path) -> None:
    write(results(), tmp_path / "a.json")
    (merged,) = merge([read(tmp_path / "a.json")])
    assert len(merged.rows) == len(results().rows)
    assert {found.verdict for found in changes([merged], [results()])} == {"same"}
