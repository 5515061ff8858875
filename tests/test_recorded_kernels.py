"""Kernels by record: a call gets the recorded choices that are legal, and stays right."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import dcn_tvm
from dcn_tvm import bridge, build, kernels, records, target
from dcn_tvm.knobs import Choice
from dcn_tvm.ops.deform_conv2d import DeformConv2dProblem

PROBLEM = DeformConv2dProblem(
    "float32", "nchw", 3, 2, kernel_size=(1, 1), modulated=True, bias=True
)
SIZES = {"batch": 1, "height": 5, "width": 6}


@pytest.fixture(autouse=True)
def own_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start without any record, the user's or shipped ones."""
    monkeypatch.setenv("DCN_TVM_HOME", str(tmp_path))
    monkeypatch.setattr("dcn_tvm.records.store.shipped_root", lambda: tmp_path / "shipped")
    monkeypatch.setattr(kernels, "_functions", {})  # what other tests of this process built
    bridge.forget()
    yield
    bridge.forget()


def keep(choices: dict[str, Choice] | None, **sizes: int) -> None:
    """Keep a record of the forward kernel at `SIZES`, or at others."""
    record = records.Record(
        problem=PROBLEM,
        kernel="forward",
        sizes=SIZES | sizes,
        choices=choices,
        median_us=1.0,
        default_us=2.0 if choices else 1.0,
        noise=0.01,
        trials=3,
        threads=target.detect().cores,
        device="a CPU",
        versions={"apache-tvm": "0"},
        date="2026-01-02",
    )
    records.append(records.user_root(), target.detect().ids[0], [record])
    bridge.forget()


def unusual() -> dict[str, Choice]:
    """Legal choices that are not the default's."""
    space = build.space(build.Request(PROBLEM, "forward", ("output",)), target.detect())
    return next(point for point in space.points() if point != space.default)


def forward() -> kernels.KernelExplanation:
    return kernels.explain(PROBLEM, SIZES)[0]


def call_both() -> tuple[torch.Tensor, torch.Tensor]:
    """A call at `SIZES`, by the kernel and by the reference."""
    tensors = {
        "input": torch.randn(1, 3, 5, 6),
        "offset": torch.randn(1, 2, 5, 6),
        "weight": torch.randn(2, 3, 1, 1),
        "bias": torch.randn(2),
        "mask": torch.rand(1, 1, 5, 6),
    }
    return dcn_tvm.deform_conv2d(**tensors), dcn_tvm.reference.deform_conv2d(**tensors)


def test_a_call_runs_the_recorded_choices_once_they_are_there() -> None:
    torch.testing.assert_close(*call_both())
    assert (forward().provenance, forward().cached) == ("default", True)
    keep(unusual())
    assert forward().provenance.startswith("user: exact")
    assert (forward().choices, forward().cached) == (unusual(), False)
    torch.testing.assert_close(*call_both())
    assert forward().cached


def test_a_near_record_is_used() -> None:
    keep(unusual(), height=7)
    assert forward().choices == unusual()
    assert "nearest" in forward().provenance


def test_what_is_not_legal_gives_way_to_the_next() -> None:
    keep(unusual() | {"rows": 3})
    assert forward().provenance == "default"
    torch.testing.assert_close(*call_both())
    keep(unusual(), height=7)
    assert forward().choices == unusual()
    assert "nearest" in forward().provenance


def test_a_record_that_prefers_the_default_ends_the_search() -> None:
    default = forward().choices
    keep(unusual(), height=7)
    keep(None)
    assert forward().choices == default
    assert "the default was the best" in forward().provenance


def test_records_serve_kernels_of_fewer_outputs() -> None:
    request = build.Request(PROBLEM, "backward_data", ("grad_input", "grad_offset", "grad_mask"))
    space = build.space(request, target.detect())
    for outputs in (("grad_input",), ("grad_offset", "grad_mask")):
        fewer = build.space(build.Request(PROBLEM, "backward_data", outputs), target.detect())
        assert fewer.products == space.products


def test_sizes_without_records_share_one_kernel() -> None:
    sizes = ({"batch": 1, "height": size, "width": size} for size in (5, 500))
    assert len({kernels.request(PROBLEM, "forward", ("output",), s) for s in sizes}) == 1


def test_damaged_records_leave_the_call_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "tuning_logs" / target.detect().ids[0] / "deform_conv2d.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("{half a line")
    with pytest.warns(UserWarning, match=r"deform_conv2d\.jsonl:1"):
        torch.testing.assert_close(*call_both())
    assert forward().provenance == "default"
