"""The one tolerance rule, and the comparison of an op with its float64 reference.

An op is right where its error against the float64 reference is at most twice the sum of

- the error of the same reference in the op's own dtype (that is what the dtype can do), and
- a rounding band: each term of the sum rounded to the dtype once, the terms added in the compute
  dtype (float32 at least), the result rounded to the dtype once.

The band needs the sum of the terms' absolute values. Every result but the gradient of the offset is
a sum of products with non-negative bilinear shares, so the reference of the absolute tensors is it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dcn_tvm import reference
from tests.cases import Arguments, Results


@dataclass(frozen=True)
class Reduction:
    """The sum that makes one result: the absolute values of its terms, added, and their number."""

    magnitude: Tensor
    length: int


def rounding_band(exact: Tensor, reduction: Reduction, dtype: torch.dtype) -> Tensor:
    """Return how far rounding may move each element of a result."""
    compute_eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    eps = torch.finfo(dtype).eps
    # Roundings of single terms are independent: of n of them, sqrt(n) add up.
    terms = reduction.magnitude / math.sqrt(max(reduction.length, 1))
    return compute_eps * reduction.magnitude + eps * (exact.abs() + terms)


def assert_within_rule(
    name: str, actual: Tensor, exact: Tensor, same_dtype: Tensor, reduction: Reduction
) -> None:
    """Raise AssertionError where `actual` breaks the rule, or is not NaN where `exact` is."""
    assert actual.shape == exact.shape, f"{name}: shape {actual.shape}, expected {exact.shape}"
    assert actual.dtype == same_dtype.dtype, f"{name}: {actual.dtype}, not {same_dtype.dtype}"
    unknown = exact.isnan()
    assert torch.equal(actual.isnan(), unknown), f"{name}: NaN in other places than the reference"
    if exact.numel() == 0 or unknown.all():
        return
    error = (actual.double() - exact).abs().masked_fill(unknown, 0)
    reference_error = (same_dtype.double() - exact).abs().masked_fill(unknown, 0).max()
    band = rounding_band(exact, reduction, actual.dtype).masked_fill(unknown, 0)
    excess = error - 2 * (reference_error + band)
    worst = int(excess.argmax())
    assert excess.max() <= 0, (
        f"{name}: error {error.flatten()[worst]:.3e} at element {worst}, more than twice "
        f"(reference error {reference_error:.3e} + rounding band {band.flatten()[worst]:.3e}); "
        f"got {actual.flatten()[worst]}, expected {exact.flatten()[worst]}"
    )


def assert_matches_reference(
    function: Callable[..., Tensor], arguments: Arguments, needed: tuple[str, ...] | None = None
) -> Results:
    """Compare output and gradients of one deform_conv2d call with the reference; return them."""
    oracle = reference.deform_conv2d
    exact = arguments.to(torch.float64).run(oracle, needed)
    same_dtype = arguments.run(oracle, needed)
    actual = arguments.run(function, needed)
    reductions = deform_conv2d_reductions(arguments)
    assert actual.keys() == exact.keys()
    for name, result in actual.items():
        assert_within_rule(name, result, exact[name], same_dtype[name], reductions[name])
    return actual


def deform_conv2d_reductions(arguments: Arguments) -> dict[str, Reduction]:
    """Return the reduction that makes the output and every gradient."""
    positive = arguments.to(torch.float64)
    names = [name for name in positive.tensors if name != "offset"]
    positive = positive.mapped(lambda tensor: tensor.abs().nan_to_num(posinf=0), names)
    absolute = Arguments(positive.tensors, positive.options, positive.grad_output.abs())
    magnitudes = absolute.run(reference.deform_conv2d)
    magnitudes["offset"] = _offset_magnitude(absolute)
    filters, filter_channels, *kernel = arguments.tensors["weight"].shape
    groups = arguments.tensors["input"].shape[1] // filter_channels
    points, group_filters = math.prod(kernel), filters // groups
    rows = arguments.grad_output[:, 0].numel()
    lengths = {
        "output": filter_channels * points,
        "input": group_filters * points,
        "offset": filter_channels * group_filters,
        "mask": filter_channels * group_filters,
        "weight": rows,
        "bias": rows,
    }
    return {
        name: Reduction(magnitude.nan_to_num(), lengths[name])
        for name, magnitude in magnitudes.items()
    }


def _offset_magnitude(absolute: Arguments) -> Tensor:
    """Return the sum of |grad_output * weight * mask * slope|; no slope exceeds twice the data."""
    tensors, grad_output = absolute.tensors, absolute.grad_output
    weight, offset = tensors["weight"], tensors["offset"]
    filters, filter_channels, *kernel = weight.shape
    channels, points = tensors["input"].shape[1], math.prod(kernel)
    batch, groups = grad_output.shape[0], channels // filter_channels
    grouped = grad_output.reshape(batch, groups, filters // groups, *grad_output.shape[2:])
    by_filter = weight.reshape(groups, filters // groups, filter_channels, points)
    columns = torch.einsum("ngoij,gock->ngckij", grouped, by_filter)
    offset_groups = offset.shape[1] // (2 * points)
    out_size = offset.shape[2:]
    samples = columns.reshape(
        batch, offset_groups, channels // offset_groups, points, *out_size
    ).sum(2)
    if "mask" in tensors:
        samples = samples * tensors["mask"].reshape(samples.shape)
    largest = tensors["input"].max() if tensors["input"].numel() else 0
    both = (2 * largest * samples).unsqueeze(3).expand(-1, -1, -1, 2, -1, -1)
    return both.reshape(offset.shape)
