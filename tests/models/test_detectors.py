"""The detectors against torchvision's own, and against sums by hand."""

import math
from typing import Any

import pytest
import torch
import torchvision
from tiny_networks import EVERY, OPTIONS, SIZE, TinyBackbone, batch, network
from torch import Tensor, nn
from torchvision.models.detection.rpn import RPNHead

from dcn_tvm import reference
from dcn_tvm.models import FasterRCNN


class _SingleMap(nn.Module):
    """A backbone as torchvision wants it: one map."""

    out_channels = 8

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)["res5"]


class _Pool(nn.Module):
    """The reference's mean of whole pixels after the two 1 x 1 convolutions."""

    def __init__(self, ours: Any) -> None:
        super().__init__()
        self.layers = nn.Sequential(ours.reduce, ours.narrow)

    def forward(self, features: dict[str, Tensor], boxes: list[Tensor], _: Any) -> Tensor:
        images = torch.cat([b.new_full((len(b), 1), i) for i, b in enumerate(boxes)])
        rows = torch.cat([images, torch.cat(boxes)], dim=1)
        return reference.roi_pool(self.layers(features["0"]), rows, 2, 1 / 8, mode="avg")


def torchvisions(ours: FasterRCNN) -> Any:
    """torchvision's Faster R-CNN with the same weights, which draws every box."""
    rpn_head = RPNHead(8, 2)
    rpn_head.conv[0][0].load_state_dict(ours.rpn.head.conv[0].state_dict())
    rpn_head.cls_logits.load_state_dict(ours.rpn.head.scores.state_dict())
    rpn_head.bbox_pred.load_state_dict(ours.rpn.head.boxes.state_dict())
    anchors = torchvision.models.detection.anchor_utils.AnchorGenerator(((12.0, 24.0),), ((1.0,),))
    theirs = torchvision.models.detection.FasterRCNN(
        _SingleMap(ours.backbone),
        3,
        min_size=SIZE,
        max_size=SIZE,
        rpn_anchor_generator=anchors,
        rpn_head=rpn_head,
        rpn_pre_nms_top_n_train=50,
        rpn_pre_nms_top_n_test=50,
        rpn_post_nms_top_n_train=12,
        rpn_post_nms_top_n_test=12,
        rpn_batch_size_per_image=EVERY,
        box_batch_size_per_image=EVERY,
        box_score_thresh=0.01,
        box_nms_thresh=0.3,
        box_detections_per_img=300,
    )
    theirs.roi_heads.box_roi_pool = _Pool(ours.roi_heads.box_roi_pool)
    theirs.roi_heads.box_head = ours.roi_heads.box_head
    theirs.roi_heads.box_predictor = ours.roi_heads.box_predictor
    return theirs


def test_plain_faster_rcnn_is_torchvisions() -> None:
    ours = FasterRCNN(
        TinyBackbone(maps=("res5",)), 3, reduced=8, pooled=8, bins=2, hidden=8, options=OPTIONS
    )
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.3)  # so that boxes are far from their anchors
    theirs, (images, targets) = torchvisions(ours), batch("faster_rcnn")
    images[1] = images[1][:, :40, :]
    targets[1]["boxes"][:, 3] = 40
    expected = theirs(images, targets)
    losses = ours(images, targets)
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], atol=1e-5, rtol=1e-5)
    for found, same in zip(ours.eval()(images), theirs.eval()(images), strict=True):
        assert len(same["boxes"]) > 0
        for key in same:
            torch.testing.assert_close(found[key], same[key], atol=1e-4, rtol=1e-4)


def test_proposals_read_conv4_where_there_is_one() -> None:
    model = network("faster_rcnn").eval()
    images, _ = model.transform(batch("faster_rcnn")[0])
    maps = model.backbone(images.tensors)
    expected = model.rpn(images, maps)[0]
    only = model.rpn(images, {"res4": maps["res4"]})[0]
    assert all(map(torch.equal, expected, only))
    pooled = model.roi_heads.box_roi_pool({"res5": maps["res5"]}, expected, images.image_sizes)
    assert pooled.shape == (sum(map(len, expected)), 8, 2, 2)


