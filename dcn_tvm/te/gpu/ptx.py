"""Instructions of tensor cores as device functions, each with a body for other machines.

What a lane holds of a matrix is written down in the manual of PTX ("Matrix Fragments for
mma.m16n8k16", "... .m16n8k8", "Warp-level matrix load instruction: ldmatrix"). The second bodies
say the same with exchanges between the lanes of a warp, so that a test can run what surrounds them:
addresses, turns, which register goes where.
"""

from __future__ import annotations

_TYPES = {"f16": "half", "bf16": "nv_bfloat16"}

_LOAD = """__device__ __forceinline__ void dcn_load_matrices(unsigned* to, const void* row) {
#if defined(__CUDA_ARCH__)
  unsigned p = (unsigned)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
    : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(p));
#else
  int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; i++) {
    unsigned long long from = __shfl_sync(~0u, (unsigned long long)row, i * 8 + lane / 4);
    to[i] = ((const unsigned*)from)[lane % 4];
  }
#endif
}
__device__ __forceinline__ void dcn_load_matrices_turned(unsigned* to, const void* row) {
#if defined(__CUDA_ARCH__)
  unsigned p = (unsigned)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
    : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(p));
#else
  int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; i++) {
    unsigned long long low = __shfl_sync(~0u, (unsigned long long)row, i * 8 + lane % 4 * 2);
    unsigned long long high = __shfl_sync(~0u, (unsigned long long)row, i * 8 + lane % 4 * 2 + 1);
    unsigned first = ((const unsigned short*)low)[lane / 4];
    to[i] = first | (unsigned)((const unsigned short*)high)[lane / 4] << 16;
  }
#endif
}
"""

_MMA_HALF = """__device__ __forceinline__
void dcn_mma_{kind}(float* c, const unsigned* a, const unsigned* b) {{
#if defined(__CUDA_ARCH__)
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 "
    "{{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}, {{%0, %1, %2, %3}};"
    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  int lane = threadIdx.x % 32;
  float rows[2][16], columns[2][16];
  {type} pair[2];
  for (int other = 0; other < 4; other++) {{
    for (int r = 0; r < 4; r++) {{
      unsigned held = __shfl_sync(~0u, a[r], lane / 4 * 4 + other);
      memcpy(pair, &held, 4);
      for (int i = 0; i < 2; i++) rows[r % 2][r / 2 * 8 + other * 2 + i] = (float)pair[i];
    }}
    for (int n = 0; n < 2; n++)
      for (int r = 0; r < 2; r++) {{
        unsigned held = __shfl_sync(~0u, b[r], (lane % 4 * 2 + n) * 4 + other);
        memcpy(pair, &held, 4);
        for (int i = 0; i < 2; i++) columns[n][r * 8 + other * 2 + i] = (float)pair[i];
      }}
  }}
  for (int i = 0; i < 4; i++)
    for (int k = 0; k < 16; k++) c[i] += rows[i / 2][k] * columns[i % 2][k];
#endif
}}
"""

_MMA_TF32 = """__device__ __forceinline__ unsigned dcn_tf32(float value) {
#if defined(__CUDA_ARCH__)
  unsigned rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));
  return rounded;
#else
  return __float_as_uint(value);
#endif
}
__device__ __forceinline__
void dcn_mma_tf32(float* c, const unsigned* a, const unsigned* b) {
#if defined(__CUDA_ARCH__)
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
    "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  int lane = threadIdx.x % 32;
  float rows[2][8], columns[2][8];
  for (int other = 0; other < 4; other++) {
    for (int r = 0; r < 4; r++) {
      unsigned held = __shfl_sync(~0u, a[r], lane / 4 * 4 + other);
      rows[r % 2][r / 2 * 4 + other] = __uint_as_float(held);
    }
    for (int n = 0; n < 2; n++)
      for (int r = 0; r < 2; r++) {
        unsigned held = __shfl_sync(~0u, b[r], (lane % 4 * 2 + n) * 4 + other);
        columns[n][r * 4 + other] = __uint_as_float(held);
      }
  }
  for (int i = 0; i < 4; i++)
    for (int k = 0; k < 8; k++) c[i] += rows[i / 2][k] * columns[i % 2][k];
#endif
}
"""


def instructions(kind: str) -> str:
    """The functions that products of a kind need: "f16", "bf16" or "tf32"."""
    if kind == "tf32":
        return _MMA_TF32
    return _LOAD + _MMA_HALF.format(kind=kind, type=_TYPES[kind])
