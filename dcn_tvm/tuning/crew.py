"""The child processes of a session: some compile side by side, then some measure undisturbed."""

from __future__ import annotations

import queue
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from tvm.support.popen_pool import PopenWorker, kill_child_processes

from dcn_tvm.knobs import Choices
from dcn_tvm.measure import Timing, ratio
from dcn_tvm.tuning import worker
from dcn_tvm.tuning.bench import Bench
from dcn_tvm.tuning.task import Task

COMPILERS = 16  # at most: no batch has more points
COMPILE_S = 60.0  # the slowest point known takes 8 s
DEFAULT = "default"
_QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
_SLICE_S = 0.5
_CALLS = 40  # that a library may make in a batch, for the patience with slow kernels


class Compilers:
    """Child processes that make libraries in a folder, each once."""

    def __init__(self, folder: Path, count: int) -> None:
        self._folder = folder
        self._count = count
        self._open()

    def _open(self) -> None:
        self._threads = ThreadPoolExecutor(self._count)
        self._children = [_child() for _ in range(self._count)]
        self._idle: queue.SimpleQueue[PopenWorker] = queue.SimpleQueue()
        for child in self._children:
            self._idle.put(child)

    def make(self, task: Task, points: Sequence[Choices]) -> list[Path | str]:
        """Return the library of each point, or why there is none."""
        return self.make_all([(task, choices) for choices in points])

    def make_all(self, points: Sequence[tuple[Task, Choices]]) -> list[Path | str]:
        """Return the library of each point of its task, or why there is none.

        An interrupt ends the children at work: what comes next has the machine to itself.
        """
        paths = [self._folder / f"{task.library_name(choices)}.so" for task, choices in points]
        missing = {
            path: point for path, point in zip(paths, points, strict=True) if not path.exists()
        }
        futures = {
            path: self._threads.submit(self._make, task.request, task.target, choices, path)
            for path, (task, choices) in missing.items()
        }
        try:
            _settle(futures.values())
            failed = {path: _reason(future, COMPILE_S) for path, future in futures.items()}
        except KeyboardInterrupt:
            self.close()
            self._open()
            raise
        return [failed.get(path) or path for path in paths]

    def _make(self, *arguments: object) -> None:
        child = self._idle.get()
        try:
            child.send(worker.make_library, arguments, timeout=COMPILE_S)
            child.recv()
        finally:
            self._idle.put(child)

    def close(self) -> None:
        """End the child processes."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for child in self._children:
            _kill(child)


def _reason(future: Future[None], limit_s: float) -> str | None:
    """Wait, and return why it failed, None if it did not."""
    try:
        future.result()
    except TimeoutError:
        return f"the compiler took more than {limit_s:g} s"
    except ChildProcessError:
        return "the compiler crashed"
    except Exception as error:  # whatever a candidate raised in the child
        return _last_line(error)
    return None


class Station:
    """A child process that measures on a bench; a new one after it died or was left unusable."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self._worker = _child()
        self._closed = False

    def rotate(
        self, task: Task, libraries: Mapping[str, Path], seconds: float, limit_s: float
    ) -> dict[str, Timing]:
        """Time libraries in turn.

        Raises:
            RuntimeError: one of them crashed, hung, or raised.
            ConnectionError: there is nothing to measure on any more.
        """
        self.bench.wait()
        arguments = (self.bench, task.request, task.sizes, dict(libraries), seconds)
        timings: dict[str, Timing] = self._call(worker.rotate, arguments, limit_s)
        return timings

    def check(self, task: Task, library: Path, default: Path) -> str | None:
        """Return what is wrong with a library's results, None if nothing is."""
        arguments = (self.bench, task.request, task.sizes, library, default)
        try:
            wrong: str | None = self._call(worker.check, arguments, 10 * self.bench.patience_s)
        except RuntimeError as error:
            return str(error)
        return wrong

    def close(self) -> None:
        """End the child process, and the thread that waits for its answer."""
        self._closed = True
        _kill(self._worker)

    def _call(self, function: Any, arguments: tuple[Any, ...], limit_s: float) -> Any:
        if self._closed:
            raise InterruptedError("the station is closed")
        try:
            self._worker.send(function, arguments, timeout=limit_s)
            return self._worker.recv()
        except TimeoutError as error:
            raise RuntimeError(f"no answer in {limit_s:g} s") from error
        except ChildProcessError as error:
            raise RuntimeError("the process that ran it crashed") from error
        except KeyboardInterrupt:
            self._worker.kill()  # its answer would be taken for the next one's
            raise
        except Exception as error:  # whatever was raised in the child
            self._renew_if_unusable()
            raise RuntimeError(_last_line(error)) from error

    def _renew_if_unusable(self) -> None:
        """End a child that the last candidate left unfit for the next; another one takes over."""
        usable = False
        try:
            self._worker.send(worker.usable, (self.bench,), timeout=self.bench.patience_s)
            usable = self._worker.recv()
        except Exception:  # it cannot even say so
            pass
        finally:
            if not usable:
                self._worker.kill()


