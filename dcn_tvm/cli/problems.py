"""Problems as a user names them: a suite, or an op and texts such as `in_channels=64 height=38`."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from dcn_tvm import ops, suites
from dcn_tvm.problem import Problem

Sizes = dict[str, int]  # free sizes of a call


def suite_problems(
    name: str, dtype: str = "float32", layout: str = "nchw"
) -> list[tuple[Problem, Sizes]]:
    """Return the problems of a suite's calls, with the free sizes of each.

    Raises:
        ValueError: there is no such suite, or no such layout.
        TypeError: there is no such dtype.
    """
    return [(case.problem(dtype, layout), case.free_sizes) for case in suites.named(name)]


def cases(op: str, texts: Sequence[str]) -> list[tuple[Problem, Sizes]]:
    """Return what `parse_case` makes of the texts; without any, the calls of the op's suites.

    Raises:
        ValueError: as `parse_case`.
    """
    known = [] if texts or op not in ops.registry() else _cases_of(op)
    return [(case.problem(), case.free_sizes) for case in known] or [parse_case(op, texts)]


def parse_case(op: str, texts: Sequence[str]) -> tuple[Problem, Sizes]:
    """Return the problem that texts describe, and those of its free sizes that they give.

    Args:
        op: its name.
        texts: such as "stride=2" or "kernel=3x3": fields of the op's problem, and the free sizes
            that its suites have; names may be shortened. float32 and nchw need not be said.

    Raises:
        ValueError: there is no such op or field, a field is missing, or its value is none.
        TypeError: there is no such dtype.
    """
    registry = ops.registry()
    if op not in registry:
        raise ValueError(f"op must be one of {', '.join(registry)}, got {op}")
    kind = registry[op].problem
    hints = typing.get_type_hints(kind)
    types = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    types |= dict.fromkeys(size_names(op), int)
    return _split(kind, _parse(types, texts))


def _cases_of(op: str) -> list[suites.Case]:
    return [case for calls in suites.SUITES.values() for case in calls if case.op == op]


def size_names(op: str) -> list[str]:
    """Return the names of an op's free sizes: what its suites' calls have beside its problem."""
    return list(dict.fromkeys(name for case in _cases_of(op) for name in case.free_sizes))


def _split(kind: type[Problem], values: Mapping[str, Any]) -> tuple[Problem, Sizes]:
    """Return the problem with the values that are its fields, and the rest."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    facts = {"dtype": "float32", "layout": "nchw"}
    facts |= {name: value for name, value in values.items() if name in fields}
    required = (n for n, field in fields.items() if field.default is dataclasses.MISSING)
    if missing := [name for name in required if name not in facts]:
        raise ValueError(f"{kind.op} also needs {', '.join(missing)}")
    sizes = {name: value for name, value in values.items() if name not in fields}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be positive, got {size}")
    return kind(**facts), sizes


def _parse(types: Mapping[str, object], texts: Sequence[str]) -> dict[str, Any]:
    """Return values of their types from texts such as "stride=2" or "kernel=3x3"."""
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"expected FIELD=VALUE, got {text}")
        field = _complete(name, list(types))
        values[field] = _value(field, types[field], value)
    return values


def _complete(name: str, names: Sequence[str]) -> str:
    """Return the field that `name` means, in full or shortened."""
    found = [name] if name in names else [full for full in names if full.startswith(name)]
    if len(found) != 1:
        raise ValueError(f"field must be one of {', '.join(found or names)}, got {name}")
    return found[0]


def _value(field: str, kind: object, text: str) -> object:
    """Return `text` as a value of a field's type; one number stands for a pair of it."""
    if kind is str:
        return text
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{field} must be true or false, got {text}")
        return text.lower() == "true"
    parts = text.split("x")
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"{field} must be made of whole numbers, got {text}")
    numbers = [int(part) for part in parts]
    length = len(typing.get_args(kind)) or 1
    if len(numbers) not in (1, length):
        raise ValueError(f"{field} must be {'x'.join('n' * length)}, got {text}")
    return numbers[0] if kind is int else tuple(numbers * (length // len(numbers)))
