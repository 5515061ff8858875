// CUDA's words in C++: qualifiers, indices, barriers. Included before every emulated source, with all that it may use.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <cstdint>
#include <type_traits>
#include <utility>

#include "../abi.hpp"

static emulator::Runtime emulated = {};

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

#define threadIdx (emulated.thread)
#define blockIdx (emulated.block)
#define blockDim (emulated.block_size)
#define gridDim (emulated.grid_size)
#define warpSize 32

#define __syncthreads() emulated.barrier(__LINE__)
#define __trap() emulated.fail(emulator::launch_failed, __LINE__, "a trap")

// Threads take turns, and one that has the turn keeps it: its writes are seen by all at once.
static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline void __threadfence_system() {}

// One thread of a kernel, its arguments behind pointers as cuLaunchKernel has them.
template <class... Arguments, std::size_t... I>
static void emulated_call(void (*kernel)(Arguments...), void **values, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_const_t<Arguments> *>(values[I])...);
}
template <class... Arguments>
static void emulated_call(void (*kernel)(Arguments...), void **values) {
  emulated_call(kernel, values, std::index_sequence_for<Arguments...>());
}
template <class... Arguments>
static constexpr unsigned emulated_parameters(void (*)(Arguments...)) {
  return sizeof...(Arguments);
}

// What g++ checks for us, told as an error of the launch and not on stderr (the layouts are those of its sanitizer).
struct EmulatedPlace {
  const char *file;
  uint32_t line, column;
};
extern "C" void __ubsan_handle_type_mismatch_v1(EmulatedPlace *place, uintptr_t) {
  emulated.fail(emulator::misaligned_address, int(place->line), "a misaligned access");
}
extern "C" void __ubsan_handle_out_of_bounds(EmulatedPlace *place, uintptr_t) {
  emulated.fail(emulator::illegal_address, int(place->line), "an index out of bounds of an array");
}
