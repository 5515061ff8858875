// What the driver and a library of emulated kernels know of each other.
//
// The library owns the Runtime; the driver fills it in before it resumes a thread, and the kernel calls back through it.
#pragma once
#include <cstddef>

namespace emulator {

struct Index {
  unsigned x, y, z;
};

struct Runtime {
  Index thread, block, block_size, grid_size;
  unsigned char *shared_base, *dynamic;                      // the running block's shared memory, its dynamic part
  void (*barrier)(int line);                                 // __syncthreads
  void (*converge)(unsigned mask, int line, const void *value, unsigned bytes); // all lanes of a warp bring a value
  const void *(*brought)(unsigned lane);                     // what that lane brought, or null if it took no part
  unsigned (*active)();                                      // lanes of this warp that have not returned
  void *(*shared)(int site, size_t bytes, size_t alignment); // the block's array that is declared at `site`
  void (*copy)(void *to, const void *from, unsigned bytes, unsigned present); // cp.async
  void (*commit_copies)();
  void (*wait_copies)(unsigned groups);
  void (*fail)(int code, int line, const char *message); // ends the launch
};

struct Kernel {
  const char *name;
  unsigned max_threads; // __launch_bounds__
  unsigned parameters;
  void (*run)(void **values); // one thread of it
};

struct Module {
  Runtime *runtime;
  const Kernel *kernels;
  unsigned count;
};

constexpr unsigned warp_size = 32, slot_bytes = 16;
enum Code {
  success = 0,
  invalid_value = 1,
  out_of_memory = 2,
  not_initialized = 3,
  invalid_device = 101,
  invalid_image = 200,
  invalid_context = 201,
  not_found = 500,
  illegal_address = 700,
  misaligned_address = 716,
  launch_failed = 719,
};

} // namespace emulator
