"""ResNet backbones: torchvision's, with a dilated conv5 and deformable layers in chosen blocks."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
import torchvision
from torch import Tensor, nn

from dcn_tvm.nn import DeformConv2dPack, convert

_Norm = Callable[..., nn.Module] | None


class ResNet(nn.Module):
    """A torchvision ResNet without its classifier, that returns the maps of conv4 and conv5.

    All names in the state_dict are torchvision's; a deformable layer adds `conv_offset` to its own.

    Dilated, conv5 has stride 1, and dilation 2 in all its 3 x 3 layers, so that its map has the
    size of conv4's (stride 16). torchvision's `replace_stride_with_dilation` leaves the first of
    these layers at dilation 1; the paper and its released code do not, and neither does this.

    A block has the name of the paper and of the Caffe models, and its deformable layer is its 3 x 3
    convolution "branch2b" (the second of two in ResNet-18 and -34), `conv2` in torchvision.
    The paper's choice is `("res5a", "res5b", "res5c")`; its released detectors have four groups of
    offsets. As they start at zero, the network computes what the plain one does.

    Args:
        network: a torchvision ResNet; its layers are taken over, and changed in place.
        dcn: names of the blocks with a deformable layer; `block_names` lists all.
        offset_groups: groups of input channels that move apart.
        modulated: whether the deformable layers learn a mask too (DCNv2).
        dilated: whether conv5 keeps the size of conv4's map.

    Raises:
        ValueError: there is no block of such a name, or offset_groups does not fit.

    Source: Dai et al., Deformable Convolutional Networks, section 3. Peer: torchvision.

    Example:
        >>> from dcn_tvm.models import resnet50
        >>> backbone = resnet50(dcn=("res5a", "res5b", "res5c"))
        >>> backbone.load_pretrained(torchvision.models.resnet50().state_dict())[0]
        'layer4.0.conv2.conv_offset.weight'
        >>> {name: tuple(m.shape) for name, m in backbone(torch.randn(1, 3, 64, 96)).items()}
        {'res4': (1, 1024, 4, 6), 'res5': (1, 2048, 4, 6)}
    """

    conv1: nn.Module
    bn1: nn.Module
    relu: nn.Module
    maxpool: nn.Module
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def __init__(
        self,
        network: torchvision.models.ResNet,
        dcn: Iterable[str] = (),
        *,
        offset_groups: int = 1,
        modulated: bool = False,
        dilated: bool = True,
    ) -> None:
        super().__init__()
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            self.add_module(name, getattr(network, name))
        self.out_channels = {
            "res4": _channels(network.layer3),
            "res5": _channels(network.layer4),
        }
        self.stride = 16 if dilated else 32
        if dilated:
            _dilate(network.layer4)
        blocks = dict(self._blocks())
        chosen = [dcn] if isinstance(dcn, str) else list(dcn)
        unknown = [name for name in chosen if name not in blocks]
        if unknown:
            raise ValueError(f"dcn must name blocks among {', '.join(blocks)}, got {unknown}")
        if chosen:
            layers = [f"{blocks[name]}.conv2" for name in dict.fromkeys(chosen)]
            convert(self, layers, offset_groups=offset_groups, modulated=modulated)

    def _blocks(self) -> Iterator[tuple[str, str]]:
        """Yield each block's name in the paper and its path: res4b22 is layer3.22."""
        depths = [len(getattr(self, f"layer{stage}")) for stage in (1, 2, 3, 4)]
        deep = sum(depths) > 16  # Caffe numbers blocks in the two middle stages of deeper networks
        for stage, depth in enumerate(depths, start=2):
            for block in range(depth):
                numbered = deep and stage in (3, 4) and block
                suffix = f"b{block}" if numbered else chr(ord("a") + block)
                yield f"res{stage}{suffix}", f"layer{stage - 1}.{block}"

    @property
    def block_names(self) -> tuple[str, ...]:
        """Names of all blocks, from the image upwards."""
        return tuple(name for name, _ in self._blocks())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Turn normalised images `[N, 3, H, W]` into the maps "res4" and "res5"."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        res4 = self.layer3(self.layer2(self.layer1(x)))
        return {"res4": res4, "res5": self.layer4(res4)}

    def load_pretrained(self, state_dict: Mapping[str, Tensor]) -> list[str]:
        """Load a torchvision ResNet of the same depth; all but the new layers must be in it.

        The weight of a modulated layer is doubled, for its mask starts at 1/2: the network computes
        what the loaded one does, but for conv5's dilation.

        Args:
            state_dict: torchvision's; `fc.*` is ignored, `num_batches_tracked` may lack.

        Returns:
            Names of the parameters that are new and stay as they are: the offset heads.

        Raises:
            ValueError: a name is missing or unknown, or a shape is another one. The network is then
                as it was.
        """
        own = self.state_dict()
        packs = {n: m for n, m in self.named_modules() if isinstance(m, DeformConv2dPack)}
        new = [f"{n}.conv_offset.{leaf}" for n in packs for leaf in ("weight", "bias")]
        given = {n: t for n, t in state_dict.items() if not n.startswith("fc.")}
        counters = {n for n in (*own, *given) if n.endswith("num_batches_tracked")}
        wrong = {
            "missing": own.keys() - given.keys() - set(new) - counters,
            "unknown": (given.keys() - own.keys() - counters) | (given.keys() & set(new)),
            "of another shape": {
                f"{n} {tuple(given[n].shape)} instead of {tuple(own[n].shape)}"
                for n in (own.keys() & given.keys()) - set(new)
                if given[n].shape != own[n].shape
            },
        }
        faults = [f"{len(n)} {what} ({', '.join(sorted(n)[:3])})" for what, n in wrong.items() if n]
        if faults:
            raise ValueError(
                f"state_dict must be a torchvision ResNet's of this depth, got {'; '.join(faults)}"
            )
        self.load_state_dict(given, strict=False)
        with torch.no_grad():
            for pack in packs.values():
                if pack.modulated:
                    pack.weight.mul_(2)
        return new


