// CUDA's vector types with its alignments (a device refuses what is not aligned, and so does the emulator).
#pragma once

#define EMULATED_VECTOR(name, T, a1, a2, a3, a4)                                        \
  struct __align__(a1) name##1 { T x; };                                                \
  struct __align__(a2) name##2 { T x, y; };                                             \
  struct __align__(a3) name##3 { T x, y, z; };                                          \
  struct __align__(a4) name##4 { T x, y, z, w; };                                       \
  static inline name##1 make_##name##1(T x) { return {x}; }                             \
  static inline name##2 make_##name##2(T x, T y) { return {x, y}; }                     \
  static inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }             \
  static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATED_VECTOR(char, signed char, 1, 2, 1, 4)
EMULATED_VECTOR(uchar, unsigned char, 1, 2, 1, 4)
EMULATED_VECTOR(short, short, 2, 4, 2, 8)
EMULATED_VECTOR(ushort, unsigned short, 2, 4, 2, 8)
EMULATED_VECTOR(int, int, 4, 8, 4, 16)
EMULATED_VECTOR(uint, unsigned, 4, 8, 4, 16)
EMULATED_VECTOR(long, long, 8, 16, 8, 16)
EMULATED_VECTOR(ulong, unsigned long, 8, 16, 8, 16)
EMULATED_VECTOR(longlong, long long, 8, 16, 8, 16)
EMULATED_VECTOR(ulonglong, unsigned long long, 8, 16, 8, 16)
EMULATED_VECTOR(float, float, 4, 8, 4, 16)
EMULATED_VECTOR(double, double, 8, 16, 8, 16)
#undef EMULATED_VECTOR

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

template <class T>
struct __align__(4) EmulatedPair {
  T x, y;
  EmulatedPair() = default;
  EmulatedPair(T x, T y) : x(x), y(y) {}
  friend EmulatedPair operator+(EmulatedPair a, EmulatedPair b) { return {a.x + b.x, a.y + b.y}; }
  friend EmulatedPair operator-(EmulatedPair a, EmulatedPair b) { return {a.x - b.x, a.y - b.y}; }
  friend EmulatedPair operator*(EmulatedPair a, EmulatedPair b) { return {a.x * b.x, a.y * b.y}; }
};
using __half2 = EmulatedPair<half>;
using __nv_bfloat162 = EmulatedPair<nv_bfloat16>;
using half2 = __half2;
using nv_bfloat162 = __nv_bfloat162;

static inline half2 make_half2(half x, half y) { return {x, y}; }
static inline half2 __halves2half2(half x, half y) { return {x, y}; }
static inline half2 __float2half2_rn(float x) { return {x, x}; }
static inline half2 __floats2half2_rn(float x, float y) { return {x, y}; }
static inline half2 __float22half2_rn(float2 v) { return {v.x, v.y}; }
static inline half2 __half2half2(half x) { return {x, x}; }
static inline float2 __half22float2(half2 v) { return {v.x, v.y}; }
static inline nv_bfloat162 __halves2bfloat162(nv_bfloat16 x, nv_bfloat16 y) { return {x, y}; }
static inline nv_bfloat162 __float2bfloat162_rn(float x) { return {x, x}; }
static inline nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
static inline nv_bfloat162 __float22bfloat162_rn(float2 v) { return {v.x, v.y}; }
static inline nv_bfloat162 __bfloat162bfloat162(nv_bfloat16 x) { return {x, x}; }
static inline float2 __bfloat1622float2(nv_bfloat162 v) { return {v.x, v.y}; }
#define EMULATED_PAIR(T)                                                                           \
  static inline T __low2##T(T##2 v) { return v.x; }                                                \
  static inline T __high2##T(T##2 v) { return v.y; }                                               \
  static inline float __low2float(T##2 v) { return v.x; }                                          \
  static inline float __high2float(T##2 v) { return v.y; }                                         \
  static inline T##2 __hadd2(T##2 a, T##2 b) { return a + b; }                                     \
  static inline T##2 __hsub2(T##2 a, T##2 b) { return a - b; }                                     \
  static inline T##2 __hmul2(T##2 a, T##2 b) { return a * b; }                                     \
  static inline T##2 __hfma2(T##2 a, T##2 b, T##2 c) {                                             \
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};                                         \
  }                                                                                                \
  static inline T##2 __hmax2(T##2 a, T##2 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }      \
  static inline T##2 __hmin2(T##2 a, T##2 b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }
EMULATED_BOTH(EMULATED_PAIR)
#undef EMULATED_PAIR
static inline nv_bfloat16 __low2bfloat16(nv_bfloat162 v) { return v.x; }
static inline nv_bfloat16 __high2bfloat16(nv_bfloat162 v) { return v.y; }
