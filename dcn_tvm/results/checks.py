"""Checks of what a file holds: it may come from anywhere, and is computed with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

_WORDS = {
    "dtype": ("float32", "bfloat16", "float16", "float64"),
    "memory_format": ("contiguous", "channels_last"),
    "role": ("ours", "peer", "baseline", "floor", "rest"),
    "cache": ("warm", "cold"),
    "kind": ("wrong", "failed", "gemm", "copy"),
}
_POSITIVE = ("median_us", "p20_us", "p80_us", "rounds", "threads", "rate", "size")


def checked(kind: type, plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a part of results, which have the types that it declares.

    Raises:
        TypeError: a field has another type.
        ValueError: a word is none of those known, or a number cannot be.
    """
    for field in dataclasses.fields(kind):
        value: Any = plain.get(field.name)
        required = str(field.type)
        if field.name in plain and not any(_FITS[t](value) for t in required.split(" | ")):
            raise TypeError(f"{field.name} must be {required}, got {value!r}")
        if value not in _WORDS.get(field.name, (value,)):
            known = ", ".join(_WORDS[field.name])
            raise ValueError(f"{field.name} must be one of {known}, got {value!r}")
        if field.name in _POSITIVE and not value > 0:
            raise ValueError(f"{field.name} must be positive, got {value!r}")
    return dict(plain)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_texts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(x, str) for x in value.values())


_FITS: dict[str, Callable[[object], bool]] = {
    "str": lambda value: isinstance(value, str),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": _is_number,
    "None": lambda value: value is None,
    "tuple[str, ...]": lambda v: isinstance(v, tuple) and all(isinstance(x, str) for x in v),
    "Mapping[str, str]": _is_texts,
    "dict[str, str]": _is_texts,
    "Mapping[str, Size]": lambda value: isinstance(value, dict),
}
