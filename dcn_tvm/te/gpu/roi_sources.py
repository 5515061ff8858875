"""Where the kernels of a RoI op get what follows from the boxes: see roi_boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import te

from dcn_tvm.te.gpu.roi_boxes import Values, stored
from dcn_tvm.te.roi import Frame
from dcn_tvm.te.roi_bins import Rule


class Sources:
    """The tensors that kernels take for their boxes, and how they find stages in them."""

    def __init__(self, g: Frame, boxes: te.Tensor, rule: Rule, *, cuda: bool) -> None:
        """On CUDA the boxes alone; elsewhere stages of the rule too, each made by a kernel."""
        self.image = g.image_of(boxes)
        self._cuda = cuda
        stages = [] if cuda else [self.image, *rule.stages.values()]
        self.tensors, self._named = stored(stages, boxes)

    def values(self, buffers: Sequence[Any]) -> Values:
        """The stages, where `buffers` begin with those of `tensors`."""
        return Values(dict(zip(self._named, buffers, strict=False)), exact=self._cuda)
