/* Launches the device kernels of one library through CUDA's driver; the why is in lower.py.
 *
 * The library's device code, its kernels and their signatures stand in constants that lower.py adds. Nothing is linked:
 * the driver is opened when the first kernel is launched, so a library loads on a machine without one. A kernel of the
 * library is a CUkernel, which belongs to no context: one load serves all devices.
 *
 * launch.ll is made of this file, whose digest it names, and must be made again when it changes. Attributes and
 * metadata are of one target and of one version of LLVM, so they go:
 *
 *   (echo "; launch.c $(sha256sum launch.c | cut -c 1-16)" &&
 *    clang-16 -Os -fno-stack-protector -fno-asynchronous-unwind-tables -fno-unwind-tables -fno-strict-aliasing -fPIC \
 *      -S -emit-llvm -o - launch.c |
 *    grep -v -E '^(target|source_filename|; ModuleID|; Function|attributes|!|$)|llvm.lifetime' |
 *    sed -E 's/ #[0-9]+//; s/, !llvm\.loop ![0-9]+//; s/, !tbaa ![0-9]+//; s/ noundef//g; s/ dso_local//;
 *      s/ (local_)?unnamed_addr//; s/ +; preds = .+//; s/ nocapture//g; s/ allocptr//g') >launch.ll
 */
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* tvm-ffi (tvm/ffi/c_api.h, tvm/ffi/extra/c_env_api.h) */
typedef struct { int32_t type; int32_t zero; union { int64_t whole; double real; void *pointer; } v; } Any;
void *TVMFFIEnvGetStream(int32_t device_type, int32_t device);
void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message);
typedef struct {
  void *data;
  int32_t device_type, device, ndim;
  struct { uint8_t code, bits; uint16_t lanes; } dtype;
  int64_t *shape, *strides;
  uint64_t byte_offset;
} Tensor;
void *TVMFFIEnvGetDLPackManagedTensorAllocator(void);
int TVMFFIEnvTensorAlloc(Tensor *prototype, void **tensor);
int TVMFFIObjectDecRef(void *object);
enum { OBJECT_BYTES = 24 }; /* of an object's header, before a tensor's DLTensor */

/* signature: a letter for each argument, p(ointer) l(ong) i(nt) f(loat) d(ouble), then for each number of the launch
 * X Y Z (grid) x y z (block) s (bytes of dynamic shared memory). */
typedef struct { const char *name, *signature; } Kernel;
extern __attribute__((visibility("hidden"))) const Kernel dcn_tvm_kernels[];
extern __attribute__((visibility("hidden"))) const int32_t dcn_tvm_kernel_count;
extern __attribute__((visibility("hidden"))) const unsigned char dcn_tvm_image[];

enum { CUDA = 2, MAX_ARGUMENTS = 64, MAX_DEVICES = 64, MAX_DYNAMIC_SHARED_BYTES = 8 };
static struct {
  int (*init)(unsigned), (*get)(int *, int), (*retain)(void **, int);
  int (*current)(int *), (*push)(void *), (*pop)(void **);
  int (*text)(int, const char **), (*load)(void **, const void *, void *, void **, unsigned, void *, void **, unsigned);
  int (*find)(void **, void *, const char *), (*set)(int, int, void *, int);
  int (*launch)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **);
  int (*alloc)(void **, size_t, void *), (*release)(void *, void *);
} cu;
/* A kernel, and how much dynamic shared memory it may have on each device so far. */
typedef struct { void *handle; unsigned shared[MAX_DEVICES]; } Loaded;
static Loaded *kernels;
static void *contexts[MAX_DEVICES];
static int ready, busy;

__attribute__((noinline)) static void lock(void) {
  while (__atomic_exchange_n(&busy, 1, __ATOMIC_ACQUIRE)) sched_yield();
}

static void unlock(void) { __atomic_store_n(&busy, 0, __ATOMIC_RELEASE); }

__attribute__((noinline)) static int fail(const char *what, const char *why) {
  char message[1024];
  size_t n = 0;
  const char *parts[] = {what, ": ", why};
  for (int i = 0; i < 3; i++)
    for (const char *c = parts[i]; *c && n < sizeof message - 1; c++) message[n++] = *c;
  message[n] = 0;
  TVMFFIErrorSetRaisedFromCStr("RuntimeError", message);
  return -1;
}

