/* Calls compiled kernels one after the other, for valgrind to count what they execute: a process
 * without Python starts in a moment there, one with numpy and tvm-ffi in a minute and a half.
 *
 *     call CALLS
 *
 * CALLS has lines "kernel FILE.so", then for each argument "tensor FILE DIMS SIZES..." (float32, as
 * they lie in the file; "-" for one that is filled) or "scalar VALUE", then "call". The kernels'
 * loops run on this thread alone: openmp.c, which is compiled into this program, is told so. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tvm/ffi/c_api.h>

enum { MOST = 16, DIMS = 8, ALIGNMENT = 64, FAILED = 3 };
typedef int (*Kernel)(void *, const TVMFFIAny *, int32_t, TVMFFIAny *);
typedef struct { DLTensor tensor; int64_t shape[DIMS], strides[DIMS]; } Argument;

int dcn_tvm_start(void *, void *, void *, void *);
int dcn_tvm_register(void);
void dcn_tvm_set_serial(void);

static void fail(const char *what, const char *why) { fprintf(stderr, "%s: %s\n", what, why ? why : "?"); exit(FAILED); }

/* What kernels and openmp.c call of tvm-ffi. */
void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message) { fail(kind, message); }
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  for (int i = 0; i < count; i++) fputs(parts[i], stderr);
  fail("", kind);
}
void TVMFFIErrorMoveFromRaised(TVMFFIObjectHandle *error) { *error = 0; }
void TVMFFIErrorSetRaised(TVMFFIObjectHandle error) {}
int TVMFFIObjectDecRef(TVMFFIObjectHandle object) { return 0; }

static void *library;
int TVMFFIEnvModRegisterContextSymbol(const char *name, void *symbol) {
  void **place = dlsym(library, name);
  if (place) *place = symbol;
  return 0;
}

static void read_tensor(FILE *calls, Argument *argument) {
  char file[64];
  DLTensor *tensor = &argument->tensor;
  if (fscanf(calls, "%63s %d", file, &tensor->ndim) != 2 || tensor->ndim > DIMS) fail("tensor", "has no dimensions");
  size_t bytes = sizeof(float);
  for (int i = 0; i < tensor->ndim; i++) {
    if (fscanf(calls, "%ld", (long *)&argument->shape[i]) != 1) fail("tensor", "has no size");
    bytes *= argument->shape[i];
  }
  int64_t stride = 1;
  for (int i = tensor->ndim; i--; stride *= argument->shape[i]) argument->strides[i] = stride;
  tensor->shape = argument->shape;
  tensor->strides = argument->strides;
  tensor->device.device_type = kDLCPU;
  tensor->dtype = (DLDataType){kDLFloat, 8 * sizeof(float), 1};
  if (posix_memalign(&tensor->data, ALIGNMENT, bytes + 1)) fail("tensor", "is too large");
  memset(tensor->data, 0, bytes);
  if (strcmp(file, "-") == 0) return;
  FILE *data = fopen(file, "rb");
  if (!data || fread(tensor->data, 1, bytes, data) != bytes) fail(file, "is too short");
  fclose(data);
}

int main(int count, char **arguments) {
  static Argument tensors[MOST];
  static TVMFFIAny values[MOST], result;
  FILE *calls = count == 2 ? fopen(arguments[1], "r") : 0;
  if (!calls) fail("usage", "call CALLS");
  if (dcn_tvm_start(0, 0, 0, 0)) fail("openmp.c", "does not start");
  dcn_tvm_set_serial();
  int used = 0;
  for (char word[16], file[64]; fscanf(calls, "%15s", word) == 1;) {
    if (used == MOST) fail("call", "has too many arguments");
    if (strcmp(word, "kernel") == 0) {
      if (fscanf(calls, "%63s", file) != 1 || !(library = dlopen(file, RTLD_NOW | RTLD_LOCAL))) fail(file, dlerror());
      dcn_tvm_register();
      used = 0;
    } else if (strcmp(word, "tensor") == 0) {
      read_tensor(calls, &tensors[used]);
      values[used].type_index = kTVMFFIDLTensorPtr;
      values[used].v_ptr = &tensors[used].tensor;
      used++;
    } else if (strcmp(word, "scalar") == 0) {
      values[used].type_index = kTVMFFIFloat;
      if (fscanf(calls, "%lf", &values[used].v_float64) != 1) fail("scalar", "has no value");
      used++;
    } else {
      Kernel kernel = (Kernel)dlsym(library, "__tvm_ffi_dcn_tvm_kernel");
      if (!kernel || kernel(0, values, used, &result)) fail(file, "has no kernel, or it failed");
      for (int i = 0; i < used; i++)
        if (values[i].type_index == kTVMFFIDLTensorPtr) free(tensors[i].tensor.data);
    }
  }
  return 0;
}
