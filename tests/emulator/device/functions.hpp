// CUDA's functions of numbers and of memory.
#pragma once

// A maximum with a number that is none is the other number, as on the device.
#define EMULATED_EXTREMES(T)                                      \
  static inline T max(T a, T b) { return a > b ? a : b; }         \
  static inline T min(T a, T b) { return a < b ? a : b; }
EMULATED_EXTREMES(int)
EMULATED_EXTREMES(unsigned)
EMULATED_EXTREMES(long)
EMULATED_EXTREMES(unsigned long)
EMULATED_EXTREMES(long long)
EMULATED_EXTREMES(unsigned long long)
#undef EMULATED_EXTREMES
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline float min(float a, float b) { return fminf(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(float a, double b) { return fmax(a, b); }
static inline double min(float a, double b) { return fmin(a, b); }
static inline double max(double a, float b) { return fmax(a, b); }
static inline double min(double a, float b) { return fmin(a, b); }

static inline float rsqrtf(float x) { return 1 / sqrtf(x); }
static inline double rsqrt(double x) { return 1 / sqrt(x); }
static inline float __saturatef(float x) { return fminf(fmaxf(x, 0), 1); }
static inline float __fdividef(float x, float y) { return x / y; }
static inline float __fdiv_rn(float x, float y) { return x / y; }
static inline float __frcp_rn(float x) { return 1 / x; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __fadd_rn(float x, float y) { return x + y; }
static inline float __fsub_rn(float x, float y) { return x - y; }
static inline float __fmul_rn(float x, float y) { return x * y; }
static inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
static inline double __dadd_rn(double x, double y) { return x + y; }
static inline double __dmul_rn(double x, double y) { return x * y; }
static inline double __fma_rn(double x, double y, double z) { return fma(x, y, z); }
// Macros: the C library may have hidden functions of these names.
#define __expf(x) expf(x)
#define __exp10f(x) powf(10.0f, x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __powf(x, y) powf(x, y)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)

static inline int __float_as_int(float x) { return emulated_bits<int>(x); }
static inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }
static inline float __int_as_float(int x) { return emulated_bits<float>(x); }
static inline float __uint_as_float(unsigned x) { return emulated_bits<float>(x); }
static inline long long __double_as_longlong(double x) { return emulated_bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return emulated_bits<double>(x); }

// A conversion that does not fit gives the nearest number that does, and of no number zero.
template <class To>
static inline To emulated_whole(double x) {
  constexpr double bound = sizeof(To) == 4 ? 0x1p31 : 0x1p63, top = std::is_signed_v<To> ? bound : 2 * bound;
  if (x != x) return 0;
  if (x >= top) return (To)(std::is_signed_v<To> ? ~(To(1) << (sizeof(To) * 8 - 1)) : ~To(0));
  if (x < (std::is_signed_v<To> ? -bound : 0.0)) return std::is_signed_v<To> ? To(1) << (sizeof(To) * 8 - 1) : 0;
  return (To)x;
}
#define EMULATED_WHOLE(suffix, T)                                                                        \
  static inline T __float2##suffix##_rn(float x) { return emulated_whole<T>(nearbyint((double)x)); }     \
  static inline T __float2##suffix##_rz(float x) { return emulated_whole<T>(trunc((double)x)); }         \
  static inline T __float2##suffix##_rd(float x) { return emulated_whole<T>(floor((double)x)); }         \
  static inline T __float2##suffix##_ru(float x) { return emulated_whole<T>(ceil((double)x)); }          \
  static inline T __double2##suffix##_rn(double x) { return emulated_whole<T>(nearbyint(x)); }           \
  static inline T __double2##suffix##_rz(double x) { return emulated_whole<T>(trunc(x)); }               \
  static inline T __double2##suffix##_rd(double x) { return emulated_whole<T>(floor(x)); }               \
  static inline T __double2##suffix##_ru(double x) { return emulated_whole<T>(ceil(x)); }
EMULATED_WHOLE(int, int)
EMULATED_WHOLE(uint, unsigned)
EMULATED_WHOLE(ll, long long)
EMULATED_WHOLE(ull, unsigned long long)
#undef EMULATED_WHOLE

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline int __mul24(int x, int y) { return x * y; }
static inline int __mulhi(int x, int y) { return int((long long)x * y >> 32); }
static inline unsigned __umulhi(unsigned x, unsigned y) { return unsigned((unsigned long long)x * y >> 32); }

template <class T>
static inline T __ldg(const T *from) {
  return *from;
}
template <class T>
static inline T __ldcg(const T *from) {
  return *from;
}

static inline size_t __cvta_generic_to_shared(const void *address) {
  return size_t(static_cast<const unsigned char *>(address) - emulated.shared_base);
}

// A thread keeps its turn, so a plain read and write is atomic. Types are those that the device has.
#define EMULATED_ADD(T)                               \
  static inline T atomicAdd(T *to, T value) {         \
    const T before = *to;                             \
    *to = before + value;                             \
    return before;                                    \
  }
#define EMULATED_ATOMIC(T, name, expression)          \
  static inline T name(T *to, T value) {              \
    const T before = *to;                             \
    *to = (expression);                               \
    return before;                                    \
  }
#define EMULATED_INTEGER(T)                                                  \
  EMULATED_ADD(T)                                                            \
  EMULATED_ATOMIC(T, atomicMax, before > value ? before : value)             \
  EMULATED_ATOMIC(T, atomicMin, before < value ? before : value)             \
  EMULATED_ATOMIC(T, atomicAnd, before & value)                              \
  EMULATED_ATOMIC(T, atomicOr, before | value)                               \
  EMULATED_ATOMIC(T, atomicXor, before ^ value)                              \
  EMULATED_ATOMIC(T, atomicExch, value)                                      \
  static inline T atomicCAS(T *to, T compare, T value) {                     \
    const T before = *to;                                                    \
    if (before == compare) *to = value;                                      \
    return before;                                                           \
  }
EMULATED_INTEGER(int)
EMULATED_INTEGER(unsigned)
EMULATED_INTEGER(unsigned long long)
EMULATED_ATOMIC(long long, atomicMax, before > value ? before : value)
EMULATED_ATOMIC(long long, atomicMin, before < value ? before : value)
EMULATED_ADD(float)
EMULATED_ADD(double)
EMULATED_ADD(half)
EMULATED_ADD(nv_bfloat16)
EMULATED_ADD(half2)
EMULATED_ADD(nv_bfloat162)
EMULATED_ATOMIC(float, atomicExch, value)
#undef EMULATED_INTEGER
#undef EMULATED_ATOMIC
#undef EMULATED_ADD
static inline int atomicSub(int *to, int value) { return atomicAdd(to, -value); }
static inline unsigned atomicSub(unsigned *to, unsigned value) { return atomicAdd(to, 0 - value); }
static inline unsigned short atomicCAS(unsigned short *to, unsigned short compare, unsigned short value) {
  const unsigned short before = *to;
  if (before == compare) *to = value;
  return before;
}
static inline float2 atomicAdd(float2 *to, float2 v) {
  const float2 before = *to;
  *to = {before.x + v.x, before.y + v.y};
  return before;
}
static inline float4 atomicAdd(float4 *to, float4 v) {
  const float4 before = *to;
  *to = {before.x + v.x, before.y + v.y, before.z + v.z, before.w + v.w};
  return before;
}
