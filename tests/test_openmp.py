"""Kernels run on torch's OpenMP threads, without TVM, and their failures arrive as errors."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dcn_tvm import openmp

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="TVM's pool there")

ROWS = 64

PRELUDE = """
import os, signal, sys, threading
import torch, tvm_ffi
from dcn_tvm import openmp
torch.set_num_threads(2)
x = torch.arange({rows} * 1024, dtype=torch.float32).reshape({rows}, 1024)

def load():
    pool = openmp.install()
    assert pool == "openmp", pool
    return tvm_ffi.load_module({library!r})

expected = (x.flip(1) * 2 + 1).numpy()

def run(module):  # without torch's parallel operators, which hang in a forked child
    y, threads = torch.empty_like(x), torch.zeros(len(x), dtype=torch.int32)
    module["reverse"](x, y, threads)
    assert (y.numpy() == expected).all()
    return set(threads.tolist())

def tasks():
    return set(map(int, os.listdir("/proc/self/task")))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two kernels with a scratch buffer in a parallel loop; `reverse` tells its threads' ids."""
    if openmp.find_compiler() is None:
        pytest.skip("no C compiler")
    import tvm
    from tvm.script import ir as I
    from tvm.script import tirx as T

    @I.ir_module
    class Kernels:
        @T.prim_func
        def reverse(x: T.handle, y: T.handle, threads: T.handle) -> None:
            T.func_attr({"global_symbol": "reverse"})
            n = T.int64()
            X = T.match_buffer(x, (n, 1024), "float32")
            Y = T.match_buffer(y, (n, 1024), "float32")
            ids = T.match_buffer(threads, (n,), "int32")
            for i in T.parallel(n):
                scratch = T.alloc_buffer((1024,), "float32")
                ids[i] = T.call_extern("int32", "gettid")
                for j in range(1024):
                    scratch[j] = X[i, j] * T.float32(2)
                for j in range(1024):
                    Y[i, j] = scratch[1023 - j] + T.float32(1)

        @T.prim_func
        def fail(x: T.handle, huge: T.int64) -> None:
            T.func_attr({"global_symbol": "fail"})
            n = T.int64()
            X = T.match_buffer(x, (n, 1024), "float32")
            for i in T.parallel(n):
                assert X[i, 0] >= T.float32(0), "row starts below zero"
                scratch = T.alloc_buffer((huge,), "float32")
                for j in range(1024):
                    scratch[T.cast(X[i, j], "int64")] = T.float32(1)
                for j in range(1024):
                    X[i, j] = scratch[j]

    path = tmp_path_factory.mktemp("kernels") / "kernels.so"
    tvm.compile(Kernels, target={"kind": "llvm"}).export_library(str(path))
    return path


@pytest.fixture(params=["library", "ir"])
def shim(request: pytest.FixtureRequest, monkeypatch, tmp_path: Path) -> str:
    """The shim compiled by cc, and the one for machines without a compiler."""
    if request.param == "ir":
        monkeypatch.setenv("CC", "there-is-no-such-compiler")
        monkeypatch.setenv("DCN_TVM_HOME", str(tmp_path))
    return str(request.param)


