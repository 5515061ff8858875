"""Exceptions for what no built-in exception says; everything else raises ValueError and its kin."""


class DcnTvmError(RuntimeError):
    """Base class of the errors below: a user may catch this one."""


class CompileError(DcnTvmError):
    """A kernel could not be compiled; the message says which, for what target and why."""


class CacheError(DcnTvmError):
    """The build cache could not hold a build, not even in a temporary folder."""


class BundleError(DcnTvmError, ValueError):
    """A bundle is damaged, or not for this machine, or lacks a kernel; the message says which."""
