// The entry points of CUDA's driver that our launcher uses, on host memory; kernels run by block.hpp.
//
// Strict where a device is: limits, contexts, images. An error is a code with a message; only a bug in here ends the
// process. Environment, read at every call: DCN_TVM_EMULATOR_ORDER (forward, reverse, shuffle), DCN_TVM_EMULATOR_SEED,
// DCN_TVM_EMULATOR_FAIL (name of an entry point that shall fail).
#include <dlfcn.h>
#include <setjmp.h>
#include <signal.h>

#include <map>
#include <mutex>

#include "block.hpp"

using namespace emulator;

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int devices = 2;
constexpr size_t zone = 4096; // bytes on each side of an allocation that nobody may write

struct Library {
  const Module *module;
};
struct Function {
  const Module *module;
  const Kernel *kernel;
  int dynamic_limit[devices];
};

std::recursive_mutex busy;
bool initialized;
std::map<unsigned char *, size_t> allocations;
std::string launches;
thread_local std::vector<int> contexts; // devices, the current one last
thread_local Failure last;

int failed(int code, const std::string &message) {
  last = {code, message};
  return code;
}

const char *setting(const char *name, const char *otherwise) {
  const char *value = getenv(name);
  return value && *value ? value : otherwise;
}

// What every entry point asks first: is there a driver, a device, and no fault that a test wants.
int refuse(const char *name, bool needs_context = false) {
  if (setting("DCN_TVM_EMULATOR_FAIL", "") == std::string(name))
    return failed(out_of_memory, std::string(name) + " fails because the test asks for it");
  if (!initialized) return failed(not_initialized, std::string(name) + " before cuInit");
  if (needs_context && contexts.empty()) return failed(invalid_context, std::string(name) + " without a current context");
  return success;
}

bool clean(const unsigned char *bytes) {
  return std::all_of(bytes, bytes + zone, [](unsigned char c) { return c == 0xff; });
}

bool whole(const std::pair<unsigned char *const, size_t> &allocation) {
  return clean(allocation.first - zone) && clean(allocation.first + allocation.second);
}

// A fault in a kernel comes back as an error of the launch.
sigjmp_buf fault_exit;
volatile void *fault_address;
volatile int fault_signal;

void on_fault(int signal, siginfo_t *info, void *) {
  fault_signal = signal;
  fault_address = info->si_addr;
  siglongjmp(fault_exit, 1);
}

class FaultGuard {
 public:
  FaultGuard() {
    stack_t stack = {};
    static unsigned char memory[64 << 10]; // a fault may be the end of a thread's own stack
    stack.ss_sp = memory;
    stack.ss_size = sizeof memory;
    sigaltstack(&stack, &old_stack_);
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 3; i++) sigaction(signals[i], &action, &old_[i]);
  }
  ~FaultGuard() {
    for (int i = 0; i < 3; i++) sigaction(signals[i], &old_[i], nullptr);
    sigaltstack(&old_stack_, nullptr);
  }

 private:
  static constexpr int signals[3] = {SIGSEGV, SIGBUS, SIGFPE};
  stack_t old_stack_;
  struct sigaction old_[3];
};

std::string fault_text() {
  if (fault_signal == SIGFPE) return "an integer division by zero";
  char text[80];
  snprintf(text, sizeof text, "an access of no memory, or a full stack, at %p", const_cast<void *>(fault_address));
  return text;
}

std::string triple(const Index &v) {
  return std::to_string(v.x) + " " + std::to_string(v.y) + " " + std::to_string(v.z);
}

