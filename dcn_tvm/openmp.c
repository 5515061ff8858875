/* Runs the parallel loops of TVM's kernels on an OpenMP pool, and keeps their scratch; the why is in
 * openmp.py. OpenMP's entry points come in as addresses, so neither omp.h nor -fopenmp is needed. */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>

/* What TVM's generated code and tvm-ffi agree on (tvm/runtime/c_backend_api.h, tvm/ffi/c_api.h). */
typedef struct { void *sync; int32_t tasks; } Env;
typedef int (*Task)(int, Env *, void *);
int TVMFFIEnvModRegisterContextSymbol(const char *, void *);
void TVMFFIErrorMoveFromRaised(void **);
void TVMFFIErrorSetRaised(void *);
void TVMFFIErrorSetRaisedFromCStr(const char *, const char *);
int TVMFFIObjectDecRef(void *);

static void (*omp_parallel)(void (*)(void *), void *, unsigned, unsigned);
static int (*omp_max_threads)(void), (*omp_thread)(void), (*omp_threads)(void);
static volatile int serial;

typedef struct { Task task; void *data; int tasks; int failed; void *error; } Job;

/* One OpenMP thread runs tasks t, t + threads, ...: right for however many threads there are. */
static void work(void *argument) {
  Job *job = argument;
  Env env = {0, job->tasks};
  int step = omp_threads();
  for (int i = omp_thread(); i < job->tasks; i += step) {
    if (job->task(i, &env, job->data) == 0) continue;
    void *error = 0, *none = 0; /* errors live per thread: carry the first to the caller's */
    TVMFFIErrorMoveFromRaised(&error);
    __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
    if (error && !__atomic_compare_exchange_n(&job->error, &none, error, 0, __ATOMIC_ACQ_REL,
                                              __ATOMIC_RELAXED)) TVMFFIObjectDecRef(error);
  }
}

static int launch(Task task, void *data, int asked) {
  int tasks = serial ? 1 : asked ? asked : omp_max_threads();
  if (tasks <= 1) { Env env = {0, 1}; return task(0, &env, data); }
  Job job = {task, data, tasks, 0, 0};
  omp_parallel(work, &job, tasks, 0);
  if (!job.failed) return 0;
  if (job.error) { TVMFFIErrorSetRaised(job.error); TVMFFIObjectDecRef(job.error); }
  else TVMFFIErrorSetRaisedFromCStr("RuntimeError", "a parallel task of a kernel failed");
  return -1;
}

/* Scratch: each thread keeps the blocks it freed, or every call would fault in fresh pages. */
enum { HEADER = 64, STEP = 65536, KEEP = 32 << 20 };
typedef struct Block { struct Block *next; uint64_t bytes; } Block;
typedef struct { Block *first; uint64_t bytes; } Pool;
static pthread_key_t pool_key;

static void drop_blocks(Pool *pool) {
  for (Block *next, *block = pool->first; block; block = next) { next = block->next; free(block); }
  pool->first = 0;
  pool->bytes = 0;
}

static void end_thread(void *pool) { drop_blocks(pool); free(pool); }

static Pool *own_pool(void) {
  Pool *pool = pthread_getspecific(pool_key);
  if (!pool && (pool = calloc(1, sizeof(Pool)))) pthread_setspecific(pool_key, pool);
  return pool;
}

static void *allocate(int device_type, int device, uint64_t bytes, int code, int bits) {
  Pool *pool = own_pool();
  uint64_t need = (bytes + HEADER + STEP - 1) / STEP * STEP;
  Block **best = 0, *block = 0;
  if (pool && need > bytes) { /* the smallest that fits */
    for (Block **at = &pool->first; *at; at = &(*at)->next)
      if ((*at)->bytes >= need && (!best || (*at)->bytes < (*best)->bytes)) best = at;
    if (best) { block = *best; *best = block->next; pool->bytes -= block->bytes; }
    else if ((block = aligned_alloc(HEADER, need))) block->bytes = need;
  }
  if (block) return (char *)block + HEADER;
  TVMFFIErrorSetRaisedFromCStr("MemoryError", "no memory for the scratch buffer of a kernel");
  return 0;
}

static int release(int device_type, int device, void *pointer) {
  Block *block = (Block *)((char *)pointer - HEADER);
  Pool *pool = own_pool();
  if (!pool || block->bytes > KEEP) { free(block); return 0; }
  if (pool->bytes + block->bytes > KEEP) drop_blocks(pool); /* of an earlier shape, most likely */
  block->next = pool->first;
  pool->first = block;
  pool->bytes += block->bytes;
  return 0;
}

int dcn_tvm_start(void *parallel, void *max_threads, void *thread, void *threads) {
  omp_parallel = parallel;
  omp_max_threads = max_threads;
  omp_thread = thread;
  omp_threads = threads;
  return pthread_key_create(&pool_key, end_thread);
}
void dcn_tvm_set_serial(void) { serial = 1; }
int dcn_tvm_register(void) {
  return TVMFFIEnvModRegisterContextSymbol("__TVMBackendParallelLaunch", launch)
       | TVMFFIEnvModRegisterContextSymbol("__TVMBackendAllocWorkspace", allocate)
       | TVMFFIEnvModRegisterContextSymbol("__TVMBackendFreeWorkspace", release);
}
