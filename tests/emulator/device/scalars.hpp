// half and bfloat16: every operation in float, rounded to nearest even at once, as the device does.
#pragma once

template <class To, class From>
static inline To emulated_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "a reinterpretation keeps its size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// To float by truncation with a sticky last bit, so that rounding again rounds the double.
static inline float emulated_to_odd(double value) {
  float near = (float)value;
  if ((double)near == value || value != value || near - near != 0) return near;
  uint32_t bits = emulated_bits<uint32_t>(near);
  if (fabs((double)near) > fabs(value)) bits--;
  return emulated_bits<float>(bits | 1);
}

struct EmulatedHalf {
  static uint16_t round(float value) {
    uint32_t bits = emulated_bits<uint32_t>(value), sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return 0x7fff;
    if (bits >= 0x477ff000) return sign | 0x7c00;
    if (bits < 0x38800000) // subnormal: the last place of 0.5 + x is half's
      return sign | (emulated_bits<uint32_t>(emulated_bits<float>(bits) + 0.5f) - 0x3f000000);
    bits += 0xfff + (bits >> 13 & 1);
    return sign | ((bits - (112u << 23)) >> 13);
  }
  static float widen(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000) << 16, bits = half & 0x7fff;
    if (bits >= 0x7c00) return emulated_bits<float>(sign | 0x7f800000 | (bits & 0x3ff) << 13);
    const float magnitude = emulated_bits<float>(bits << 13) * 0x1p112f;
    return emulated_bits<float>(sign | emulated_bits<uint32_t>(magnitude));
  }
};

