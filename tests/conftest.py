"""What every test shares: a build cache of its own, seeds, and how random examples are drawn."""

from __future__ import annotations

import functools
import os
import random
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import settings

if TYPE_CHECKING:
    from dcn_tvm.build import Request, Scheduled
    from dcn_tvm.knobs import Choice
    from dcn_tvm.target import Target


# Repeatable runs: a failure seen once is seen again. A kernel's first compile may take seconds.
settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("repeatable")

_made_here: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    # The xdist controller comes here before it starts its workers, so they inherit one shared home.
    # A home that is set already is kept: repeated runs while developing then compile nothing.
    if not hasattr(config, "workerinput") and "DCN_TVM_HOME" not in os.environ:
        home = tempfile.mkdtemp(prefix="dcn_tvm_test_")
        os.environ["DCN_TVM_HOME"] = home
        _made_here.append(home)
    # A run in the background ignores Ctrl-C, and so would all that its tests start and interrupt.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))


def pytest_unconfigure(config: pytest.Config) -> None:
    for home in _made_here:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def scheduled_by(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the kernels that a call needs be scheduled as given and compiled in memory."""
    from dcn_tvm import build, kernels, openmp

    def use(make: Callable[[Request], Scheduled], machine: Target) -> None:
        modules: list[Any] = []  # a function lives as long as its module

        @functools.cache
        def get(request: Request) -> Any:
            modules.append(build.compile(request, make(request), machine))
            openmp.install()
            return modules[-1][build.SYMBOL]

        monkeypatch.setattr(kernels, "get", get)

    return use


@pytest.fixture
def random_point(scheduled_by: Callable[..., None]) -> Callable[..., Any]:
    """Return a context in which all schedules choose at random, and a failure says what."""
    from dcn_tvm import build, target
    from dcn_tvm.knobs import Knobs

    machine = target.detect()

    @contextmanager
    def at(seed: str) -> Iterator[dict[str, dict[str, Choice]]]:
        chosen: dict[str, dict[str, Choice]] = {}

        def make(request: Request) -> Scheduled:
            knobs = Knobs(rng=random.Random(f"{seed} {request.kernel}"))
            chosen[request.kernel] = knobs.chosen
            return build.schedule(request, machine, knobs)

        scheduled_by(make, machine)
        try:
            yield chosen
        except Exception as error:
            raise AssertionError(f"{seed}: {chosen}: {error}") from error

    return at


@pytest.fixture
def at_level(scheduled_by: Callable[..., None]) -> Callable[[str], None]:
    """Compile for a lower level of the machine's processor family, or skip the test."""
    from dcn_tvm import build, target

    def use(level: str) -> None:
        try:
            machine = target.detect().at_level(level)
        except ValueError as error:
            pytest.skip(str(error))
        scheduled_by(lambda request: build.schedule(request, machine), machine)

    return use
