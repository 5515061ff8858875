"""Turns the replacement of torchvision's kernels on and off in torch's dispatcher."""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

import torch
from torch.library import Library

from dcn_tvm.compat.kernels import KERNELS, Refused

# A call reaches the second key, or, where nothing records gradients (inference mode, the inside of
# a compiled graph), only the first.
_KEYS = {"cpu": ("CPU", "AutogradCPU"), "cuda": ("CUDA", "AutogradCUDA")}
_Pair = tuple[str, str]  # op, device
_replaced: dict[_Pair, Library] = {}
_lock = threading.Lock()


class Replacement:
    """What one call of `enable` replaced; `disable`, or the end of a `with`, undoes just that."""

    def __init__(self, pairs: Sequence[_Pair]) -> None:
        self._pairs = tuple(pairs)

    def disable(self) -> None:
        """Give what this call of `enable` replaced back to torchvision."""
        _restore(self._pairs)

    def __enter__(self) -> Replacement:
        """Return the handle; the kernels are replaced already."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.disable()


def enable(
    devices: str | Iterable[str] = ("cpu",), ops: str | Iterable[str] | None = None
) -> Replacement:
    """Let every call of torchvision's ops run on the package's kernels, in the whole process.

    What is replaced already stays so. What differs from torchvision: `dcn_tvm.compat`.

    Args:
        devices: "cpu", where the kernels were measured to be faster, or "cuda", where they were
            neither measured nor run on a device yet.
        ops: names of some ops, such as "roi_align"; None for all five.

    Returns:
        A handle, also for `with`, that undoes what this call did.

    Raises:
        ImportError: torchvision, or its compiled part, is not installed.
        RuntimeError: torch is older than 2.9, or torchvision has no kernels for the device.
        ValueError: a device or an op is unknown.

    Source: torch.library, get_kernel. Peer: torchvision.ops.

    Example:
        >>> x, box = torch.arange(16.0).reshape(1, 1, 4, 4), torch.tensor([[0, 0, 0, 2.0, 2]])
        >>> with dcn_tvm.compat.enable():
        ...     torchvision.ops.roi_align(x, box, 1, sampling_ratio=2).item()
        5.0
        >>> any(dcn_tvm.compat.status().values())
        False
    """
    devices = _known("devices", devices, _KEYS)
    ops = _known("ops", KERNELS if ops is None else ops, KERNELS)
    _require_torchvision()
    with _lock:
        new = [(op, d) for op in ops for d in devices if (op, d) not in _replaced]
        with contextlib.ExitStack() as undo:
            libraries = {}
            for pair in new:
                libraries[pair] = Library("torchvision", "IMPL")
                undo.callback(libraries[pair]._destroy)
                _replace(libraries[pair], *pair)
            undo.pop_all()
        with _told(new):
            _replaced.update(libraries)
    return Replacement(new)


def disable() -> None:
    """Give all ops back to torchvision's own kernels."""
    _restore(tuple(_replaced))


def status() -> dict[str, tuple[str, ...]]:
    """Return the devices on which each op is replaced.

    Example:
        >>> with dcn_tvm.compat.enable(ops="roi_align"):
        ...     dcn_tvm.compat.status()["roi_align"], dcn_tvm.compat.status()["roi_pool"]
        (('cpu',), ())
    """
    return {op: tuple(d for d in _KEYS if (op, d) in _replaced) for op in KERNELS}


def _known(name: str, given: str | Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    chosen = (given,) if isinstance(given, str) else tuple(dict.fromkeys(given))
    for one in chosen:
        if one not in known:
            raise ValueError(f"{name} must be among {', '.join(known)}, got {one!r}")
    return chosen


def _require_torchvision() -> None:
    try:
        import torchvision  # registers its ops
    except ImportError as error:
        raise ImportError(
            "dcn_tvm.compat replaces kernels of torchvision, which cannot be imported: install it"
        ) from error
    if not torchvision.extension._has_ops():
        raise ImportError("torchvision must have its compiled ops, got one built without them")
    if not hasattr(torch.library, "get_kernel"):
        raise RuntimeError(
            f"torch must be 2.9 or newer for dcn_tvm.compat, got {torch.__version__}"
        )


def _replace(library: Library, op: str, device: str) -> None:
    name = f"torchvision::{op}"
    if not torch._C._dispatch_has_kernel_for_dispatch_key(name, _KEYS[device][0]):
        raise RuntimeError(f"torchvision must have kernels for {device}, got one without")
    for key in _KEYS[device]:
        original = torch.library.get_kernel(name, key)
        kernel = functools.partial(_call, KERNELS[op], original)
        with warnings.catch_warnings():
            # Some releases of torch warn of a kernel that is replaced: here it was asked for.
            warnings.simplefilter("ignore")
            library.impl(op, kernel, key, with_keyset=True, allow_override=True)


def _call(kernel: Callable[..., Any], original: Any, keys: Any, *args: Any) -> Any:
    theirs = functools.partial(original.call_boxed, keys)
    with contextlib.suppress(Refused):
        return kernel(theirs, *args)
    return theirs(*args)


def _restore(pairs: Sequence[_Pair]) -> None:
    with _lock, _told(pairs):
        for pair in pairs:
            library = _replaced.pop(pair, None)
            if library is not None:
                library._destroy()


@contextlib.contextmanager
def _told(pairs: Sequence[_Pair]) -> Iterator[None]:
    """Tell the compiler of a change: it remembers kernels, in the process and on disk.

    torch's Python dispatcher, which traces, keeps the kernel found for a key: without this, what is
    compiled after `disable` would have no gradients. And a graph on disk that was traced with the
    kernels names their ops, which another process may not have imported.
    """
    config = torch.compiler.config
    plain = config.cache_key_tag.removesuffix(_tag())
    yield
    config.cache_key_tag = plain + _tag()
    for op, _ in pairs:
        getattr(torch.ops.torchvision, op).default._dispatch_cache.clear()


def _tag() -> str:
    pairs = [f"{op}/{device}" for op, device in sorted(_replaced)]
    return f"[dcn_tvm.compat: {' '.join(pairs)}]" if pairs else ""
