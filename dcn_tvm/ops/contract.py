"""The form of an op's contract: all that the generic machinery knows about any op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dcn_tvm.problem import Problem


@dataclass(frozen=True)
class Tensor:
    """A tensor argument.

    Attributes:
        name: in the schema.
        map: [N, C, y, x], in the memory format of the first tensor.
        optional: may be None.
        differentiable: has a gradient.
        coordinates: has the accumulation type and keeps it under autocast, as bfloat16 has too few
            digits to name a pixel.
    """

    name: str
    map: bool = False
    optional: bool = False
    differentiable: bool = True
    coordinates: bool = False


@dataclass(frozen=True)
class Kernel:
    """A compiled function: tensors in, then tensors out.

    Names are the op's tensors; `output` is the op's result, `grad` its gradient, and `grad_<name>`
    the gradient of a tensor. A backward kernel is built for exactly the gradients asked for. The
    op's scalars come last, in every kernel.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Op:
    """Contract of one op.

    Attributes:
        name: of the op, its modules, schedules and records.
        problem: the class of its static facts.
        tensors: tensor arguments, in the order of the schema.
        attributes: the schema's other arguments, such as `int[2] stride, str boundary`.
        facts: `(tensors, attributes, dtype, layout)` to the problem's fields in order; plain and
            fast, as it runs in every call. Tensors are anything with a shape.
        shape: `(tensors, attributes)` to the output's shape; works on symbolic sizes.
        forward: its kernel.
        backward: the kernels of its gradients, each run only for the outputs that are needed.
        needs: for a backward kernel and the outputs asked for, the inputs it takes.
        sizes: `(tensors, scalars)` to the names and values of the free sizes of a call, on which
            its time depends; plain and fast, and raises nothing, as it runs in calls.
        scalars: the attributes that are free variables of every kernel, as numbers.
        check: refuses tensors for what they hold, which no shape tells; only real data is checked.
        claim: the same for data on a device, without waiting for it: a tensor of one bool that must
            come out true, and what it says; None if there is nothing to say.
        autocast: whether autocast lowers the tensors, as for a convolution; else they all get the
            first one's type.
    """

    name: str
    problem: type[Problem]
    tensors: tuple[Tensor, ...]
    attributes: str
    facts: Callable[[Sequence[Any], Sequence[Any], str, str], tuple[Any, ...]]
    shape: Callable[[Sequence[Any], Sequence[Any]], tuple[Any, ...]]
    forward: Kernel
    backward: tuple[Kernel, ...]
    needs: Callable[[Kernel, tuple[str, ...]], tuple[str, ...]]
    sizes: Callable[[Sequence[Any], tuple[float, ...]], tuple[tuple[str, int], ...]]
    scalars: Callable[[Sequence[Any]], tuple[float, ...]] = lambda attributes: ()
    check: Callable[[Sequence[Any]], None] = lambda tensors: None
    claim: Callable[[Sequence[Any]], tuple[Any, str] | None] = lambda tensors: None
    autocast: bool = True

    @property
    def schema(self) -> str:
        """Arguments in torch's schema language."""
        tensors = (f"Tensor{'?' if t.optional else ''} {t.name}" for t in self.tensors)
        return ", ".join((*tensors, self.attributes))

    def kernels(self) -> dict[str, Kernel]:
        """Every kernel by its name."""
        return {kernel.name: kernel for kernel in (self.forward, *self.backward)}
