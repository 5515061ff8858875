"""Tuning through a tracker and two servers on this machine, one of which dies in the middle."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dcn_tvm import records, target
from dcn_tvm.ops.deform_conv2d import DeformConv2dProblem
from dcn_tvm.tuning import remote, session
from dcn_tvm.tuning.remote import Tracker
from dcn_tvm.tuning.task import Task, Trial
from dcn_tvm.tuning.trial import Verdict
from dcn_tvm.workload import Workload

KEY = "loopback"
START_S = 90.0  # three processes that import TVM, on cores that other tests use too
PROBLEM = DeformConv2dProblem("float32", "nchw", 8, 8, kernel_size=(1, 1))
SIZES = {"batch": 1, "height": 9, "width": 9}
KERNELS = ("forward", "backward_weight")
WORKLOAD = Workload.of(PROBLEM, SIZES, KERNELS)
TRIALS = 12  # two batches


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def start(module: str, port: int, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", f"tvm.exec.{module}", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--port-end", str(port + 1), *arguments]
    environment = {**os.environ, "TVM_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )


def kill(process: "subprocess.Popen[bytes]") -> None:
    """End it with its children, of which one does the serving."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def await_servers(tracker: Tracker, count: int) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        try:
            if tracker.servers() == count:
                return
        except ConnectionError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"{count} servers did not register in {START_S:g} s")


Farm = tuple[Tracker, list["subprocess.Popen[bytes]"]]


@pytest.fixture(scope="module")
def farm() -> Iterator[Farm]:
    """A tracker and two servers."""
    tracker_port, *ports = free_ports(3)
    tracker = Tracker("127.0.0.1", tracker_port, KEY)
    processes = [start("rpc_tracker", tracker_port)]
    try:
        while True:  # servers that find no tracker try again only after some seconds
            with socket.socket() as probe:
                if probe.connect_ex((tracker.host, tracker.port)) == 0:
                    break
            time.sleep(0.2)
        address = f"{tracker.host}:{tracker.port}"
        processes += [start("rpc_server", p, "--tracker", address, "--key", KEY) for p in ports]
        await_servers(tracker, 2)
        yield tracker, processes[1:]
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                kill(process)


class KillAfterFirstBatch(session.Reporter):
    """Ends a server once something was measured, and remembers what came of it all."""

    def __init__(self, victim: "subprocess.Popen[bytes]") -> None:
        self.victim = victim
        self.killed_at = 0
        self.verdicts: list[Verdict] = []

    def tried(self, task: Task, trials: Sequence[Trial], wanted: int) -> None:
        if len(trials) > 1 and not self.killed_at:
            kill(self.victim)
            self.killed_at = len(trials)

    def finished(self, task: Task, record: records.Record, verdict: Verdict) -> None:
        self.verdicts.append(verdict)


def test_an_unknown_key_names_the_known_ones(farm: Farm) -> None:
    tracker, _ = farm
    with pytest.raises(ConnectionError, match=f"'gpu'; registered: {KEY}"):
        Tracker(tracker.host, tracker.port, "gpu").servers()


def test_what_is_not_there_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_RETURN_S", 0.0)
    (port,) = free_ports(1)
    with pytest.raises(ConnectionError, match=f"no tracker at 127.0.0.1:{port}"):
        session.tune(WORKLOAD, tracker=Tracker("127.0.0.1", port, KEY))
    for address in ("localhost", "localhost:", ":9190", "localhost:99999", "localhost:port"):
        with pytest.raises(ValueError, match="HOST:PORT"):
            Tracker.parse(address, KEY)


def test_a_session_survives_the_death_of_a_server(
    farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DCN_TVM_HOME", str(tmp_path))
    tracker, servers = farm
    reporter = KillAfterFirstBatch(servers[0])
    found = session.tune(WORKLOAD, trials=TRIALS, threads=1, tracker=tracker, reporter=reporter)
    assert 1 < reporter.killed_at < TRIALS
    assert servers[0].poll() is not None
    assert servers[1].poll() is None
    assert tuple(record.kernel for record in found) == KERNELS
    assert [record.trials for record in found] == [
        min(TRIALS, t.space.size) for t in session.plan_tasks(WORKLOAD, target.detect(), 1)
    ]
    assert not [failure for verdict in reporter.verdicts for failure in verdict.failures]
    path = records.user_root() / target.detect().ids[0] / "deform_conv2d.jsonl"
    lines, damage = records.read(path)
    assert not damage
    assert [line.record.key for line in lines] == [record.key for record in found]
    assert [line.record.choices for line in lines] == [record.choices for record in found]
