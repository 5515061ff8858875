"""Which boxes a detector learns from: drawn for each image alone, and the same on every machine."""

import hashlib

import torch
from torch import Tensor, nn


class RepeatableSampler(nn.Module):
    """Draw a fixed number of boxes of each image, at most a share of them positive.

    As torchvision's `BalancedPositiveNegativeSampler`, but each image is drawn with a generator of
    its own, seeded by `torch.initial_seed()`, the number of this call and the image's counts of
    positives and negatives. So it matters neither where in a batch an image stands nor which
    process has it, nor on which device the labels are, nor what else draws random numbers: a batch
    cut over several processes with one seed is sampled as in one process. The number of the call is
    in the state_dict: training that is resumed draws as if it had not stopped.

    A batch worked off in several calls, to accumulate gradients, is drawn otherwise than in one.

    Args:
        batch_size_per_image: boxes to draw.
        positive_fraction: share of them that may be positive, in [0, 1].

    Raises:
        ValueError: an argument is out of range.

    Peer: torchvision's BalancedPositiveNegativeSampler.

    Example:
        >>> positive, negative = RepeatableSampler(4, 0.5)([torch.tensor([0, 3, 0, -1, 0, 0])])
        >>> int(positive[0].sum()), int(negative[0].sum())
        (1, 3)
    """

    calls: Tensor

    def __init__(self, batch_size_per_image: int, positive_fraction: float) -> None:
        super().__init__()
        if batch_size_per_image < 1:
            raise ValueError(f"batch_size_per_image must be at least 1, got {batch_size_per_image}")
        if not 0 <= positive_fraction <= 1:
            raise ValueError(f"positive_fraction must be in [0, 1], got {positive_fraction}")
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the masks of the positives and of the negatives that were drawn.

        Args:
            labels: for each image `[L]`: 1 or more for a positive, 0 for a negative, -1 for a box
                to leave out.

        Returns:
            For each image `[L]` of bool, the positives; likewise the negatives.
        """
        call = int(self.calls)
        self.calls += 1
        drawn = [self._draw(image, call) for image in labels]
        return [positive for positive, _ in drawn], [negative for _, negative in drawn]

    def _draw(self, labels: Tensor, call: int) -> tuple[Tensor, Tensor]:
        positive, negative = torch.where(labels >= 1)[0], torch.where(labels == 0)[0]
        seed = (torch.initial_seed(), call, positive.numel(), negative.numel())
        digest = hashlib.blake2b(repr(seed).encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
        few = min(positive.numel(), int(self.batch_size_per_image * self.positive_fraction))
        rest = min(negative.numel(), self.batch_size_per_image - few)
        masks = []
        for candidates, wanted in ((positive, few), (negative, rest)):
            order = torch.randperm(candidates.numel(), generator=generator)[:wanted]
            mask = torch.zeros_like(labels, dtype=torch.bool)
            mask[candidates[order.to(labels.device)]] = True
            masks.append(mask)
        return masks[0], masks[1]