struct EmulatedBfloat16 {
  static uint16_t round(float value) {
    const uint32_t bits = emulated_bits<uint32_t>(value);
    if (value != value) return 0x7fff;
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
  static float widen(uint16_t bits) { return emulated_bits<float>(uint32_t(bits) << 16); }
};

template <class Format>
struct EmulatedScalar {
  uint16_t bits;
  EmulatedScalar() = default;
  EmulatedScalar(float value) : bits(Format::round(value)) {}
  EmulatedScalar(double value) : bits(Format::round(emulated_to_odd(value))) {}
  template <class T, class = std::enable_if_t<std::is_integral_v<T>>>
  EmulatedScalar(T value) : EmulatedScalar((double)value) {}
  operator float() const { return Format::widen(bits); }

#define EMULATED_OPERATOR(op)                                                                \
  friend EmulatedScalar operator op(EmulatedScalar a, EmulatedScalar b) {                    \
    return (float)a op(float) b;                                                             \
  }                                                                                          \
  EmulatedScalar &operator op##=(EmulatedScalar b) { return *this = *this op b; }
  EMULATED_OPERATOR(+)
  EMULATED_OPERATOR(-)
  EMULATED_OPERATOR(*)
  EMULATED_OPERATOR(/)
#undef EMULATED_OPERATOR
#define EMULATED_OPERATOR(op)                                                                \
  friend bool operator op(EmulatedScalar a, EmulatedScalar b) { return (float)a op(float) b; }
  EMULATED_OPERATOR(<)
  EMULATED_OPERATOR(>)
  EMULATED_OPERATOR(<=)
  EMULATED_OPERATOR(>=)
  EMULATED_OPERATOR(==)
  EMULATED_OPERATOR(!=)
#undef EMULATED_OPERATOR
  friend EmulatedScalar operator-(EmulatedScalar a) { return -(float)a; }
  friend EmulatedScalar operator+(EmulatedScalar a) { return a; }
};

using __half = EmulatedScalar<EmulatedHalf>;
using __nv_bfloat16 = EmulatedScalar<EmulatedBfloat16>;
using half = __half;
using nv_bfloat16 = __nv_bfloat16;

static inline float __half2float(half a) { return a; }
static inline half __float2half(float a) { return a; }
static inline half __float2half_rn(float a) { return a; }
static inline half __double2half(double a) { return a; }
static inline float __bfloat162float(nv_bfloat16 a) { return a; }
static inline nv_bfloat16 __float2bfloat16(float a) { return a; }
static inline nv_bfloat16 __float2bfloat16_rn(float a) { return a; }
static inline nv_bfloat16 __double2bfloat16(double a) { return a; }
static inline unsigned short __half_as_ushort(half a) { return a.bits; }
static inline short __half_as_short(half a) { return (short)a.bits; }
static inline half __ushort_as_half(unsigned short a) { return emulated_bits<half>(a); }
static inline half __short_as_half(short a) { return emulated_bits<half>(a); }
static inline unsigned short __bfloat16_as_ushort(nv_bfloat16 a) { return a.bits; }
static inline nv_bfloat16 __ushort_as_bfloat16(unsigned short a) { return emulated_bits<nv_bfloat16>(a); }

#define EMULATED_BOTH(define) define(half) define(nv_bfloat16)
#define EMULATED_FUNCTION(name, expression)                          \
  static inline half name(half h) {                                  \
    const float x = h;                                               \
    return expression;                                               \
  }                                                                  \
  static inline nv_bfloat16 name(nv_bfloat16 h) {                    \
    const float x = h;                                               \
    return expression;                                               \
  }
EMULATED_FUNCTION(hexp, expf(x))
EMULATED_FUNCTION(hexp2, exp2f(x))
EMULATED_FUNCTION(hexp10, powf(10, x))
EMULATED_FUNCTION(hlog, logf(x))
EMULATED_FUNCTION(hlog2, log2f(x))
EMULATED_FUNCTION(hlog10, log10f(x))
EMULATED_FUNCTION(hsqrt, sqrtf(x))
EMULATED_FUNCTION(hrsqrt, 1 / sqrtf(x))
EMULATED_FUNCTION(hrcp, 1 / x)
EMULATED_FUNCTION(hsin, sinf(x))
EMULATED_FUNCTION(hcos, cosf(x))
EMULATED_FUNCTION(hfloor, floorf(x))
EMULATED_FUNCTION(hceil, ceilf(x))
EMULATED_FUNCTION(htrunc, truncf(x))
EMULATED_FUNCTION(hrint, rintf(x))
EMULATED_FUNCTION(__habs, fabsf(x))
EMULATED_FUNCTION(__hneg, -x)
#undef EMULATED_FUNCTION
// The source brings its own for bfloat16, and for half only where __CUDA_ARCH__ is defined.
static inline half hpow(half a, half b) { return powf(a, b); }
static inline half htanh(half a) { return tanhf(a); }
static inline half htan(half a) { return tanf(a); }
static inline half hatan(half a) { return atanf(a); }
static inline half herf(half a) { return erff(a); }

#define EMULATED_NAMED(T)                                                                            \
  static inline T __hadd(T a, T b) { return a + b; }                                                 \
  static inline T __hsub(T a, T b) { return a - b; }                                                 \
  static inline T __hmul(T a, T b) { return a * b; }                                                 \
  static inline T __hdiv(T a, T b) { return a / b; }                                                 \
  static inline T __hfma(T a, T b, T c) { return (double)(float)a * (float)b + (double)(float)c; }   \
  static inline bool __hgt(T a, T b) { return a > b; }                                               \
  static inline bool __hlt(T a, T b) { return a < b; }                                               \
  static inline bool __hge(T a, T b) { return a >= b; }                                              \
  static inline bool __hle(T a, T b) { return a <= b; }                                              \
  static inline bool __heq(T a, T b) { return a == b; }                                              \
  static inline bool __hne(T a, T b) { return a != b; }                                              \
  static inline bool __hisnan(T a) { return a != a; }                                                \
  static inline bool isnan(T a) { return a != a; }                                                   \
  static inline bool isinf(T a) { return fabsf(a) == INFINITY; }                                     \
  static inline bool isfinite(T a) { return fabsf(a) < INFINITY; }                                   \
  static inline T __hmax(T a, T b) { return fmaxf(a, b); }                                           \
  static inline T __hmin(T a, T b) { return fminf(a, b); }
EMULATED_BOTH(EMULATED_NAMED)
#undef EMULATED_NAMED
