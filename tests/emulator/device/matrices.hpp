// Tensor cores by nvcuda::wmma: lane 0 keeps the whole fragment and computes, the warp waits around loads and stores.
//
// Single elements of a fragment are not there: which lane holds which is the device's secret.
#pragma once

namespace nvcuda {
namespace wmma {
struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };
namespace precision {
struct tf32 {};
} // namespace precision

template <class T>
struct Stored {
  using type = T;
};
template <>
struct Stored<precision::tf32> {
  using type = float;
};

template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment {
  static constexpr int rows = std::is_same_v<Use, matrix_b> ? K : M, columns = std::is_same_v<Use, matrix_a> ? K : N;
  using Element = typename Stored<T>::type;
  Element v[rows * columns];
};

template <class F>
static inline void copy(F &f, typename F::Element *to, const typename F::Element *from, unsigned stride, bool by_row) {
  __syncwarp();
  if (emulated_lane() == 0)
    for (int i = 0; i < F::rows; i++)
      for (int j = 0; j < F::columns; j++) {
        const unsigned there = by_row ? i * stride + j : j * stride + i;
        if (to) to[there] = f.v[i * F::columns + j];
        else f.v[i * F::columns + j] = from[there];
      }
  __syncwarp();
}

template <class Use, int M, int N, int K, class T, class L>
static inline void load_matrix_sync(fragment<Use, M, N, K, T, L> &f, const typename Stored<T>::type *from, unsigned stride) {
  copy(f, nullptr, from, stride, std::is_same_v<L, row_major>);
}
template <int M, int N, int K, class T>
static inline void load_matrix_sync(fragment<accumulator, M, N, K, T> &f, const T *from, unsigned stride, layout_t layout) {
  copy(f, nullptr, from, stride, layout == mem_row_major);
}
template <int M, int N, int K, class T>
static inline void store_matrix_sync(T *to, const fragment<accumulator, M, N, K, T> &f, unsigned stride, layout_t layout) {
  copy(const_cast<fragment<accumulator, M, N, K, T> &>(f), to, nullptr, stride, layout == mem_row_major);
}
template <class Use, int M, int N, int K, class T, class L, class V>
static inline void fill_fragment(fragment<Use, M, N, K, T, L> &f, V value) {
  for (auto &element : f.v) element = value;
}
template <int M, int N, int K, class A, class LA, class B, class LB, class D, class C>
static inline void mma_sync(fragment<accumulator, M, N, K, D> &d, const fragment<matrix_a, M, N, K, A, LA> &a,
                            const fragment<matrix_b, M, N, K, B, LB> &b, const fragment<accumulator, M, N, K, C> &c) {
  if (emulated_lane() != 0) return;
  for (int i = 0; i < M; i++)
    for (int j = 0; j < N; j++) {
      float sum = (float)c.v[i * N + j];
      for (int k = 0; k < K; k++) sum += (float)a.v[i * K + k] * (float)b.v[k * N + j];
      d.v[i * N + j] = sum;
    }
}
static inline float __float_to_tf32(float x) {
  const uint32_t bits = emulated_bits<uint32_t>(x);
  return x != x ? x : emulated_bits<float>((bits + 0x1000) & ~0x1fffu); // ties away from zero, as cvt.rna
}
} // namespace wmma
} // namespace nvcuda