// What a device would refuse, or null.
const char *limit(const Function &function, const Index &grid, const Index &block, unsigned shared, void **params) {
  if (!grid.x || !grid.y || !grid.z || !block.x || !block.y || !block.z) return "a dimension of the launch is zero";
  if (grid.x > 0x7fffffffu) return "more than 2^31 - 1 blocks in x";
  if (grid.y > 65535 || grid.z > 65535) return "more than 65535 blocks in y or z";
  if (block.x > 1024 || block.y > 1024 || block.z > 64) return "a block is larger than 1024, 1024, 64 threads";
  const unsigned threads = block.x * block.y * block.z;
  if (threads > 1024) return "more than 1024 threads in a block";
  if (threads > function.kernel->max_threads) return "more threads in a block than the kernel's __launch_bounds__";
  if (shared > unsigned(function.dynamic_limit[contexts.back()]))
    return "more dynamic shared memory than the kernel may have: cuKernelSetAttribute raises it";
  if (!params && function.kernel->parameters) return "no parameters";
  for (unsigned i = 0; i < function.kernel->parameters; i++)
    if (!params[i]) return "a parameter's pointer is null";
  return nullptr;
}

} // namespace

EXPORT int cuInit(unsigned flags) {
  if (flags) return failed(invalid_value, "cuInit: flags must be zero");
  initialized = true;
  const int code = refuse("cuInit");
  initialized = !code;
  return code;
}

EXPORT int cuDeviceGet(int *device, int ordinal) {
  if (int code = refuse("cuDeviceGet")) return code;
  if (ordinal < 0 || ordinal >= devices) return failed(invalid_device, "the emulator has two devices");
  *device = ordinal;
  return success;
}

EXPORT int cuDevicePrimaryCtxRetain(void **context, int device) {
  if (int code = refuse("cuDevicePrimaryCtxRetain")) return code;
  static int primary[devices];
  if (device < 0 || device >= devices) return failed(invalid_device, "the emulator has two devices");
  *context = &(primary[device] = device);
  return success;
}

EXPORT int cuCtxGetDevice(int *device) {
  if (int code = refuse("cuCtxGetDevice", true)) return code;
  *device = contexts.back();
  return success;
}

EXPORT int cuCtxPushCurrent_v2(void *context) {
  if (int code = refuse("cuCtxPushCurrent_v2")) return code;
  if (!context) return failed(invalid_context, "cuCtxPushCurrent_v2: no context");
  contexts.push_back(*static_cast<int *>(context));
  return success;
}

EXPORT int cuCtxPopCurrent_v2(void **context) {
  if (int code = refuse("cuCtxPopCurrent_v2", true)) return code;
  contexts.pop_back();
  if (context) *context = nullptr;
  return success;
}

EXPORT int cuGetErrorString(int code, const char **text) {
  *text = code == success ? "no error" : code == last.code ? last.message.c_str() : "an error of another thread";
  return success;
}

