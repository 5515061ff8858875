"""The RoI layers: their functions' answers, torchvision's classes, refusals."""

import doctest
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

import dcn_tvm
from dcn_tvm import nn

SCALE = 0.25
BOXES = torch.tensor(
    [[0, 1.0, 2, 30, 21], [1, 9.5, 0, 44, 36], [1, 20, 11, 23, 13], [0, -9, 30, 18, 50]]
)
STILL: dict[str, Any] = {"offset": None}
MOVED: dict[str, Any] = {"offset": torch.linspace(-2, 2, 32).reshape(4, 2, 2, 2)}
# Every layer with its function and options; on 8 channels and 2 x 2 bins.
LAYERS: list[tuple[type[torch.nn.Module], Callable[..., Tensor], dict, dict]] = [
    (nn.RoIPool, dcn_tvm.roi_pool, {}, {}),
    (nn.RoIPool, dcn_tvm.roi_pool, {"mode": "avg"}, {}),
    (nn.RoIAlign, dcn_tvm.roi_align, {"sampling_ratio": 2, "aligned": True}, {}),
    (nn.PSRoIPool, dcn_tvm.ps_roi_pool, {"convention": "rfcn"}, {}),
    (nn.PSRoIAlign, dcn_tvm.ps_roi_align, {"sampling_ratio": 2}, {}),
    (nn.DeformRoIPool, dcn_tvm.deform_roi_pool, {"gamma": 0.3}, MOVED),
    (nn.DeformRoIPool, dcn_tvm.deform_roi_pool, {"sampling_ratio": 2}, STILL),
    (
        nn.DeformPSRoIPool,
        dcn_tvm.deform_ps_roi_pool,
        {"sample_per_part": 2, "output_dim": 2, "gamma": 0.3},
        MOVED,
    ),
    (
        nn.DeformPSRoIPool,
        dcn_tvm.deform_ps_roi_pool,
        {"sampling": "paper", "group_size": 1, "part_size": 1},
        STILL,
    ),
]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("layer_class", "function", "options", "offset"), LAYERS)
def test_a_layer_is_its_function(layer_class, function, options, offset, layout) -> None:
    layer = layer_class(2, SCALE, **options)
    x = torch.randn(2, 8, 9, 11).contiguous(memory_format=layout)
    expected = function(x, BOXES, output_size=2, spatial_scale=SCALE, **options, **offset)
    assert torch.equal(layer(x, BOXES, **offset), expected)
    as_list = [BOXES[BOXES[:, 0] == image, 1:] for image in (0, 1)]
    order = BOXES[:, 0].argsort(stable=True)
    sorted_offset = {name: o if o is None else o[order] for name, o in offset.items()}
    assert torch.equal(layer(x, as_list, **sorted_offset), expected[order])
    assert not layer.state_dict()


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("RoIPool", (2, SCALE)),
        ("RoIAlign", (2, SCALE, 2, True)),
        ("PSRoIPool", (2, SCALE)),
        ("PSRoIAlign", (2, SCALE, 2)),
    ],
)
def test_is_a_drop_in_for_torchvisions_layer(name: str, given: tuple[Any, ...]) -> None:
    ours, theirs = getattr(nn, name), getattr(torchvision.ops, name)
    names = list(inspect.signature(theirs).parameters)
    assert list(inspect.signature(ours).parameters)[: len(names)] == names
    x = torch.randn(2, 8, 9, 11)
    torch.testing.assert_close(ours(*given)(x, BOXES), theirs(*given)(x, BOXES))


def test_the_layers_print_what_differs_from_the_defaults() -> None:
    assert repr(nn.RoIPool(7, 1 / 16)) == "RoIPool(output_size=(7, 7), spatial_scale=0.0625)"
    align = nn.RoIAlign((2, 3), 0.5, 2, True)
    assert align.extra_repr() == (
        "output_size=(2, 3), spatial_scale=0.5, sampling_ratio=2, aligned=True"
    )
    assert nn.PSRoIPool(2, convention="rfcn").extra_repr().endswith("1, convention='rfcn'")
    assert nn.DeformPSRoIPool(2, 1 / 3, 5, sampling="paper").extra_repr() == (
        "output_size=(2, 2), spatial_scale=0.333333, output_dim=5, sampling='paper'"
    )
    assert nn.DeformRoIPoolPack(8, (2, 3), SCALE, 5, sampling_ratio=2).extra_repr() == (
        "8, output_size=(2, 3), spatial_scale=0.25, sampling_ratio=2"
    )
    pack = nn.DeformPSRoIPoolPack(3, 2, 2, SCALE, 1, part_size=1, sampling="paper")
    assert pack.extra_repr() == (
        "3, 2, output_size=(2, 2), spatial_scale=0.25, part_size=1, sampling='paper', "
        "offset_classes=1"
    )


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: nn.RoIPool(0), ValueError, "output_size must be at least 1, got 0"),
        (lambda: nn.RoIPool("7"), TypeError, "output_size"),
        (lambda: nn.RoIPool(7, 0), ValueError, "spatial_scale must be positive"),
        (lambda: nn.RoIPool(7, 1, "min"), ValueError, "mode must be one of .*'min'"),
        (lambda: nn.RoIAlign(7, 1, 0.5), TypeError, "sampling_ratio"),
        (lambda: nn.PSRoIPool(7, 1, "mmcv"), ValueError, "convention must be one of"),
        (lambda: nn.DeformRoIPool(7, gamma=float("inf")), ValueError, "gamma must be finite"),
        (lambda: nn.DeformRoIPoolPack(0, 7), ValueError, "in_channels must be at least 1"),
        (lambda: nn.DeformRoIPoolPack(4, 7, hidden=0), ValueError, "hidden must be at least 1"),
        (lambda: nn.DeformPSRoIPool(7, part_size=-1), ValueError, "part_size must be at least 1"),
        (lambda: nn.DeformPSRoIPool(7, sample_per_part=2.5), TypeError, "sample_per_part"),
        (lambda: nn.DeformPSRoIPool(7, sampling="all"), ValueError, "sampling must be one of"),
        (lambda: nn.DeformPSRoIPoolPack(4, None, 7), TypeError, "output_dim"),
        (
            lambda: nn.DeformPSRoIPoolPack(4, 21, 7, offset_classes=2),
            ValueError,
            "output_dim=21, offset_classes=2",
        ),
    ],
)
def test_wrong_arguments_are_refused(make: Callable[[], Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("module", ["roi", "deform_roi", "deform_ps_roi"])
def test_the_examples_run(module: str) -> None:
    examples = importlib.import_module(f"dcn_tvm.nn.{module}")
    result = doctest.testmod(examples, extraglobs={"torch": torch, "dcn_tvm": dcn_tvm})
    assert result.attempted > 0
    assert result.failed == 0