def _channels(stage: nn.Module) -> int:
    """Channels that leave a stage: those of the last convolution of its last block."""
    return [m for m in stage.modules() if isinstance(m, nn.Conv2d)][-1].out_channels


def _dilate(stage: nn.Module) -> None:
    """Take the stride out of a stage and put dilation 2 into all its 3 x 3 layers."""
    for layer in stage.modules():
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)
            if layer.kernel_size == (3, 3):
                layer.dilation = layer.padding = (2, 2)


def resnet18(
    dcn: Iterable[str] = (),
    *,
    offset_groups: int = 1,
    modulated: bool = False,
    dilated: bool = True,
    norm_layer: _Norm = None,
) -> ResNet:
    """Return a ResNet-18 backbone with torchvision's initial weights; see `resnet101`."""
    network = torchvision.models.resnet18(norm_layer=norm_layer)
    return ResNet(network, dcn, offset_groups=offset_groups, modulated=modulated, dilated=dilated)


def resnet34(
    dcn: Iterable[str] = (),
    *,
    offset_groups: int = 1,
    modulated: bool = False,
    dilated: bool = True,
    norm_layer: _Norm = None,
) -> ResNet:
    """Return a ResNet-34 backbone with torchvision's initial weights; see `resnet101`."""
    network = torchvision.models.resnet34(norm_layer=norm_layer)
    return ResNet(network, dcn, offset_groups=offset_groups, modulated=modulated, dilated=dilated)


def resnet50(
    dcn: Iterable[str] = (),
    *,
    offset_groups: int = 1,
    modulated: bool = False,
    dilated: bool = True,
    norm_layer: _Norm = None,
) -> ResNet:
    """Return a ResNet-50 backbone with torchvision's initial weights; see `resnet101`."""
    network = torchvision.models.resnet50(norm_layer=norm_layer)
    return ResNet(network, dcn, offset_groups=offset_groups, modulated=modulated, dilated=dilated)


def resnet101(
    dcn: Iterable[str] = (),
    *,
    offset_groups: int = 1,
    modulated: bool = False,
    dilated: bool = True,
    norm_layer: _Norm = None,
) -> ResNet:
    """Return a ResNet-101 backbone, the paper's, with torchvision's initial weights.

    Args:
        dcn: names of the blocks with a deformable layer, `("res5a", "res5b", "res5c")` in the
            paper.
        offset_groups: groups of input channels that move apart.
        modulated: whether the deformable layers learn a mask too (DCNv2).
        dilated: whether conv5 keeps the size of conv4's map.
        norm_layer: what normalises; None for `torch.nn.BatchNorm2d`. Detectors trained on few
            images at a time take `torchvision.ops.FrozenBatchNorm2d`.

    Raises:
        ValueError: there is no block of such a name, or offset_groups does not fit.

    Source: Dai et al., Deformable Convolutional Networks, section 3.

    Example:
        >>> from dcn_tvm.models import resnet101
        >>> resnet101(dcn=("res4b22", "res5a")).stride
        16
    """
    network = torchvision.models.resnet101(norm_layer=norm_layer)
    return ResNet(network, dcn, offset_groups=offset_groups, modulated=modulated, dilated=dilated)


def resnet152(
    dcn: Iterable[str] = (),
    *,
    offset_groups: int = 1,
    modulated: bool = False,
    dilated: bool = True,
    norm_layer: _Norm = None,
) -> ResNet:
    """Return a ResNet-152 backbone with torchvision's initial weights; see `resnet101`."""
    network = torchvision.models.resnet152(norm_layer=norm_layer)
    return ResNet(network, dcn, offset_groups=offset_groups, modulated=modulated, dilated=dilated)