__attribute__((noinline)) static int failed(int code, const char *what) {
  const char *why = 0;
  if (cu.text) cu.text(code, &why);
  return fail(what, why ? why : "unknown CUDA error");
}

__attribute__((noinline)) static int load(void) {
  const char *name = getenv("DCN_TVM_CUDA_DRIVER");
  void *driver = dlopen(name && *name ? name : "libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!driver) return fail("CUDA's driver cannot be opened", dlerror());
  static const char *const names[] = {
      "cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain",
      "cuCtxGetDevice", "cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2",
      "cuGetErrorString", "cuLibraryLoadData", "cuLibraryGetKernel", "cuKernelSetAttribute", "cuLaunchKernel",
      "cuMemAllocAsync", "cuMemFreeAsync"};
  for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
    if (!(((void **)&cu)[i] = dlsym(driver, names[i])))
      return fail("CUDA's driver is older than 12.0: it has no function", names[i]);
  int code = cu.init(0);
  if (code) return failed(code, "cuInit");
  void *library;
  code = cu.load(&library, dcn_tvm_image, 0, 0, 0, 0, 0, 0);
  if (code) return failed(code, "the kernel's code cannot be loaded");
  Loaded *found = calloc(dcn_tvm_kernel_count, sizeof *found);
  if (!found) return fail("the kernel cannot be loaded", "out of memory");
  for (int i = 0; i < dcn_tvm_kernel_count; i++)
    if ((code = cu.find(&found[i].handle, library, dcn_tvm_kernels[i].name))) {
      free(found);
      return failed(code, dcn_tvm_kernels[i].name);
    }
  kernels = found;
  return 0;
}

/* Make `device` current where it is not: 1 if a context was pushed, 0 if there was no need, -1 on failure. */
__attribute__((noinline)) static int enter(int device) {
  if (!__atomic_load_n(&ready, __ATOMIC_ACQUIRE)) {
    lock();
    int code = ready ? 0 : load();
    if (!code) __atomic_store_n(&ready, 1, __ATOMIC_RELEASE);
    unlock();
    if (code) return -1;
  }
  int now, code;
  if (device < 0 || device >= MAX_DEVICES) return fail("launch", "no such device");
  if (!cu.current(&now) && now == device) return 0;
  lock();
  void *context = contexts[device];
  code = 0;
  if (!context) {
    int handle;
    if (!(code = cu.get(&handle, device))) code = cu.retain(&context, handle);
    if (!code) contexts[device] = context;
  }
  unlock();
  if (!code) code = cu.push(context);
  return code ? failed(code, "the tensors' device cannot be used") : 1;
}

__attribute__((noinline)) static void leave(int pushed) {
  void *context;
  if (pushed) cu.pop(&context);
}

/* Let a kernel have so much dynamic shared memory; never less than before, as another thread may be at its launch. */
static int allow(Loaded *kernel, int device, unsigned bytes) {
  int code = 0;
  lock();
  if (bytes > kernel->shared[device]) {
    code = cu.set(MAX_DYNAMIC_SHARED_BYTES, (int)bytes, kernel->handle, device);
    if (!code) kernel->shared[device] = bytes;
  }
  unlock();
  return code;
}

static int launch(int32_t index, int32_t device, Any *given) {
  const Kernel *kernel = &dcn_tvm_kernels[index];
  void *values[MAX_ARGUMENTS];
  unsigned size[6] = {1, 1, 1, 1, 1, 1}, shared = 0;
  int count = 0;
  for (const char *kind = kernel->signature; *kind; kind++, given++) {
    const char *place = strchr("XYZxyz", *kind);
    if (place) {
      if (!given->v.whole) return 0; /* nothing to do: a launch of no threads would be an error */
      if (given->v.whole < 0 || given->v.whole > 0x7fffffff)
        return fail(kernel->name, "the tensors are too large for a launch");
      size[place - "XYZxyz"] = (unsigned)given->v.whole;
    } else if (*kind == 's') {
      shared = (unsigned)given->v.whole;
    } else {
      if (count == MAX_ARGUMENTS) return fail(kernel->name, "too many arguments");
      if (*kind == 'f') { float narrow = (float)given->v.real; memcpy(&given->v, &narrow, sizeof narrow); }
      values[count++] = &given->v;
    }
  }
  int pushed = enter(device), code = 0;
  if (pushed < 0) return -1;
  Loaded *loaded = &kernels[index];
  if (shared) code = allow(loaded, device, shared);
  void *stream = TVMFFIEnvGetStream(CUDA, device);
  if (!code)
    code = cu.launch(loaded->handle, size[0], size[1], size[2], size[3], size[4], size[5], shared, stream, values, 0);
  leave(pushed);
  return code ? failed(code, kernel->name) : 0;
}

/* Scratch of a call comes from the allocator of the tensors' framework, which knows the stream and also graphs that are
 * being captured; without one, from the driver. */
typedef struct Scratch { struct Scratch *next; void *pointer, *tensor; pthread_t owner; int device; } Scratch;
static Scratch *held;

static void *pointer_of(void *tensor) { return *(void **)((char *)tensor + OBJECT_BYTES); }

/* Take the scratch at `pointer` from what is held, or without a pointer any of this thread's. */
__attribute__((noinline)) static Scratch *take(void *pointer) {
  pthread_t self = pthread_self();
  lock();
  Scratch **place = &held;
  while (*place && (pointer ? (*place)->pointer != pointer : (*place)->owner != self)) place = &(*place)->next;
  Scratch *scratch = *place;
  if (scratch) *place = scratch->next;
  unlock();
  return scratch;
}

__attribute__((noinline)) static int give_back(Scratch *scratch) {
  int code = 0;
  if (scratch->tensor) {
    TVMFFIObjectDecRef(scratch->tensor);
  } else {
    int pushed = enter(scratch->device);
    if (pushed >= 0) {
      code = cu.release(scratch->pointer, TVMFFIEnvGetStream(CUDA, scratch->device));
      leave(pushed);
    }
  }
  free(scratch);
  return code;
}

/* A call that fails ends there: give back the scratch that it still holds. */
static void abandon(void) {
  for (Scratch *scratch; (scratch = take(0));) give_back(scratch);
}

__attribute__((noinline)) static int obtain(Scratch *scratch, uint64_t bytes) {
  int device = scratch->device;
  if (TVMFFIEnvGetDLPackManagedTensorAllocator()) {
    int64_t shape = (int64_t)bytes, stride = 1;
    Tensor prototype = {0, CUDA, device, 1, {1, 8, 1}, &shape, &stride, 0};
    if (TVMFFIEnvTensorAlloc(&prototype, &scratch->tensor)) return -1;
    scratch->pointer = pointer_of(scratch->tensor);
    return 0;
  }
  int pushed = enter(device);
  if (pushed < 0) return -1;
  int code = cu.alloc(&scratch->pointer, bytes, TVMFFIEnvGetStream(CUDA, device));
  leave(pushed);
  return code ? failed(code, "scratch memory") : 0;
}

__attribute__((visibility("hidden")))
int32_t dcn_tvm_launch(int32_t index, int32_t device, void *arguments, int32_t first) {
  int code = launch(index, device, (Any *)arguments + first);
  if (code) abandon();
  return code;
}

__attribute__((visibility("hidden"))) void *dcn_tvm_alloc(int32_t device, uint64_t bytes) {
  Scratch *scratch = calloc(1, sizeof *scratch);
  if (!scratch) fail("scratch memory", "out of memory");
  if (scratch) scratch->device = device, scratch->owner = pthread_self();
  if (!scratch || obtain(scratch, bytes ? bytes : 1)) {
    free(scratch);
    abandon();
    return 0;
  }
  lock();
  scratch->next = held;
  held = scratch;
  unlock();
  return scratch->pointer;
}

__attribute__((visibility("hidden"))) int32_t dcn_tvm_free(int32_t device, void *pointer) {
  Scratch *scratch = take(pointer);
  int code = scratch ? give_back(scratch) : 0;
  if (scratch && !code) return 0;
  abandon();
  (void)device;
  return scratch ? failed(code, "scratch memory") : fail("scratch memory", "is not held");
}
