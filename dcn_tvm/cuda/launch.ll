; launch.c 5bddbc0d211bf534
%struct.Kernel = type { ptr, ptr }
%struct.anon = type { ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr }
%struct.Any = type { i32, i32, %union.anon }
%union.anon = type { i64 }
%struct.Loaded = type { ptr, [64 x i32] }
%struct.Scratch = type { ptr, ptr, ptr, i64, i32 }
%struct.Tensor = type { ptr, i32, i32, i32, %struct.anon.0, ptr, ptr, i64 }
%struct.anon.0 = type { i8, i8, i16 }
@.str = private constant [15 x i8] c"scratch memory\00", align 1
@.str.1 = private constant [14 x i8] c"out of memory\00", align 1
@held = internal global ptr null, align 8
@.str.2 = private constant [12 x i8] c"is not held\00", align 1
@dcn_tvm_kernels = external hidden constant [0 x %struct.Kernel], align 8
@__const.launch.size = private constant [6 x i32] [i32 1, i32 1, i32 1, i32 1, i32 1, i32 1], align 16
@.str.3 = private constant [7 x i8] c"XYZxyz\00", align 1
@.str.4 = private constant [39 x i8] c"the tensors are too large for a launch\00", align 1
@.str.5 = private constant [19 x i8] c"too many arguments\00", align 1
@kernels = internal global ptr null, align 8
@cu = internal global %struct.anon zeroinitializer, align 8
@ready = internal global i32 0, align 4
@.str.6 = private constant [7 x i8] c"launch\00", align 1
@.str.7 = private constant [15 x i8] c"no such device\00", align 1
@contexts = internal global [64 x ptr] zeroinitializer, align 16
@.str.8 = private constant [35 x i8] c"the tensors' device cannot be used\00", align 1
@.str.9 = private constant [20 x i8] c"DCN_TVM_CUDA_DRIVER\00", align 1
@.str.10 = private constant [13 x i8] c"libcuda.so.1\00", align 1
@.str.11 = private constant [31 x i8] c"CUDA's driver cannot be opened\00", align 1
@load.names = internal constant [13 x ptr] [ptr @.str.12, ptr @.str.13, ptr @.str.14, ptr @.str.15, ptr @.str.16, ptr @.str.17, ptr @.str.18, ptr @.str.19, ptr @.str.20, ptr @.str.21, ptr @.str.22, ptr @.str.23, ptr @.str.24], align 16
@.str.12 = private constant [7 x i8] c"cuInit\00", align 1
@.str.13 = private constant [12 x i8] c"cuDeviceGet\00", align 1
@.str.14 = private constant [25 x i8] c"cuDevicePrimaryCtxRetain\00", align 1
@.str.15 = private constant [15 x i8] c"cuCtxGetDevice\00", align 1
@.str.16 = private constant [20 x i8] c"cuCtxPushCurrent_v2\00", align 1
@.str.17 = private constant [19 x i8] c"cuCtxPopCurrent_v2\00", align 1
@.str.18 = private constant [17 x i8] c"cuGetErrorString\00", align 1
@.str.19 = private constant [18 x i8] c"cuLibraryLoadData\00", align 1
@.str.20 = private constant [19 x i8] c"cuLibraryGetKernel\00", align 1
@.str.21 = private constant [21 x i8] c"cuKernelSetAttribute\00", align 1
@.str.22 = private constant [15 x i8] c"cuLaunchKernel\00", align 1
@.str.23 = private constant [16 x i8] c"cuMemAllocAsync\00", align 1
@.str.24 = private constant [15 x i8] c"cuMemFreeAsync\00", align 1
@.str.25 = private constant [53 x i8] c"CUDA's driver is older than 12.0: it has no function\00", align 1
@dcn_tvm_image = external hidden constant [0 x i8], align 1
@.str.26 = private constant [35 x i8] c"the kernel's code cannot be loaded\00", align 1
@dcn_tvm_kernel_count = external hidden constant i32, align 4
@.str.27 = private constant [28 x i8] c"the kernel cannot be loaded\00", align 1
@.str.28 = private constant [3 x i8] c": \00", align 1
@.str.29 = private constant [13 x i8] c"RuntimeError\00", align 1
@busy = internal global i32 0, align 4
@.str.30 = private constant [19 x i8] c"unknown CUDA error\00", align 1
define hidden i32 @dcn_tvm_launch(i32 %0, i32 %1, ptr %2, i32 %3) {
  %5 = alloca [64 x ptr], align 16
  %6 = alloca [6 x i32], align 16
  %7 = sext i32 %0 to i64
  %8 = getelementptr inbounds [0 x %struct.Kernel], ptr @dcn_tvm_kernels, i64 0, i64 %7
  call void @llvm.memcpy.p0.p0.i64(ptr nonnull align 16 dereferenceable(24) %6, ptr nonnull align 16 dereferenceable(24) @__const.launch.size, i64 24, i1 false)
  %9 = getelementptr inbounds [0 x %struct.Kernel], ptr @dcn_tvm_kernels, i64 0, i64 %7, i32 1
  %10 = load ptr, ptr %9, align 8
  %11 = load i8, ptr %10, align 1
  %12 = icmp eq i8 %11, 0
  br i1 %12, label %66, label %13
13:
  %14 = sext i32 %3 to i64
  %15 = getelementptr inbounds %struct.Any, ptr %2, i64 %14
  br label %16
16:
  %17 = phi i8 [ %64, %59 ], [ %11, %13 ]
  %18 = phi ptr [ %63, %59 ], [ %15, %13 ]
  %19 = phi i32 [ %61, %59 ], [ 0, %13 ]
  %20 = phi i32 [ %60, %59 ], [ 0, %13 ]
  %21 = phi ptr [ %62, %59 ], [ %10, %13 ]
  %22 = sext i8 %17 to i32
  %23 = tail call ptr @memchr(ptr nonnull dereferenceable(1) @.str.3, i32 %22, i64 7)
  %24 = icmp eq ptr %23, null
  br i1 %24, label %38, label %25
25:
  %26 = getelementptr inbounds %struct.Any, ptr %18, i64 0, i32 2
  %27 = load i64, ptr %26, align 8
  %28 = icmp eq i64 %27, 0
  br i1 %28, label %108, label %29
29:
  %30 = icmp ugt i64 %27, 2147483647
  br i1 %30, label %31, label %33
31:
  %32 = load ptr, ptr %8, align 8
  tail call fastcc void @fail(ptr %32, ptr nonnull @.str.4)
  br label %109
33:
  %34 = trunc i64 %27 to i32
  %35 = ptrtoint ptr %23 to i64
  %36 = sub i64 %35, ptrtoint (ptr @.str.3 to i64)
  %37 = getelementptr inbounds [6 x i32], ptr %6, i64 0, i64 %36
  store i32 %34, ptr %37, align 4
  br label %59
38:
  %39 = icmp eq i8 %17, 115
  br i1 %39, label %40, label %44
40:
  %41 = getelementptr inbounds %struct.Any, ptr %18, i64 0, i32 2
  %42 = load i64, ptr %41, align 8
  %43 = trunc i64 %42 to i32
  br label %59
44:
  %45 = icmp eq i32 %20, 64
  br i1 %45, label %46, label %48
46:
  %47 = load ptr, ptr %8, align 8
  tail call fastcc void @fail(ptr %47, ptr nonnull @.str.5)
  br label %109
48:
  %49 = icmp eq i8 %17, 102
  br i1 %49, label %50, label %54
50:
  %51 = getelementptr inbounds %struct.Any, ptr %18, i64 0, i32 2
  %52 = load double, ptr %51, align 8
  %53 = fptrunc double %52 to float
  store float %53, ptr %51, align 8
  br label %54
54:
  %55 = getelementptr inbounds %struct.Any, ptr %18, i64 0, i32 2
  %56 = add nsw i32 %20, 1
  %57 = sext i32 %20 to i64
  %58 = getelementptr inbounds [64 x ptr], ptr %5, i64 0, i64 %57
  store ptr %55, ptr %58, align 8
  br label %59
59:
  %60 = phi i32 [ %56, %54 ], [ %20, %40 ], [ %20, %33 ]
  %61 = phi i32 [ %19, %54 ], [ %43, %40 ], [ %19, %33 ]
  %62 = getelementptr inbounds i8, ptr %21, i64 1
  %63 = getelementptr inbounds %struct.Any, ptr %18, i64 1
  %64 = load i8, ptr %62, align 1
  %65 = icmp eq i8 %64, 0
  br i1 %65, label %66, label %16
66:
  %67 = phi i32 [ 0, %4 ], [ %61, %59 ]
  %68 = tail call fastcc i32 @enter(i32 %1)
  %69 = icmp slt i32 %68, 0
  br i1 %69, label %109, label %70
70:
  %71 = load ptr, ptr @kernels, align 8
  %72 = getelementptr inbounds %struct.Loaded, ptr %71, i64 %7
  %73 = icmp eq i32 %67, 0
  br i1 %73, label %88, label %74
74:
  tail call fastcc void @lock()
  %75 = sext i32 %1 to i64
  %76 = getelementptr inbounds %struct.Loaded, ptr %71, i64 %7, i32 1, i64 %75
  %77 = load i32, ptr %76, align 4
  %78 = icmp ult i32 %77, %67
  br i1 %78, label %79, label %85
79:
  %80 = load ptr, ptr getelementptr inbounds (%struct.anon, ptr @cu, i64 0, i32 9), align 8
  %81 = load ptr, ptr %72, align 8
  %82 = tail call i32 %80(i32 8, i32 %67, ptr %81, i32 %1)
  %83 = icmp eq i32 %82, 0
  br i1 %83, label %84, label %86
84:
  store i32 %67, ptr %76, align 4
  br label %85
85:
  store atomic i32 0, ptr @busy release, align 4
  br label %88
86:
  store atomic i32 0, ptr @busy release, align 4
  %87 = tail call ptr @TVMFFIEnvGetStream(i32 2, i32 %1)
  tail call fastcc void @leave(i32 %68)
  br label %105
88:
  %89 = tail call ptr @TVMFFIEnvGetStream(i32 2, i32 %1)
  %90 = load ptr, ptr getelementptr inbounds (%struct.anon, ptr @cu, i64 0, i32 10), align 8
  %91 = load ptr, ptr %72, align 8
  %92 = load i32, ptr %6, align 16
  %93 = getelementptr inbounds [6 x i32], ptr %6, i64 0, i64 1
  %94 = load i32, ptr %93, align 4
  %95 = getelementptr inbounds [6 x i32], ptr %6, i64 0, i64 2
  %96 = load i32, ptr %95, align 8
  %97 = getelementptr inbounds [6 x i32], ptr %6, i64 0, i64 3
  %98 = load i32, ptr %97, align 4
  %99 = getelementptr inbounds [6 x i32], ptr %6, i64 0, i64 4
  %100 = load i32, ptr %99, align 16
  %101 = getelementptr inbounds [6 x i32], ptr %6, i64 0, i64 5
  %102 = load i32, ptr %101, align 4
  %103 = call i32 %90(ptr %91, i32 %92, i32 %94, i32 %96, i32 %98, i32 %100, i32 %102, i32 %67, ptr %89, ptr nonnull %5, ptr null)
  call fastcc void @leave(i32 %68)
  %104 = icmp eq i32 %103, 0
  br i1 %104, label %108, label %105
105:
  %106 = phi i32 [ %82, %86 ], [ %103, %88 ]
  %107 = load ptr, ptr %8, align 8
  call fastcc void @failed(i32 %106, ptr %107)
  br label %109
108:
  br label %110
109:
  call fastcc void @abandon()
  br label %110
110:
  %111 = phi i32 [ -1, %109 ], [ 0, %108 ]
  ret i32 %111
}
define internal fastcc void @abandon() {
  %1 = tail call fastcc ptr @take(ptr null)
  %2 = icmp eq ptr %1, null
  br i1 %2, label %3, label %4
3:
  ret void
4:
  %5 = phi ptr [ %7, %4 ], [ %1, %0 ]
  %6 = tail call fastcc i32 @give_back(ptr nonnull %5)
  %7 = tail call fastcc ptr @take(ptr null)
  %8 = icmp eq ptr %7, null
  br i1 %8, label %3, label %4
}
define hidden ptr @dcn_tvm_alloc(i32 %0, i64 %1) {
  %3 = tail call noalias dereferenceable_or_null(40) ptr @calloc(i64 1, i64 40)
  %4 = icmp eq ptr %3, null
  br i1 %4, label %5, label %6
5:
  tail call fastcc void @fail(ptr nonnull @.str, ptr nonnull @.str.1)
  br label %14
6:
  %7 = getelementptr inbounds %struct.Scratch, ptr %3, i64 0, i32 4
  store i32 %0, ptr %7, align 8
  %8 = tail call i64 @pthread_self()
  %9 = getelementptr inbounds %struct.Scratch, ptr %3, i64 0, i32 3
  store i64 %8, ptr %9, align 8
  %10 = icmp eq i64 %1, 0
  %11 = select i1 %10, i64 1, i64 %1
  %12 = tail call fastcc i32 @obtain(ptr nonnull %3, i64 %11)
  %13 = icmp eq i32 %12, 0
  br i1 %13, label %15, label %14
14:
  tail call void @free(ptr %3)
  tail call fastcc void @abandon()
  br label %19
15:
  tail call fastcc void @lock()
  %16 = load ptr, ptr @held, align 8
  store ptr %16, ptr %3, align 8
  store ptr %3, ptr @held, align 8
  store atomic i32 0, ptr @busy release, align 4
  %17 = getelementptr inbounds %struct.Scratch, ptr %3, i64 0, i32 1
  %18 = load ptr, ptr %17, align 8
  br label %19
19:
  %20 = phi ptr [ null, %14 ], [ %18, %15 ]
  ret ptr %20
}
declare noalias ptr @calloc(i64, i64)
define internal fastcc void @fail(ptr %0, ptr %1) {
  %3 = alloca [1024 x i8], align 16
  %4 = alloca [3 x ptr], align 16
  store ptr %0, ptr %4, align 16
  %5 = getelementptr inbounds ptr, ptr %4, i64 1
  store ptr @.str.28, ptr %5, align 8
  %6 = getelementptr inbounds ptr, ptr %4, i64 2
  store ptr %1, ptr %6, align 16
  br label %9
7:
  %8 = getelementptr inbounds [1024 x i8], ptr %3, i64 0, i64 %19
  store i8 0, ptr %8, align 1
  call void @TVMFFIErrorSetRaisedFromCStr(ptr nonnull @.str.29, ptr nonnull %3)
  ret void
9:
  %10 = phi i64 [ 0, %2 ], [ %20, %18 ]
  %11 = phi i64 [ 0, %2 ], [ %19, %18 ]
  %12 = getelementptr inbounds [3 x ptr], ptr %4, i64 0, i64 %10
  %13 = load ptr, ptr %12, align 8
  %14 = load i8, ptr %13, align 1
  %15 = icmp ne i8 %14, 0
  %16 = icmp ult i64 %11, 1023
  %17 = select i1 %15, i1 %16, i1 false
  br i1 %17, label %22, label %18
18:
  %19 = phi i64 [ %11, %9 ], [ %26, %22 ]
  %20 = add nuw nsw i64 %10, 1
  %21 = icmp eq i64 %20, 3
  br i1 %21, label %7, label %9
22:
  %23 = phi i8 [ %29, %22 ], [ %14, %9 ]
  %24 = phi ptr [ %28, %22 ], [ %13, %9 ]
  %25 = phi i64 [ %26, %22 ], [ %11, %9 ]
  %26 = add nuw nsw i64 %25, 1
  %27 = getelementptr inbounds [1024 x i8], ptr %3, i64 0, i64 %25
  store i8 %23, ptr %27, align 1
  %28 = getelementptr inbounds i8, ptr %24, i64 1
  %29 = load i8, ptr %28, align 1
  %30 = icmp ne i8 %29, 0
  %31 = icmp ult i64 %25, 1022
  %32 = select i1 %30, i1 %31, i1 false
  br i1 %32, label %22, label %18
}
declare i64 @pthread_self()
define internal fastcc i32 @obtain(ptr %0, i64 %1) {
  %3 = alloca i64, align 8
  %4 = alloca i64, align 8
  %5 = alloca %struct.Tensor, align 8
  %6 = getelementptr inbounds %struct.Scratch, ptr %0, i64 0, i32 4
  %7 = load i32, ptr %6, align 8
  %8 = tail call ptr @TVMFFIEnvGetDLPackManagedTensorAllocator()
  %9 = icmp eq ptr %8, null
  br i1 %9, label %30, label %10
10:
  store i64 %1, ptr %3, align 8
  store i64 1, ptr %4, align 8
  store ptr null, ptr %5, align 8
  %11 = getelementptr inbounds %struct.Tensor, ptr %5, i64 0, i32 1
  store i32 2, ptr %11, align 8
  %12 = getelementptr inbounds %struct.Tensor, ptr %5, i64 0, i32 2
  store i32 %7, ptr %12, align 4
  %13 = getelementptr inbounds %struct.Tensor, ptr %5, i64 0, i32 3
  store i32 1, ptr %13, align 8
  %14 = getelementptr inbounds %struct.Tensor, ptr %5, i64 0, i32 4
  store i8 1, ptr %14, align 4
  %15 = getelementptr inbounds %struct.Tensor, ptr %5, i64 0, i32 4, i32 1
  store i8 8, ptr %15, align 1
  %16 = getelementptr inbounds %struct.Tensor, ptr %5, i64 0, i32 4, i32 2
  store i16 1, ptr %16, align 2
  %17 = getelementptr inbounds %struct.Tensor, ptr %5, i64 0, i32 5
  store ptr %3, ptr %17, align 8
  %18 = getelementptr inbounds %struct.Tensor, ptr %5, i64 0, i32 6
  store ptr %4, ptr %18, align 8
  %19 = getelementptr inbounds %struct.Tensor, ptr %5, i64 0, i32 7
  store i64 0, ptr %19, align 8
  %20 = getelementptr inbounds %struct.Scratch, ptr %0, i64 0, i32 2
  %21 = call i32 @TVMFFIEnvTensorAlloc(ptr nonnull %5, ptr nonnull %20)
  %22 = icmp eq i32 %21, 0
  br i1 %22, label %23, label %28
23:
  %24 = load ptr, ptr %20, align 8
  %25 = getelementptr inbounds i8, ptr %24, i64 24
  %26 = load ptr, ptr %25, align 8
  %27 = getelementptr inbounds %struct.Scratch, ptr %0, i64 0, i32 1
  store ptr %26, ptr %27, align 8
  br label %28
28:
  %29 = phi i32 [ 0, %23 ], [ -1, %10 ]
  br label %40
30:
  %31 = tail call fastcc i32 @enter(i32 %7)
  %32 = icmp slt i32 %31, 0
  br i1 %32, label %40, label %33
33:
  %34 = load ptr, ptr getelementptr inbounds (%struct.anon, ptr @cu, i64 0, i32 11), align 8
  %35 = getelementptr inbounds %struct.Scratch, ptr %0, i64 0, i32 1
  %36 = tail call ptr @TVMFFIEnvGetStream(i32 2, i32 %7)
  %37 = tail call i32 %34(ptr nonnull %35, i64 %1, ptr %36)
  tail call fastcc void @leave(i32 %31)
  %38 = icmp eq i32 %37, 0
  br i1 %38, label %40, label %39
39:
  tail call fastcc void @failed(i32 %37, ptr nonnull @.str)
  br label %40
40:
  %41 = phi i32 [ %29, %28 ], [ -1, %30 ], [ -1, %39 ], [ 0, %33 ]
  ret i32 %41
}
declare void @free(ptr)
define internal fastcc void @lock() {
  %1 = atomicrmw xchg ptr @busy, i32 1 acquire, align 4
  %2 = icmp eq i32 %1, 0
  br i1 %2, label %7, label %3
3:
  %4 = tail call i32 @sched_yield()
  %5 = atomicrmw xchg ptr @busy, i32 1 acquire, align 4
  %6 = icmp eq i32 %5, 0
  br i1 %6, label %7, label %3
7:
  ret void
}
define hidden i32 @dcn_tvm_free(i32 %0, ptr %1) {
  %3 = tail call fastcc ptr @take(ptr %1)
  %4 = icmp eq ptr %3, null
  br i1 %4, label %9, label %5
5:
  %6 = tail call fastcc i32 @give_back(ptr nonnull %3)
  %7 = icmp eq i32 %6, 0
  br i1 %7, label %10, label %8
8:
  tail call fastcc void @abandon()
  tail call fastcc void @failed(i32 %6, ptr nonnull @.str)
  br label %10
9:
  tail call fastcc void @abandon()
  tail call fastcc void @fail(ptr nonnull @.str, ptr nonnull @.str.2)
  br label %10
10:
  %11 = phi i32 [ 0, %5 ], [ -1, %9 ], [ -1, %8 ]
  ret i32 %11
}
define internal fastcc ptr @take(ptr readnone %0) {
  %2 = tail call i64 @pthread_self()
  tail call fastcc void @lock()
  %3 = load ptr, ptr @held, align 8
  %4 = icmp eq ptr %3, null
  br i1 %4, label %23, label %5
5:
  %6 = icmp eq ptr %0, null
  br label %7
7:
  %8 = phi ptr [ %3, %5 ], [ %19, %18 ]
  %9 = phi ptr [ @held, %5 ], [ %8, %18 ]
  br i1 %6, label %14, label %10
10:
  %11 = getelementptr inbounds %struct.Scratch, ptr %8, i64 0, i32 1
  %12 = load ptr, ptr %11, align 8
  %13 = icmp eq ptr %12, %0
  br i1 %13, label %21, label %18
14:
  %15 = getelementptr inbounds %struct.Scratch, ptr %8, i64 0, i32 3
  %16 = load i64, ptr %15, align 8
  %17 = icmp eq i64 %16, %2
  br i1 %17, label %21, label %18
18:
  %19 = load ptr, ptr %8, align 8
  %20 = icmp eq ptr %19, null
  br i1 %20, label %23, label %7
21:
  %22 = load ptr, ptr %8, align 8
  store ptr %22, ptr %9, align 8
  br label %23
23:
  %24 = phi ptr [ %8, %21 ], [ null, %1 ], [ null, %18 ]
  store atomic i32 0, ptr @busy release, align 4
  ret ptr %24
}
define internal fastcc i32 @give_back(ptr %0) {
  %2 = getelementptr inbounds %struct.Scratch, ptr %0, i64 0, i32 2
  %3 = load ptr, ptr %2, align 8
  %4 = icmp eq ptr %3, null
  br i1 %4, label %7, label %5
5:
  %6 = tail call i32 @TVMFFIObjectDecRef(ptr nonnull %3)
  br label %19
7:
  %8 = getelementptr inbounds %struct.Scratch, ptr %0, i64 0, i32 4
  %9 = load i32, ptr %8, align 8
  %10 = tail call fastcc i32 @enter(i32 %9)
  %11 = icmp sgt i32 %10, -1
  br i1 %11, label %12, label %19
12:
  %13 = load ptr, ptr getelementptr inbounds (%struct.anon, ptr @cu, i64 0, i32 12), align 8
  %14 = getelementptr inbounds %struct.Scratch, ptr %0, i64 0, i32 1
  %15 = load ptr, ptr %14, align 8
  %16 = load i32, ptr %8, align 8
  %17 = tail call ptr @TVMFFIEnvGetStream(i32 2, i32 %16)
  %18 = tail call i32 %13(ptr %15, ptr %17)
  tail call fastcc void @leave(i32 %10)
  br label %19
19:
  %20 = phi i32 [ 0, %5 ], [ %18, %12 ], [ 0, %7 ]
  tail call void @free(ptr nonnull %0)
  ret i32 %20
}
define internal fastcc void @failed(i32 %0, ptr %1) {
  %3 = alloca ptr, align 8
  store ptr null, ptr %3, align 8
  %4 = load ptr, ptr getelementptr inbounds (%struct.anon, ptr @cu, i64 0, i32 6), align 8
  %5 = icmp eq ptr %4, null
  br i1 %5, label %9, label %6
6:
  %7 = call i32 %4(i32 %0, ptr nonnull %3)
  %8 = load ptr, ptr %3, align 8
  br label %9
9:
  %10 = phi ptr [ %8, %6 ], [ null, %2 ]
  %11 = icmp eq ptr %10, null
  %12 = select i1 %11, ptr @.str.30, ptr %10
  call fastcc void @fail(ptr %1, ptr %12)
  ret void
}
declare void @llvm.memcpy.p0.p0.i64(ptr noalias writeonly, ptr noalias readonly, i64, i1 immarg)
define internal fastcc i32 @enter(i32 %0) {
  %2 = alloca i32, align 4
  %3 = alloca ptr, align 8
  %4 = alloca i32, align 4
  %5 = load atomic i32, ptr @ready acquire, align 4
  %6 = icmp eq i32 %5, 0
  br i1 %6, label %7, label %15
7:
  tail call fastcc void @lock()
  %8 = load i32, ptr @ready, align 4
  %9 = icmp eq i32 %8, 0
  br i1 %9, label %10, label %13
10:
  %11 = tail call fastcc i32 @load()
  %12 = icmp eq i32 %11, 0
  br i1 %12, label %13, label %14
13:
  store atomic i32 1, ptr @ready release, align 4
  store atomic i32 0, ptr @busy release, align 4
  br label %15
14:
  store atomic i32 0, ptr @busy release, align 4
  br label %54
15:
  %16 = icmp ugt i32 %0, 63
  br i1 %16, label %17, label %18
17:
  tail call fastcc void @fail(ptr nonnull @.str.6, ptr nonnull @.str.7)
  br label %52
18:
  %19 = load ptr, ptr getelementptr inbounds (%struct.anon, ptr @cu, i64 0, i32 3), align 8
  %20 = call i32 %19(ptr nonnull %2)
  %21 = icmp eq i32 %20, 0
  %22 = load i32, ptr %2, align 4
  %23 = icmp eq i32 %22, %0
  %24 = select i1 %21, i1 %23, i1 false
  br i1 %24, label %52, label %25
25:
  call fastcc void @lock()
  %26 = zext i32 %0 to i64
  %27 = getelementptr inbounds [64 x ptr], ptr @contexts, i64 0, i64 %26
  %28 = load ptr, ptr %27, align 8
  store ptr %28, ptr %3, align 8
  %29 = icmp eq ptr %28, null
  br i1 %29, label %30, label %43
30:
  %31 = load ptr, ptr getelementptr inbounds (%struct.anon, ptr @cu, i64 0, i32 1), align 8
  %32 = call i32 %31(ptr nonnull %4, i32 %0)
  %33 = icmp eq i32 %32, 0
  br i1 %33, label %34, label %39
34:
  %35 = load ptr, ptr getelementptr inbounds (%struct.anon, ptr @cu, i64 0, i32 2), align 8
  %36 = load i32, ptr %4, align 4
  %37 = call i32 %35(ptr nonnull %3, i32 %36)
  %38 = icmp eq i32 %37, 0
  br i1 %38, label %41, label %39
39:
  %40 = phi i32 [ %37, %34 ], [ %32, %30 ]
  store atomic i32 0, ptr @busy release, align 4
  br label %48
41:
  %42 = load ptr, ptr %3, align 8
  store ptr %42, ptr %27, align 8
  br label %43
43:
  %44 = phi ptr [ %42, %41 ], [ %28, %25 ]
  store atomic i32 0, ptr @busy release, align 4
  %45 = load ptr, ptr getelementptr inbounds (%struct.anon, ptr @cu, i64 0, i32 4), align 8
  %46 = call i32 %45(ptr %44)
  %47 = icmp eq i32 %46, 0
  br i1 %47, label %50, label %48
48:
  %49 = phi i32 [ %40, %39 ], [ %46, %43 ]
  call fastcc void @failed(i32 %49, ptr nonnull @.str.8)
  br label %50
50:
  %51 = phi i32 [ -1, %48 ], [ 1, %43 ]
  br label %52
52:
  %53 = phi i32 [ -1, %17 ], [ %51, %50 ], [ 0, %18 ]
  br label %54
54:
  %55 = phi i32 [ %53, %52 ], [ -1, %14 ]
  ret i32 %55
}
declare ptr @TVMFFIEnvGetStream(i32, i32)
define internal fastcc void @leave(i32 %0) {
  %2 = alloca ptr, align 8
  %3 = icmp eq i32 %0, 0
  br i1 %3, label %7, label %4
4:
  %5 = load ptr, ptr getelementptr inbounds (%struct.anon, ptr @cu, i64 0, i32 5), align 8
  %6 = call i32 %5(ptr nonnull %2)
  br label %7
7:
  ret void
}
define internal fastcc i32 @load() {
  %1 = alloca ptr, align 8
  %2 = tail call ptr @getenv(ptr nonnull @.str.9)
  %3 = icmp eq ptr %2, null
  br i1 %3, label %8, label %4
4:
  %5 = load i8, ptr %2, align 1
  %6 = icmp eq i8 %5, 0
  %7 = select i1 %6, ptr @.str.10, ptr %2
  br label %8
8:
  %9 = phi ptr [ @.str.10, %0 ], [ %7, %4 ]
  %10 = tail call ptr @dlopen(ptr %9, i32 2)
  %11 = icmp eq ptr %10, null
  br i1 %11, label %12, label %17
12:
  %13 = tail call ptr @dlerror()
  tail call fastcc void @fail(ptr nonnull @.str.11, ptr %13)
  br label %61
14:
  %15 = add nuw nsw i64 %18, 1
  %16 = icmp eq i64 %15, 13
  br i1 %16, label %25, label %17
17:
  %18 = phi i64 [ %15, %14 ], [ 0, %8 ]
  %19 = getelementptr inbounds [13 x ptr], ptr @load.names, i64 0, i64 %18
  %20 = load ptr, ptr %19, align 8
  %21 = tail call ptr @dlsym(ptr nonnull %10, ptr %20)
  %22 = getelementptr inbounds ptr, ptr @cu, i64 %18
  store ptr %21, ptr %22, align 8
  %23 = icmp eq ptr %21, null
  br i1 %23, label %24, label %14
24:
  tail call fastcc void @fail(ptr nonnull @.str.25, ptr %20)
  br label %61
25:
  %26 = load ptr, ptr @cu, align 8
  %27 = tail call i32 %26(i32 0)
  %28 = icmp eq i32 %27, 0
  br i1 %28, label %30, label %29
29:
  tail call fastcc void @failed(i32 %27, ptr nonnull @.str.12)
  br label %61
30:
  %31 = load ptr, ptr getelementptr inbounds (%struct.anon, ptr @cu, i64 0, i32 7), align 8
  %32 = call i32 %31(ptr nonnull %1, ptr nonnull @dcn_tvm_image, ptr null, ptr null, i32 0, ptr null, ptr null, i32 0)
  %33 = icmp eq i32 %32, 0
  br i1 %33, label %35, label %34
34:
  call fastcc void @failed(i32 %32, ptr nonnull @.str.26)
  br label %59
35:
  %36 = load i32, ptr @dcn_tvm_kernel_count, align 4
  %37 = sext i32 %36 to i64
  %38 = call noalias ptr @calloc(i64 %37, i64 264)
  %39 = icmp eq ptr %38, null
  br i1 %39, label %44, label %40
40:
  %41 = icmp sgt i32 %36, 0
  br i1 %41, label %42, label %58
42:
  %43 = zext i32 %36 to i64
  br label %48
44:
  call fastcc void @fail(ptr nonnull @.str.27, ptr nonnull @.str.1)
  br label %59
45:
  %46 = add nuw nsw i64 %49, 1
  %47 = icmp eq i64 %46, %43
  br i1 %47, label %58, label %48
48:
  %49 = phi i64 [ 0, %42 ], [ %46, %45 ]
  %50 = load ptr, ptr getelementptr inbounds (%struct.anon, ptr @cu, i64 0, i32 8), align 8
  %51 = getelementptr inbounds %struct.Loaded, ptr %38, i64 %49
  %52 = load ptr, ptr %1, align 8
  %53 = getelementptr inbounds [0 x %struct.Kernel], ptr @dcn_tvm_kernels, i64 0, i64 %49
  %54 = load ptr, ptr %53, align 8
  %55 = call i32 %50(ptr nonnull %51, ptr %52, ptr %54)
  %56 = icmp eq i32 %55, 0
  br i1 %56, label %45, label %57
57:
  call void @free(ptr %38)
  call fastcc void @failed(i32 %55, ptr %54)
  br label %59
58:
  store ptr %38, ptr @kernels, align 8
  br label %59
59:
  %60 = phi i32 [ -1, %34 ], [ 0, %58 ], [ -1, %57 ], [ -1, %44 ]
  br label %61
61:
  %62 = phi i32 [ -1, %24 ], [ -1, %12 ], [ -1, %29 ], [ %60, %59 ]
  ret i32 %62
}
declare ptr @getenv(ptr)
declare ptr @dlopen(ptr, i32)
declare ptr @dlerror()
declare ptr @dlsym(ptr, ptr)
declare void @TVMFFIErrorSetRaisedFromCStr(ptr, ptr)
declare ptr @TVMFFIEnvGetDLPackManagedTensorAllocator()
declare i32 @TVMFFIEnvTensorAlloc(ptr, ptr)
declare i32 @sched_yield()
declare i32 @TVMFFIObjectDecRef(ptr)
declare ptr @memchr(ptr, i32, i64)
