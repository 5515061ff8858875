"""Where a block's samples are, in shared memory: for gradients, many threads need each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from dcn_tvm.te import sampling
from dcn_tvm.te.gpu.columns import locations
from dcn_tvm.te.gpu.conv import Frame
from dcn_tvm.te.gpu.grid import Cells, Expr, div, int32, mod
from dcn_tvm.te.gpu.product import Shape
from dcn_tvm.te.gpu.shared import Shared
from dcn_tvm.te.nest import int64

FACTORS = {"y": ("slope", "weight"), "x": ("weight", "slope"), "mask": ("weight", "weight")}


class Corners:
    """The four corners of each sample of a tile of rows, one tap and a few offset groups.

    Of each: its pixel, or -1 if nothing of the map is in reach; its share, if something is
    scattered; and for each kind of sum what the pixel counts for.
    """

    def __init__(
        self, g: Frame, shape: Shape, groups: int, kinds: Sequence[str], *, scatters: bool
    ) -> None:
        self.g, self.shape, self.groups, self.kinds, self.scatters = (
            g,
            shape,
            groups,
            list(kinds),
            scatters,
        )
        self.entries = groups * shape.rows

    def arrays(self) -> dict[str, tuple[int, str]]:
        """What they need of shared memory."""
        names = [*(["share"] if self.scatters else []), *self.kinds]
        return {
            "pixel": (4 * self.entries, "int32"),
            **dict.fromkeys(("image", "row_y", "row_x"), (self.shape.rows, "int32")),
            **{f"of_{name}": (4 * self.entries, self.g.problem.accumulate) for name in names},
        }

    def open(self, shared: Shared, offset: Any, mask: Any, thread: Expr) -> None:
        """Take it, and registers for one sample."""
        g = self.g
        self.offset, self.mask, self.thread = offset, mask, thread
        self._pixel = shared["pixel"]
        self._image, self._y, self._x = (shared[name] for name in ("image", "row_y", "row_x"))
        names = [*(["share"] if self.scatters else []), *self.kinds]
        self._factors = {name: shared[f"of_{name}"] for name in names}
        self._place = Cells("int64", "image", "pixel", "y")
        self._local = {
            name: T.sblock_alloc_buffer((size,), dtype, scope="local")
            for name, size, dtype in (
                ("position", 2, g.problem.accumulate),
                ("cell", 4, "int32"),
                ("weight", 4, g.problem.accumulate),
                ("slope", 4, g.problem.accumulate),
                ("mask", 1, g.problem.accumulate),
            )
        }

    def take(self, first: Expr) -> None:
        """Begin with the rows from `first` on; a barrier must follow."""
        g, s = self.g, self.shape
        with T.serial(int64(0), int64(-(-s.rows // s.threads))) as i:
            row = i * s.threads + self.thread
            with T.If(tirx.all(row < s.rows, first + row < g.rows)), T.Then():
                self._place["image"] = div(first + row, g.pixels)
                self._place["pixel"] = first + row - self._place["image"] * g.pixels
                self._place["y"] = div(self._place["pixel"], g.wo)
                T.buffer_store(self._image, self._place["image"].astype("int32"), [row])
                T.buffer_store(self._y, self._place["y"].astype("int32"), [row])
                x = self._place["pixel"] - self._place["y"] * g.wo
                T.buffer_store(self._x, x.astype("int32"), [row])

    def locate(self, first: Expr, tap: Expr, first_group: Expr) -> None:
        """Find the samples of the rows from `first` on; a barrier must follow."""
        g, s = self.g, self.shape
        with T.serial(int64(0), int64(-(-self.entries // s.threads))) as i:
            entry = i * s.threads + self.thread
            row = mod(entry, int64(s.rows))
            group = first_group + div(entry, int64(s.rows))
            exists = tirx.all(
                entry < self.entries, first + row < g.rows, group < g.problem.offset_groups
            )
            with T.If(exists), T.Then():
                self._locate(entry, row, tap, group)

    def _locate(self, entry: Expr, row: Expr, tap: Expr, group: Expr) -> None:
        g, p, local = self.g, self.g.problem, self._local
        image, y, x = (of[row].astype("int64") for of in (self._image, self._y, self._x))
        pixel = y * g.wo + x
        where = locations(g, self.offset, image, y, x, pixel, tap, group)
        for axis, size in enumerate((g.h, g.w)):
            T.buffer_store(local["position"], where[axis], [axis])
            for side in range(2):
                arguments, at = (local["position"][axis], size, int32(side)), [axis * 2 + side]
                T.buffer_store(local["cell"], sampling.index(*arguments), at)
                T.buffer_store(local["weight"], sampling.weight(*arguments, p.boundary), at)
                T.buffer_store(local["slope"], sampling.slope(*arguments, p.boundary), at)
        modulation: Expr = g.const(1)
        if self.mask is not None:
            modulation = g.real(self.mask[tuple(g.index(image, group * g.taps + tap, pixel))])
        T.buffer_store(local["mask"], modulation, [0])
        skip = sampling.skipped(
            local["position"][0], local["position"][1], g.h, g.w, p.boundary, slopes=True
        )
        for corner in range(4):
            self._store(entry, corner, skip)

    def _store(self, entry: Expr, corner: int, skip: Expr) -> None:
        g, local, at = self.g, self._local, [corner * self.entries + entry]
        down, across = corner // 2, 2 + corner % 2
        linear = local["cell"][down] * g.w.astype("int32") + local["cell"][across]
        T.buffer_store(self._pixel, tirx.Select(skip, int32(-1), linear), at)
        for name, buffer in self._factors.items():
            rows, columns = FACTORS.get(name, FACTORS["mask"])
            value = local[rows][down] * local[columns][across]
            if name == "share":  # a NaN position names no pixel; a weight is at least 0, or NaN
                value = tirx.Select(value >= g.const(0), value, g.const(0))
            if name != "mask":
                value = value * local["mask"][0]
            T.buffer_store(buffer, value, at)

    def entry(self, row: Expr, within: Expr) -> Expr:
        """Of a row and a channel within the tile."""
        if self.groups == 1:
            return row
        return within // self.g.group_channels * self.shape.rows + row

    def pixel(self, corner: int, entry: Expr) -> Expr:
        """Linear pixel of a corner; -1 if nothing is in reach."""
        return self._pixel[corner * self.entries + entry]

    def image(self, row: Expr) -> Expr:
        """A row's image."""
        return self._image[row]

    def share(self, corner: int, entry: Expr) -> Expr:
        """What of a sample's gradient goes to a corner, 0 for a NaN position."""
        return self._factors["share"][corner * self.entries + entry]

    def slope(self, kind: str, corner: int, entry: Expr) -> Expr:
        """What a corner's pixel counts for in a sum."""
        return self._factors[kind][corner * self.entries + entry]
