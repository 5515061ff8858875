"""A record: which choices won for one kernel of one problem, as one line of JSON.

    {"format": 1, "op": ..., "kernel": "forward", "problem": {...}, "sizes": {"batch": 1, ...},
     "choices": {"rows": 4, ...}, "median_us": 812.3, "default_us": 1204.0, "noise": 0.01, ...}

Fields of the problem that equal their default are left out, so a line shows what is particular.
Nothing is repaired or guessed: what is not as required is a `RecordError` that says so.
"""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dcn_tvm import ops
from dcn_tvm.problem import Problem
from dcn_tvm.records.checks import REQUIRED, is_count, mistyped

FORMAT = 1
_DIGITS = 4  # significant digits of a time; measurements repeat to two or three


class RecordError(ValueError):
    """A record is not as required; the message says what was required and what came."""


class NewerRecordError(RecordError):
    """A record has a format or a name that this version does not know: a later one may."""


@dataclass(frozen=True)
class Record:
    """Which choices won for one kernel of one problem at some sizes, against the default.

    Attributes:
        problem: instance of the op's problem class, which names the op.
        kernel: "forward", or the name of a gradient's kernel.
        sizes: free sizes of the call that was measured, such as `{"batch": 1, "height": 38}`.
        choices: the winner's; None if nothing that was tried beat the default by more than noise.
        median_us: the winner's time in microseconds; the default's where `choices` is None.
        default_us: the default's time, measured in the same session.
        noise: relative, such as 0.01: what a winner had to beat.
        trials: how many candidates were tried.
        threads: with which all was measured; of a GPU its multiprocessors.
        device: the machine in words.
        versions: of what made the code, by name.
        date: of the measurement, as YYYY-MM-DD.

    Raises:
        RecordError: a value has not the type or range that is required.
    """

    problem: Problem
    kernel: str
    sizes: Mapping[str, int]
    choices: Mapping[str, int | str] | None
    median_us: float
    default_us: float
    noise: float
    trials: int
    threads: int
    device: str
    versions: Mapping[str, str]
    date: str

    def __post_init__(self) -> None:
        """Refuse what could not be read again."""
        _check_problem(self.problem)
        _check_kernel(self.problem.op, self.kernel)
        for name, (fits, required) in REQUIRED.items():
            _check(fits(getattr(self, name)), name, required, getattr(self, name))
        if self.choices is None:
            right, required = self.median_us == self.default_us, "the default's without choices"
        else:
            right, required = self.median_us <= self.default_us, "at most the default's"
        _check(right, "median_us", f"{required} ({self.default_us:g})", self.median_us)

    @property
    def speedup(self) -> float:
        """The default's time over the winner's."""
        return self.default_us / self.median_us

    @property
    def key(self) -> tuple[str, str, str, tuple[tuple[str, int], ...], int]:
        """What was measured, whatever came out: two records with one key compete."""
        sizes = tuple(sorted(self.sizes.items()))
        return (self.problem.op, self.kernel, self.problem.to_json(), sizes, self.threads)

    def to_line(self) -> str:
        """Return the record as one line of JSON, without the newline.

        Example:
            >>> assert Record.from_line(record.to_line()).key == record.key
        """
        values = {
            "format": FORMAT,
            "op": self.problem.op,
            "kernel": self.kernel,
            "problem": self.problem.particulars(),
            "sizes": dict(sorted(self.sizes.items())),
            "choices": None if self.choices is None else dict(sorted(self.choices.items())),
            "median_us": _rounded(self.median_us),
            "default_us": _rounded(self.default_us),
            "noise": _rounded(self.noise),
            "trials": self.trials,
            "threads": self.threads,
            "device": self.device,
            "versions": dict(sorted(self.versions.items())),
            "date": self.date,
        }
        return json.dumps(values)

    @classmethod
    def from_line(cls, line: str) -> Record:
        """Read a line that `to_line` wrote.

        Raises:
            NewerRecordError: its format, op, kernel or a field is not known to this version.
            RecordError: anything else is not as required.
        """
        values = _parse(line)
        op, plain = values.pop("op"), values.pop("problem")
        contract = ops.registry().get(op) if isinstance(op, str) else None
        if contract is None:
            known = ", ".join(ops.registry())
            raise NewerRecordError(f"op must be one of {known}, got {reprlib.repr(op)}")
        return cls(problem=_problem(contract.problem, plain), **values)


def _parse(line: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"a record must be JSON: {error}") from None
    if not isinstance(values, dict) or "format" not in values:
        required = 'an object that begins with {"format": 1'
        raise RecordError(f"a record must be {required}, got {reprlib.repr(values)}")
    number = values.pop("format")
    _check(is_count(number), "format", "a positive integer", number)
    if number > FORMAT:
        raise NewerRecordError(f"format {number} is newer than this dcn_tvm knows ({FORMAT})")
    names = {"op", *(field.name for field in dataclasses.fields(Record))}
    _check_names("a record", values, names, names)
    return values


def _problem(cls: type[Problem], plain: object) -> Problem:
    if not isinstance(plain, dict):
        raise RecordError(f"problem must be an object, got {reprlib.repr(plain)}")
    values = {n: tuple(v) if isinstance(v, list) else v for n, v in plain.items()}
    fields = dataclasses.fields(cls)
    needed = {field.name for field in fields if field.default is dataclasses.MISSING}
    _check_names(f"a problem of {cls.op}", values, {field.name for field in fields}, needed)
    _check_types(cls.op, values)
    try:
        return cls.from_mapping(values)
    except (ValueError, TypeError) as error:
        raise RecordError(f"problem: {error}") from None


def _check(right: bool, name: str, required: str, got: object) -> None:
    if not right:
        raise RecordError(f"{name} must be {required}, got {reprlib.repr(got)}")


def _check_names(what: str, values: dict[str, Any], known: set[str], needed: set[str]) -> None:
    if unknown := sorted(values.keys() - known):
        raise NewerRecordError(f"{what} has no field {unknown[0]!r}: it may be a later version's")
    if missing := sorted(needed - values.keys()):
        raise RecordError(f"{what} must have the field {missing[0]!r}, which is missing")


def _check_problem(problem: Problem) -> None:
    contract = ops.registry().get(getattr(problem, "op", ""))
    right = contract is not None and type(problem) is contract.problem
    _check(right, "problem", "an instance of an op's problem class", problem)
    _check_types(problem.op, vars(problem))


def _check_types(op: str, values: dict[str, Any]) -> None:
    if wrong := mistyped(op, values):
        name, required = wrong
        _check(False, f"problem: {name}", f"of type {required}", values[name])


def _check_kernel(op: str, kernel: object) -> None:
    known = ops.registry()[op].kernels()
    if not isinstance(kernel, str) or kernel not in known:
        required = f"one of {', '.join(known)}"
        raise NewerRecordError(f"kernel of {op} must be {required}, got {reprlib.repr(kernel)}")


def _rounded(value: float) -> float:
    """Return it with four significant digits, from 1000 up with one decimal."""
    if value == 0:
        return 0.0
    return round(float(value), max(1, _DIGITS - 1 - math.floor(math.log10(value))))
