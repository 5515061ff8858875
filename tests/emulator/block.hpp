// Runs the blocks of one launch: every thread until it waits, then whoever may go on, until all have returned.
#pragma once
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "abi.hpp"
#include "fibers.hpp"

namespace emulator {

enum class State : unsigned char { ready, barrier, warp, returned };

// An asynchronous copy happens as late as it may: who forgets to wait reads poison. What nobody waits for is dropped
// with the shared memory that it goes to.
struct Copy {
  void *to;
  const void *from;
  unsigned bytes, present, group; // what of it is present in the source: the rest becomes zero
};

struct Fiber {
  Context context;
  Index index;
  State state;
  int line;
  unsigned mask;
  unsigned long operation; // the warp operation that it took part in last
  // Who goes on first may bring its next value before the others have looked at this one.
  alignas(16) unsigned char brings[slot_bytes], brought[slot_bytes];
  std::vector<Copy> copies;
  unsigned group; // of copies, that is open
};

struct Failure {
  int code = success;
  std::string message;
};

// Arrays in shared memory keep their distance: what is written between them is out of bounds.
constexpr size_t shared_limit = 227 << 10, static_limit = 48 << 10, shared_zone = 256;

struct SharedArray {
  size_t offset, bytes;
};

class Launch {
 public:
  Launch(Runtime &runtime, const Kernel &kernel, void **values, size_t dynamic_bytes, const char *order, unsigned seed);
  Failure run();
  Failure failure;

 private:
  static void start();
  static void wait_at_barrier(int line);
  static void converge(unsigned mask, int line, const void *value, unsigned bytes);
  static const void *brought(unsigned lane);
  static unsigned active();
  static void *shared(int site, size_t bytes, size_t alignment);
  static void fail(int code, int line, const char *message);
  static void copy(void *to, const void *from, unsigned bytes, unsigned present);
  static void commit_copies();
  static void wait_copies(unsigned groups);

  void run_block();
  bool release();
  bool release_warps();
  void refuse_divergence();
  void check_shared();
  void *place(int site, size_t bytes, size_t alignment);
  void leave() { change(fibers_[current_].context, main_); }
  unsigned warp_end(unsigned first) const { return std::min(first + warp_size, threads_); }

