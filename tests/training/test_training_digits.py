import torch

from dcn_tvm.training import digits
from dcn_tvm.training.digits import make_scenes

SIZE = 64


def test_a_scene_follows_from_its_seed_alone() -> None:
    few, more = (make_scenes(n, SIZE, train=True, seed=3) for n in (4, 6))
    assert torch.equal(few.images, more.images[:4])
    assert torch.equal(few.labels, more.labels[:4])
    other = make_scenes(4, SIZE, train=True, seed=4)
    assert not torch.equal(few.images, other.images)


def test_the_splits_share_no_digit() -> None:
    (train, train_classes), (test, test_classes) = digits.load(True), digits.load(False)
    assert len(train) == len(train_classes) == 1347
    assert len(test) == len(test_classes) == 450
    known = {tuple(picture.flatten().tolist()) for picture in train}
    assert not known & {tuple(picture.flatten().tolist()) for picture in test}
    assert set(test_classes.tolist()) == set(range(10))
    scenes = {split: make_scenes(4, SIZE, train=split, seed=0) for split in (True, False)}
    assert not torch.equal(scenes[True].labels, scenes[False].labels)


def test_boxes_lie_tight_around_the_ink_of_their_digits() -> None:
    scenes = make_scenes(40, SIZE, train=True, seed=0)
    met = set()
    for labels, boxes, named in zip(scenes.labels, scenes.boxes, scenes.digits, strict=True):
        rest = labels.clone()
        for box, digit in zip(boxes.int().tolist(), named.tolist(), strict=True):
            x1, y1, x2, y2 = box
            inside = labels[y1:y2, x1:x2] == digit
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()
            rest[y1:y2, x1:x2][inside] = 0
            met.add(digit)
        assert not rest.any(), "ink outside every box"
    assert met == set(range(1, 11))


def test_digits_come_in_many_sizes_and_do_not_overlap() -> None:
    scenes = make_scenes(60, SIZE, train=True, seed=1)
    sides = torch.cat(scenes.boxes).view(-1, 2, 2).diff(dim=1).amax(dim=(1, 2))
    assert sides.min() < 15
    assert sides.max() > 40
    assert {len(boxes) for boxes in scenes.boxes} >= {1, 2, 3}
    for boxes in scenes.boxes:
        areas = sum((box[2:] - box[:2]).prod() for box in boxes)
        covered = torch.zeros(SIZE, SIZE)
        for x1, y1, x2, y2 in boxes.int().tolist():
            covered[y1:y2, x1:x2] = 1
        assert covered.sum() == areas


def test_targets_are_those_of_torchvision() -> None:
    scenes = make_scenes(3, SIZE, train=True, seed=0)
    targets = scenes.targets([2, 0])
    assert torch.equal(targets[0]["boxes"], scenes.boxes[2])
    assert torch.equal(targets[1]["labels"], scenes.digits[0])


def test_upright_digits_stand_upright_and_are_of_one_size() -> None:
    upright = make_scenes(30, SIZE, train=True, seed=0, variation=digits.UPRIGHT)
    varied = make_scenes(30, SIZE, train=True, seed=0)
    spread = [
        torch.cat(scenes.boxes).view(-1, 2, 2).diff(dim=1)[:, 0, 1].std()  # of the heights
        for scenes in (upright, varied)
    ]
    assert spread[0] < 3 < spread[1]
    pictures, classes = digits.load(True)
    picture = pictures[classes == 7][0]
    placed = digits._place(picture, 26, digits.Variation((26.0, 26.0), 0, 0), torch.Generator())
    whole = torch.nn.functional.interpolate(picture[None], size=26, mode="bicubic")[0, 0]
    distances = [(placed - other).abs().mean() for other in (whole, whole.T, whole.flip(1))]
    assert distances[0] < 0.4 * min(distances[1:])
