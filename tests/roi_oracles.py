"""The tolerance rule of tests/oracles.py for the RoI ops."""

from collections.abc import Callable

import torch
from torch import Tensor

from tests.cases import Arguments, Results
from tests.oracles import Reduction, assert_within_rule


def assert_roi_matches_reference(
    function: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    arguments: Arguments,
    needed: tuple[str, ...] | None = None,
) -> Results:
    """Compare output and gradients of one call with the reference; return them."""
    if needed is None:
        needed = tuple(name for name in ("input", "offset") if name in arguments.tensors)
    exact = arguments.to(torch.float64).run(reference, needed)
    same_dtype = _in_same_dtype(reference, arguments, needed, exact)
    actual = arguments.run(function, needed)
    reductions = roi_reductions(reference, arguments)
    assert actual.keys() == exact.keys()
    for name, result in actual.items():
        assert_within_rule(name, result, exact[name], same_dtype[name], reductions[name])
    return actual


def _in_same_dtype(
    reference: Callable[..., Tensor],
    arguments: Arguments,
    needed: tuple[str, ...],
    exact: Results,
) -> Results:
    """Return the reference's results in the op's dtype; of float64 an estimate.

    The positions of samples are rounded too, which the rounding band of the rule leaves out. How
    far that goes shows in the results of float32, and the error of float64 is that, scaled.
    """
    if exact["output"].dtype != arguments.tensors["input"].dtype:
        return arguments.run(reference, needed)
    narrow = arguments.to(torch.float32).run(reference, needed)
    ratio = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    return {name: wide + (narrow[name].double() - wide) * ratio for name, wide in exact.items()}


def roi_reductions(reference: Callable[..., Tensor], arguments: Arguments) -> dict[str, Reduction]:
    """Return the reduction that makes the output and every gradient."""
    wide = arguments.to(torch.float64)
    # Shares of pixels are not negative. The pixels stay for the input's gradient: they choose where
    # the gradient of a maximum goes.
    positive_grad = Arguments(wide.tensors, wide.options, wide.grad_output.abs())
    positive_data = wide.mapped(torch.abs, ["input"])
    magnitudes = {
        "output": positive_data.run(reference, ())["output"],
        "input": positive_grad.run(reference, ("input",))["input"],
    }
    if "offset" in wide.tensors:
        magnitudes["offset"] = _offset_magnitude(positive_grad)
    # The number of terms differs from bin to bin and may be one.
    return {name: Reduction(terms.nan_to_num(), 1) for name, terms in magnitudes.items()}


def _offset_magnitude(arguments: Arguments) -> Tensor:
    """Return a bound of the sum of |grad_output * slope * gamma * size|, by offset."""
    offset, boxes = arguments.tensors["offset"], arguments.tensors["boxes"]
    gamma = arguments.options.get("gamma", 0.1)
    scale = arguments.options["spatial_scale"]
    pixels = arguments.tensors["input"].abs().nan_to_num(posinf=0)
    largest = pixels.max() if pixels.numel() else 0
    # Rounded corners and R-FCN's last pixel add at most two pixels.
    size = (boxes[:, 3:] - boxes[:, 1:3]).abs() * scale + 2 * max(scale, 1)
    grad = arguments.grad_output
    count, channels, rows, columns = grad.shape
    classes, (parts_y, parts_x) = offset.shape[1] // 2, offset.shape[2:]
    by_class = grad.reshape(count, classes, channels // classes, rows, columns).sum(2)
    row = torch.arange(rows) * parts_y // rows
    column = torch.arange(columns) * parts_x // columns
    by_part = by_class.new_zeros(count, classes, parts_y, columns).index_add(2, row, by_class)
    by_part = by_part.new_zeros(count, classes, parts_y, parts_x).index_add(3, column, by_part)
    both = by_part.unsqueeze(2) * size[:, None, :, None, None]
    return (2 * largest * gamma * both).reshape(offset.shape)
