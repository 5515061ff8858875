"""Knobs: a schedule's named choices, by default, by replay of a record, or at random.

A schedule asks `knobs.choice("rows", options, default)` and never knows which of the three answers.
The answers of a run, `knobs.chosen`, are all that a record needs to hold.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

Choice = int | str
Choices = Mapping[str, Choice]
T = TypeVar("T", int, str)


class Knobs:
    """Answers a schedule's questions and remembers question, options and answer."""

    def __init__(self, recorded: Choices | None = None, rng: random.Random | None = None) -> None:
        """Defaults; with `recorded`, exactly those choices; with `rng`, random legal ones."""
        if recorded is not None and rng is not None:
            raise ValueError("knobs are either replayed or sampled, not both")
        self._recorded = None if recorded is None else dict(recorded)
        self._rng = rng
        self.chosen: dict[str, Choice] = {}
        self.space: dict[str, tuple[Choice, ...]] = {}

    def choice(self, name: str, options: Sequence[T], default: T) -> T:
        """One of `options`, which must be non-empty and hold `default`.

        Raises:
            ValueError: the name is asked twice, the default is not an option, or the record has no
                such name or a value that is no longer in the space.
        """
        legal = tuple(dict.fromkeys(options))
        if name in self.space:
            raise ValueError(f"knob {name!r} is asked for twice")
        if default not in legal:
            raise ValueError(f"knob {name!r}: the default {default} is not one of {legal}")
        self.space[name] = legal
        answer = self._answer(name, legal, default)
        self.chosen[name] = answer
        return answer

    def finish(self) -> dict[str, Choice]:
        """All choices; a recorded name that no question asked for is an error, not ignored.

        A schedule calls this after its last question: what does not fit is then refused at once,
        and a search that wants the questions only goes no further.
        """
        unknown = sorted(set(self._recorded or ()) - set(self.chosen))
        if unknown:
            raise ValueError(f"the record chooses {unknown[0]!r}, which this schedule does not ask")
        return dict(self.chosen)

    def _answer(self, name: str, legal: tuple[T, ...], default: T) -> T:
        if self._rng is not None:
            return self._rng.choice(legal)
        if self._recorded is None:
            return default
        if name not in self._recorded:
            raise ValueError(f"the record does not choose {name!r}; options: {legal}")
        value = self._recorded[name]
        for option in legal:
            if option == value:
                return option
        raise ValueError(f"the record's {name!r} = {value} is not in the space {legal}")
