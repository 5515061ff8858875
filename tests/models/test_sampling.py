"""The sampler: torchvision's numbers, and nothing but the image decides what is drawn."""

import copy

import pytest
import torch
from torch import Tensor

from dcn_tvm.models import RepeatableSampler


def labels(seed: int, count: int = 200) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 3, (count,), generator=generator)


@pytest.mark.parametrize(
    ("given", "drawn"),
    [
        ([1] * 10 + [0] * 30, (4, 12)),
        ([2] * 3 + [0] * 30, (3, 13)),
        ([1] * 10 + [0] * 5, (4, 5)),
        ([-1] * 10 + [0] * 30, (0, 16)),
        ([3] * 10, (4, 0)),
        ([], (0, 0)),
    ],
)
def test_the_numbers_are_torchvisions(given: list[int], drawn: tuple[int, int]) -> None:
    image = torch.tensor(given, dtype=torch.float32)  # a proposal network labels in float
    [positive], [negative] = RepeatableSampler(16, 0.25)([image])
    assert (int(positive.sum()), int(negative.sum())) == drawn
    assert (image[positive] >= 1).all()
    assert (image[negative] == 0).all()


def test_a_batch_cut_in_two_is_drawn_alike() -> None:
    images = [labels(seed) for seed in range(4)]
    whole, one, other = (RepeatableSampler(16, 0.25) for _ in range(3))
    for _ in range(3):
        positive, negative = whole(images)
        torch.rand(3)  # what else happens in a process has no part
        # The second process has its images the other way round.
        first, second = one(images[:2]), other([images[3], images[2]])
        assert all(map(torch.equal, positive, [*first[0], *reversed(second[0])]))
        assert all(map(torch.equal, negative, [*first[1], *reversed(second[1])]))


def test_every_call_draws_anew_and_resumes() -> None:
    sampler, image = RepeatableSampler(16, 0.25), [labels(0)]
    first, second = sampler(image)[1][0], sampler(image)[1][0]
    assert not torch.equal(first, second)
    state = copy.deepcopy(sampler.state_dict())
    third = sampler(image)[1][0]
    resumed = RepeatableSampler(16, 0.25)
    resumed.load_state_dict(state)
    torch.rand(5)
    assert torch.equal(resumed(image)[1][0], third)
    torch.manual_seed(8)
    assert not torch.equal(RepeatableSampler(16, 0.25)(image)[1][0], first)


def test_every_box_has_the_same_chance() -> None:
    sampler = RepeatableSampler(10, 0.5)
    image = torch.tensor([1] * 10 + [0] * 10)
    counts = torch.zeros(20)
    for _ in range(400):
        positive, negative = sampler([image])
        counts += positive[0].float() + negative[0].float()
    assert ((counts > 160) & (counts < 240)).all()  # 200 expected, four standard deviations


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        RepeatableSampler(0, 0.5)
    with pytest.raises(ValueError, match=r"\[0, 1\], got 1.5"):
        RepeatableSampler(4, 1.5)
