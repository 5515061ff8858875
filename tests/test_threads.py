"""The kernels on torch's threads: any number, several callers, forked children, DataLoader."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import dcn_tvm
from tests.cases import CASES, Arguments

ROOT = Path(__file__).parents[1]
NAMES = ("modulated", "channels_64_plain", "groups_crossed")


@pytest.fixture(autouse=True)
def restored_thread_count() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def large(name: str) -> Arguments:
    return CASES[name].sized(3, 33, 35).arguments()


def assert_same_bits(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_threads_changes_no_bit(name: str) -> None:
    arguments = large(name)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(arguments.run(dcn_tvm.deform_conv2d))
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


def test_several_python_threads_at_once() -> None:
    torch.set_num_threads(2)
    calls = {name: large(name) for name in NAMES}
    expected = {name: call.run(dcn_tvm.deform_conv2d) for name, call in calls.items()}
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for _ in range(5):
                assert_same_bits(calls[name].run(dcn_tvm.deform_conv2d), expected[name])
        except BaseException as error:
            failures.append(error)

    callers = [threading.Thread(target=work, args=(name,)) for name in NAMES * 2]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=120)
    assert not any(caller.is_alive() for caller in callers)
    assert not failures, failures[0]


def test_several_python_threads_share_the_first_build(tmp_path: Path) -> None:
    run_alone("first_calls_from_threads", DCN_TVM_HOME=str(tmp_path))


def first_calls_from_threads() -> None:
    """Call a kernel that was never built from four threads at the same moment."""
    from dcn_tvm import kernels

    arguments = CASES["point"].arguments()
    barrier = threading.Barrier(4)
    outputs: list[Tensor] = []

    def work() -> None:
        barrier.wait()
        outputs.append(arguments.call(dcn_tvm.deform_conv2d))

    callers = [threading.Thread(target=work) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(outputs) == 4
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    assert kernels.build_count() == 1, kernels.build_count()


@pytest.mark.parametrize("check", ["forked_child", "data_loader_workers", "threads_follow_torch"])
def test_in_a_process_of_its_own(check: str) -> None:
    run_alone(check)


def forked_child() -> None:
    """Run forward and backward in a child forked after the parent used two threads."""
    torch.set_num_threads(2)
    arguments = large("modulated")
    expected = arguments.run(dcn_tvm.deform_conv2d)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            found = arguments.run(dcn_tvm.deform_conv2d)
            torch.set_num_threads(1)  # torch's own comparison of large tensors hangs here with more
            assert_same_bits(found, expected)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert_same_bits(arguments.run(dcn_tvm.deform_conv2d), expected)


class Samples(torch.utils.data.Dataset):
    """Every sample calls the op, in whatever process it is drawn."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        return CASES["modulated"].arguments(seed=index).call(dcn_tvm.deform_conv2d)


def data_loader_workers() -> None:
    """Draw from workers that were forked after the parent used two threads, while it goes on."""
    torch.set_num_threads(2)
    samples = Samples()
    expected = [samples[index] for index in range(len(samples))]
    loader = torch.utils.data.DataLoader(
        samples, batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    for _ in range(2):
        for drawn, sample in zip(loader, expected, strict=True):
            assert torch.equal(drawn, sample)
            large("modulated").run(dcn_tvm.deform_conv2d)


def threads_follow_torch() -> None:
    """Count the threads of the process: one while torch has one, torch's own two afterwards."""
    arguments = large("channels_64_plain")
    torch.set_num_threads(1)
    arguments.call(dcn_tvm.deform_conv2d)
    alone = running_threads()
    arguments.call(dcn_tvm.deform_conv2d)
    assert running_threads() == alone
    torch.set_num_threads(2)
    torch.randn(512, 512) @ torch.randn(512, 512)
    shared = running_threads()
    for _ in range(3):
        arguments.run(dcn_tvm.deform_conv2d)
    assert running_threads() <= shared, "the kernels brought threads of their own"


def running_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def run_alone(check: str, **environment: str) -> None:
    """Run a function of this file in a fresh process: a hang there ends in a timeout, not here."""
    result = subprocess.run(
        [sys.executable, "-c", f"from tests.test_threads import {check} as check; check()"],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert result.returncode == 0, result.stdout + result.stderr
