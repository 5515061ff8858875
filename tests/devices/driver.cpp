// Stands for CUDA's driver behind a kernel's host part: its memory is the host's, and a launch is a call of Python.
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr size_t alignment = 4096, zone = 4096; // bytes; nobody may write to the zone behind an allocation
constexpr int failed = 1;
using Launch = int (*)(const char *image, const char *kernel, const unsigned *sizes, void **parameters);
struct Kernel {
  const char *image;
  std::string name;
};
std::mutex busy;
std::map<void *, size_t> allocations;
Launch launched;

} // namespace

EXPORT void dcn_tvm_devices_launch(Launch launch) { launched = launch; }

// How many bytes an allocation has; 0 if there is none.
EXPORT size_t dcn_tvm_devices_bytes(void *pointer) {
  std::lock_guard<std::mutex> guard(busy);
  const auto found = allocations.find(pointer);
  return found == allocations.end() ? 0 : found->second;
}

EXPORT int cuInit(unsigned) { return 0; }

EXPORT int cuDeviceGet(int *device, int ordinal) {
  *device = ordinal;
  return 0;
}

EXPORT int cuDevicePrimaryCtxRetain(void **context, int) {
  *context = nullptr;
  return 0;
}

EXPORT int cuCtxGetDevice(int *device) {
  *device = 0;
  return 0;
}

EXPORT int cuCtxPushCurrent_v2(void *) { return 0; }

EXPORT int cuCtxPopCurrent_v2(void **) { return 0; }

EXPORT int cuGetErrorString(int, const char **text) {
  *text = "the device failed";
  return 0;
}

// An image is a text that Python knows its program by.
EXPORT int cuLibraryLoadData(void **library, const void *image, void *, void **, unsigned, void *, void **, unsigned) {
  *library = strdup(static_cast<const char *>(image));
  return 0;
}

EXPORT int cuLibraryGetKernel(void **kernel, void *library, const char *name) {
  *kernel = new Kernel{static_cast<const char *>(library), name};
  return 0;
}

EXPORT int cuKernelSetAttribute(int, int, void *, int) { return failed; } // nobody has dynamic shared memory but CUDA

EXPORT int cuLaunchKernel(void *kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                          unsigned, void *, void **parameters, void **) {
  const unsigned sizes[] = {gx, gy, gz, bx, by, bz};
  const auto given = static_cast<const Kernel *>(kernel);
  return launched ? launched(given->image, given->name.c_str(), sizes, parameters) : failed;
}

EXPORT int cuMemAllocAsync(void **pointer, size_t bytes, void *) {
  const size_t whole = (bytes + zone + alignment - 1) / alignment * alignment;
  *pointer = aligned_alloc(alignment, whole);
  if (!*pointer) return failed;
  memset(*pointer, 0xff, whole); // NaN: what nobody wrote shows
  std::lock_guard<std::mutex> guard(busy);
  allocations[*pointer] = bytes;
  return 0;
}

EXPORT int cuMemFreeAsync(void *pointer, void *) {
  std::lock_guard<std::mutex> guard(busy);
  const auto found = allocations.find(pointer);
  if (found == allocations.end()) return failed;
  const auto behind = static_cast<unsigned char *>(pointer) + found->second;
  bool clean = true;
  for (size_t i = 0; i < zone; i++) clean = clean && behind[i] == 0xff;
  free(pointer);
  allocations.erase(found);
  return clean ? 0 : failed;
}