def run_program(library: Path, body: str) -> str:
    program = PRELUDE.format(rows=ROWS, library=str(library)) + textwrap.dedent(body)
    command = [sys.executable, "-W", "error::UserWarning", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_kernels_run_on_the_threads_of_torch_and_follow_their_number(
    library: Path, shim: str
) -> None:
    run_program(
        library,
        """
        module = load()
        torch.rand(1 << 22).add_(1)  # torch starts its pool
        before = tasks()
        for count in (1, 2, 1, 2):
            torch.set_num_threads(count)
            used = run(module)
            assert len(used) == count, (count, used)
            assert used <= before, "kernels started threads of their own"
        assert tasks() == before

        def elsewhere(count, results):
            torch.set_num_threads(count) if count else torch.get_num_threads()
            results.append(len(run(module)))
        for count, wanted in ((0, 2), (1, 1), (2, 2)):
            results = []
            threads = [threading.Thread(target=elsewhere, args=(count, results)) for _ in range(3)]
            [thread.start() for thread in threads], [thread.join() for thread in threads]
            assert results == [wanted] * 3, (count, results)
        """,
    )


def test_warm_process_needs_no_tvm(library: Path) -> None:
    openmp.install()  # the shim is in the cache now
    run_program(
        library,
        """
        run(load())
        assert not any(name.split(".")[0] == "tvm" for name in sys.modules)
        assert "libtvm_" not in open("/proc/self/maps").read().replace("libtvm_ffi", "")
        """,
    )


def test_importing_tvm_later_does_not_bring_its_pool_back(library: Path) -> None:
    run_program(
        library,
        """
        run(load())
        import tvm
        torch.rand(1 << 22).add_(1)
        before = tasks()
        copy = os.path.join(os.path.dirname({library!r}), f"copy{os.getpid()}.so")
        os.link({library!r}, copy)  # the linker would give the same library for the same file
        openmp.install()
        assert run(tvm_ffi.load_module(copy)) <= before
        assert tasks() == before
        """.replace("{library!r}", repr(str(library))),
    )


def test_failure_in_a_task_is_an_error_of_the_caller(library: Path, shim: str) -> None:
    # The IR shim does not carry messages from one thread to another, only the failure.
    message = "row starts below zero" if shim == "library" else ""
    memory = "MemoryError" if shim == "library" else "Exception"
    run_program(
        library,
        f"""
        module = load()
        for count in (2, 1):
            torch.set_num_threads(count)
            for row in (0, {ROWS} - 1):
                bad = torch.zeros({ROWS}, 1024)
                bad[row, 0] = -1
                try:
                    module["fail"](bad, 1024)
                except Exception as error:
                    assert {message!r} in str(error), error
                else:
                    raise SystemExit("a failing task was swallowed")
                module["fail"](torch.zeros({ROWS}, 1024), 1024)  # and is forgotten
        try:
            module["fail"](torch.zeros({ROWS}, 1024), 1 << 58)
        except {memory} as error:
            print(error)
        else:
            raise SystemExit("a failing allocation was swallowed")
        """,
    )


def test_forked_child_runs_its_kernels_on_one_thread(library: Path, shim: str) -> None:
    run_program(
        library,
        """
        module = load()
        torch.rand(1 << 22).add_(1)
        assert len(run(module)) == 2
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # a child that hangs must not outlive the test
            os._exit(0 if run(module) == {os.getpid()} else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(run(module)) == 2  # the parent keeps its threads
        """,
    )


def test_child_forked_before_the_first_kernel_runs_on_one_thread(library: Path) -> None:
    run_program(
        library,
        """
        torch.rand(1 << 22).add_(1)
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # a child that hangs must not outlive the test
            os._exit(0 if run(load()) == {os.getpid()} else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        """,
    )


def test_scratch_is_reused_and_bounded(library: Path) -> None:
    out = run_program(
        library,
        """
        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        def faults():
            import resource
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.set_num_threads(1)
        module, x = load(), torch.zeros(1, 1024)
        for length in (1 << 20, 4 << 20, 1 << 20):  # floats: 4 MB, 16 MB, 4 MB
            x[0, 1:] = torch.arange(1, 1024) * (length // 1024)  # touches every page
            bad = x.clone()
            module["fail"](bad, length)
            before = faults()
            for _ in range(50):
                module["fail"](x.clone(), length)
            print("faults", faults() - before)
        before = resident()
        for length in range(1 << 20, 40 << 20, 1 << 20):
            x[0, 1:] = torch.arange(1, 1024) * (length // 1024)
            module["fail"](x.clone(), length)
        print("grown", resident() - before)
        """,
    )
    words = [line.split() for line in out.splitlines()]
    assert all(int(value) < 200 for name, value in words if name == "faults"), out
    assert all(int(value) < 48 << 20 for name, value in words if name == "grown"), out


def test_broken_compiler_falls_back_and_says_so(library: Path, monkeypatch, tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'crti.o: not found' >&2; exit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("DCN_TVM_HOME", str(tmp_path / "home"))
    run_program(
        library,
        """
        import warnings
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            module = load()
        assert any("crti.o: not found" in str(warning.message) for warning in caught), caught
        assert len(run(module)) == 2
        """,
    )


def test_compiler_of_the_environment_comes_first(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", "cc -m64")
    assert openmp.find_compiler() == ["cc", "-m64"]
    monkeypatch.delenv("CC")
    for name in ("clang", "gcc"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert openmp.find_compiler() == [name]
    monkeypatch.setenv("PATH", "")
    assert openmp.find_compiler() is None
