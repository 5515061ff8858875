"""The budget: how many instructions each guarded kernel may execute, a line of JSON for each."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dcn_tvm.guard.plan import TARGET

Verdict = Literal["same", "more", "fewer", "new", "gone"]

# Counts repeat exactly. The numbers that a call is drawn with may differ in their last digits
# between processors, and with them who falls into which bin: that is far below this.
TOLERANCE = 0.02
PATH = Path(__file__).parents[2] / "benchmarks" / "instructions.json"


@dataclass(frozen=True)
class Finding:
    """What became of a kernel.

    Attributes:
        name: of the kernel and its call.
        budget: instructions that it had; None if it is new.
        now: instructions that it has; None if it is gone.
    """

    name: str
    budget: int | None
    now: int | None

    @property
    def change(self) -> float | None:
        """The relative change; None if there is nothing to compare with."""
        if self.budget is None or self.now is None:
            return None
        return self.now / self.budget - 1

    @property
    def verdict(self) -> Verdict:
        """What the change is called: "same" within the tolerance."""
        if self.change is None:
            return "new" if self.budget is None else "gone"
        if abs(self.change) <= TOLERANCE:
            return "same"
        return "more" if self.change > 0 else "fewer"


@dataclass(frozen=True)
class Budget:
    """Counts, and what made the code that was counted.

    Attributes:
        compiler: the version of TVM.
        target: the spec of the machine that kernels are compiled for.
        kernels: instructions of one call, by the kernels' names.
    """

    compiler: str
    target: str
    kernels: Mapping[str, int]

    @classmethod
    def of(cls, counts: Mapping[str, int]) -> Budget:
        """Return the budget that is just enough for what was counted now."""
        return cls(f"apache-tvm {importlib.metadata.version('apache-tvm')}", TARGET.spec, counts)

    @classmethod
    def read(cls, path: Path) -> Budget:
        """Return the budget in a file.

        Raises:
            ValueError: there is none, or it is something else; says what to do.
        """
        try:
            facts: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            found = cls(facts["compiler"], facts["target"], dict(facts["kernels"]))
        except FileNotFoundError as error:
            raise ValueError(
                f"{path} does not exist: the budget is a file of the checkout, which no installed "
                "package has; dcn-tvm guard --update makes a new one"
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no budget: {error!r}") from error
        for name, number in found.kernels.items():
            if type(number) is not int or number < 1:
                raise ValueError(f"{path}: {name} must have a positive number, got {number!r}")
        return found

    def write(self, path: Path) -> None:
        """Write the budget to a file, kernels in alphabetical order."""
        facts = {
            "compiler": self.compiler,
            "target": self.target,
            "kernels": dict(sorted(self.kernels.items())),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

    def refuse_other_code(self) -> None:
        """Refuse to compare with what another compiler made, or with code for another machine.

        Raises:
            ValueError: that is so.
        """
        here = Budget.of({})
        for name in ("compiler", "target"):
            made, now = getattr(self, name), getattr(here, name)
            if made != now:
                raise ValueError(
                    f"the budget's {name} must be {now} to be compared with, got {made}: "
                    "if that is meant to be, dcn-tvm guard --update makes a new budget"
                )

    def only(self, ops: Sequence[str]) -> Budget:
        """Return the budget of some ops, of all if none are named."""
        kernels = self.kernels.items()
        return Budget(
            self.compiler, self.target, {k: n for k, n in kernels if not ops or _op(k) in ops}
        )

    def updated(self, counts: Mapping[str, int], ops: Sequence[str]) -> Budget:
        """Return the budget with new counts for all kernels of some ops, or for all.

        Raises:
            ValueError: only some are new, and the others are those of another compiler or machine.
        """
        if not ops:
            return Budget.of(counts)
        self.refuse_other_code()
        kept = {k: n for k, n in self.kernels.items() if _op(k) not in ops}
        return Budget.of({**kept, **counts})

    def compare(self, counts: Mapping[str, int]) -> list[Finding]:
        """Return a finding for each kernel that was counted or has a budget.

        Args:
            counts: instructions of one call, by the kernels' names.

        Raises:
            ValueError: the budget is another compiler's, or for another machine.

        Example:
            >>> budget = Budget.of({"roi_pool.forward": 100})
            >>> [finding.verdict for finding in budget.compare({"roi_pool.forward": 103})]
            ['more']
        """
        self.refuse_other_code()
        names = dict.fromkeys((*self.kernels, *counts))
        return [Finding(name, self.kernels.get(name), counts.get(name)) for name in names]


def _op(kernel: str) -> str:
    return kernel.partition(".")[0]
