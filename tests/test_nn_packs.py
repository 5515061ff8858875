"""RoI layers that make their own offsets: plain pooling at first, and then they learn."""

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dcn_tvm import nn, reference

SCALE = 0.25
BOXES = torch.tensor(
    [[0, 1.0, 2, 30, 21], [1, 9.5, 0, 44, 36], [1, 20, 11, 23, 13], [0, -9, 30, 18, 50]]
)


def conv_pack() -> nn.DeformPSRoIPoolPack:
    return nn.DeformPSRoIPoolPack(3, 2, 2, SCALE, sample_per_part=2)


# Every layer that makes its offsets, for 8 channels: the layer's inputs follow from `arguments`.
PACKS: dict[str, Callable[[], Any]] = {
    "fc": lambda: nn.DeformRoIPoolPack(8, 2, SCALE),
    "fc_hidden": lambda: nn.DeformRoIPoolPack(8, (2, 3), SCALE, hidden=5, sampling_ratio=2),
    "conv": conv_pack,
    "conv_agnostic": lambda: nn.DeformPSRoIPoolPack(
        3, 2, 2, SCALE, offset_classes=1, part_size=1, sampling="paper"
    ),
}


def arguments(pack: torch.nn.Module) -> tuple[Any, ...]:
    x, features = torch.randn(2, 8, 9, 11), torch.randn(2, 3, 9, 11)
    own = isinstance(pack, nn.DeformPSRoIPoolPack)
    return (x, BOXES, features) if own else (x, BOXES)


def head(pack: Any) -> Any:
    """Return the layer that writes the offsets, all x before all y for one class."""
    return pack.conv_offset if isinstance(pack, nn.DeformPSRoIPoolPack) else pack.offset_fc[-1]


def awake(name: str) -> Any:
    pack = PACKS[name]()
    torch.nn.init.normal_(head(pack).weight, std=2)
    return pack


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", PACKS)
def test_a_new_pack_is_plain_pooling(name: str, layout: torch.memory_format) -> None:
    pack = PACKS[name]()
    x, boxes, *features = arguments(pack)
    x = x.contiguous(memory_format=layout)
    if features:
        still = nn.DeformPSRoIPool(
            2, SCALE, sample_per_part=pack.sample_per_part, sampling=pack.sampling
        )
    else:
        still = nn.DeformRoIPool(pack.output_size, SCALE, pack.sampling_ratio)
    torch.testing.assert_close(pack(x, boxes, *features), still(x, boxes))
    assert pack(x, boxes[:0], *features).shape[0] == 0


def test_a_pack_feeds_its_head_to_the_op() -> None:
    pack = awake("fc_hidden")
    x, boxes = arguments(pack)
    still = reference.deform_roi_pool(x, boxes, None, (2, 3), SCALE, sampling_ratio=2)
    offset = pack.offset_fc(still.flatten(1)).reshape(-1, 2, 2, 3)
    expected = reference.deform_roi_pool(x, boxes, offset, (2, 3), SCALE, sampling_ratio=2)
    torch.testing.assert_close(pack(x, boxes), expected)
    assert not torch.allclose(expected, still)


@pytest.mark.parametrize("name", ["conv", "conv_agnostic"])
def test_a_position_sensitive_pack_pools_its_offsets_alike(name: str) -> None:
    pack = awake(name)
    x, boxes, features = arguments(pack)
    sampling = {"sample_per_part": pack.sample_per_part, "sampling": pack.sampling}
    maps, parts = pack.conv_offset(features), pack.part_size or 2
    offset = reference.deform_ps_roi_pool(maps, boxes, None, parts, SCALE, **sampling)
    assert offset.shape == (4, 2 * pack.offset_classes, parts, parts)
    expected = reference.deform_ps_roi_pool(x, boxes, offset, 2, SCALE, part_size=parts, **sampling)
    torch.testing.assert_close(pack(x, boxes, features), expected)


def test_every_class_moves_by_its_own_offsets() -> None:
    pack = conv_pack()
    with torch.no_grad():
        pack.conv_offset.bias[8:12] = 1  # class 1, x
    ramp = torch.arange(40.0).expand(1, 8, 40, 40)
    box = torch.tensor([[0, 40.0, 40, 79, 79]])  # ten pixels of the map: x moves by one
    moved = pack(ramp, box, torch.zeros(1, 3, 40, 40))
    still = nn.DeformPSRoIPool(2, SCALE, sample_per_part=2)(ramp, box)
    torch.testing.assert_close(moved[:, 0], still[:, 0])
    torch.testing.assert_close(moved[:, 1], still[:, 1] + 1)


@pytest.mark.parametrize(
    ("pack", "count"),
    [
        (lambda: nn.DeformRoIPoolPack(256, 7), 12544 * 98 + 98),
        (lambda: nn.DeformRoIPoolPack(8, 2, hidden=5), 32 * 5 + 5 + 5 * 5 + 5 + 5 * 8 + 8),
        (lambda: nn.DeformPSRoIPoolPack(1024, 21, 7), 2 * 49 * 21 * 1024 + 2 * 49 * 21),
        (lambda: nn.DeformPSRoIPoolPack(1024, 84, 7, offset_classes=1), 2 * 49 * 1024 + 2 * 49),
        (lambda: nn.DeformPSRoIPoolPack(6, 4, 3, part_size=2), 2 * 4 * 4 * 6 + 2 * 4 * 4),
    ],
)
def test_a_pack_has_the_papers_parameters(pack: Callable[[], Any], count: int) -> None:
    layer = pack()
    assert sum(p.numel() for p in layer.parameters()) == count
    assert list(layer.offset_parameters()) == list(layer.parameters())