  static Launch *running_;
  Runtime &runtime_;
  const Kernel &kernel_;
  void **values_;
  size_t dynamic_bytes_;
  std::string order_;
  std::mt19937 random_;
  unsigned threads_, current_ = 0, left_ = 0;
  Context main_;
  std::vector<unsigned> turns_;
  std::vector<SharedArray> arrays_;
  size_t static_bytes_ = 0, used_ = 0;
  unsigned long operations_ = 0;
  static std::vector<Fiber> fibers_;
  static Stacks stacks_;
  // Shared memory: arrays of a known size first, then the dynamic part.
  static constexpr size_t static_room = 512 << 10;
  alignas(1024) static unsigned char memory_[static_room + shared_limit + 1024];
  static constexpr unsigned char *dynamic_memory_ = memory_ + static_room;
};

Launch *Launch::running_;
std::vector<Fiber> Launch::fibers_;
Stacks Launch::stacks_;
unsigned char Launch::memory_[];

inline Launch::Launch(Runtime &runtime, const Kernel &kernel, void **values, size_t dynamic_bytes, const char *order,
                      unsigned seed)
    : runtime_(runtime), kernel_(kernel), values_(values), dynamic_bytes_(dynamic_bytes), order_(order), random_(seed) {
  threads_ = runtime.block_size.x * runtime.block_size.y * runtime.block_size.z;
  fibers_.resize(threads_);
  turns_.resize(threads_);
  std::iota(turns_.begin(), turns_.end(), 0u);
  if (order_ == "reverse") std::reverse(turns_.begin(), turns_.end());
  runtime.barrier = wait_at_barrier;
  runtime.converge = converge;
  runtime.brought = brought;
  runtime.active = active;
  runtime.shared = shared;
  runtime.fail = fail;
  runtime.copy = copy;
  runtime.commit_copies = commit_copies;
  runtime.wait_copies = wait_copies;
  runtime.shared_base = memory_;
  runtime.dynamic = dynamic_memory_;
  running_ = this;
}

inline Failure Launch::run() {
  const Index grid = runtime_.grid_size;
  const size_t blocks = size_t(grid.x) * grid.y * grid.z;
  std::vector<size_t> sequence(order_ == "shuffle" ? blocks : 0);
  std::iota(sequence.begin(), sequence.end(), size_t(0));
  std::shuffle(sequence.begin(), sequence.end(), random_);
  for (size_t i = 0; i < blocks && !failure.code; i++) {
    const size_t at = order_ == "shuffle" ? sequence[i] : order_ == "reverse" ? blocks - 1 - i : i;
    runtime_.block = {unsigned(at % grid.x), unsigned(at / grid.x % grid.y), unsigned(at / grid.x / grid.y)};
    run_block();
  }
  return failure;
}

inline void Launch::run_block() {
  memset(memory_, 0xff, used_);
  memset(dynamic_memory_, 0xff, dynamic_bytes_ + shared_zone);
  const Index size = runtime_.block_size;
  for (unsigned i = 0; i < threads_; i++) {
    Fiber &fiber = fibers_[i];
    prepare(fiber.context, stacks_[i], Stacks::bytes, start);
    fiber.index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
    fiber.state = State::ready;
    fiber.operation = fiber.group = 0;
    fiber.copies.clear();
  }
  left_ = threads_;
  while (true) {
    if (order_ == "shuffle") std::shuffle(turns_.begin(), turns_.end(), random_);
    for (unsigned i : turns_) {
      if (fibers_[i].state != State::ready) continue;
      current_ = i;
      runtime_.thread = fibers_[i].index;
      change(main_, fibers_[i].context);
      if (failure.code) return;
    }
    if (!left_) break;
    if (!release()) return refuse_divergence();
  }
  check_shared();
}

inline bool Launch::release() {
  if (release_warps()) return true;
  for (const Fiber &fiber : fibers_)
    if (fiber.state != State::barrier || fiber.line != fibers_[0].line) return false;
  for (Fiber &fiber : fibers_) fiber.state = State::ready;
  return true;
}

inline bool Launch::release_warps() {
  bool any = false;
  for (unsigned first = 0; first < threads_; first += warp_size) {
    const unsigned end = warp_end(first);
    for (unsigned i = first; i < end; i++) {
      if (fibers_[i].state != State::warp) continue;
      const unsigned mask = fibers_[i].mask;
      bool complete = true;
      for (unsigned j = first; j < end; j++)
        if (mask >> (j - first) & 1)
          complete &= fibers_[j].state == State::warp && fibers_[j].mask == mask && fibers_[j].line == fibers_[i].line;
      if (!complete) continue;
      any = true;
      operations_++;
      for (unsigned j = first; j < end; j++) {
        if (!(mask >> (j - first) & 1) || fibers_[j].state != State::warp) continue;
        fibers_[j].state = State::ready;
        fibers_[j].operation = operations_;
        memcpy(fibers_[j].brought, fibers_[j].brings, slot_bytes);
      }
    }
  }
  return any;
}

inline void Launch::refuse_divergence() {
  struct Group {
    State state;
    int line;
    unsigned count, first;
  };
  std::vector<Group> groups;
  for (unsigned i = 0; i < threads_; i++) {
    const Fiber &fiber = fibers_[i];
    const int line = fiber.state == State::returned ? 0 : fiber.line;
    auto same = [&](const Group &group) { return group.state == fiber.state && group.line == line; };
    auto found = std::find_if(groups.begin(), groups.end(), same);
    if (found == groups.end()) groups.push_back({fiber.state, line, 1, i});
    else found->count++;
  }
  std::string text = "divergent barrier";
  for (const Group &group : groups) {
    const char *what = group.state == State::returned  ? "returned"
                       : group.state == State::barrier ? "wait at the __syncthreads of line "
                                                       : "wait for their warp in line ";
    text += (&group == groups.data() ? ": " : ", ") + std::to_string(group.count) + " threads (" +
            std::to_string(group.first) + "...) " + what + (group.line ? std::to_string(group.line) : "");
  }
  failure = {launch_failed, text};
}

inline void Launch::check_shared() {
  auto clean = [](const unsigned char *zone) {
    return std::all_of(zone, zone + shared_zone, [](unsigned char c) { return c == 0xff; });
  };
  bool good = clean(dynamic_memory_ + dynamic_bytes_);
  for (const SharedArray &array : arrays_)
    if (array.bytes)
      good &= clean(memory_ + array.offset - shared_zone) && clean(memory_ + array.offset + array.bytes);
  if (!good) failure = {illegal_address, "a write out of bounds of an array in shared memory"};
}

inline void *Launch::place(int site, size_t bytes, size_t alignment) {
  if (arrays_.size() <= size_t(site)) arrays_.resize(site + 1);
  SharedArray &array = arrays_[site];
  if (!array.bytes) {
    static_bytes_ = (static_bytes_ + alignment - 1) / alignment * alignment + bytes;
    if (static_bytes_ > static_limit) fail(invalid_value, 0, "more than 48 KiB of static shared memory");
    if (static_bytes_ + dynamic_bytes_ > shared_limit) fail(invalid_value, 0, "more than 227 KiB of shared memory");
    const size_t start = (used_ + shared_zone + 255) / 256 * 256, end = start + bytes + shared_zone;
    if (end > static_room) fail(invalid_value, 0, "too many arrays in shared memory for the emulator");
    memset(memory_ + used_, 0xff, end - used_);
    array = {start, bytes};
    used_ = end;
  }
  return memory_ + array.offset;
}

// What follows runs on the threads' own stacks.

inline void Launch::start() {
  Launch &launch = *running_;
  launch.kernel_.run(launch.values_);
  fibers_[launch.current_].state = State::returned;
  launch.left_--;
  launch.leave();
}

inline void Launch::wait_at_barrier(int line) {
  Fiber &fiber = fibers_[running_->current_];
  fiber.state = State::barrier;
  fiber.line = line;
  running_->leave();
}

inline void Launch::converge(unsigned mask, int line, const void *value, unsigned bytes) {
  const unsigned lane = running_->current_ % warp_size;
  Fiber &fiber = fibers_[running_->current_];
  if (!(mask >> lane & 1)) fail(launch_failed, line, "a lane takes part in a warp operation whose mask leaves it out");
  if (bytes) memcpy(fiber.brings, value, bytes);
  fiber.state = State::warp;
  fiber.line = line;
  fiber.mask = mask;
  running_->leave();
}

inline const void *Launch::brought(unsigned lane) {
  const Fiber &self = fibers_[running_->current_];
  const unsigned other = running_->current_ / warp_size * warp_size + lane;
  if (other >= running_->threads_ || fibers_[other].operation != self.operation) return nullptr;
  return fibers_[other].brought;
}

inline unsigned Launch::active() {
  const unsigned first = running_->current_ / warp_size * warp_size;
  unsigned mask = 0;
  for (unsigned i = first; i < running_->warp_end(first); i++)
    if (fibers_[i].state != State::returned) mask |= 1u << (i - first);
  return mask;
}

inline void *Launch::shared(int site, size_t bytes, size_t alignment) {
  return running_->place(site, bytes, alignment);
}

inline void Launch::copy(void *to, const void *from, unsigned bytes, unsigned present) {
  Fiber &fiber = fibers_[running_->current_];
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % bytes)
    fail(misaligned_address, 0, "a misaligned asynchronous copy");
  fiber.copies.push_back({to, from, bytes, present, fiber.group});
}

inline void Launch::commit_copies() { fibers_[running_->current_].group++; }

inline void Launch::wait_copies(unsigned groups) {
  Fiber &fiber = fibers_[running_->current_];
  size_t done = 0;
  for (; done < fiber.copies.size() && fiber.copies[done].group + groups < fiber.group; done++) {
    const Copy &copy = fiber.copies[done];
    memcpy(copy.to, copy.from, copy.present);
    memset(static_cast<char *>(copy.to) + copy.present, 0, copy.bytes - copy.present);
  }
  fiber.copies.erase(fiber.copies.begin(), fiber.copies.begin() + long(done));
}

inline void Launch::fail(int code, int line, const char *message) {
  const Index thread = running_->runtime_.thread, block = running_->runtime_.block;
  char text[512];
  snprintf(text, sizeof text, "%s, thread (%u, %u, %u) of block (%u, %u, %u)", message, thread.x, thread.y, thread.z,
           block.x, block.y, block.z);
  running_->failure = {code, line ? text + (", line " + std::to_string(line)) : text};
  running_->leave();
}

} // namespace emulator
