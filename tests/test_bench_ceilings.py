import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dcn_tvm import measure, target
from dcn_tvm.bench import ceilings, clock
from dcn_tvm.results import Ceilings


def test_thread_counts_double_up_to_all() -> None:
    assert ceilings.thread_counts(1) == [1]
    assert ceilings.thread_counts(2) == [1, 2]
    assert ceilings.thread_counts(6) == [1, 2, 4, 6]
    assert ceilings.thread_counts(8) == [1, 2, 4, 8]


def test_copies_reach_from_the_first_cache_beyond_the_last() -> None:
    sizes = ceilings.copy_sizes()
    assert sizes == sorted(set(sizes))
    assert sizes[0] <= 1 << 17
    assert sizes[-1] >= max(4 * target.detect().l3_bytes, 128 << 20)


def test_a_cpu_may_have_several_last_caches(tmp_path: Path) -> None:
    for cpu, shared in enumerate(("0-1", "0-1", "2-3", "2-3")):
        folder = tmp_path / f"cpu{cpu}" / "cache" / "index3"
        folder.mkdir(parents=True)
        (folder / "shared_cpu_list").write_text(shared)
    one = target.detect().l3_bytes
    assert clock.last_cache_bytes(tmp_path) == 2 * one
    assert clock.last_cache_bytes(tmp_path / "none") == one


def test_the_best_turn_is_the_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = iter([9.0, 3.0, 5.0, 4.0, 8.0])
    made = clock.Clock(lambda: next(turns), "clock")
    monkeypatch.setattr(ceilings, "clock", lambda call, device: made)
    assert ceilings._best_us(lambda: None, "cpu", 0.0) == 3.0


def test_both_rates_are_measured_for_each_type_and_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ceilings, "SIDES", {"cpu": (64,)})
    monkeypatch.setattr(ceilings, "copy_sizes", lambda device: [1 << 12, 1 << 14])

    def run_once(call: Callable[[], object], device: str, seconds: float) -> float:
        call()
        return 10.0

    monkeypatch.setattr(ceilings, "_best_us", run_once)
    before = torch.get_num_threads()
    found = ceilings.measure(["float32", "float64"], [1, 2])
    assert torch.get_num_threads() == before
    assert [(c.threads, c.dtype, c.kind, c.size) for c in found] == [
        (threads, dtype, *what)
        for threads in (1, 2)
        for dtype in ("float32", "float64")
        for what in (("gemm", 64), ("copy", 1 << 12), ("copy", 1 << 14))
    ]
    assert Ceilings(found).floor(1, 1, "float64", 2) is not None


def test_rates_count_every_operation_and_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "_best_us", lambda call, device, seconds: 10.0)
    monkeypatch.setattr(ceilings, "copy_sizes", lambda device: [1 << 20])
    rates = {(c.kind, c.size): c.rate for c in ceilings.measure(["float64"])}
    assert rates["gemm", 1024] == pytest.approx(2 * 1024**3 / 10e3)
    assert rates["copy", 1 << 20] == pytest.approx((1 << 20) / 10e3)


def test_a_type_whose_products_take_forever_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "_best_us", lambda call, device, seconds: 1e6)
    monkeypatch.setattr(ceilings, "copy_sizes", lambda device: [1 << 12])
    assert [c.size for c in ceilings.measure(["float32"]) if c.kind == "gemm"] == [1024]


def test_a_turn_after_something_does_not_time_it() -> None:
    done = []

    def slow() -> None:
        done.append("before")
        time.sleep(0.02)

    turn = measure.turn_after(slow, lambda: done.append("call"))
    assert turn() < 10_000
    assert done == ["call", "before", "call"]
