"""What the deformable layers of a network did in a forward pass, kept while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dcn_tvm.nn import (
    DeformConv2d,
    DeformConv2dPack,
    DeformPSRoIPool,
    DeformPSRoIPoolPack,
    DeformRoIPool,
    DeformRoIPoolPack,
)
from dcn_tvm.viz.bins import SampledBins, Sampling
from dcn_tvm.viz.layers import SampledLayer

Recorded = dict[str, SampledLayer | SampledBins]

_Conv = DeformConv2d | DeformConv2dPack
_Pool = DeformRoIPool | DeformRoIPoolPack | DeformPSRoIPool | DeformPSRoIPoolPack


@contextmanager
def record_offsets(model: nn.Module) -> Iterator[Recorded]:
    """Keep the offsets that a network's deformable layers use while the block runs.

    Nothing is computed twice and nothing changes: forward hooks look on, in training as in
    inference, and are gone after the block, however it ends. The offsets are detached and on the
    model's device.

    Args:
        model: any module that holds deformable layers, those with offsets of their own and those
            that are given offsets.

    Returns:
        A dictionary that forward passes fill, from the layer's name in `model.named_modules()` to
        what it did: `SampledLayer` for convolutions, `SampledBins` for RoI pooling. The order is
        that of the calls. Of a layer that is called several times the last call counts.

    Example:
        >>> model = torch.nn.Sequential(dcn_tvm.nn.DeformConv2dPack(3, 8, 3, padding=1))
        >>> with record_offsets(model) as recorded:
        ...     _ = model(torch.randn(1, 3, 5, 5))
        >>> recorded["0"].offset.shape
        torch.Size([1, 18, 5, 5])
    """
    recorded: Recorded = {}

    def keep(name: str, done: SampledLayer | SampledBins) -> None:
        recorded.pop(name, None)  # to the end, where the last call belongs
        recorded[name] = done

    with ExitStack() as hooks:
        for name, layer in model.named_modules():
            if isinstance(layer, _Conv):
                hooks.callback(_watch_conv(layer, name, keep))
            elif isinstance(layer, _Pool):
                hooks.callback(_watch_pool(layer, name, keep))
        yield recorded


def _watch_conv(
    layer: _Conv, name: str, keep: Callable[[str, SampledLayer], None]
) -> Callable[[], None]:
    """Look at the offsets of a convolution; return what ends it."""

    def look(offset: Tensor) -> None:
        geometry = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        keep(name, SampledLayer(offset.detach(), *geometry))

    if isinstance(layer, DeformConv2dPack):
        channels = layer.offset_channels

        def made(_: nn.Module, __: tuple[Any, ...], moves: Tensor) -> None:
            look(moves[:, :channels])

        return layer.conv_offset.register_forward_hook(made).remove

    def given(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], __: Tensor) -> None:
        look(args[1] if len(args) > 1 else kwargs["offset"])

    return layer.register_forward_hook(given, with_kwargs=True).remove


def _watch_pool(
    layer: _Pool, name: str, keep: Callable[[str, SampledBins], None]
) -> Callable[[], None]:
    """Look at the boxes and offsets of RoI pooling; return what ends it.

    No hook sees the offsets that DeformPSRoIPoolPack pools, and those of all four layers go through
    one method: it is covered, on this layer alone, by one that looks.
    """
    covered, pool = layer.__dict__.get("_pool"), layer._pool

    def looking(input: Tensor, boxes: Tensor | Sequence[Tensor], offset: Tensor | None) -> Tensor:
        output = pool(input, boxes, offset)
        if offset is not None:
            keep(name, _sampled_bins(layer, input, boxes, offset))
        return output

    def end() -> None:
        if covered is None:
            del layer.__dict__["_pool"]
        else:
            layer.__dict__["_pool"] = covered

    layer.__dict__["_pool"] = looking
    return end


def _sampled_bins(
    layer: _Pool, input: Tensor, boxes: Tensor | Sequence[Tensor], offset: Tensor
) -> SampledBins:
    sampling: Sampling
    if isinstance(layer, DeformRoIPool | DeformRoIPoolPack):
        sampling = "paper" if layer.sampling_ratio is None else "mmcv"
    else:
        sampling = "paper" if layer.sampling == "paper" else "rfcn"
    return SampledBins(
        _rows(boxes).to(torch.promote_types(input.dtype, torch.float32)),
        offset.detach(),
        (input.shape[2], input.shape[3]),
        layer.output_size,
        layer.spatial_scale,
        layer.gamma,
        sampling,
    )


def _rows(boxes: Tensor | Sequence[Tensor]) -> Tensor:
    """Return boxes as rows (image, x1, y1, x2, y2)."""
    if isinstance(boxes, Tensor):
        return boxes.detach()
    return torch.cat([functional.pad(b.detach(), (1, 0), value=i) for i, b in enumerate(boxes)])
