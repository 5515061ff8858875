"""Compiling and launching kernels on CUDA devices, without TVM's own runtime for them."""
