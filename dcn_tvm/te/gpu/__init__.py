"""Kernels for targets whose threads are bound by hand: blocks, threads, shared memory, atomics."""
