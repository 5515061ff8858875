; `launch` and `work` of openmp.c once more, for machines without a C compiler. OpenMP's names are
; replaced by their addresses; the data layout, the target triple and the module flag of the LLVM
; that compiles it are added. One task makes a team of one.
%env = type { ptr, i32 }
%job = type { ptr, ptr, i32, i32 }
declare i32 @TVMFFIEnvModRegisterContextSymbol(ptr, ptr)
declare void @TVMFFIErrorSetRaisedFromCStr(ptr, ptr)
@symbol = private constant [27 x i8] c"__TVMBackendParallelLaunch\00"
@kind = private constant [13 x i8] c"RuntimeError\00"
@message = private constant [35 x i8] c"a parallel task of a kernel failed\00"
@serial = internal global i1 false

define internal void @work(ptr %p) {
entry:
  %job = load %job, ptr %p
  %task = extractvalue %job %job, 0
  %data = extractvalue %job %job, 1
  %tasks = extractvalue %job %job, 2
  %p.failed = getelementptr %job, ptr %p, i32 0, i32 3
  %env = alloca %env
  %filled = insertvalue %env zeroinitializer, i32 %tasks, 1
  store %env %filled, ptr %env
  %first = call i32 inttoptr (i64 omp_get_thread_num to ptr)()
  %step = call i32 inttoptr (i64 omp_get_num_threads to ptr)()
  br label %loop
loop:
  %i = phi i32 [ %first, %entry ], [ %next, %body ]
  %more = icmp slt i32 %i, %tasks
  br i1 %more, label %body, label %done
body:
  %status = call i32 %task(i32 %i, ptr %env, ptr %data)
  %ignored = atomicrmw or ptr %p.failed, i32 %status monotonic
  %next = add i32 %i, %step
  br label %loop
done:
  ret void
}
define internal i32 @launch(ptr %task, ptr %data, i32 %asked) {
  %max = call i32 inttoptr (i64 omp_get_max_threads to ptr)()
  %any = icmp eq i32 %asked, 0
  %wanted = select i1 %any, i32 %max, i32 %asked
  %s = load volatile i1, ptr @serial
  %tasks = select i1 %s, i32 1, i32 %wanted
  %j0 = insertvalue %job zeroinitializer, ptr %task, 0
  %j1 = insertvalue %job %j0, ptr %data, 1
  %j2 = insertvalue %job %j1, i32 %tasks, 2
  %job = alloca %job
  store %job %j2, ptr %job
  call void inttoptr (i64 GOMP_parallel to ptr)(ptr @work, ptr %job, i32 %tasks, i32 0)
  %p.failed = getelementptr %job, ptr %job, i32 0, i32 3
  %failed = load i32, ptr %p.failed
  %good = icmp eq i32 %failed, 0
  br i1 %good, label %end, label %bad
bad:
  call void @TVMFFIErrorSetRaisedFromCStr(ptr @kind, ptr @message)
  br label %end
end:
  ret i32 %failed
}
define i32 @__tvm_ffi_register(ptr %self, ptr %args, i32 %count, ptr %result) {
  %r = call i32 @TVMFFIEnvModRegisterContextSymbol(ptr @symbol, ptr @launch)
  ret i32 %r
}
define i32 @__tvm_ffi_set_serial(ptr %self, ptr %args, i32 %count, ptr %result) {
  store volatile i1 true, ptr @serial
  ret i32 0
}
