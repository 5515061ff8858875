"""The checks of `dcn-tvm gpu`, on CPU tensors: they pass what is right, and see what is wrong."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("tvm")

from dcn_tvm import examples, kernels, suites, target
from dcn_tvm.bench import on_device
from dcn_tvm.device import behaviour, calls, correctness, sanitizer
from dcn_tvm.device.correctness import Check
from dcn_tvm.device.items import Context, Skipped
from dcn_tvm.device.precision import allowed, tolerance
from dcn_tvm.device.rows import shrunk
from tests import emulator
from tests.emulator import operators

OP = "roi_align"
CASE = shrunk(suites.ODD[OP][0])
CONV = shrunk(suites.ODD["deform_conv2d"][0])
PLAIN = Check(CASE, "float32", "nchw")
CONTEXT = Context(Path("unused"), "cpu", time.time() + 600, small=True)


@pytest.mark.parametrize("op", suites.ODD)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_moved_examples_are_the_same(op: str, layout: str, dtype: str) -> None:
    problem, sizes = suites.ODD[op][0].problem(dtype, layout), suites.ODD[op][0].free_sizes
    drawn, moved = examples.example(problem, sizes), on_device.example(problem, sizes, "cpu")
    assert moved.attributes == drawn.attributes
    pairs = zip(
        (*drawn.tensors, drawn.make_grad()), (*moved.tensors, moved.make_grad()), strict=True
    )
    for one, other in pairs:
        if one is None or other is None:
            assert one is other
            continue
        assert torch.equal(one, other)
        assert (one.dtype, one.stride()) == (other.dtype, other.stride())
    on_device.forget()


def test_every_op_is_judged_in_every_precision_and_layout() -> None:
    found = {(c.case.op, c.precision, c.layout) for c in correctness.checks()}
    precisions = {"float32", "float64", "float16", "bfloat16"}
    for op in suites.SUITES:
        more = {"tf32"} if "conv" in op else set()
        assert {p for o, p, _ in found if o == op} == precisions | more
        assert {layout for o, _, layout in found if o == op} == {"nchw", "nhwc"}
    keys = [item.key for item in correctness.items(CONTEXT)]
    assert len(keys) == len(set(keys))


def test_what_is_right_passes() -> None:
    found = correctness.judge(PLAIN, "cpu")
    assert "wrong" not in found
    assert set(found["errors"]) == {"output", "grad_input"}
    for special in (*correctness._SPECIAL.values(),):
        assert "wrong" not in special(PLAIN, "cpu")
    assert "wrong" not in correctness.judge_many(OP, CONTEXT)


@pytest.fixture
def spoiled(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], None]], None]:
    """Let every kernel's last result be spoiled after it ran."""

    def use(spoil: Callable[[Any], None]) -> None:
        get = kernels.get

        def spoiling(request: Any) -> Callable[..., None]:
            function = get(request)

            def kernel(*arguments: Any) -> None:
                function(*arguments)
                spoil([a for a in arguments if isinstance(a, torch.Tensor)][-1])

            return kernel

        monkeypatch.setattr(kernels, "get", spoiling)

    return use


def test_what_is_wrong_is_seen(spoiled: Callable[..., None]) -> None:
    spoiled(lambda result: result.view(-1)[3:4].add_(1.0))
    assert "output: relative error" in correctness.judge(PLAIN, "cpu")["wrong"]


def test_what_is_not_written_is_seen(spoiled: Callable[..., None]) -> None:
    spoiled(lambda result: result.view(-1)[-1:].fill_(float("nan")))
    assert "inf" in correctness.judge(PLAIN, "cpu")["wrong"]


def test_a_wrong_last_part_of_many_is_seen(spoiled: Callable[..., None]) -> None:
    spoiled(lambda result: result[-1:].zero_() if result.shape[0] > 1 else None)
    assert correctness.judge_many(OP, CONTEXT)["wrong"]


