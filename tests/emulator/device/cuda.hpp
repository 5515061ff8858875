// Everything that an emulated source sees in place of CUDA's headers.
#pragma once
#include "language.hpp"
#include "scalars.hpp"
#include "vectors.hpp"
#include "functions.hpp"
#include "warps.hpp"
#include "matrices.hpp"

#define CUDART_INF_F INFINITY
#define CUDART_NAN_F NAN
#define CUDART_INF ((double)INFINITY)
#define CUDART_NAN ((double)NAN)
#define CUDART_INF_FP16 __ushort_as_half(0x7c00)
#define CUDART_NAN_FP16 __ushort_as_half(0x7fff)
#define CUDART_INF_BF16 __ushort_as_bfloat16(0x7f80)
#define CUDART_NAN_BF16 __ushort_as_bfloat16(0x7fff)
#define __noinline__ __attribute__((noinline))

// From here on the source: code for a device alone must stand where __CUDA_ARCH__ is defined.
#pragma GCC poison asm __asm __asm__
