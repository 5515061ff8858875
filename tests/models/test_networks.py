"""The four heads, plain and deformable: they start alike, learn, save, and refuse nonsense."""

import copy
import dataclasses
import subprocess
import sys
from typing import Any

import pytest
import torch
from tiny_networks import DETECTORS, HEADS, OPTIONS, SIZE, TinyBackbone, batch, boxes_of, network
from torch import Tensor, nn

from dcn_tvm import models
from dcn_tvm.models import RFCN, Backbone, ClassAwareRPN, DetectionOptions, FasterRCNN
from dcn_tvm.nn import DeformRoIPoolPack, parameter_groups
from dcn_tvm.nn.parameters import MakesOffsets

# (head, deformable convolution, deformable pooling): pooling is in two heads only.
VARIANTS = [
    *((head, conv, False) for head in HEADS for conv in (False, True)),
    *((head, conv, True) for head in ("faster_rcnn", "rfcn") for conv in (False, True)),
]


def heads_of_offsets(model: nn.Module) -> list[nn.Parameter]:
    packs = [m for m in model.modules() if isinstance(m, MakesOffsets)]
    return [p for pack in packs for p in pack.offset_parameters()]


@pytest.mark.parametrize(("head", "conv", "pool"), VARIANTS)
def test_a_network_learns_with_all_its_parameters(head: str, conv: bool, pool: bool) -> None:
    model, (images, targets) = network(head, conv, pool), batch(head)
    assert len(heads_of_offsets(model)) == 2 * conv + 2 * pool * (2 if head == "rfcn" else 1)
    optimizer = torch.optim.SGD(parameter_groups(model, lr=0.02), momentum=0.9)
    losses = []
    for _ in range(4):
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        if not losses:
            untaught = [
                n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()
            ]
            assert not untaught
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert losses[-1] < 0.99 * losses[0]
    assert all(p.any() for p in heads_of_offsets(model))


def results(model: Any, head: str, images: Any) -> list[Tensor]:
    with torch.no_grad():
        found = model.eval()(images)
    if head == "deeplab":
        return [found]
    return [image[key] for image in found for key in ("boxes", "labels", "scores")]


