"""DeepLab: its scores, its loss, its labels."""

import pytest
import torch
from tiny_networks import SIZE, TinyBackbone, batch, network
from torch import nn

from dcn_tvm.models import DeepLab


def test_scores_and_loss_by_hand() -> None:
    model = network("deeplab")
    images, labels = batch("deeplab")
    low = model.scores(model.reduce(model.backbone(images)["res5"]))
    assert low.shape == (2, 3, SIZE // 8, SIZE // 8)
    logits = nn.Upsample(scale_factor=8, mode="bilinear")(low)
    torch.testing.assert_close(model(images), logits)
    chances = logits.softmax(1).permute(0, 2, 3, 1)[labels != 255]
    expected = -chances.gather(1, labels[labels != 255][:, None]).log().mean()
    losses = model(images, labels)
    assert list(losses) == ["loss_segmentation"]
    torch.testing.assert_close(losses["loss_segmentation"], expected)
    assert model.eval()(images, labels).shape == (2, 3, SIZE, SIZE)


def test_labels_without_a_class_teach_nothing() -> None:
    model = network("deeplab")
    images, labels = batch("deeplab")
    loss = model(images, torch.full_like(labels, 255))["loss_segmentation"]
    loss.backward()
    assert loss == 0
    assert not model.scores.weight.grad.any()


def test_wrong_labels_are_refused() -> None:
    model = network("deeplab")
    images, labels = batch("deeplab")
    with pytest.raises(TypeError, match=r"int64, got torch\.int32"):
        model(images, labels.int())
    with pytest.raises(ValueError, match=r"\(2, 48, 48\), got \(2, 48, 47\)"):
        model(images, labels[..., 1:])
    for wrong in (3, -1):
        with pytest.raises(ValueError, match=f"0 to 2, or 255, got {wrong}"):
            model(images, labels.where(labels != 2, wrong))
    with pytest.raises(ValueError, match=r"num_classes .* got 1"):
        DeepLab(TinyBackbone(), 1)
    with pytest.raises(ValueError, match=r"reduced .* got 0"):
        DeepLab(TinyBackbone(), 3, reduced=0)
