"""How the gradient of a deformable convolution's input is added up: manners of meeting at a pixel.

atomic   CUDA's additions of floating-point numbers; fastest, and every run rounds differently
fixed    CUDA's additions of fixed-point numbers; the same bits in every run
owned    no additions by several threads: dcolumn is kept in memory, and a thread walks over it for
         each channel of an image, in order. Slow, and possible on every target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from dcn_tvm.te import nest, sampling
from dcn_tvm.te.gpu import sums
from dcn_tvm.te.gpu.columns import locations, store_weights
from dcn_tvm.te.gpu.conv import Frame, turned
from dcn_tvm.te.gpu.grid import Expr, div, each, mod, place
from dcn_tvm.te.nest import int64


class Scatter:
    """Sums [image, pixel, channel] of what is scattered."""

    def __init__(self, g: Frame, manner: str) -> None:
        self.g, self.manner = g, manner
        self.dtype = "int64" if manner == "fixed" else g.problem.accumulate

    @property
    def keeps(self) -> bool:
        """Whether dcolumn is kept, and scattered later."""
        return self.manner == "owned"

    @property
    def _direct(self) -> bool:
        """Whether the sums are the gradient itself."""
        p = self.g.problem
        return self.manner == "atomic" and p.layout == "nhwc" and p.dtype == p.accumulate

    def shape(self) -> Sequence[Expr]:
        """Of what the kernel writes."""
        g, channels = self.g, self.g.problem.in_channels
        if self.keeps:
            return (g.rows, int64(g.taps), int64(channels))
        if self._direct:
            return g.map_shape(channels, output_sized=False)
        return (g.n, g.h * g.w, int64(channels))

    def needs(
        self, grad: te.Tensor, weight: te.Tensor, mask: te.Tensor | None
    ) -> dict[str, te.Tensor]:
        """Tensors that adding needs, by name: the scale of fixed-point sums.

        A pixel's sum has at most one addend for each sample of its image, as the shares of a sample
        are at most 1 together; each is a sum over outputs.
        """
        if self.manner != "fixed":
            return {}
        g, kind = self.g, self.g.problem.accumulate
        given = {"grad": grad, "weight": weight, **({} if mask is None else {"mask": mask})}
        bounds = [sums.magnitude(tensor, kind, f"largest_{name}") for name, tensor in given.items()]
        return {"scale": sums.fixed_scale(bounds, g.pixels * g.taps * g.outputs)}

    def start(self, written: Any, given: dict[str, Any]) -> None:
        """Emit what comes before the kernel that adds."""
        self.written, self.scale = written, given.get("scale")
        if not self.keeps:
            kind = "float32" if self.dtype == "float32" else "float64"
            sums.zero(written, "clear", self.g.vector(kind))

    def add(self, image: Expr, pixel: Expr, channel: Expr, values: Sequence[Expr]) -> None:
        """Add to a pixel's neighbouring channels."""
        at = self.g.row_index(self.written, image, pixel, channel)
        scale = None if self.scale is None else self.scale[0]
        if len(values) == 4:
            sums.add_four(self.written, at, values, scale)
            return
        for i, value in enumerate(values):
            sums.add(self.written, [*at[:-1], at[-1] + i], value, scale)

    def keep(self, row: Expr, tap: Expr, channel: Expr, values: Any, width: int) -> None:
        """Keep some channels of dcolumn."""
        with T.unroll(int64(0), int64(width)) as i:
            T.buffer_store(self.written, values[i], [row, tap, channel + i])

    def finish(self, written: te.Tensor, given: dict[str, te.Tensor]) -> te.Tensor:
        """The gradient of the input."""
        if self._direct:
            return written
        g, p = self.g, self.g.problem
        summed = self._walk(written, given["offset"], given.get("mask")) if self.keeps else written
        shape = g.map_shape(p.in_channels, output_sized=False)
        more = [given["scale"]] if self.manner == "fixed" else []

        def value(total: Expr, *scale: Any) -> Expr:
            return (total.astype("float64") / scale[0][0] if scale else total).astype(p.dtype)

        if p.layout == "nchw":
            sizes = (g.n, g.h * g.w, int64(p.in_channels))
            return turned(
                summed, *sizes, "grad_input", shape=shape, finish=(value, p.dtype), more=more
            )

        def body(ins: list[Any], outs: list[Any]) -> None:
            with each(sums.elements(shape), "grad_input") as number:
                image, pixel, channel = place(ins[0].shape, number)
                at = g.index(image, channel, pixel)
                T.buffer_store(outs[0], value(ins[0][image, pixel, channel], *ins[1:]), at)

        return nest.nest([shape], [summed, *more], body, "grad_input", [p.dtype])[0]

    def _walk(self, kept: te.Tensor, offset: te.Tensor, mask: te.Tensor | None) -> te.Tensor:
        """[image, pixel, channel]: a thread adds up an image's samples of one channel in order."""
        g, channels = self.g, self.g.problem.in_channels

        def body(ins: list[Any], outs: list[Any]) -> None:
            sums.zero(outs[0], "clear")
            with each(g.n * channels, "walk", 64) as number:
                image, channel = div(number, int64(channels)), mod(number, int64(channels))
                local = {
                    name: T.sblock_alloc_buffer((size,), dtype, scope="local")
                    for name, size, dtype in (
                        ("position", 2, g.problem.accumulate),
                        ("cell", 4, "int32"),
                        ("weight", 4, g.problem.accumulate),
                    )
                }
                with (
                    T.serial(int64(0), g.pixels) as pixel,
                    T.serial(int64(0), int64(g.taps)) as tap,
                ):
                    value = ins[0][image * g.pixels + pixel, tap, channel]
                    masks = ins[2] if mask is not None else None
                    self._add_sample(
                        outs[0], local, (image, channel, pixel, tap), value, ins[1], masks
                    )

        given = [kept, offset, *([] if mask is None else [mask])]
        shape = (g.n, g.h * g.w, int64(channels))
        return nest.nest([shape], given, body, "walk", [g.problem.accumulate])[0]

    def _add_sample(
        self,
        summed: Any,
        local: dict[str, Any],
        at: tuple[Expr, ...],
        value: Expr,
        offset: Any,
        mask: Any,
    ) -> None:
        g = self.g
        image, channel, pixel, tap = at
        group = div(channel, int64(g.group_channels))
        where = locations(g, offset, image, div(pixel, g.wo), mod(pixel, g.wo), pixel, tap, group)
        position, cell, weight = (local[name] for name in ("position", "cell", "weight"))
        store_weights(g, where, position, cell, weight)
        skip = sampling.skipped(position[0], position[1], g.h, g.w, g.problem.boundary)
        with T.If(tirx.Not(skip)), T.Then():
            if mask is not None:
                value = value * g.real(mask[tuple(g.index(image, group * g.taps + tap, pixel))])
            for corner in range(4):
                share = weight[corner // 2] * weight[2 + corner % 2]
                line, column = (
                    cell[corner // 2].astype("int64"),
                    cell[2 + corner % 2].astype("int64"),
                )
                with T.If(share > 0), T.Then():
                    to = [image, line * g.w + column, channel]
                    T.buffer_store(summed, summed[tuple(to)] + share * value, to)