def test_the_state_dicts_have_mmcvs_names() -> None:
    both = ["weight", "bias"]
    assert list(PACKS["fc"]().state_dict()) == [f"offset_fc.0.{n}" for n in both]
    names = [f"offset_fc.{i}.{n}" for i in (0, 2, 4) for n in both]
    assert list(PACKS["fc_hidden"]().state_dict()) == names
    assert list(conv_pack().state_dict()) == [f"conv_offset.{n}" for n in both]


@pytest.mark.parametrize("name", PACKS)
def test_gradients_reach_every_parameter_and_input(name: str) -> None:
    pack = awake(name)
    x, boxes, *features = arguments(pack)
    inputs = [x, *features]
    for tensor in inputs:
        tensor.requires_grad_()
    pack(x, boxes, *features).square().sum().backward()
    for tensor in (*inputs, *pack.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "pack",
    [
        lambda: nn.DeformRoIPoolPack(4, 2),
        lambda: nn.DeformRoIPoolPack(4, 2, hidden=8, sampling_ratio=2),
        lambda: nn.DeformPSRoIPoolPack(4, 1, 2),
        lambda: nn.DeformPSRoIPoolPack(4, 1, 2, part_size=1, sampling="paper"),
    ],
)
def test_bins_learn_to_move_to_the_content(pack: Callable[[], Any]) -> None:
    layer = pack()
    y, x = torch.meshgrid(torch.arange(16), torch.arange(32), indexing="ij")
    blob = torch.exp(-((x - 19) ** 2 + (y - 8) ** 2) / 50).expand(1, 4, 16, 32).contiguous()
    box = torch.tensor([[0, 7.0, 4, 15, 12]])  # to the left of the blob, and as high
    inputs = (blob, box, blob) if isinstance(layer, nn.DeformPSRoIPoolPack) else (blob, box)
    moves: list[Tensor] = []
    head(layer).register_forward_hook(lambda _, __, output: moves.append(output.detach()))
    optimizer = torch.optim.SGD(nn.parameter_groups(layer, lr=2.0, beta=1.0), momentum=0.9)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = 1 - layer(*inputs).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    along_x, along_y = moves[-1].chunk(2, dim=1)
    assert along_x.mean() > 2 + along_y.abs().mean()


class OwnHead(torch.nn.Linear):
    def offset_parameters(self) -> Iterator[torch.nn.Parameter]:
        return iter([self.weight])


def test_parameter_groups_know_every_pack() -> None:
    network = torch.nn.ModuleDict(
        {
            "score": torch.nn.Conv2d(3, 8, 1),
            "conv": nn.DeformConv2dPack(4, 4, 3),
            "fc": nn.DeformRoIPoolPack(4, 2, hidden=3),
            "nested": torch.nn.Sequential(conv_pack(), OwnHead(2, 2)),
        }
    )
    names = {id(parameter): name for name, parameter in network.named_parameters()}

    def split(beta: Any) -> list[tuple[set[str], float]]:
        groups = nn.parameter_groups(network, lr=1.0, beta=beta)
        assert sorted(id(p) for group in groups for p in group["params"]) == sorted(names)
        torch.optim.SGD(groups)
        layers = [{names[id(p)].rsplit(".", 1)[0] for p in group["params"]} for group in groups]
        return [(found, group["lr"]) for found, group in zip(layers, groups, strict=True)]

    fc = {f"fc.offset_fc.{i}" for i in (0, 2, 4)}
    plain = {"score", "conv", "nested.1"}  # the bias of the last is no head
    convs = {"conv.conv_offset", "nested.0.conv_offset"}
    assert split(0.5) == [(plain, 1.0), ({*fc, *convs, "nested.1"}, 0.5)]
    assert split({nn.DeformRoIPoolPack: 0.01}) == [({*plain, *convs}, 1.0), (fc, 0.01)]
    two = {nn.DeformPSRoIPoolPack: 2.0, nn.DeformConv2dPack: 0.5}
    assert split(two) == [
        ({*plain, *fc}, 1.0),
        ({"nested.0.conv_offset"}, 2.0),
        ({"conv.conv_offset"}, 0.5),
    ]
    with pytest.raises(ValueError, match="-1"):
        nn.parameter_groups(network, 1.0, {nn.DeformRoIPoolPack: -1.0})
    with pytest.raises(ValueError, match="DeformRoIPool, which makes no offsets"):
        nn.parameter_groups(network, 1.0, {nn.DeformRoIPool: 0.01})


@pytest.mark.parametrize("name", ["fc_hidden", "conv"])
def test_a_pack_copies_and_pickles(name: str) -> None:
    pack = awake(name)
    given = arguments(pack)
    fresh = PACKS[name]()
    fresh.load_state_dict(pack.state_dict())
    for same in (copy.deepcopy(pack), pickle.loads(pickle.dumps(pack)), fresh):
        assert torch.equal(same(*given), pack(*given))
    pack.reset_parameters()
    assert not head(pack).weight.any()


@pytest.mark.parametrize("name", ["fc", "conv"])
def test_a_pack_compiles_and_autocasts(name: str) -> None:
    pack = awake(name)
    given = arguments(pack)
    torch._dynamo.reset()
    compiled = torch.compile(pack, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(*given), pack(*given))
    torch._dynamo.reset()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = pack(*given)
    torch.testing.assert_close(result.float(), pack(*given), atol=0.1, rtol=0.1)
