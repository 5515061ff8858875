"""Which parameters of a network make offsets, and at what rate they learn."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class MakesOffsets(Protocol):
    """A layer with an offset head: every `...Pack` of the package, or a layer of your own."""

    def offset_parameters(self) -> Iterable[nn.Parameter]:
        """Return the parameters of the head."""


def parameter_groups(
    module: nn.Module, lr: float, beta: float | Mapping[type, float] = 1.0
) -> list[dict[str, Any]]:
    """Split a network's parameters: offset heads learn at the rate `beta * lr`, the rest at `lr`.

    The multiplier acts on the learning rate and not on the gradient: for plain SGD the two are the
    same, while Adam would divide a factor on the gradient out again. Each parameter occurs once.

    Args:
        module: a network that holds layers with offset heads at any depth, or one such layer: the
            package's `...Pack` layers, and any layer with a method `offset_parameters()`.
        lr: learning rate of everything else.
        beta: multiplier for the offset heads; 1 for the paper's convolutions, 0.1 in DCNv2. Or a
            multiplier for each class of layer, the first that fits: `{DeformRoIPoolPack: 0.01}` is
            the paper's Faster R-CNN. The heads of other layers then belong to the rest.

    Returns:
        Groups for the constructor of any `torch.optim` optimiser: the rest, then the offset heads,
        one group for one number, else one for each class in the order given.

    Raises:
        ValueError: beta is negative, or names a class that makes no offsets.

    Source: Dai et al., Deformable Convolutional Networks, section 2 ("beta times").

    Example:
        >>> layer = dcn_tvm.nn.DeformConv2dPack(4, 8, 3)
        >>> groups = dcn_tvm.nn.parameter_groups(layer, lr=0.1, beta=0.5)
        >>> torch.optim.SGD(groups).param_groups[1]["lr"]
        0.05
    """
    betas = beta if isinstance(beta, Mapping) else {MakesOffsets: beta}
    for kind, factor in betas.items():
        if factor < 0:
            raise ValueError(f"beta must not be negative, got {beta}")
        if not hasattr(kind, "offset_parameters"):
            raise ValueError(f"beta names {kind.__name__}, which makes no offsets of its own")
    kinds: dict[int, type] = {}
    for layer in module.modules():
        fits = next((kind for kind in betas if isinstance(layer, kind)), None)
        if fits is not None and isinstance(layer, MakesOffsets):
            for parameter in layer.offset_parameters():
                kinds.setdefault(id(parameter), fits)

    def learning(kind: type | None) -> list[nn.Parameter]:
        return [p for p in module.parameters() if kinds.get(id(p)) is kind]

    heads = [{"params": learning(kind), "lr": lr * factor} for kind, factor in betas.items()]
    return [{"params": learning(None), "lr": lr}, *heads]
