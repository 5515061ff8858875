"""Kernels on machines behind a TVM RPC tracker: upload, fill arguments, time, fetch results.

A session is one connection to one server, which the tracker picks among those of a key; all that is
compared within it ran on the same machine. Nothing in TVM's protocol is authenticated or encrypted,
and a server runs whatever it is sent: trackers and servers belong in trusted networks.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dcn_tvm import build, measure
from dcn_tvm.measure import Timing
from dcn_tvm.tuning.bench import Bench

_CONNECT_S = 5.0
_RETURN_S = 30.0  # for a server that is started again
_SESSION_S = 120  # after which a server that hangs is given up by the tracker's side
_TURN_MS = 10  # on the server: the network does not count


@dataclass(frozen=True)
class Tracker(Bench):
    """Where the tracker listens, and the key under which the servers are registered."""

    host: str
    port: int
    key: str
    retries: ClassVar[bool] = True  # it may have been the server that failed

    @classmethod
    def parse(cls, address: str, key: str) -> Tracker:
        """Return the tracker at "HOST:PORT".

        Raises:
            ValueError: the address is something else.
        """
        host, colon, port = address.rpartition(":")
        if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(f"the tracker must be HOST:PORT, got {address!r}")
        return cls(host.strip("[]"), int(port), key)

    def servers(self) -> int:
        """Return how many servers of the key are registered, busy ones included.

        Raises:
            ConnectionError: there is no tracker, or it has no server of that key.
        """
        try:
            socket.create_connection((self.host, self.port), _CONNECT_S).close()  # TVM tries 60 s
            summary = _connect(self).summary()
        except (RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise ConnectionError(f"no tracker at {self.host}:{self.port}: {reason}") from error
        keys = [info["key"].removeprefix("server:") for info in summary["server_info"]]
        if self.key not in keys:
            known = ", ".join(sorted(set(keys))) or "none"
            raise ConnectionError(
                f"the tracker at {self.host}:{self.port} has no server of key {self.key!r}; "
                f"registered: {known}"
            )
        return keys.count(self.key)

    def stations(self) -> int:
        """Return how many servers there are, each for a process of its own."""
        return self.servers()

    def wait(self) -> None:
        """Wait for a server: one that crashed may be started again by whoever watches over it.

        Raises:
            ConnectionError: none came.
        """
        end = time.monotonic() + _RETURN_S
        while True:
            try:
                self.servers()
                return
            except ConnectionError:
                if time.monotonic() > end:
                    raise
            time.sleep(1)

    def rotate(
        self, libraries: Mapping[str, Path], arguments: Sequence[Any], seconds: float
    ) -> dict[str, Timing]:
        """Time libraries on one server, by its clock."""
        with _session(self, libraries.values()) as (session, modules):
            device = session.cpu(0)
            placed = [_upload(argument, device) for argument in arguments]
            timers = {
                name: functools.partial(_turn_us, modules[path], device, placed)
                for name, path in libraries.items()
            }
            return measure.rotate_turns(timers, seconds=seconds)

    def run(self, library: Path, arguments: Sequence[Any], outputs: int) -> None:
        """Call a kernel on a server and fetch what it filled."""
        import tvm

        tensors = [a for a in arguments if not isinstance(a, float | int)]
        with _session(self, [library]) as (session, modules):
            placed = [_upload(argument, session.cpu(0)) for argument in arguments]
            modules[library][build.SYMBOL](*placed)
            for place in range(len(tensors) - outputs, len(tensors)):
                placed[place].copyto(tvm.runtime.from_dlpack(tensors[place]))


@contextmanager
def _session(tracker: Tracker, libraries: Iterable[Path]) -> Iterator[tuple[Any, dict[Path, Any]]]:
    """Open a session with libraries loaded, and remove them from the server afterwards.

    Each is uploaded once: to write over a file that is mapped crashes the server.
    """
    session = _connect(tracker).request(tracker.key, session_timeout=_SESSION_S, max_retry=3)
    modules = {}
    try:
        for path in dict.fromkeys(libraries):
            session.upload(str(path), path.name)
            modules[path] = session.load_module(path.name)
        yield session, modules
    finally:
        with contextlib.suppress(RuntimeError):  # a server that crashed has nothing to remove
            for path in modules:
                session.remove(path.name)


def _connect(tracker: Tracker) -> Any:
    from tvm import rpc

    return rpc.connect_tracker(tracker.host, tracker.port)


def _upload(argument: Any, device: Any) -> Any:
    import tvm

    if isinstance(argument, float | int):
        return argument
    here = tvm.runtime.from_dlpack(argument)
    there = tvm.runtime.empty(here.shape, here.dtype, device)
    here.copyto(there)
    return there


def _turn_us(module: Any, device: Any, arguments: Sequence[Any]) -> float:
    """Take a turn on the server and return the mean microseconds of a call."""
    time = module.time_evaluator(build.SYMBOL, device, number=1, min_repeat_ms=_TURN_MS)
    return float(time(*arguments).mean) * 1e6
