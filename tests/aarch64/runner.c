/* Calls a kernel of a bundle as tvm-ffi does, without tvm-ffi, Python or torch: for processors that
 * an emulator stands in for.
 *
 *     runner KERNEL.so SHIM.so CALL
 *
 * CALL has a line for each argument: "in FILE CODE BITS NDIM SIZES...", "out" likewise, whose file
 * is written afterwards, or "scalar VALUE". The shim launches the kernel's loops on real threads. */
#include <dlfcn.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tvm/ffi/c_api.h>

enum { MOST = 16, DIMS = 8, ALIGNMENT = 64 };
typedef int (*Kernel)(void *, const TVMFFIAny *, int32_t, TVMFFIAny *);
typedef struct { DLTensor tensor; int64_t shape[DIMS], strides[DIMS]; size_t bytes; char file[512]; int out; } Argument;

void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned);

static void fail(const char *what, const char *why) { fprintf(stderr, "%s: %s\n", what, why ? why : ""); exit(2); }

/* What kernel and shim call of tvm-ffi. */
void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message) { fprintf(stderr, "%s: %s\n", kind, message); }
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  fprintf(stderr, "%s: ", kind);
  for (int i = 0; i < count; i++) fputs(parts[i], stderr);
  fputs("\n", stderr);
}
void TVMFFIErrorMoveFromRaised(TVMFFIObjectHandle *error) { *error = 0; }
void TVMFFIErrorSetRaised(TVMFFIObjectHandle error) {}
int TVMFFIObjectDecRef(TVMFFIObjectHandle object) { return 0; }

static void *kernel_library;
static int registered;
/* tvm-ffi remembers these and writes them into the kernels' libraries when it loads them. */
int TVMFFIEnvModRegisterContextSymbol(const char *name, void *symbol) {
  void **place = dlsym(kernel_library, name);
  if (place) { *place = symbol; registered++; }
  return 0;
}

static void *open_library(const char *path) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) fail(path, dlerror());
  return library;
}

static void read_tensor(FILE *call, Argument *argument, int out) {
  int code, bits;
  DLTensor *tensor = &argument->tensor;
  if (fscanf(call, "%511s %d %d %d", argument->file, &code, &bits, &tensor->ndim) != 4 || tensor->ndim > DIMS)
    fail("call", "no tensor");
  argument->bytes = bits / 8;
  for (int i = 0; i < tensor->ndim; i++) {
    if (fscanf(call, "%ld", (long *)&argument->shape[i]) != 1) fail("call", "no size");
    argument->bytes *= argument->shape[i];
  }
  int64_t stride = 1;
  for (int i = tensor->ndim; i--; stride *= argument->shape[i]) argument->strides[i] = stride;
  tensor->shape = argument->shape;
  tensor->strides = argument->strides;
  tensor->device.device_type = kDLCPU;
  tensor->dtype = (DLDataType){code, bits, 1};
  argument->out = out;
  if (posix_memalign(&tensor->data, ALIGNMENT, argument->bytes + 1)) fail("memory", argument->file);
  memset(tensor->data, 0xff, argument->bytes); /* NaN, where nothing is written */
  if (out) return;
  FILE *file = fopen(argument->file, "rb");
  if (!file || fread(tensor->data, 1, argument->bytes, file) != argument->bytes) fail(argument->file, "too short");
  fclose(file);
}

int main(int count, char **arguments) {
  if (count != 4) fail("usage", "runner KERNEL.so SHIM.so CALL");
  kernel_library = open_library(arguments[1]);
  void *shim = open_library(arguments[2]);
  int (*start)(void *, void *, void *, void *) = dlsym(shim, "dcn_tvm_start");
  int (*enter)(void) = dlsym(shim, "dcn_tvm_register");
  if (!start || !enter || start(GOMP_parallel, omp_get_max_threads, omp_get_thread_num, omp_get_num_threads) || enter())
    fail(arguments[2], "does not start");
  if (!registered) fail(arguments[1], "asks for no function of the shim");
  Kernel kernel = dlsym(kernel_library, "__tvm_ffi_dcn_tvm_kernel");
  if (!kernel) fail(arguments[1], "has no kernel");

  static Argument tensors[MOST];
  TVMFFIAny values[MOST], result;
  memset(values, 0, sizeof values);
  memset(&result, 0, sizeof result);
  FILE *call = fopen(arguments[3], "r");
  if (!call) fail(arguments[3], "is missing");
  int used = 0;
  for (char word[16]; fscanf(call, "%15s", word) == 1; used++) {
    if (used == MOST) fail("call", "too long");
    if (strcmp(word, "scalar") == 0) {
      values[used].type_index = kTVMFFIFloat;
      if (fscanf(call, "%lf", &values[used].v_float64) != 1) fail("call", "no number");
    } else {
      read_tensor(call, &tensors[used], strcmp(word, "out") == 0);
      values[used].type_index = kTVMFFIDLTensorPtr;
      values[used].v_ptr = &tensors[used].tensor;
    }
  }
  if (kernel(0, values, used, &result)) return 1;
  for (int i = 0; i < used; i++) {
    if (!tensors[i].out) continue;
    FILE *file = fopen(tensors[i].file, "wb");
    if (!file || fwrite(tensors[i].tensor.data, 1, tensors[i].bytes, file) != tensors[i].bytes || fclose(file))
      fail(tensors[i].file, "cannot be written");
  }
  return 0;
}