def test_what_does_not_repeat_is_seen(spoiled: Callable[..., None]) -> None:
    call = calls.make(PLAIN.problem, PLAIN.sizes, "cpu")
    assert "wrong" not in behaviour.repeats(call, "cpu")
    counter = iter(range(1000))
    spoiled(lambda result: result.view(-1)[:1].add_(next(counter) * 1e-3))
    assert "differ" in behaviour.repeats(call, "cpu")["wrong"]
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("name", ["opcheck", "autocast", "gradcheck", "distributed"])
@pytest.mark.parametrize("case", [CASE, CONV], ids=lambda case: case.op)
def test_behaviour_that_any_device_has(name: str, case: suites.Case) -> None:
    trial, precision, _ = behaviour.TRIALS[name]
    check = Check(case, precision, "nchw")
    assert "wrong" not in trial(calls.make(check.problem, check.sizes, "cpu"), "cpu")


@pytest.mark.parametrize("name", ["graph capture", "two streams", "a second device", "memory"])
def test_behaviour_that_only_a_device_has_is_skipped(name: str) -> None:
    with pytest.raises(Skipped):
        behaviour.TRIALS[name][0](calls.make(PLAIN.problem, PLAIN.sizes, "cpu"), "cpu")


def test_tf32_is_allowed_only_where_it_is_asked_for() -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    with allowed("tf32"):
        assert torch.backends.cuda.matmul.allow_tf32
        with allowed("float32"):
            assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cuda.matmul.allow_tf32 == before
    assert tolerance("tf32") == tolerance("float16")


OUTPUT = f"{sanitizer._DONE}\n========= ERROR SUMMARY: 0 errors\n"


def test_the_sanitizers_verdict() -> None:
    assert sanitizer.verdict(0, OUTPUT) == {"summary": "ERROR 0 errors"}
    bad = sanitizer.verdict(sanitizer.ERROR_CODE, "Invalid read\n==== ERROR SUMMARY: 3 errors")
    assert bad["wrong"] == "ERROR 3 errors"
    assert bad["lines"][0] == "Invalid read"
    with pytest.raises(Skipped, match="Device not supported"):
        sanitizer.verdict(1, "==== Error: Device not supported. Please refer to ...")
    with pytest.raises(RuntimeError, match="exit code 1"):
        sanitizer.verdict(1, "Traceback: no module")
    assert "no summary" in sanitizer.verdict(0, "")["wrong"]


def test_the_sanitizers_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stand-in for the sanitizer sees the command, and runs nothing."""
    seen: list[Any] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        seen.append((command, options["env"]))
        return subprocess.CompletedProcess(command, 0, OUTPUT, "")

    monkeypatch.setattr(sanitizer, "_found", lambda: "/opt/compute-sanitizer")
    monkeypatch.setattr(subprocess, "run", run)
    context = Context(tmp_path, "cuda", time.time() + 100)
    for tool in sanitizer.TOOLS:
        assert sanitizer.watch(tool, context) == {"summary": "ERROR 0 errors"}
    (command, environment), *_ = seen
    assert command[:3] == ["/opt/compute-sanitizer", "--tool", "memcheck"]
    assert "kns=dcn_tvm_kernel" in command
    assert "kns=dcn_tvm_kernel" not in seen[-1][0]
    assert environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"


@pytest.mark.skipif(
    emulator.available() is not None or target.detect().kind != "llvm",
    reason=emulator.available() or "no host",
)
@pytest.mark.parametrize(
    ("op", "precision", "layout"),
    [("roi_align", "float32", "nhwc"), ("ps_roi_pool", "bfloat16", "nchw")],
)
def test_cuda_kernels_pass_on_the_emulator(
    op: str, precision: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def operator(name: str) -> Callable[..., Any]:
        def run(request: Any, arrays: Any, scalars: Any) -> None:
            with emulator.using():
                operators.kernel(request, operators.HOPPER)(*arrays, *scalars)

        binding = operators._Binding(name, run, (emulator.CUDA, 0))
        return lambda *arguments: operators._Differentiable.apply(binding, *arguments)

    monkeypatch.setattr(calls, "operator", operator)
    found = correctness.judge(Check(shrunk(suites.ODD[op][0]), precision, layout), "cpu")
    assert "wrong" not in found
    assert found["errors"]
