"""Each op of torchvision, with its own arguments and results, computed by the package's kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils import _pytree as pytree

from dcn_tvm import functional
from dcn_tvm.errors import DcnTvmError
from dcn_tvm.functional.boxes import Common, check_common, check_group

Theirs = Callable[..., Any]  # the kernel that a call would have reached, with the op's arguments


class Refused(Exception):
    """Arguments that the package's functions do not take: torchvision's kernel has the word."""


def deform_conv2d(
    theirs: Theirs,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor,
    bias: Tensor,
    *numbers: Any,
) -> Tensor:
    """Convolve; stride, padding and dilation follow, groups, and whether the mask counts."""
    *geometry, groups, offset_groups, use_mask = numbers
    stride, padding, dilation = (tuple(geometry[i : i + 2]) for i in (0, 2, 4))
    if weight.dim() != 4 or groups * weight.shape[1] != input.shape[1]:
        raise Refused
    if offset_groups * 2 * weight.shape[2] * weight.shape[3] != offset.shape[1]:
        raise Refused
    try:
        output = functional.deform_conv2d(
            input, offset, weight, bias, stride, padding, dilation, mask if use_mask else None
        )
    except DcnTvmError:
        raise
    except (TypeError, ValueError):  # from the checks: no value of a tensor is an error here
        raise Refused from None
    return output.contiguous()


def roi_align(
    theirs: Theirs,
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    rows: int,
    columns: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Average bilinear samples of each bin."""
    boxes, scale, bins = _common(input, rois, spatial_scale, (rows, columns))
    output: Tensor = torch.ops.dcn_tvm.roi_align(input, boxes, scale, bins, sampling_ratio, aligned)
    return output.contiguous()


def roi_pool(
    theirs: Theirs, input: Tensor, rois: Tensor, spatial_scale: float, rows: int, columns: int
) -> tuple[Tensor, Tensor]:
    """Take the maximum of each bin, and where it is, if anybody asks."""
    boxes, scale, bins = _common(input, rois, spatial_scale, (rows, columns))
    output: Tensor = torch.ops.dcn_tvm.roi_pool(input, boxes, scale, bins, "max")

    def argmax(input: Tensor, boxes: Tensor) -> Tensor:
        # Half types, which torchvision has not on a CPU, have the order of the wider numbers.
        wide = input.detach().to(boxes.dtype)
        found: Tensor = theirs(wide, boxes, spatial_scale, rows, columns)[1]
        return found

    if _is_plain(input):
        return output.contiguous(), LazyTensor(output, torch.int32, argmax, (input, boxes))
    return output.contiguous(), argmax(input, boxes)  # a traced graph drops what nobody reads


def ps_roi_pool(
    theirs: Theirs, input: Tensor, rois: Tensor, spatial_scale: float, rows: int, columns: int
) -> tuple[Tensor, Tensor]:
    """Average the pixels of each bin's own channels, and name the channels."""
    boxes, scale, bins = _common(input, rois, spatial_scale, (rows, columns), apart=True)
    output: Tensor = torch.ops.dcn_tvm.ps_roi_pool(input, boxes, scale, bins, "torchvision")
    return output.contiguous(), _channels(output)


def ps_roi_align(
    theirs: Theirs,
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    rows: int,
    columns: int,
    sampling_ratio: int,
) -> tuple[Tensor, Tensor]:
    """Average bilinear samples of each bin's own channels, and name the channels."""
    boxes, scale, bins = _common(input, rois, spatial_scale, (rows, columns), apart=True)
    output: Tensor = torch.ops.dcn_tvm.ps_roi_align(input, boxes, scale, bins, sampling_ratio)
    return output.contiguous(), _channels(output)


KERNELS: dict[str, Callable[..., Any]] = {
    kernel.__name__: kernel
    for kernel in (deform_conv2d, roi_pool, roi_align, ps_roi_pool, ps_roi_align)
}


def _common(
    input: Tensor, rois: Tensor, scale: float, bins: tuple[int, int], apart: bool = False
) -> Common:
    """Only the checks are refused: a box of an image that is not there must stay an error."""
    try:
        common = check_common(input, rois, bins, scale)
        if apart:
            check_group(input, *common.bins)
    except (TypeError, ValueError):
        raise Refused from None
    return common


def _channels(output: Tensor) -> Tensor:
    """The channel of the input that each value comes from."""
    boxes, channels, rows, columns = output.shape
    numbers = torch.arange(channels * rows * columns, dtype=torch.int32, device=output.device)
    return numbers.reshape(1, channels, rows, columns).repeat(boxes, 1, 1, 1)


def _is_plain(tensor: Tensor) -> bool:
    """Whether the tensor is there to read: nobody traces, transforms or fakes it."""
    return type(tensor) in (Tensor, Parameter) and (
        torch._C._dispatch_keys(tensor).raw_repr()
        in (
            torch._C._dispatch_keys(tensor.detach().new_empty(0)).raw_repr(),
            torch._C._dispatch_keys(torch.empty(0, device=tensor.device)).raw_repr(),
        )
    )


class LazyTensor(torch.Tensor):
    """A tensor of the shape of another whose values are computed by the first op that reads them.

    torchvision's backward pass of a maximum reads where it was, the package's looks again; so
    almost nobody reads it, and to find it would take longer than all the rest.
    """

    _compute: Callable[..., Tensor]
    _inputs: tuple[Tensor, ...]
    _versions: list[int]
    _value: Tensor | None

    @staticmethod
    def __new__(
        cls: type[LazyTensor],
        like: Tensor,
        dtype: torch.dtype,
        compute: Callable[..., Tensor],
        inputs: tuple[Tensor, ...],
    ) -> LazyTensor:
        """Promise `compute(*inputs)`, of the inputs as they are now."""
        tensor: LazyTensor = torch.Tensor._make_wrapper_subclass(
            cls, like.shape, dtype=dtype, device=like.device
        )
        if not torch.is_grad_enabled():
            # Maybe inside a compiled graph, which uses memory again without raising versions.
            inputs = tuple(one.clone() for one in inputs)
        tensor._compute, tensor._inputs, tensor._value = compute, inputs, None
        tensor._versions = [0 if one.is_inference() else one._version for one in inputs]
        return tensor

    @classmethod
    def __torch_dispatch__(  # type: ignore[override] # torch declares it without the class
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call an op with the values."""
        args, kwargs = pytree.tree_map_only(LazyTensor, LazyTensor._get, (args, kwargs or {}))
        return func(*args, **kwargs)

    def _get(self) -> Tensor:
        if self._value is None:
            versions = [0 if one.is_inference() else one._version for one in self._inputs]
            if versions != self._versions:
                raise RuntimeError("the input must stay as it was until argmax is read")
            self._value = self._compute(*self._inputs)
        return self._value
