// Fibers: the threads of a block take turns on one thread of the host, each on a stack of its own.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>

#if !defined(__x86_64__) || defined(EMULATOR_UCONTEXT)
#include <ucontext.h>
#define EMULATOR_PORTABLE_FIBERS 1
#endif

namespace emulator {

#ifdef EMULATOR_PORTABLE_FIBERS
using Context = ucontext_t;

inline void prepare(Context &context, unsigned char *stack, size_t bytes, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = bytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}

inline void change(Context &from, Context &to) { swapcontext(&from, &to); }
#else
using Context = void *; // where the stack stands; what must survive a call lies on it

// swapcontext asks the kernel for the signal mask each time: fifty times the price of this.
extern "C" void dcn_tvm_emulator_change(void **from, void *to) __attribute__((visibility("hidden")));
asm(R"(
.text
.globl dcn_tvm_emulator_change
.hidden dcn_tvm_emulator_change
.type dcn_tvm_emulator_change, @function
dcn_tvm_emulator_change:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size dcn_tvm_emulator_change, .-dcn_tvm_emulator_change
)");

inline void prepare(Context &context, unsigned char *stack, size_t bytes, void (*entry)()) {
  void **top = reinterpret_cast<void **>(stack + bytes); // a multiple of 16: a page's end
  *--top = nullptr;                                      // entry returns to nowhere: it never does
  *--top = reinterpret_cast<void *>(entry);
  for (int i = 0; i < 6; i++) *--top = nullptr;
  context = top;
}

inline void change(Context &from, Context &to) { dcn_tvm_emulator_change(&from, to); }
#endif

// Stacks for as many threads as a block may have; pages that no thread touches cost nothing. Below each lies a page
// that faults, so that a local array that is too large is an error and not another thread's numbers.
class Stacks {
 public:
  static constexpr size_t bytes = 256 << 10;

  unsigned char *operator[](unsigned i) {
    if (!base_) reserve();
    return base_ + i * (bytes + page_) + page_;
  }

 private:
  void reserve() {
    page_ = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t whole = 1024 * (bytes + page_);
    void *memory = mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) abort();
    base_ = static_cast<unsigned char *>(memory);
    for (unsigned i = 0; i < 1024; i++) mprotect(base_ + i * (bytes + page_), page_, PROT_NONE);
  }

  unsigned char *base_ = nullptr;
  size_t page_ = 0;
};

} // namespace emulator
