"""The layers: torchvision's parameters, conv2d's answer before training, and learning."""

import copy
import doctest
import importlib
import io
import math

import pytest
import torch
import torchvision
from torch.nn import functional as F

import dcn_tvm.nn
import dcn_tvm.reference
from tests.cases import CASES, Case


def layer_arguments(case: Case) -> dict[str, object]:
    return {
        "in_channels": case.in_channels,
        "out_channels": case.out_channels,
        "kernel_size": case.kernel,
        "stride": case.stride,
        "padding": case.padding,
        "dilation": case.dilation,
        "groups": case.groups,
        "bias": case.bias,
    }


@pytest.mark.parametrize("name", ["modulated", "no_bias", "uneven", "groups_split"])
def test_is_a_drop_in_for_torchvisions_layer(name: str) -> None:
    case = CASES[name]
    layers = []
    for layer_class in (torchvision.ops.DeformConv2d, dcn_tvm.nn.DeformConv2d):
        torch.manual_seed(7)
        layers.append(layer_class(**layer_arguments(case)))
    theirs, ours = layers
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key
    ours.load_state_dict(theirs.state_dict())
    tensors = case.arguments().tensors
    maps = (tensors["input"], tensors["offset"], tensors.get("mask"))
    torch.testing.assert_close(ours(*maps), theirs(*maps))


def test_the_boundary_reaches_the_op() -> None:
    case = CASES["msra"]
    layer = dcn_tvm.nn.DeformConv2d(**layer_arguments(case), boundary="msra")
    tensors = case.arguments().tensors
    given = {**tensors, "weight": layer.weight, "bias": layer.bias}
    expected = dcn_tvm.deform_conv2d(**given, **case.options())
    assert torch.equal(layer(tensors["input"], tensors["offset"], tensors["mask"]), expected)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("name", ["plain", "uneven", "groups"])
def test_a_new_pack_is_conv2d(name: str, modulated: bool) -> None:
    case = CASES[name]
    layer = dcn_tvm.nn.DeformConv2dPack(**layer_arguments(case), modulated=modulated)
    x = case.arguments().tensors["input"]
    weight = layer.weight / 2 if modulated else layer.weight  # the mask starts at sigmoid(0)
    expected = F.conv2d(
        x, weight, layer.bias, case.stride, case.padding, case.dilation, case.groups
    )
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("name", ["modulated", "groups_split"])
def test_a_pack_feeds_its_head_to_the_op(name: str) -> None:
    case = CASES[name]
    layer = dcn_tvm.nn.DeformConv2dPack(
        **layer_arguments(case), offset_groups=case.offset_groups, modulated=True
    )
    torch.nn.init.normal_(layer.conv_offset.weight, std=0.1)
    x = case.arguments().tensors["input"]
    moves = layer.conv_offset(x)
    points = case.offset_groups * math.prod(case.kernel)
    expected = dcn_tvm.reference.deform_conv2d(
        x,
        moves[:, : 2 * points],
        layer.weight,
        layer.bias,
        case.stride,
        case.padding,
        case.dilation,
        moves[:, 2 * points :].sigmoid(),
    )
    assert moves.shape[1] == 3 * points
    torch.testing.assert_close(layer(x), expected)


def test_a_pack_learns_a_shift() -> None:
    layer = dcn_tvm.nn.DeformConv2dPack(3, 2, 1)
    smooth = F.avg_pool2d(torch.randn(2, 3, 16, 16), 5, stride=1, padding=2)
    with torch.no_grad():
        target = F.conv2d(smooth.roll(1, dims=3), layer.weight, layer.bias)
    layer.weight.requires_grad_(False)
    optimizer = torch.optim.Adam(layer.conv_offset.parameters(), lr=0.05)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.mse_loss(layer(smooth), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert layer.conv_offset(smooth)[:, 1].mean() < -0.5  # x, to the left


def test_parameter_groups_single_out_the_offset_heads() -> None:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 1),
        dcn_tvm.nn.DeformConv2dPack(4, 4, 3),
        torch.nn.Sequential(dcn_tvm.nn.DeformConv2dPack(4, 4, 3, modulated=True, bias=False)),
    )
    rest, heads = dcn_tvm.nn.parameter_groups(network, lr=0.1, beta=0.25)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert [names[id(p)] for p in heads["params"]] == [
        "1.conv_offset.weight",
        "1.conv_offset.bias",
        "2.0.conv_offset.weight",
        "2.0.conv_offset.bias",
    ]
    assert [names[id(p)] for p in rest["params"]] == [
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "2.0.weight",
    ]
    assert (rest["lr"], heads["lr"]) == (0.1, 0.025)
    torch.optim.SGD(dcn_tvm.nn.parameter_groups(network, lr=0.1), momentum=0.9).step()
    with pytest.raises(ValueError, match="-1"):
        dcn_tvm.nn.parameter_groups(network, lr=0.1, beta=-1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"groups": 3}, "in_channels=4, groups=3"),
        ({"in_channels": 6, "groups": 3}, "out_channels=8, groups=3"),
        ({"offset_groups": 3}, "offset_groups=3"),
    ],
)
def test_groups_that_do_not_divide_are_refused(arguments: dict[str, int], words: str) -> None:
    given = {"in_channels": 4, "out_channels": 8, "kernel_size": 3, **arguments}
    with pytest.raises(ValueError, match=words):
        dcn_tvm.nn.DeformConv2dPack(**given)


def test_the_layers_print_what_differs_from_the_defaults() -> None:
    plain = dcn_tvm.nn.DeformConv2d(4, 8, 3)
    assert repr(plain) == "DeformConv2d(4, 8, kernel_size=(3, 3), stride=(1, 1))"
    layer = dcn_tvm.nn.DeformConv2dPack(
        4, 8, 3, 2, 1, 2, groups=2, bias=False, offset_groups=4, modulated=True, boundary="msra"
    )
    assert layer.extra_repr() == (
        "4, 8, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(2, 2), groups=2, "
        "boundary='msra', bias=False, offset_groups=4, modulated=True"
    )


def test_the_layers_copy_and_save() -> None:
    layer = dcn_tvm.nn.DeformConv2dPack(3, 2, 1, modulated=True)
    torch.nn.init.normal_(layer.conv_offset.weight)
    x = torch.randn(1, 3, 5, 5)
    stream = io.BytesIO()
    torch.save(layer.state_dict(), stream)
    stream.seek(0)
    fresh = dcn_tvm.nn.DeformConv2dPack(3, 2, 1, modulated=True)
    fresh.load_state_dict(torch.load(stream))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    assert torch.equal(fresh(x), layer(x))


@pytest.mark.parametrize("module", ["nn.conv", "nn.parameters", "reference.deform_conv2d"])
def test_the_examples_run(module: str) -> None:
    examples = importlib.import_module(f"dcn_tvm.{module}")
    result = doctest.testmod(examples, extraglobs={"torch": torch, "dcn_tvm": dcn_tvm})
    assert result.attempted > 0
    assert result.failed == 0
