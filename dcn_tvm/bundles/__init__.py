"""Bundles: kernels that were compiled elsewhere, in a folder, for machines without a compiler.

`making` compiles one, `linking` links it for other machines, `manifest` says what it holds,
`bundle` verifies it, and `loaded` are those of this process, which `dcn_tvm.kernels` asks first.
"""

from dcn_tvm import kernels, openmp
from dcn_tvm.bundles.bundle import Bundle
from dcn_tvm.bundles.loaded import find, forget, load, shim

__all__ = ["Bundle", "find", "forget", "load", "shim"]

kernels.provide(find)
openmp.offer(shim)