EXPORT int cuLibraryLoadData(void **library, const void *code, void *, void **, unsigned, void *, void **, unsigned) {
  if (int refused = refuse("cuLibraryLoadData")) return refused;
  const std::string mark = "DCN_TVM_EMULATED\n";
  const char *text = static_cast<const char *>(code);
  if (strncmp(text, mark.c_str(), mark.size())) return failed(invalid_image, "not an image of the emulator");
  void *handle = dlopen(text + mark.size(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) return failed(invalid_image, dlerror());
  auto module = reinterpret_cast<const Module *(*)()>(dlsym(handle, "dcn_tvm_emulated"));
  if (!module) return failed(invalid_image, "the library holds no emulated kernels");
  *library = new Library{module()};
  return success;
}

EXPORT int cuLibraryGetKernel(void **kernel, void *library, const char *name) {
  if (int code = refuse("cuLibraryGetKernel")) return code;
  const Module *module = static_cast<Library *>(library)->module;
  for (unsigned i = 0; i < module->count; i++) {
    if (strcmp(module->kernels[i].name, name)) continue;
    *kernel = new Function{module, &module->kernels[i], {static_limit, static_limit}};
    return success;
  }
  return failed(not_found, std::string("no kernel is called ") + name);
}

EXPORT int cuKernelSetAttribute(int attribute, int value, void *kernel, int device) {
  if (int code = refuse("cuKernelSetAttribute")) return code;
  if (device < 0 || device >= devices) return failed(invalid_device, "the emulator has two devices");
  if (attribute != 8) return failed(invalid_value, "the emulator knows only the dynamic shared memory's attribute");
  if (value < 0 || value > int(shared_limit)) return failed(invalid_value, "a block has at most 227 KiB of shared memory");
  static_cast<Function *>(kernel)->dynamic_limit[device] = value;
  return success;
}

EXPORT int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                          unsigned shared, void *stream, void **params, void **extra) {
  if (int code = refuse("cuLaunchKernel", true)) return code;
  const Function &function = *static_cast<Function *>(f);
  const Index grid = {gx, gy, gz}, block = {bx, by, bz};
  const std::string name = function.kernel->name;
  if (extra) return failed(invalid_value, name + ": the emulator does not read extra");
  if (const char *why = limit(function, grid, block, shared, params)) return failed(invalid_value, name + ": " + why);

  std::lock_guard<std::recursive_mutex> lock(busy);
  launches += name + " " + triple(grid) + " " + triple(block) + " " + std::to_string(shared) + " " +
              std::to_string(contexts.back()) + " " + std::to_string(reinterpret_cast<uintptr_t>(stream)) + "\n";
  Runtime &runtime = *function.module->runtime;
  runtime.grid_size = grid;
  runtime.block_size = block;
  const char *order = setting("DCN_TVM_EMULATOR_ORDER", "forward");
  if (!strstr(" forward reverse shuffle ", (" " + std::string(order) + " ").c_str()))
    return failed(invalid_value, std::string("DCN_TVM_EMULATOR_ORDER is ") + order);
  Launch launch(runtime, *function.kernel, params, shared, order, unsigned(atoi(setting("DCN_TVM_EMULATOR_SEED", "0"))));
  FaultGuard guard;
  Failure failure;
  if (sigsetjmp(fault_exit, 1)) failure = {illegal_address, fault_text()};
  else failure = launch.run();
  for (const auto &allocation : allocations)
    if (!failure.code && !whole(allocation)) failure = {illegal_address, "a write out of bounds of scratch memory"};
  return failure.code ? failed(failure.code, name + ": " + failure.message) : success;
}

EXPORT int cuMemAllocAsync(void **pointer, size_t bytes, void *) {
  if (int code = refuse("cuMemAllocAsync", true)) return code;
  if (!bytes) return failed(invalid_value, "cuMemAllocAsync: no bytes");
  std::lock_guard<std::recursive_mutex> lock(busy);
  const size_t room = (bytes + 2 * zone + 255) / 256 * 256;
  auto *base = static_cast<unsigned char *>(aligned_alloc(256, room));
  if (!base) return failed(out_of_memory, "out of memory");
  memset(base, 0xff, room);
  allocations[base + zone] = bytes;
  *pointer = base + zone;
  return success;
}

EXPORT int cuMemFreeAsync(void *pointer, void *) {
  if (int code = refuse("cuMemFreeAsync", true)) return code;
  std::lock_guard<std::recursive_mutex> lock(busy);
  const auto found = allocations.find(static_cast<unsigned char *>(pointer));
  if (found == allocations.end()) return failed(invalid_value, "cuMemFreeAsync: not allocated, or freed before");
  const bool good = whole(*found);
  free(found->first - zone);
  allocations.erase(found);
  return good ? success : failed(illegal_address, "cuMemFreeAsync: the memory was written out of bounds");
}

EXPORT int cuMemsetD8Async(void *pointer, unsigned char value, size_t bytes, void *) {
  if (int code = refuse("cuMemsetD8Async", true)) return code;
  memset(pointer, value, bytes);
  return success;
}

// For tests: what was launched since the last call, a line each, and how much is allocated.

EXPORT const char *dcn_tvm_emulator_launches() {
  static std::string given;
  std::lock_guard<std::recursive_mutex> lock(busy);
  given.swap(launches);
  launches.clear();
  return given.c_str();
}

EXPORT int dcn_tvm_emulator_allocations() {
  std::lock_guard<std::recursive_mutex> lock(busy);
  return int(allocations.size());
}
