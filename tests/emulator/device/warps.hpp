// Operations of a warp: each lane brings its value and waits for the others of the mask.
#pragma once

#define __syncwarp(...) emulated_syncwarp(__LINE__ __VA_OPT__(,) __VA_ARGS__)
#define __shfl_sync(mask, value, ...) emulated_shuffle<0>(__LINE__, mask, value, __VA_ARGS__)
#define __shfl_up_sync(mask, value, ...) emulated_shuffle<1>(__LINE__, mask, value, __VA_ARGS__)
#define __shfl_down_sync(mask, value, ...) emulated_shuffle<2>(__LINE__, mask, value, __VA_ARGS__)
#define __shfl_xor_sync(mask, value, ...) emulated_shuffle<3>(__LINE__, mask, value, __VA_ARGS__)
#define __ballot_sync(mask, predicate) emulated_ballot(__LINE__, mask, predicate)
#define __any_sync(mask, predicate) (emulated_ballot(__LINE__, mask, predicate) != 0)
#define __all_sync(mask, predicate) (emulated_ballot(__LINE__, mask, !(predicate)) == 0)
#define __activemask() emulated.active()
#define __reduce_add_sync(mask, value) emulated_reduce(__LINE__, mask, value, [](auto a, auto b) { return a + b; })
#define __reduce_max_sync(mask, value) emulated_reduce(__LINE__, mask, value, [](auto a, auto b) { return a > b ? a : b; })
#define __reduce_min_sync(mask, value) emulated_reduce(__LINE__, mask, value, [](auto a, auto b) { return a < b ? a : b; })

static inline unsigned emulated_lane() {
  const emulator::Index size = emulated.block_size, at = emulated.thread;
  return (at.x + size.x * (at.y + size.y * at.z)) % 32;
}

static inline void emulated_syncwarp(int line, unsigned mask = 0xffffffffu) {
  emulated.converge(mask, line, nullptr, 0);
}

template <int kind, class T>
static inline T emulated_shuffle(int line, unsigned mask, T value, int by, int width = 32) {
  static_assert(sizeof(T) <= emulator::slot_bytes, "the value is too large for a shuffle");
  const int lane = int(emulated_lane()), first = lane / width * width, last = first + width;
  int from = kind == 0 ? first + (by & (width - 1)) : kind == 1 ? lane - by : kind == 2 ? lane + by : lane ^ by;
  if (from < first || from >= last) from = lane;
  emulated.converge(mask, line, &value, sizeof value);
  const void *brought = emulated.brought(unsigned(from));
  if (brought) memcpy(&value, brought, sizeof value);
  else memset((void *)&value, 0xff, sizeof value); // of a lane that took no part: anything
  return value;
}

static inline unsigned emulated_ballot(int line, unsigned mask, bool predicate) {
  emulated.converge(mask, line, &predicate, sizeof predicate);
  unsigned result = 0;
  for (unsigned lane = 0; lane < 32; lane++)
    if (const void *brought = emulated.brought(lane))
      if (*static_cast<const bool *>(brought)) result |= 1u << lane;
  return result;
}

template <class T, class Operation>
static inline T emulated_reduce(int line, unsigned mask, T value, Operation operation) {
  emulated.converge(mask, line, &value, sizeof value);
  bool first = true;
  for (unsigned lane = 0; lane < 32; lane++)
    if (const void *brought = emulated.brought(lane)) {
      const T other = *static_cast<const T *>(brought);
      value = first ? other : operation(value, other);
      first = false;
    }
  return value;
}