class Stations:
    """Measures batches: split over as many stations as there are, the default in every part."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._count = bench.stations()
        self._open()

    def _open(self) -> None:
        self._stations = [Station(self._bench) for _ in range(self._count)]
        self._threads = ThreadPoolExecutor(self._count)

    @property
    def first(self) -> Station:
        """A station for what must not be split."""
        return self._stations[0]

    def ratios(
        self, task: Task, default: Path, libraries: Sequence[Path], default_us: float
    ) -> list[float | str]:
        """Return each library's time over the default's, or why it has none.

        An interrupt ends the children at work: what comes next has the machine to itself.
        """
        parts = [libraries[place :: self._count] for place in range(self._count)]
        futures = [
            self._threads.submit(_ratios, station, task, default, part, default_us)
            for station, part in zip(self._stations, parts, strict=True)
            if part
        ]
        found: dict[Path, float | str] = {}
        try:
            _settle(futures)
            for future in futures:
                found |= future.result()
        except KeyboardInterrupt:
            self.close()
            self._open()
            raise
        return [found[library] for library in libraries]

    def close(self) -> None:
        """End the child processes."""
        for station in self._stations:
            station.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


def _ratios(
    station: Station,
    task: Task,
    default: Path,
    libraries: Sequence[Path],
    default_us: float,
) -> dict[Path, float | str]:
    """Measure libraries together, or, if that fails, each alone, so that only one is to blame."""
    retry = station.bench.retries
    try:
        return _together(station, task, default, libraries, default_us)
    except RuntimeError as error:
        if len(libraries) == 1 and not retry:
            return {libraries[0]: str(error)}
    found: dict[Path, float | str] = {}
    for library in libraries:
        for _ in range(2 if retry else 1):
            try:
                found |= _together(station, task, default, [library], default_us)
                break
            except RuntimeError as error:
                found[library] = str(error)
    return found


def _together(
    station: Station, task: Task, default: Path, libraries: Sequence[Path], default_us: float
) -> dict[Path, float | str]:
    named = {DEFAULT: default, **{path.name: path for path in libraries}}
    seconds = station.bench.seconds_each * len(named)
    limit_s = station.bench.patience_s + seconds + len(named) * _CALLS * default_us / 1e6
    timings = station.rotate(task, named, seconds, limit_s)
    return {path: ratio(timings[path.name], timings[DEFAULT]) for path in libraries}


def _settle(futures: Iterable[Future[Any]]) -> None:
    """Wait in slices: Ctrl-C may reach another thread, and then does not wake this one."""
    pending = set(futures)
    while pending:
        pending = wait(pending, timeout=_SLICE_S).not_done


def _child() -> PopenWorker:
    """A process that starts when it is first needed, and again after it died."""
    return PopenWorker(initializer=worker.initialize, **_QUIET)


def _kill(child: PopenWorker) -> None:
    """End a child at work: `PopenWorker.kill` would wait for the thread that waits for it."""
    process = child._proc
    if process is not None:
        kill_child_processes(process.pid)
        process.kill()


def _last_line(error: Exception) -> str:
    """The message of an exception that came with its traceback from a child."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
