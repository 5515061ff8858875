"""Tensor cores: a block's product of two tiles in shared memory, as device functions in CUDA's C++.

    acc += A B        A [rows, depth], B [depth, columns], acc in the registers of the block's warps

A warp owns a grid of 16 x 16 squares of the result. Numbers lie in the registers as `mma.m16n8`
wants them: lane l of a warp holds of each square the rows l / 4 and l / 4 + 8 and four pairs of
columns, see `_LANE`.

Without a GPU the same numbers are computed in the same places by a loop for each lane, or, where
DCN_TVM_LANES is defined, by the very code that runs on a device, whose instructions are then
exchanges between lanes (see `ptx`).
"""

from __future__ import annotations

from dataclasses import dataclass

from dcn_tvm.te.gpu.ptx import instructions

KINDS = {"float16": "f16", "bfloat16": "bf16", "float32": "tf32"}
_TYPES = {"f16": "half", "bf16": "nv_bfloat16", "tf32": "float"}

_LANE = """  int row = (warp / {across}) * {height} + i * 16 + 8 * (r % 4 / 2) + lane / 4;
  int column = (warp % {across}) * {width} + j * 16 + 8 * (r / 4) + lane % 4 * 2 + r % 2;"""

_MULTIPLY = """__device__ __forceinline__
void {name}(float* acc, const {type}* a, const {type}* b) {{
  int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
#if defined(__CUDA_ARCH__) || defined(DCN_TVM_LANES)
  a += (warp / {across}) * {height} * {a_row_step};
  b += (warp % {across}) * {width};
#pragma unroll
  for (int k = 0; k < {depth}; k += {step}) {{
    unsigned left[{down_squares}][4], right[{across_squares}][4];
{load}
#pragma unroll
    for (int i = 0; i < {down_squares}; i++)
#pragma unroll
      for (int j = 0; j < {across_squares}; j++)
#pragma unroll
        for (int r = 0; r < 2; r++)
          dcn_mma_{kind}(acc + (i * {across_squares} + j) * 8 + r * 4, left[i], right[j] + r * 2);
  }}
#else
  for (int i = 0; i < {down_squares}; i++)
    for (int j = 0; j < {across_squares}; j++)
      for (int r = 0; r < 8; r++) {{
      {lane}
        float sum = 0;
        for (int k = 0; k < {depth}; k++)
          sum += (float)a[row * {a_row_step} + k * {a_step}] * (float)b[k * {b_row} + column];
        acc[(i * {across_squares} + j) * 8 + r] += sum;
      }}
#endif
}}
"""

# A stored [rows, depth], or [depth, rows], which ldmatrix transposes. An address is of 8 halves.
_LOAD_HALF = """#pragma unroll
    for (int i = 0; i < {down_squares}; i++)
      dcn_load_matrices{a_turned}(left[i], a + {a_place});
#pragma unroll
    for (int j = 0; j < {across_squares}; j++)
      dcn_load_matrices_turned(right[j], b + (k + lane % 16) * {b_row} + j * 16 + lane / 16 * 8);"""
_PLAIN = "(i * 16 + lane % 16) * {a_row} + k + lane / 16 * 8"
_TURNED = "(k + lane / 16 * 8 + lane % 8) * {a_row} + i * 16 + lane / 8 % 2 * 8"

_LOAD_TF32 = """#pragma unroll
    for (int i = 0; i < {down_squares}; i++)
#pragma unroll
      for (int r = 0; r < 4; r++) {{
        int row = i * 16 + lane / 4 + r % 2 * 8, column = k + lane % 4 + r / 2 * 4;
        left[i][r] = dcn_tf32(a[row * {a_row_step} + column * {a_step}]);
      }}
#pragma unroll
    for (int j = 0; j < {across_squares}; j++)
#pragma unroll
      for (int r = 0; r < 4; r++) {{
        int row = k + lane % 4 + r % 2 * 4, column = j * 16 + r / 2 * 8 + lane / 4;
        right[j][r] = dcn_tf32(b[row * {b_row} + column]);
      }}"""

_SPILL = """__device__ __forceinline__ void {name}(float* tile, const float* acc) {{
  int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
#pragma unroll
  for (int i = 0; i < {down_squares}; i++)
#pragma unroll
    for (int j = 0; j < {across_squares}; j++)
#pragma unroll
      for (int r = 0; r < 8; r++) {{
      {lane}
        tile[row * {row} + column] = acc[(i * {across_squares} + j) * 8 + r];
      }}
}}
"""

COPY = """__device__ __forceinline__
void dcn_copy_16(void* shared, const void* global, bool inside) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  unsigned p = (unsigned)__cvta_generic_to_shared(shared);
  int bytes = inside ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
    ::"r"(p), "l"(global), "r"(bytes) : "memory");
#else
  uint4 zero = make_uint4(0, 0, 0, 0);
  *(uint4*)shared = inside ? *(const uint4*)global : zero;
#endif
}
"""
PUT = """__device__ __forceinline__ void dcn_put_16(void* shared, const void* values) {
  *(uint4*)shared = *(const uint4*)values;
}
"""
WAIT = """__device__ __forceinline__ void dcn_copied() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}
"""


@dataclass(frozen=True)
class Squares:
    """How the warps of a block share a product, and how its operands lie in shared memory.

    Attributes:
        kind: "f16", "bf16" or "tf32".
        down: warps along the rows.
        across: warps along the columns.
        height: rows of a warp, whole squares.
        width: columns of a warp.
        depth: of one product.
        a_row: elements from one row of A as it is stored to the next.
        b_row: likewise of B.
        turned: A is stored [depth, rows].
    """

    kind: str
    down: int
    across: int
    height: int
    width: int
    depth: int
    a_row: int
    b_row: int
    turned: bool = False

    @property
    def registers(self) -> int:
        """Numbers of the result that a thread holds."""
        return self.height * self.width // 32

    def multiply(self) -> tuple[str, str]:
        """Name and source of `multiply(acc, a, b)`."""
        name, names = (
            f"dcn_multiply_{self._id()}_{self.depth}_{self.a_row}_{self.b_row}",
            self._names(),
        )
        half = self.kind != "tf32"
        names["a_place"] = (_TURNED if self.turned else _PLAIN).format(**names)
        load = (_LOAD_HALF if half else _LOAD_TF32).format(**names)
        names |= {"name": name, "load": load, "step": 16 if half else 8}
        return name, instructions(self.kind) + _MULTIPLY.format(**names)

    def spill(self, row: int) -> tuple[str, str]:
        """Name and source of `spill(tile, acc)`, to shared memory, `row` elements to a row."""
        name = f"dcn_spill_{self._id()}_{row}"
        return name, _SPILL.format(**self._names(), name=name, row=row)

    def _id(self) -> str:
        turned = "t" if self.turned else ""
        return f"{self.kind}{turned}_{self.down}x{self.across}_{self.height}x{self.width}"

    def _names(self) -> dict[str, object]:
        names: dict[str, object] = {
            "kind": self.kind,
            "type": _TYPES[self.kind],
            "across": self.across,
            "height": self.height,
            "width": self.width,
            "depth": self.depth,
            "down_squares": self.height // 16,
            "across_squares": self.width // 16,
            "a_row": self.a_row,
            "b_row": self.b_row,
            "a_turned": "_turned" if self.turned else "",
            "a_step": self.a_row if self.turned else 1,
            "a_row_step": 1 if self.turned else self.a_row,
        }
        names["lane"] = _LANE.format(**names)
        return names
