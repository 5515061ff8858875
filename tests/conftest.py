"""What every test shares: a build cache of its own, seeds, and how random examples are drawn."""

import os
import shutil
import tempfile

import pytest
import torch
from hypothesis import settings

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
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))


def pytest_unconfigure(config: pytest.Config) -> None:
    for home in _made_here:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
