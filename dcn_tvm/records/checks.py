"""What the values of a record must be: a predicate and its words for each. True is no integer."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any

from dcn_tvm import ops


@functools.cache
def field_types(op: str) -> dict[str, Any]:
    """Type of every field of an op's problem: str, bool, int or a tuple of these."""
    problem = ops.registry()[op].problem
    hints = typing.get_type_hints(problem)
    return {field.name: hints[field.name] for field in dataclasses.fields(problem)}


def mistyped(op: str, values: Mapping[str, object]) -> tuple[str, str] | None:
    """Name of the first value that has not exactly the type of its field, and that type."""
    types = field_types(op)
    for name, value in values.items():
        if not _has_type(value, types[name]):
            is_tuple = typing.get_origin(types[name]) is tuple
            return name, str(types[name]) if is_tuple else types[name].__name__
    return None


def is_count(value: object) -> bool:
    """Whether it is a positive integer."""
    return type(value) is int and value > 0


def _has_type(value: object, required: Any) -> bool:
    if typing.get_origin(required) is not tuple:
        return type(value) is required
    parts = typing.get_args(required)
    return (
        isinstance(value, tuple) and len(value) == len(parts) and all(map(_has_type, value, parts))
    )


def _is_choice(value: object) -> bool:
    return type(value) in (int, str)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_positive(value: object) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and 0 < value <= sys.float_info.max
    )


def _is_date(value: object) -> bool:
    try:
        return isinstance(value, str) and datetime.date.fromisoformat(value).isoformat() == value
    except ValueError:
        return False


def _by_name(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda items: (
        isinstance(items, Mapping)
        and all(isinstance(name, str) and fits(value) for name, value in items.items())
    )


REQUIRED: dict[str, tuple[Callable[[object], bool], str]] = {
    "sizes": (_by_name(is_count), "positive integers by name"),
    "choices": (lambda v: v is None or _by_name(_is_choice)(v), "integers or texts by name"),
    "median_us": (_is_positive, "a positive number"),
    "default_us": (_is_positive, "a positive number"),
    "noise": (lambda v: v is not False and (v == 0 or _is_positive(v)), "a number from 0 up"),
    "trials": (is_count, "a positive integer"),
    "threads": (is_count, "a positive integer"),
    "device": (_is_text, "a text"),
    "versions": (_by_name(_is_text), "texts by name"),
    "date": (_is_date, "a date as YYYY-MM-DD"),
}
