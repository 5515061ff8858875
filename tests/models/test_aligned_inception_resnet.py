"""The second backbone: what is known of it, and that its pixels stand where they look."""

import pytest
import torch
from torch import nn

from dcn_tvm.models import AlignedInceptionResNet, Backbone, InceptionResidualBlock


def one_weights(network: nn.Module) -> nn.Module:
    """Every weight one, and the mean for the maximum: whatever is seen then has a gradient."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                mean = nn.AvgPool2d(child.kernel_size, child.stride, child.padding)
                setattr(module, name, mean)
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    return network.eval().double()


@pytest.mark.parametrize(("blocks", "dilated"), [((1, 1, 1, 1), True), ((1, 2, 1, 1), False)])
def test_a_pixel_stands_at_the_centre_of_what_it_sees(
    blocks: tuple[int, ...], dilated: bool
) -> None:
    network = AlignedInceptionResNet(blocks, (4, 4, 4, 4), (2, 2, 2, 2), dilated=dilated)
    one_weights(network)
    images = torch.rand(1, 3, 512, 512, dtype=torch.float64, requires_grad=True)
    res5 = network(images)["res5"]  # type: ignore[operator]
    y, x = res5.shape[2] // 2, res5.shape[3] // 2 - 1
    res5[0, 0, y, x].backward()
    for axis, place in ((1, y), (2, x)):
        seen = images.grad[0].abs().sum(dim=(0, 3 - axis)).nonzero()
        first, last = int(seen.min()), int(seen.max())
        assert 0 < first < last < 511
        assert (first + last) / 2 == place * network.stride  # type: ignore[operator]


def test_the_block_joins_three_branches_with_the_input() -> None:
    block = InceptionResidualBlock(6, 6, width=4).eval()
    kernels = [[step[0].kernel_size[0] for step in branch] for branch in block.branches]
    assert kernels == [[1], [1, 3], [1, 3, 3]]
    x = torch.randn(2, 6, 5, 7)
    nn.init.zeros_(block.join[1].weight)
    torch.testing.assert_close(block(x), x.relu())
    wider = InceptionResidualBlock(6, 8, width=4, stride=2, dilation=2)
    assert wider(x).shape == (2, 8, 3, 4)
    assert {m.kernel_size for m in wider.modules() if isinstance(m, nn.Conv2d)} == {(1, 1), (3, 3)}


def test_the_number_of_parameters_comes_near_the_papers() -> None:
    with torch.device("meta"):
        network = AlignedInceptionResNet()
        classifier = nn.Linear(2048, 1000)
    both = [*network.parameters(), *classifier.parameters()]
    assert abs(sum(p.numel() for p in both) / 64.3e6 - 1) < 0.01
    assert isinstance(network, Backbone)
    assert network.out_channels == {"res4": 1024, "res5": 2048}


def test_wrong_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="four numbers"):
        AlignedInceptionResNet((1, 1, 1))
    with pytest.raises(ValueError, match="at least 1, got 4, 4, 0"):
        InceptionResidualBlock(4, 4, 0)
