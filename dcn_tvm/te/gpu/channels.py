"""Tiles of input channels: in one convolution group, and in one offset group or of whole ones."""

from __future__ import annotations

from tvm import te

from dcn_tvm.te.gpu.conv import Frame
from dcn_tvm.te.gpu.grid import Expr, div, mod
from dcn_tvm.te.nest import int64


class Channels:
    """Cuts a problem's input channels into tiles of at most `most`.

    Attributes:
        groups: offset groups of a tile.
        width: channels of a tile; the last of a group may have fewer.
        tiles: how many there are.
    """

    def __init__(self, g: Frame, most: int) -> None:
        unit = g.unit
        if unit == g.group_channels and unit < most:
            self.groups = min(most // unit, g.inputs // unit)
            self.width, self._span = self.groups * unit, g.inputs
        else:
            self.groups, self._span = 1, unit
            self.width = min(most, unit)
        self._pieces = -(-self._span // self.width)
        self.tiles = g.problem.in_channels // self._span * self._pieces

    def start(self, tile: Expr) -> Expr:
        """First channel of a tile."""
        pieces = int64(self._pieces)
        return div(tile, pieces) * self._span + mod(tile, pieces) * self.width

    def count(self, tile: Expr) -> Expr:
        """Channels of a tile."""
        return te.min(int64(self.width), self._span - mod(tile, int64(self._pieces)) * self.width)
