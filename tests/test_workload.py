"""Recordings meet the problems and sizes of calls, and a file of them gives them back."""

import dataclasses
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import dcn_tvm
from dcn_tvm import bridge, ops, suites, workload
from dcn_tvm.ops.deform_conv2d import DeformConv2dProblem
from dcn_tvm.problem import DTYPES, LAYOUTS, Problem
from dcn_tvm.workload import Recording, Workload
from tests.cases import CASES, Arguments
from tests.roi_cases import ONE_OF_EACH

CONV = CASES["channels_1"]
PROBLEM = DeformConv2dProblem("float32", "nchw", 24, 40, modulated=True)
SIZES = {"batch": 1, "height": 38, "width": 63}
EVERY = tuple(ops.registry())


def conv(batch: int = 2, height: int = 5, width: int = 6) -> Arguments:
    return CONV.sized(batch, height, width).arguments()


def infer(batch: int = 2) -> None:
    with torch.no_grad():
        conv(batch).call(dcn_tvm.deform_conv2d)


def sizes_of(met: Recording) -> list[dict[str, int]]:
    return [dict(w.sizes) for w in met]


class TestRecording:
    def test_a_call_for_inference_meets_its_forward_kernel(self) -> None:
        with dcn_tvm.record_problems() as met, torch.no_grad():
            conv().call(dcn_tvm.deform_conv2d)
        (found,) = met
        assert len(met) == 1
        assert found == Workload.of(
            DeformConv2dProblem(
                *("float32", "nchw", 1, 1), padding=(1, 1), modulated=True, bias=True
            ),
            {"batch": 2, "height": 5, "width": 6},
            ["forward"],
        )

    @pytest.mark.parametrize(
        ("needed", "names"),
        [
            (None, ("forward", "backward_data", "backward_weight")),
            (("offset",), ("forward", "backward_data")),
            (("weight",), ("forward", "backward_weight")),
            ((), ("forward",)),
        ],
    )
    def test_gradients_meet_the_kernels_that_make_them(
        self, needed: tuple[str, ...] | None, names: tuple[str, ...]
    ) -> None:
        with dcn_tvm.record_problems() as met:
            conv().run(dcn_tvm.deform_conv2d, needed)
        assert [w.kernels for w in met] == [names]

    def test_a_backward_pass_after_the_block_is_not_met(self) -> None:
        arguments = conv().detached()
        with dcn_tvm.record_problems() as met:
            output = arguments.call(dcn_tvm.deform_conv2d)
        output.sum().backward()
        assert [w.kernels for w in met] == [("forward",)]
        with dcn_tvm.record_problems() as later:
            arguments.call(dcn_tvm.deform_conv2d).sum().backward()
        assert set(later) == {Workload.of(met_problem(met), dict(next(iter(met)).sizes))}

    def test_channels_last_is_another_problem(self) -> None:
        arguments = CASES["channels_3"].sized(1, 5, 6).arguments()
        last = {"memory_format": torch.channels_last}
        with dcn_tvm.record_problems() as met, torch.no_grad():
            arguments.mapped(lambda t: t.contiguous(**last), ["input"]).call(dcn_tvm.deform_conv2d)
            arguments.call(dcn_tvm.deform_conv2d)
        assert [w.problem.layout for w in met] == ["nhwc", "nchw"]

    @pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.op)
    def test_every_roi_op_is_met_with_its_boxes_and_stride(self, case: Any) -> None:
        scaled = dataclasses.replace(case.sized(2, 5, 6, 9), spatial_scale=1 / 8)
        with dcn_tvm.record_problems() as met:
            scaled.arguments().run(getattr(dcn_tvm, case.op), scaled.needed)
        (found,) = met
        sizes = {"batch": 2, "height": 5, "width": 6, "boxes": 9, "stride": 8}
        assert found == Workload.of(found.problem, sizes)  # all kernels
        assert (found.problem.op, getattr(found.problem, "channels", 0)) == (case.op, case.channels)

    @pytest.mark.parametrize("block", [torch.enable_grad, torch.no_grad, torch.inference_mode])
    def test_a_repeated_call_which_takes_the_short_way_is_met(
        self, block: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arguments = conv()
        arguments.run(dcn_tvm.deform_conv2d)
        taken = []
        run = bridge.Shortcut._run
        monkeypatch.setattr(bridge.Shortcut, "_run", lambda *a: taken.append(a) or run(*a))
        with dcn_tvm.record_problems() as met, block():
            arguments.call(dcn_tvm.deform_conv2d)
        assert len(taken) == 1
        assert [(dict(w.sizes), w.kernels) for w in met] == [
            ({"batch": 2, "height": 5, "width": 6}, ("forward",))
        ]

    def test_each_workload_is_met_once_and_other_sizes_are_others(self) -> None:
        with dcn_tvm.record_problems() as met:
            for batch in (2, 1, 2):
                infer(batch)
            conv(1).run(dcn_tvm.deform_conv2d, ("weight",))
        assert [(dict(w.sizes)["batch"], w.kernels) for w in met] == [
            (2, ("forward",)),
            (1, ("forward", "backward_weight")),
        ]

    def test_calls_outside_the_block_are_not_met(self) -> None:
        infer()
        assert not workload.listening()
        with dcn_tvm.record_problems() as met:
            assert workload.listening()
        infer()
        assert list(met) == []
        assert not workload.listening()

    def test_a_failure_in_the_block_ends_the_recording(self) -> None:
        with pytest.raises(KeyError), dcn_tvm.record_problems():
            raise KeyError
        assert not workload.listening()

    def test_recordings_nest(self) -> None:
        with dcn_tvm.record_problems() as outer:
            infer(1)
            with dcn_tvm.record_problems() as inner:
                infer(2)
            infer(3)
        assert [s["batch"] for s in sizes_of(outer)] == [1, 2, 3]
        assert [s["batch"] for s in sizes_of(inner)] == [2]

    def test_recordings_may_end_in_any_order(self) -> None:
        """As those of two threads do; two that met the same are still two."""
        first, second = dcn_tvm.record_problems(), dcn_tvm.record_problems()
        met_first, met_second = first.__enter__(), second.__enter__()
        infer(1)
        first.__exit__(None, None, None)
        infer(2)
        second.__exit__(None, None, None)
        assert [s["batch"] for s in sizes_of(met_first)] == [1]
        assert [s["batch"] for s in sizes_of(met_second)] == [1, 2]

    def test_calls_of_all_threads_are_met(self) -> None:
        with dcn_tvm.record_problems() as met:
            threads = [threading.Thread(target=infer, args=(batch,)) for batch in range(1, 9)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert sorted(s["batch"] for s in sizes_of(met)) == list(range(1, 9))

    def test_it_can_be_read_while_others_call(self) -> None:
        met = Recording()
        found = []
        for number in range(1, 4):
            met.note(PROBLEM, tuple({**SIZES, "batch": number}.items()), "forward")
        for met_workload in met:
            met.note(PROBLEM, tuple({**SIZES, "batch": 9 + len(found)}.items()), "forward")
            found.append(met_workload)
        assert (len(found), len(met)) == (3, 6)

    def test_empty_calls_are_left_out(self) -> None:
        roi = ONE_OF_EACH[1]
        with dcn_tvm.record_problems() as met:
            conv(0).run(dcn_tvm.deform_conv2d)
            roi.sized(1, 5, 6, 0).arguments().run(getattr(dcn_tvm, roi.op), roi.needed)
            met.note(PROBLEM, (("batch", 1), ("height", 0), ("width", 3)), "forward")
        assert (list(met), len(met)) == ([], 0)


def met_problem(met: Recording) -> Problem:
    return next(iter(met)).problem


class TestWorkload:
    def test_the_order_of_sizes_and_kernels_means_nothing(self) -> None:
        turned = dict(reversed(SIZES.items()))
        kernels = ["backward_weight", "forward"]
        one = Workload.of(PROBLEM, SIZES, kernels)
        other = Workload.of(PROBLEM, turned, reversed(kernels * 2))
        assert (one, hash(one)) == (other, hash(other))
        assert one.kernels == ("forward", "backward_weight")  # the contract's
        assert one != Workload.of(PROBLEM, {**SIZES, "width": 64}, kernels)
        assert one != Workload.of(PROBLEM, SIZES)
        met = Recording()
        met.note(PROBLEM, tuple(SIZES.items()), "forward")
        met.note(PROBLEM, tuple(turned.items()), "backward_weight")
        assert list(met) == [one]

    def test_it_has_all_kernels_unless_told(self) -> None:
        for name, op in ops.registry().items():
            problem = suites.SUITES[name][0].problem()
            assert Workload.of(problem, SIZES).kernels == tuple(op.kernels())

    def test_kernels_that_the_op_does_not_have_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"forward, backward_data.*got 'sideways'"):
            Workload.of(PROBLEM, SIZES, ["forward", "sideways"])

    @pytest.mark.parametrize("size", [0, -1, 1.0, True, "8", None])
    def test_sizes_that_are_none_are_refused(self, size: Any) -> None:
        with pytest.raises(ValueError, match=f"height must be.*{size!r}"):
            Workload.of(PROBLEM, {**SIZES, "height": size})

    def test_text_names_problem_and_sizes(self) -> None:
        text = str(Workload.of(PROBLEM, SIZES))
        assert text.endswith("batch 1 height 38 width 63")
        assert str(PROBLEM) in text


class TestFiles:
    @pytest.mark.parametrize("op", EVERY)
    def test_a_file_gives_back_what_was_saved(self, op: str, tmp_path: Path) -> None:
        met = Recording()
        cases = suites.SUITES[op]
        for dtype, layout in zip(DTYPES, LAYOUTS * 2, strict=True):
            for case in cases:
                for kernel in ops.registry()[op].kernels():
                    sizes = tuple(case.free_sizes.items())
                    met.note(case.problem(dtype, layout), sizes, kernel)
                    if case is cases[0]:
                        break  # a workload for inference only
        path = tmp_path / "met.jsonl"
        met.save(path)
        assert workload.load(path) == list(met)
        assert len(path.read_text().splitlines()) == len(met) > 0
        assert all(isinstance(json.loads(line), dict) for line in path.read_text().splitlines())
        assert {w.problem.dtype for w in workload.load(str(path))} == set(DTYPES)

    def test_an_empty_recording_is_an_empty_file(self, tmp_path: Path) -> None:
        Recording().save(tmp_path / "met")
        assert workload.load(tmp_path / "met") == []

    @pytest.mark.parametrize(
        "damage",
        [
            lambda line: line[: len(line) // 2],
            lambda line: "",
            lambda line: "[]",
            lambda line: "null",
            lambda line: line.replace('"deform_conv2d"', '"deform_conv3d"'),
            lambda line: line.replace('"sizes"', '"size"'),
            lambda line: line.replace('"float32"', '"float8"'),
            lambda line: line.replace('"in_channels": 24', '"in_channels": "many"'),
            lambda line: line.replace('"in_channels"', '"channels"'),
            lambda line: line.replace('"batch": 1', '"batch": 0'),
            lambda line: line.replace('"forward"', '"sideways"'),
            lambda line: line.replace('["forward"', '[["forward"]'),
            lambda line: line.replace('{"batch"', '[{"batch"').replace("63}", "63}]"),
        ],
    )
    def test_a_damaged_line_is_named(self, damage: Callable[[str], str], tmp_path: Path) -> None:
        path = tmp_path / "met.jsonl"
        good = Workload.of(PROBLEM, SIZES).to_line()
        assert damage(good) != good
        path.write_text(f"{good}\n{damage(good)}\n{good}\n")
        with pytest.raises(ValueError, match=r"met\.jsonl:2: ."):
            workload.load(path)

    def test_a_line_that_is_no_text_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "met.jsonl"
        path.write_bytes(Workload.of(PROBLEM, SIZES).to_line().encode() + b"\n\xff\xfe\n")
        with pytest.raises(ValueError, match=r"met\.jsonl:2: ."):
            workload.load(path)

    def test_a_file_that_is_not_there_is_no_value_error(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            workload.load(tmp_path / "none")
