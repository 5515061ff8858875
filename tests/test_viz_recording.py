"""Offsets of a network's layers, kept while it runs: all of them, and nothing stays behind."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dcn_tvm
from dcn_tvm.nn import (
    DeformConv2d,
    DeformConv2dPack,
    DeformPSRoIPool,
    DeformPSRoIPoolPack,
    DeformRoIPool,
    DeformRoIPoolPack,
)
from dcn_tvm.viz import SampledBins, SampledLayer, record_offsets

BOXES = [torch.tensor([[1.0, 2, 30, 21], [9.5, 0, 44, 36]]), torch.tensor([[20.0, 11, 23, 13]])]
ROWS = torch.tensor([[0, 1.0, 2, 30, 21], [0, 9.5, 0, 44, 36], [1, 20, 11, 23, 13]])


class Detector(nn.Module):
    """A network with every kind of layer that makes offsets."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            DeformConv2dPack(4, 4, 3, padding=2, dilation=2, offset_groups=2),
            nn.ReLU(),
            DeformConv2dPack(4, 4, 3, padding=1, stride=2, modulated=True),
        )
        self.scores = nn.Conv2d(4, 8, 1)
        self.vote = DeformPSRoIPoolPack(4, 2, 2, 0.25, sample_per_part=2)
        self.pool = DeformRoIPoolPack(4, 2, 0.25)
        for name, parameter in self.named_parameters():
            if "offset" in name:
                nn.init.normal_(parameter, std=0.5)

    def forward(self, x: Tensor, boxes: Any) -> tuple[Tensor, Tensor]:
        x = self.body(x)
        return self.pool(x, boxes), self.vote(self.scores(x), boxes, x)


def is_clean(model: nn.Module) -> bool:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return all(
        "_pool" not in vars(layer) and not any(vars(layer)[name] for name in hooks)
        for layer in model.modules()
    )


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("boxes", [BOXES, ROWS])
def test_every_layer_is_recorded_by_name_and_changes_nothing(boxes: Any, training: bool) -> None:
    model = Detector().train(training)
    x = torch.randn(2, 4, 18, 22)
    expected = model(x, boxes)
    calls: list[int] = []
    model.body[0].conv_offset.register_forward_hook(lambda *_: calls.append(0))
    with record_offsets(model) as recorded:
        found = model(x, boxes)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert calls == [0]
    assert list(recorded) == ["body.0", "body.2", "pool", "vote"]  # in the order of the calls
    assert not any(kept.offset.requires_grad for kept in recorded.values())
    first, second = recorded["body.0"], recorded["body.2"]
    assert isinstance(first, SampledLayer)
    assert isinstance(second, SampledLayer)
    assert (first.offset_groups, second.offset_groups) == (2, 1)
    assert torch.equal(first.offset, model.body[0].conv_offset(x))
    assert (first.dilation, first.padding, first.stride) == ((2, 2), (2, 2), (1, 1))
    between = model.body[:2](x)
    assert torch.equal(second.offset, model.body[2].conv_offset(between)[:, :18])
    assert (second.dilation, second.padding, second.stride) == ((1, 1), (1, 1), (2, 2))


def test_recorded_boxes_and_offsets_pool_the_same() -> None:
    model, x = Detector(), torch.randn(2, 4, 18, 22)
    with record_offsets(model) as recorded:
        pooled, votes = model(x, BOXES)
    map_ = model.body(x)
    pool, vote = recorded["pool"], recorded["vote"]
    assert isinstance(pool, SampledBins)
    assert isinstance(vote, SampledBins)
    for bins in (pool, vote):
        assert torch.equal(bins.boxes, ROWS)
        assert (bins.map_size, bins.output_size) == ((9, 11), (2, 2))
        assert (bins.spatial_scale, bins.gamma) == (0.25, 0.1)
        assert bins.offset.any()
    assert (pool.sampling, vote.sampling, pool.classes, vote.classes) == ("paper", "rfcn", 1, 2)
    assert torch.equal(DeformRoIPool(2, 0.25)(map_, pool.boxes, pool.offset), pooled)
    again = DeformPSRoIPool(2, 0.25, sample_per_part=2)
    assert torch.equal(again(model.scores(map_), vote.boxes, vote.offset), votes)


@pytest.mark.parametrize(
    ("layer", "sampling"),
    [
        (DeformRoIPool(2, 0.25, sampling_ratio=2), "mmcv"),
        (DeformRoIPool(2, 0.25, gamma=0.5), "paper"),
        (DeformPSRoIPool(2, 0.25, sample_per_part=2), "rfcn"),
        (DeformPSRoIPool(2, 0.25, sampling="paper"), "paper"),
    ],
)
def test_given_offsets_of_bins_are_recorded(layer: Any, sampling: str) -> None:
    x, offset = torch.randn(2, 4, 9, 11), torch.randn(3, 2, 2, 2, requires_grad=True)
    with record_offsets(layer) as recorded:
        layer(x, ROWS)
        assert recorded == {}, "without offsets no bin moves"
        layer(x, BOXES, offset=offset)
    bins = recorded[""]
    assert isinstance(bins, SampledBins)
    assert (bins.sampling, bins.gamma) == (sampling, layer.gamma)
    assert torch.equal(bins.offset, offset)
    assert not bins.offset.requires_grad


def test_given_offsets_of_a_convolution_are_recorded() -> None:
    layer = DeformConv2d(4, 4, 3, stride=2)
    x, offset = torch.randn(1, 4, 7, 9), torch.randn(1, 18, 3, 4, requires_grad=True)
    for call in (lambda: layer(x, offset), lambda: layer(x, offset=offset)):
        with record_offsets(layer) as recorded:
            call()
        assert torch.equal(recorded[""].offset, offset)
        assert not recorded[""].offset.requires_grad


def test_nothing_stays_behind() -> None:
    model, x = Detector(), torch.randn(2, 4, 18, 22)
    with record_offsets(model) as outer:
        with record_offsets(model) as inner:
            model(x, BOXES)
        model(x[:1], BOXES[:1])
        assert not is_clean(model)
    assert is_clean(model)
    assert [len(kept.offset) for kept in outer.values()] == [1, 1, 2, 2]
    assert [len(kept.offset) for kept in inner.values()] == [2, 2, 3, 3]
    model(x, BOXES)
    assert len(outer["pool"].offset) == 2
    with pytest.raises(ValueError, match="a list of boxes"), record_offsets(model) as broken:
        model(x, BOXES[:1])
    assert list(broken) == ["body.0", "body.2"]
    assert is_clean(model)
    with pytest.raises(RuntimeError, match="own"), record_offsets(model):
        raise RuntimeError("own")
    assert is_clean(model)
    assert copy.deepcopy(model).pool is not None


def test_the_last_call_of_a_layer_counts() -> None:
    layer, other = (DeformConv2dPack(4, 4, 3, padding=1) for _ in range(2))
    with record_offsets(nn.ModuleDict({"one": layer, "two": other, "again": layer})) as recorded:
        for size, called in ((5, layer), (6, other), (7, layer)):
            called(torch.randn(1, 4, size, size))
    assert [(name, kept.offset.shape[-1]) for name, kept in recorded.items()] == [
        ("two", 6),
        ("one", 7),
    ]


def test_no_boxes_are_recorded_too() -> None:
    layer = dcn_tvm.nn.DeformRoIPoolPack(4, 2, 0.25)
    with record_offsets(layer) as recorded:
        layer(torch.randn(2, 4, 9, 11), [torch.empty(0, 4)] * 2)
    bins = recorded[""]
    assert isinstance(bins, SampledBins)
    assert bins.boxes.shape == (0, 5)
