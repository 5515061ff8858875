"""Search spaces: every combination of choices that a schedule allows, found by asking it.

A schedule's questions depend on the answers before them: which numbers of rows make whole tiles
depends on the register tile. So a space is a tree, which is kept as a union of products: in each
product every knob may be answered independently of the others.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from dcn_tvm.knobs import Choice, Choices, Knobs

T = TypeVar("T", int, str)

Product = tuple[tuple[str, tuple[Choice, ...]], ...]  # (knob, options) in the order of asking


class _AskedAllError(Exception):
    """Ends a schedule that is only asked for its questions."""


class _Asked(Knobs):
    """Stops the schedule after its last question."""

    def finish(self) -> dict[str, Choice]:
        raise _AskedAllError


class _Probe(_Asked):
    """Answers the first questions as told, the others with their first option."""

    def __init__(self, first: Sequence[Choice]) -> None:
        super().__init__()
        self._first = first

    def choice(self, name: str, options: Sequence[T], default: T) -> T:
        super().choice(name, options, default)
        place = len(self.space) - 1
        legal: tuple[T, ...] = tuple(dict.fromkeys(options))
        answer = legal[0]
        if place < len(self._first):
            answer = next(option for option in legal if option == self._first[place])
        self.chosen[name] = answer
        return answer


@dataclass(frozen=True)
class Space:
    """All legal choices of one kernel.

    Attributes:
        products: disjoint; each is knobs with their options, independent of one another.
        default: the choices that the schedule makes by itself.
    """

    products: tuple[Product, ...]
    default: Choices

    @cached_property
    def size(self) -> int:
        """How many points there are."""
        return sum(math.prod(len(options) for _, options in p) for p in self.products)

    @cached_property
    def knobs(self) -> dict[str, tuple[Choice, ...]]:
        """Every knob with all options that it has anywhere."""
        found: dict[str, dict[Choice, None]] = {}
        for name, options in itertools.chain.from_iterable(self.products):
            found.setdefault(name, {}).update(dict.fromkeys(options))
        return {name: tuple(options) for name, options in found.items()}

    def points(self) -> Iterator[dict[str, Choice]]:
        """Yield every point."""
        for product in self.products:
            names = [name for name, _ in product]
            for values in itertools.product(*(options for _, options in product)):
                yield dict(zip(names, values, strict=True))

    def __contains__(self, choices: Mapping[str, Choice]) -> bool:
        return self.locate(choices) is not None

    def locate(self, choices: Mapping[str, Choice]) -> tuple[int, tuple[int, ...]] | None:
        """Return the product that holds a point, and the place of each of its values, or None."""
        for number, product in enumerate(self.products):
            if choices.keys() == {name for name, _ in product} and all(
                choices[name] in options for name, options in product
            ):
                return number, tuple(options.index(choices[name]) for name, options in product)
        return None


def explore(ask: Callable[[Knobs], object]) -> Space:
    """Return the space of a schedule, which is run for its default and once for each point.

    Args:
        ask: runs the schedule with the knobs it is given; one that calls `Knobs.finish` after its
            last question costs no more than its questions.

    Example:
        >>> space = explore(lambda knobs: knobs.choice("rows", [8, 16], 16))
        >>> space.size, space.default
        (2, {'rows': 16})
    """
    defaults = _Asked()
    _run(ask, defaults)
    return Space(_products(ask, []), dict(defaults.chosen))


def _run(ask: Callable[[Knobs], object], knobs: Knobs) -> None:
    with contextlib.suppress(_AskedAllError):
        ask(knobs)


def _products(ask: Callable[[Knobs], object], first: list[Choice]) -> tuple[Product, ...]:
    """Return the products below the answers `first`; options with the same below them go together.

    The names of a product's first knobs are those of the questions that `first` answers.
    """
    probe = _Probe(first)
    _run(ask, probe)
    return _below(ask, first, list(probe.space.items()))


def _below(
    ask: Callable[[Knobs], object],
    first: list[Choice],
    path: list[tuple[str, tuple[Choice, ...]]],
) -> tuple[Product, ...]:
    """Return the products of the questions after `first`; `path` holds all on the first way down.

    The first option of the next question lies on that way, so only the others are asked again.
    """
    if len(path) == len(first):
        return ((),)
    name, options = path[len(first)]
    together: dict[tuple[Product, ...], list[Choice]] = {}
    for place, option in enumerate(options):
        answers = [*first, option]
        below = _products(ask, answers) if place else _below(ask, answers, path)
        together.setdefault(below, []).append(option)
    return tuple(
        ((name, tuple(group)), *product) for below, group in together.items() for product in below
    )
