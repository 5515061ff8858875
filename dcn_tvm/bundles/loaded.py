"""The bundles of this process: those that were loaded, and those that the environment names."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from dcn_tvm import settings
from dcn_tvm.build import Request
from dcn_tvm.bundles import targets
from dcn_tvm.bundles.bundle import Bundle
from dcn_tvm.errors import BundleError

_loaded: list[Bundle] = []  # the latest first
_named: dict[tuple[Path, ...], list[Bundle]] = {}  # by what the environment says


def load(path: Path | str, sha256: str | None = None) -> Bundle:
    """Use the kernels of a bundle, from the next call on of ops whose kernels were not yet called.

    They need neither TVM's compiler nor a C compiler. Calls that the bundle has no kernel for are
    compiled as ever, where TVM is installed. Of several bundles the one loaded last is asked first.

    A bundle is machine code: load only what you trust. Its checksums notice damage; whoever can
    change it can write new ones, but for the one that you give.

    Args:
        path: the folder that `dcn-tvm compile` made.
        sha256: the bundle's, as `dcn-tvm compile` told it.

    Raises:
        BundleError: there is no bundle, it was changed or damaged, was compiled for another version
            or for machines unlike this one.

    Example:
        >>> dcn_tvm.load_bundle("bundle")
        <Bundle /srv/bundle: 8 kernels of roi_align for x86-64-v3, sm_90>
    """
    bundle = Bundle(Path(path).expanduser().absolute(), sha256)
    _loaded[:] = [bundle, *(other for other in _loaded if other.path != bundle.path)]
    return bundle


def find(request: Request) -> Path | None:
    """Return the library of a kernel from the first bundle that has it; None means: compile it.

    Raises:
        BundleError: none has it and there is no compiler; a bundle that `DCN_TVM_BUNDLES` names
            cannot be used; a library has been changed.
    """
    bundles = [*_loaded, *_from_environment()]
    for bundle in bundles:
        if path := bundle.find(request):
            return path
    if not _has_compiler():
        raise BundleError(_no_kernel(request, bundles))
    return None


def shim() -> Path | None:
    """Return the library that launches kernels, from the first bundle that has one."""
    for bundle in (*_loaded, *(bundle for named in _named.values() for bundle in named)):
        if path := bundle.shim():
            return path
    return None


def forget() -> None:
    """Use no bundle any more; kernels that were called stay."""
    _loaded.clear()
    _named.clear()


def _from_environment() -> list[Bundle]:
    paths = settings.bundles()
    if paths not in _named:
        try:
            _named[paths] = [Bundle(path) for path in paths]
        except BundleError as error:
            named = os.pathsep.join(map(str, paths))
            raise BundleError(f"DCN_TVM_BUNDLES={named}: {error}") from error
    return _named[paths]


def _has_compiler() -> bool:
    try:
        return importlib.util.find_spec("tvm") is not None
    except (ImportError, ValueError):  # somebody keeps it from being imported
        return False


def _no_kernel(request: Request, bundles: list[Bundle]) -> str:
    code = request.target
    place = targets.name(code) if code else targets.machine()
    facts = ", ".join(f"{name} {v}" for name, v in request.problem.particulars().items())
    told = [f"no kernel for {request}, {facts}, on {place}"]
    for bundle in bundles:
        told += [f"in {bundle!r}", *(f"  {reason}" for reason in bundle.reasons(request))]
    told.append(
        "with TVM's compiler (pip install apache-tvm) it would be compiled here; without, load a "
        "bundle that has it: dcn-tvm compile, dcn_tvm.load_bundle, DCN_TVM_BUNDLES"
    )
    return "\n".join(told)