@pytest.mark.parametrize("pool", [False, True])
def test_the_bins_of_rfcn_vote(pool: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("rfcn", pool=pool).eval()
    maps = model.roi_heads.box_roi_pool
    votes = torch.tensor([[0.0, 1, 0, 1], [3, 2, 1, 0], [-1, 0, -1, 0]])  # [class, bin]
    code = torch.tensor([1.0, -2.0, 5 * math.log(2.0), 0.0])  # of (x, y, width, height)
    for layer, bias in ((maps.class_maps, votes), (maps.box_maps, code[:, None].repeat(1, 4))):
        nn.init.zeros_(layer.weight)
        layer.bias.data.copy_(bias.flatten())
    proposal = torch.tensor([[12.0, 16, 22, 36]])  # 10 wide, 20 high, centre (17, 26)
    monkeypatch.setattr(model.rpn, "forward", lambda *_: ([proposal], {}))
    [found] = model([torch.rand(3, SIZE, SIZE)])
    # The centre moves by 1 / 10 of the width and -2 / 10 of the height, the width doubles.
    expected = torch.tensor([[8.0, 12, 28, 32]] * 2)
    torch.testing.assert_close(found["boxes"], expected, atol=1e-3, rtol=1e-4)
    scores = torch.tensor([0.5, 1.5, -0.5]).softmax(0)
    assert found["labels"].tolist() == [1, 2]
    torch.testing.assert_close(found["scores"], scores[1:])


def test_rfcn_pools_each_bin_from_its_own_maps() -> None:
    model = network("rfcn")
    maps = model.roi_heads.box_roi_pool
    features = {"res5": torch.rand(2, 8, 6, 6)}
    boxes = [torch.tensor([[4.0, 4, 40, 30]]), torch.tensor([[0.0, 8, 20, 47]])]
    rows = torch.cat([torch.tensor([[0.0], [1.0]]), torch.cat(boxes)], dim=1)
    x = maps.reduce(features["res5"])
    pooled = maps(features, boxes, [])
    for found, layer in zip(pooled, (maps.class_maps, maps.box_maps), strict=True):
        expected = reference.deform_ps_roi_pool(layer(x), rows, None, 2, 1 / 8)
        torch.testing.assert_close(found, expected)
    assert [tuple(found.shape) for found in pooled] == [(2, 3, 2, 2), (2, 4, 2, 2)]


def predictions(model: Any, images: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, codes and anchors of one image [anchors, ...]: row, column, then size of anchor."""
    scaled, _ = model.transform(images)
    heads = model.roi_heads
    x = heads.head.conv(heads.reduce(model.backbone(scaled.tensors)["res5"]))
    rows, columns = x.shape[2:]
    logits = heads.head.scores(x)[0].reshape(2, 3, rows, columns).permute(2, 3, 0, 1)
    codes = heads.head.boxes(x)[0].reshape(2, 4, rows, columns).permute(2, 3, 0, 1)
    anchors = [
        [8 * column - size / 2, 8 * row - size / 2, 8 * column + size / 2, 8 * row + size / 2]
        for row in range(rows)
        for column in range(columns)
        for size in (12.0, 24.0)
    ]
    return logits.reshape(-1, 3), codes.reshape(-1, 4), torch.tensor(anchors)


def awake_rpn() -> Any:
    model = network("rpn")
    for layer in (model.roi_heads.head.scores, model.roi_heads.head.boxes):
        nn.init.normal_(layer.weight, std=0.5)
    return model


def test_the_class_aware_loss_by_hand() -> None:
    model, (images, _) = awake_rpn(), batch("rpn")
    boxes, classes = torch.tensor([[8.0, 6, 21, 18], [20, 18, 45, 40]]), torch.tensor([2, 1])
    losses = model(images[:1], [{"boxes": boxes, "labels": classes}])
    logits, codes, anchors = predictions(model, images[:1])
    iou = torchvision.ops.box_iou(boxes, anchors)
    best, nearest = iou.max(0)
    labels = torch.full((len(anchors),), -1)
    labels[best < 0.3] = 0
    taken = (best >= 0.7) | (iou == iou.max(1).values[:, None]).any(0)
    labels[taken] = classes[nearest[taken]]
    assert {0, 1, 2, -1} == set(labels.tolist())
    used = labels >= 0
    chances = logits.softmax(1)[used].gather(1, labels[used][:, None])
    torch.testing.assert_close(losses["loss_classifier"], -chances.log().mean())
    total = torch.zeros(())
    for i in taken.nonzero().flatten():
        (x1, y1, x2, y2), (u1, v1, u2, v2) = anchors[i].tolist(), boxes[nearest[i]].tolist()
        wide, high = x2 - x1, y2 - y1
        target = torch.tensor(
            [
                ((u1 + u2) - (x1 + x2)) / 2 / wide,
                ((v1 + v2) - (y1 + y2)) / 2 / high,
                math.log((u2 - u1) / wide),
                math.log((v2 - v1) / high),
            ]
        )
        error = (codes[i] - target).abs()
        total = total + torch.where(error < 1 / 9, 4.5 * error**2, error - 1 / 18).sum()
    torch.testing.assert_close(losses["loss_box_reg"], total / used.sum())


def test_class_aware_detections_by_hand() -> None:
    model, images = awake_rpn().eval(), batch("rpn")[0][:1]
    with torch.no_grad():
        [found] = model(images)
        logits, codes, anchors = predictions(model, images)
    scores = logits.softmax(1)
    judged = scores[:, 0].argsort()[: OPTIONS.proposals_before_nms]
    assert len(judged) < len(anchors)
    size, centre = anchors[:, 2:] - anchors[:, :2], (anchors[:, 2:] + anchors[:, :2]) / 2
    middle, half = centre + codes[:, :2] * size, codes[:, 2:].exp() * size / 2
    boxes = torch.cat([middle - half, middle + half], dim=1).clamp(0, SIZE)
    expected = []
    large = ((boxes[:, 2:] - boxes[:, :2]) >= 0.01).all(1)  # the others lie outside the image
    judged = judged[large[judged]]
    for label in (1, 2):
        kept = torchvision.ops.nms(boxes[judged], scores[judged, label], OPTIONS.nms)
        rows = judged[kept][scores[judged[kept], label] > OPTIONS.score_threshold]
        expected += [(float(scores[i, label]), label, boxes[i]) for i in rows]
    expected.sort(key=lambda one: -one[0])
    assert found["labels"].tolist() == [label for _, label, _ in expected]
    torch.testing.assert_close(found["scores"], torch.tensor([score for score, _, _ in expected]))
    torch.testing.assert_close(found["boxes"], torch.stack([box for _, _, box in expected]))
