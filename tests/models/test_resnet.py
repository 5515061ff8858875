"""ResNet backbones: torchvision's weights and features, and deformable layers that start plain."""

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from dcn_tvm import models
from dcn_tvm.nn import DeformConv2dPack

CONV5 = ("res5a", "res5b", "res5c")


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def features(network: Any, images: Tensor) -> dict[str, Tensor]:
    """The maps of a torchvision network, by its own layers."""
    x = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    res4 = network.layer3(network.layer2(network.layer1(x)))
    return {"res4": res4, "res5": network.layer4(res4)}


def dilated(network: Any) -> Any:
    """torchvision's network with its stride replaced, and the first block's dilation mended."""
    for block in network.layer4:
        block.conv2.dilation = block.conv2.padding = (2, 2)
    return network


@pytest.mark.parametrize("depth", [18, 50])
def test_an_undilated_backbone_has_torchvisions_features(depth: int) -> None:
    torchvisions = getattr(torchvision.models, f"resnet{depth}")().eval()
    backbone = getattr(models, f"resnet{depth}")(dilated=False).eval()
    assert backbone.load_pretrained(torchvisions.state_dict()) == []
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected, maps = features(torchvisions, images), backbone(images)
    for name in ("res4", "res5"):
        torch.testing.assert_close(maps[name], expected[name])
        assert maps[name].shape[1] == backbone.out_channels[name]
    assert backbone.stride == 32
    assert maps["res5"].shape[2:] == (2, 3)


@pytest.mark.parametrize("modulated", [False, True])
def test_pretrained_deformable_layers_compute_what_the_dilated_network_does(
    modulated: bool,
) -> None:
    dilate = [False, False, True]
    torchvisions = torchvision.models.resnet50(replace_stride_with_dilation=dilate)
    torchvisions = dilated(torchvisions).eval()
    backbone = models.resnet50(dcn=["res5a", "res5c"], modulated=modulated).eval()
    new = backbone.load_pretrained(torchvisions.state_dict())
    layers = ("layer4.0.conv2", "layer4.2.conv2")
    assert new == [f"{n}.conv_offset.{leaf}" for n in layers for leaf in ("weight", "bias")]
    assert isinstance(backbone.layer4[2].conv2, DeformConv2dPack)
    assert type(backbone.layer4[1].conv2) is nn.Conv2d
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected, maps = features(torchvisions, images), backbone(images)
    scale = expected["res5"].abs().max()
    torch.testing.assert_close(maps["res5"] / scale, expected["res5"] / scale, atol=1e-5, rtol=0)
    assert backbone.stride == 16
    assert maps["res5"].shape == (1, 2048, 4, 6)


def test_the_dilation_of_every_3x3_layer_of_conv5() -> None:
    for network in (models.resnet18(), models.resnet50(dcn=CONV5)):
        kernels = 0
        for layer in network.layer4.modules():
            if getattr(layer, "kernel_size", None) == (3, 3):
                assert layer.dilation == layer.padding == (2, 2)
                assert layer.stride == (1, 1)
                kernels += 1
        assert kernels >= 3
        assert network.layer3[0].conv2.dilation == (1, 1)


def names(stage: int, suffixes: str) -> list[str]:
    return [f"res{stage}{suffix}" for suffix in suffixes.split()]


def test_blocks_have_the_papers_names() -> None:
    with torch.device("meta"):
        fifty, hundred, more = models.resnet50(), models.resnet101(), models.resnet152()
    two, five = names(2, "a b c"), names(5, "a b c")
    expected = [*two, *names(3, "a b c d"), *names(4, "a b c d e f"), *five]
    assert list(fifty.block_names) == expected
    numbered = " ".join(f"b{i}" for i in range(1, 23))
    expected = [*two, *names(3, "a b1 b2 b3"), *names(4, f"a {numbered}"), *five]
    assert list(hundred.block_names) == expected
    assert more.block_names[-4] == "res4b35"


def test_three_layers_of_resnet101_add_the_papers_parameters() -> None:
    with torch.device("meta"):
        plain, deformable = models.resnet101(), models.resnet101(dcn=CONV5)
        grouped = models.resnet101(dcn=[*CONV5, "res4b22"], offset_groups=4)
        torchvisions = torchvision.models.resnet101()
    assert parameters(deformable) - parameters(plain) == 248_886
    assert parameters(torchvisions) - parameters(plain) == 2048 * 1000 + 1000
    assert isinstance(grouped.layer3[22].conv2, DeformConv2dPack)
    assert grouped.layer3[22].conv2.offset_groups == 4
    shared = {n for n in deformable.state_dict() if "conv_offset" not in n}
    assert shared == {n for n in torchvisions.state_dict() if not n.startswith("fc.")}


def test_frozen_normalisation_takes_the_same_weights() -> None:
    state = torchvision.models.resnet18().state_dict()
    backbone = models.resnet18("res5b", norm_layer=FrozenBatchNorm2d)
    assert len(backbone.load_pretrained(state)) == 2
    assert isinstance(backbone.layer4[1].bn2, FrozenBatchNorm2d)
    assert torch.equal(backbone.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])


def test_wrong_weights_are_refused_and_leave_the_network() -> None:
    backbone = models.resnet18(dcn=["res5b"])
    before = {n: t.clone() for n, t in backbone.state_dict().items()}
    state = {n: t + 1 for n, t in torchvision.models.resnet18().state_dict().items()}
    lacking = {n: t for n, t in state.items() if n != "layer2.0.conv1.weight"}
    stranger = {**state, "layer5.0.weight": torch.zeros(1)}
    other = {**state, "conv1.weight": torch.zeros(64, 3, 3, 3)}
    for wrong, text in (
        (lacking, r"1 missing \(layer2.0.conv1.weight\)"),
        (stranger, r"1 unknown \(layer5.0.weight\)"),
        (other, r"conv1.weight \(64, 3, 3, 3\) instead of \(64, 3, 7, 7\)"),
        (before, r"2 unknown \(layer4.1.conv2.conv_offset.bias"),
    ):
        with pytest.raises(ValueError, match=text):
            backbone.load_pretrained(wrong)
    assert all(torch.equal(t, before[n]) for n, t in backbone.state_dict().items())
    without = {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}
    backbone.load_pretrained(without)
    assert torch.equal(backbone.conv1.weight, state["conv1.weight"])


def test_unknown_blocks_are_refused_with_the_known() -> None:
    with pytest.raises(ValueError, match=r"res2a, res2b, .*res5b, got \['res5c'\]"):
        models.resnet18(dcn=["res5a", "res5c"])
    with pytest.raises(ValueError, match="offset_groups"):
        models.resnet18(dcn=["res5a"], offset_groups=3)


def test_channels_last_gives_the_same_features() -> None:
    backbone = models.resnet18(dcn=["res5b"]).eval()
    nn.init.normal_(backbone.layer4[1].conv2.conv_offset.weight, std=0.01)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = backbone(images)["res5"]
        backbone.to(memory_format=torch.channels_last)
        found = backbone(images.contiguous(memory_format=torch.channels_last))["res5"]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert found.is_contiguous(memory_format=torch.channels_last)
