"""The fifth step: tuning of the rows that tell most, by `dcn-tvm tune`, as far as time goes.

Workloads go in batches, in the order of the benchmark's rows. The tuner keeps its records in the
user's folder, where calls find them; those of this device are copied to the results, as one file
that `dcn-tvm records merge` takes.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from dcn_tvm import records
from dcn_tvm import target as targets
from dcn_tvm.device import rows
from dcn_tvm.device.items import Context, Item, Skipped
from dcn_tvm.device.journal import Result, write
from dcn_tvm.workload import Workload

STEP = "tuning"
RECORDS = "records"
BATCH = 4  # workloads; a session starts processes that each takes some seconds
TRIALS = 64
BATCH_S = 90.0
_START_S = 25.0  # that a session needs before and after its search
_SMALL_TRIALS = 2


def items(context: Context) -> Iterator[Item]:
    """Yield the step's items: batches of workloads."""
    wanted = workloads(small=context.small)
    count = 1 if context.small else len(wanted)
    for start in range(0, count, BATCH):
        part = wanted[start : start + (1 if context.small else BATCH)]
        run = functools.partial(tune, part, context)
        key = "; ".join(f"{w.problem.op} {', '.join(w.kernels)} {dict(w.sizes)}" for w in part)
        key = f"{start // BATCH + 1}: {key}"
        yield Item(key, run, least_s=2 * _START_S, most_s=BATCH_S + 3 * _START_S)


def workloads(*, small: bool = False) -> list[Workload]:
    """Return what there is to tune, the most telling first; TF32 has no records of its own."""
    found = (s.workload() for s in rows.specs(small=small) if s.precision != "tf32")
    return list(dict.fromkeys(found))


def tune(part: Sequence[Workload], context: Context) -> Result:
    """Tune some workloads, and copy all records of this device to the results."""
    seconds = min(BATCH_S, context.left_s - _START_S)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "workloads.jsonl"
        model.write_text("".join(f"{w.to_line()}\n" for w in part), encoding="utf-8")
        done = subprocess.run(
            command(model, context, seconds),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=max(seconds, 0) + 2 * _START_S,
        )
    kept = keep(context)
    lines = done.stdout.strip().splitlines()[-3:]
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or lines or ["it said nothing"])[-1]
        if "tuning needs" in reason or "finds no device" in reason:
            raise Skipped(reason)
        return {"wrong": f"exit code {done.returncode}: {reason}", "records": kept}
    return {"said": lines, "records": kept}


def command(model: Path, context: Context, seconds: float) -> list[str]:
    """Return the command that tunes what a file of workloads says."""
    minutes = max(seconds, 1.0) / 60
    trials = _SMALL_TRIALS if context.small else TRIALS
    words = ["tune", "--from-model", str(model), "--trials", str(trials), "--resume"]
    target = ["--target", "cuda"] if context.device.startswith("cuda") else []
    return [sys.executable, "-m", "dcn_tvm", *words, "--minutes", f"{minutes:.2f}", *target]


def keep(context: Context) -> int:
    """Copy the records of this device to the results, and return how many there are."""
    device = rows.target_of(context.device) or targets.detect()
    target_id = device.ids[0]
    found = [
        line.record
        for path in records.files(records.user_root(), [target_id])
        for line in records.read(path)[0]
    ]
    path = context.out / RECORDS / target_id / "all.jsonl"
    if found:
        lines = (f"{record.to_line()}\n" for record in sorted(found, key=lambda r: r.key))
        write(path, "".join(lines))
    return len(found)


def restore(out: Path) -> None:
    """Put records of an earlier run's results where calls find them."""
    for path in sorted((out / RECORDS).glob("*/all.jsonl")):
        records.merge([path], records.user_root())