@pytest.mark.parametrize(("head", "conv", "pool"), [v for v in VARIANTS if any(v[1:])])
def test_a_deformable_network_starts_as_the_plain_one(head: str, conv: bool, pool: bool) -> None:
    plain, deformable, (images, targets) = network(head), network(head, conv, pool), batch(head)
    deformable.load_state_dict(plain.state_dict(), strict=False)
    expected, losses = plain(images, targets), deformable(images, targets)
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss, atol=1e-5, rtol=1e-4)
    pairs = zip(results(deformable, head, images), results(plain, head, images), strict=True)
    for found, same in pairs:
        torch.testing.assert_close(found, same, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("head", DETECTORS)
def test_detections_have_torchvisions_format(head: str) -> None:
    images = [torch.rand(3, 40, 60), torch.rand(3, 60, 30)]
    model = network(head, conv=True, pool=head != "rpn").eval()
    for image, found in zip(images, model(images), strict=True):
        boxes, labels, scores = found["boxes"], found["labels"], found["scores"]
        assert 0 < len(boxes) <= OPTIONS.detections_per_image
        assert boxes.shape == (len(boxes), 4)
        assert labels.dtype == torch.int64
        assert set(labels.tolist()) <= {1, 2}
        assert (scores.diff() <= 0).all()
        assert (scores > OPTIONS.score_threshold).all()
        height, width = image.shape[1:]
        assert (boxes >= -1e-4).all()
        assert (boxes[:, 2] <= width + 1e-3).all()
        assert (boxes[:, 3] <= height + 1e-3).all()


@pytest.mark.parametrize("head", DETECTORS)
def test_images_without_objects_teach_the_background(head: str) -> None:
    images, targets = batch(head)
    empty = {"boxes": boxes_of(), "labels": torch.zeros(0, dtype=torch.int64)}
    for given in ([empty, targets[1]], [empty, empty]):
        model = network(head, conv=True, pool=head != "rpn")
        losses = model(images, given)
        total = sum(losses.values())
        assert torch.isfinite(total)
        total.backward()
        assert all(p.grad is not None for p in model.parameters())
        if given[1] is empty:
            assert losses["loss_box_reg"] == 0
            assert losses["loss_classifier"] > 0


@pytest.mark.parametrize("head", DETECTORS)
def test_nothing_found_is_an_empty_detection(head: str) -> None:
    model = network(head, conv=True, pool=head != "rpn").eval()
    model.roi_heads.score_thresh = 1.0
    for found in model(batch(head)[0]):
        assert [tuple(found[n].shape) for n in ("boxes", "labels", "scores")] == [
            (0, 4),
            (0,),
            (0,),
        ]


@pytest.mark.parametrize("head", ["faster_rcnn", "rfcn"])
@pytest.mark.parametrize("pool", [False, True])
def test_no_proposals_are_no_detections(
    head: str, pool: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network(head, pool=pool).eval()
    monkeypatch.setattr(model.rpn, "forward", lambda *_: ([torch.zeros(0, 4)] * 2, {}))
    assert [len(found["boxes"]) for found in model(batch(head)[0])] == [0, 0]


@pytest.mark.parametrize(("head", "conv", "pool"), [v for v in VARIANTS if v[1]])
def test_a_state_dict_comes_back(head: str, conv: bool, pool: bool) -> None:
    model = network(head, conv, pool)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    other = HEADS[head](TinyBackbone(deformable=conv), "deformable" if pool else "plain")
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    images = batch(head)[0]
    pairs = zip(results(other, head, images), results(model, head, images), strict=True)
    assert all(torch.equal(found, same) for found, same in pairs)


@pytest.mark.parametrize("head", HEADS)
def test_channels_last_gives_the_same_losses(head: str) -> None:
    images, targets = batch(head)
    model = network(head, conv=True, pool=head in ("faster_rcnn", "rfcn"))
    for parameter in heads_of_offsets(model):
        nn.init.normal_(parameter, std=0.05)
    expected = model(images, targets)
    model.to(memory_format=torch.channels_last)
    for name, loss in model(images, targets).items():
        torch.testing.assert_close(loss, expected[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("head", DETECTORS)
def test_a_batch_cut_in_two_has_the_same_losses(head: str) -> None:
    few = dataclasses.replace(OPTIONS, rpn_batch_per_image=8, roi_batch_per_image=6)
    makes: dict[str, Any] = {
        "rpn": lambda b: ClassAwareRPN(b, 3, reduced=8, options=few),
        "faster_rcnn": lambda b: FasterRCNN(
            b, 3, reduced=8, pooled=8, bins=2, hidden=8, options=few
        ),
        "rfcn": lambda b: RFCN(b, 3, reduced=8, bins=2, options=few),
    }
    model, (images, targets) = makes[head](TinyBackbone()), batch(head)
    one, other = copy.deepcopy(model), copy.deepcopy(model)
    whole = model(images, targets)
    torch.rand(7)
    halves = [one(images[:1], targets[:1]), other(images[1:], targets[1:])]
    for name, loss in whole.items():
        torch.testing.assert_close(sum(half[name] for half in halves) / 2, loss)


@pytest.mark.parametrize("head", DETECTORS)
def test_half_precision_does_not_round_boxes(head: str) -> None:
    model = network(head).eval()
    images, _ = model.transform([torch.rand(3, 600, 900)])
    half = torch.zeros(1, 8, 80, 120, dtype=torch.bfloat16)
    [anchors] = model.rpn.anchor_generator(images, [half])
    [exact] = model.rpn.anchor_generator(images, [half.float()])
    assert anchors.dtype == torch.float32
    assert torch.equal(anchors, exact)
    odd = boxes_of((301.0, 517, 333, 719))
    for part in (model.rpn, model.roi_heads):
        if hasattr(part, "box_coder"):
            codes = torch.zeros(1, 4, dtype=torch.bfloat16)
            assert torch.equal(part.box_coder.decode(codes, [odd])[0], odd)


def test_pooling_adds_the_papers_parameters() -> None:
    counts = {}
    with torch.device("meta"):
        for network_of in (FasterRCNN, RFCN):
            for dcn, pool in (((), "plain"), (("res5a", "res5b", "res5c"), "deformable")):
                model = network_of(models.resnet101(dcn), 21, pool=pool)
                counts[network_of, pool] = sum(p.numel() for p in model.parameters())
    convs = 3 * (512 * 9 * 18 + 18)
    faster = counts[FasterRCNN, "deformable"] - counts[FasterRCNN, "plain"]
    rfcn = counts[RFCN, "deformable"] - counts[RFCN, "plain"]
    assert faster == convs + 12544 * 98 + 98 == 1_478_296
    assert rfcn == convs + 2 * 49 * 21 * 1025 + 2 * 49 * 1025 == 2_458_786


def test_the_fully_connected_offsets_learn_at_their_own_rate() -> None:
    model = network("faster_rcnn", conv=True, pool=True)
    rest, slow = parameter_groups(model, 1.0, {DeformRoIPoolPack: 0.01})
    assert slow["lr"] == 0.01
    assert len(slow["params"]) == 2
    assert len(rest["params"]) == len(list(model.parameters())) - 2


def test_wrong_targets_are_refused_with_their_number() -> None:
    model, (images, targets) = network("rpn"), batch("rpn")
    good = targets[0]
    for wrong, text in (
        ({"boxes": good["boxes"]}, r"target 1 must have .* no \['labels'\]"),
        ({**good, "boxes": torch.zeros(1, 5)}, r"target 1 must be \[L, 4\] .* got \(1, 5\)"),
        ({**good, "boxes": good["boxes"].long()}, r"target 1 .* got \(1, 4\) of torch.int64"),
        ({**good, "labels": torch.tensor([1, 2])}, r"target 1 must be \[1\] of int64, got \(2,\)"),
        ({**good, "labels": torch.tensor([1.0])}, "target 1 .* of torch.float32"),
        ({**good, "boxes": boxes_of((8.0, 6, 8, 18))}, "x1 < x2"),
        ({**good, "labels": torch.tensor([3])}, r"1 to 2, got \[3\]"),
        ({**good, "labels": torch.tensor([0])}, r"1 to 2, got \[0\]"),
    ):
        with pytest.raises(ValueError, match=text):
            model(images, [good, wrong])
    with pytest.raises(ValueError, match="as many as 2 images, got 1"):
        model(images, [good])
    with pytest.raises(ValueError, match="in training, got None"):
        model(images)


def test_wrong_backbones_and_options_are_refused() -> None:
    class Lacking(TinyBackbone):
        def __init__(self, name: str, value: Any) -> None:
            super().__init__()
            setattr(self, name, value)

    assert isinstance(TinyBackbone(), Backbone)
    for make in HEADS.values():
        with pytest.raises(TypeError, match=r"torch\.nn\.Module, got function"):
            make(lambda images: images, "plain")
        with pytest.raises(TypeError, match=r"got out_channels=8, stride=8"):
            make(Lacking("out_channels", 8), "plain")
        with pytest.raises(ValueError, match=r"'res5', got \['res4'\]"):
            make(TinyBackbone(maps=("res4",)), "plain")
        with pytest.raises(ValueError, match="stride of at least 1, got 0"):
            make(Lacking("stride", 0), "plain")
    for name in ("faster_rcnn", "rfcn"):
        with pytest.raises(ValueError, match=r"\('plain', 'deformable'\), got 'max'"):
            HEADS[name](TinyBackbone(), "max")
    for options, text in (
        ({"min_size": 0}, "min_size must be at least 1, got 0"),
        ({"nms": 1.5}, r"nms must be in \[0, 1\], got 1.5"),
        ({"rpn_negative_iou": 0.8}, "got 0.8 and 0.7"),
        ({"anchor_sizes": ()}, "must not be empty"),
    ):
        with pytest.raises(ValueError, match=text):
            DetectionOptions(**options)


def test_images_are_padded_to_whole_pixels_of_the_map() -> None:
    backbone = TinyBackbone()
    backbone.stride = 24  # 32 and 24 divide 96
    model = ClassAwareRPN(backbone, 3, reduced=8, options=OPTIONS)
    padded, _ = model.transform([torch.rand(3, SIZE, SIZE)])
    assert padded.tensors.shape[2:] == (96, 96)


def test_without_torchvision_the_import_says_what_to_install() -> None:
    code = "import sys; sys.modules['torchvision'] = None; import dcn_tvm.models"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "ImportError: dcn_tvm.models needs torchvision" in done.stderr
    assert "pip install 'dcn_tvm[models]'" in done.stderr
