"""The plan: steps in order of their worth, each in a process of its own, as far as time goes.

A kernel that faults makes the device unusable for its process, and only for that: the item has
failed, and a new process goes on behind it. A step that is not finished when its share of the time
is over is left to the next run with the same folder, which passes over whatever was done.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dcn_tvm.device import behaviour, benchmark, correctness, machine, report, tune
from dcn_tvm.device.items import DONE, NO_TIME, Context
from dcn_tvm.device.journal import FAILED, Journal

FINISHED, WRONG, UNFINISHED = 0, 1, 3
GRACE_S = 5.0  # beyond its time that a process may take to stop by itself
_RESERVED_S = 8.0  # for the report, and for ends
_START_S = 3.0  # that a process takes before it comes to anything
_LEAST_S = 20.0  # without so much no process is worth its start
_MOST_DEATHS = 25  # of a step's processes, before it is given up in this run
_CHILD, _PRECOMPILE = "dcn_tvm.device.child", "dcn_tvm.device.precompile"


@dataclass(frozen=True)
class Step:
    """A step of the plan.

    Attributes:
        name: of its files and its module.
        share: of the time that it and those after it have.
        timed: it must have the machine to itself.
    """

    name: str
    share: float
    timed: bool = False


STEPS = (
    Step(machine.STEP, 0.06, timed=True),
    Step(correctness.STEP, 0.22),
    Step(behaviour.STEP, 0.17),
    Step(benchmark.STEP, 0.25, timed=True),
    Step(tune.STEP, 0.2, timed=True),
    Step(benchmark.TUNED_STEP, 0.1, timed=True),
)


def named(names: Sequence[str] | None) -> tuple[Step, ...]:
    """Return the steps of these names in the plan's order; all if there are none.

    Raises:
        ValueError: there is no such step.
    """
    known = {step.name: step for step in STEPS}
    for name in names or ():
        if name not in known:
            raise ValueError(f"step must be one of {', '.join(known)}, got {name}")
    return tuple(step for step in STEPS if not names or step.name in names)


def run(
    context: Context,
    steps: Sequence[Step] = STEPS,
    say: Callable[[str], None] = lambda text: print(text, flush=True),
) -> int:
    """Do as much of the plan as the context's time allows.

    Returns:
        `FINISHED`, `WRONG` if something failed, or `UNFINISHED` if a step is left.
    """
    context.out.mkdir(parents=True, exist_ok=True)
    known, now = machine.known_facts(context.out).get("commit"), machine.commit()
    if known != now and known is not None:
        say(f"{context.out} has results of commit {known}, and this is {now}")
    tune.restore(context.out)
    end = context.deadline - _RESERVED_S
    before = -1
    while left := [step for step in steps if not Journal(context.out, step.name).finished]:
        done = sum(len(Journal(context.out, step.name).results()) for step in left)
        if done == before or end - time.time() < _LEAST_S:
            break
        before = done
        _pass(context, left, end, say)
    report.write_report(context.out)
    return _outcome(context.out, steps, say)


def _pass(context: Context, left: Sequence[Step], end: float, say: Callable[[str], None]) -> None:
    """Give every step that is left its share of the time."""
    helper: subprocess.Popen[bytes] | None = None
    try:
        for place, step in enumerate(left):
            if step.timed:
                _stop(helper)
                helper = None
            elif helper is None:
                until = _timed_from(left, place, end)
                helper = _start(_PRECOMPILE, replace(context, deadline=until))
            share = step.share / sum(other.share for other in left[place:])
            until = time.time() + max(end - time.time(), 0) * share
            _run_step(step, replace(context, deadline=until), say)
            report.write_report(context.out)
    finally:
        _stop(helper)


def _timed_from(left: Sequence[Step], place: int, end: float) -> float:
    """Return when the next step begins that must not be disturbed, if all take their shares."""
    rest, free = left[place:], []
    for step in rest:
        if step.timed:
            break
        free.append(step)
    share = sum(step.share for step in free) / sum(step.share for step in rest)
    return time.time() + max(end - time.time(), 0) * share


def _run_step(step: Step, context: Context, say: Callable[[str], None]) -> None:
    journal = Journal(context.out, step.name)
    say(f"{step.name}: {context.left_s:.0f} s")
    known = -1
    for _ in range(_MOST_DEATHS):
        if context.left_s < _START_S:
            return
        before, known = known, len(journal.results())
        if before == known and journal.interrupted() is None:
            break  # it ended twice before it came to anything
        code = _wait(_start(_CHILD, context, step.name), context.left_s + GRACE_S)
        if code is None:
            journal.drop()
        if code == DONE:
            facts = machine.known_facts(context.out)
            if step.name == machine.STEP:
                facts = facts or {"why": "the machine could not be described"}
            journal.finish({**facts, "commit": machine.commit()})
        if code in (None, DONE, NO_TIME):
            return
    say(f"{step.name}: given up in this run, as its processes end")


def _start(module: str, context: Context, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", module, *arguments, context.to_json()]
    root = str(Path(__file__).parents[2])
    search = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), root]))
    environment = {**os.environ, "PYTHONPATH": search, "PYTHONUNBUFFERED": "1"}
    environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # products that repeat
    return subprocess.Popen(command, env=environment, start_new_session=True)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Return the exit code, None if the process had to be ended."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        _stop(process)
        return None
    except BaseException:  # Ctrl-C reaches this process only
        _stop(process)
        raise


def _stop(process: subprocess.Popen[bytes] | None) -> None:
    """End a process and all that it started."""
    if process is None or process.poll() is not None:
        return
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    except ProcessLookupError:
        process.wait()


def _outcome(out: Path, steps: Sequence[Step], say: Callable[[str], None]) -> int:
    journals = [Journal(out, step.name) for step in steps]
    unfinished = [journal.step for journal in journals if not journal.finished]
    failed = [
        f"{journal.step}: {key}: {result.get('wrong') or result.get('why')}"
        for journal in journals
        for key, result in journal.results().items()
        if result["outcome"] == FAILED
    ]
    for line in failed:
        say(f"failed: {line}")
    if unfinished:
        say(f"not finished: {', '.join(unfinished)}; the same command goes on")
        return UNFINISHED
    return WRONG if failed else FINISHED
