"""NVRTC, CUDA's compiler as a library: what torch brings where there is no CUDA toolkit.

It stands beside the headers that device code includes in packages of PyPI, which a torch that is
built for CUDA requires, or in a toolkit. Nothing of it is linked: it is opened when it is needed.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dcn_tvm.errors import CompileError

# TVM's preamble includes these two of libcu++, which the packages of CUDA 12 do not carry. Where
# the real ones are missing, these say all that the preamble takes from them.
_STAND_INS = {
    "cuda/std/cstdint": """
namespace cuda { namespace std {
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long int64_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long uint64_t;
} }
""",
    "cuda/std/type_traits": """
namespace cuda { namespace std {
template <bool V> struct bool_constant { static constexpr bool value = V; };
template <class A, class B> struct is_same : bool_constant<false> {};
template <class A> struct is_same<A, A> : bool_constant<true> {};
template <class A, class B> constexpr bool is_same_v = is_same<A, B>::value;
template <class A, class... B> constexpr bool is_any = (is_same_v<A, B> || ...);
template <class A> struct is_floating_point : bool_constant<is_any<A, float, double>> {};
template <class A> struct is_integral : bool_constant<is_any<A, bool, char, signed char,
  unsigned char, short, unsigned short, int, unsigned, long, unsigned long, long long,
  unsigned long long>> {};
template <class A, bool = is_floating_point<A>::value || is_integral<A>::value> struct is_signed
  : bool_constant<(A(-1) < A(0))> {};
template <class A> struct is_signed<A, false> : bool_constant<false> {};
template <class A> struct is_unsigned
  : bool_constant<is_integral<A>::value && !is_signed<A>::value> {};
template <bool C, class A = void> struct enable_if {};
template <class A> struct enable_if<true, A> { typedef A type; };
template <bool C, class A, class B> struct conditional { typedef A type; };
template <class A, class B> struct conditional<false, A, B> { typedef B type; };
} }
""",
}


@dataclass(frozen=True)
class Nvrtc:
    """An installed NVRTC: its library and the folders of CUDA's headers that belong to it."""

    library: Path
    includes: tuple[Path, ...]

    def __str__(self) -> str:
        return f"NVRTC ({self.library})"

    @property
    def version(self) -> str:
        """Such as "NVRTC 13.2".

        Raises:
            CompileError: the library cannot be opened.
        """
        major, minor = ctypes.c_int(), ctypes.c_int()
        _open(self.library).nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        return f"NVRTC {major.value}.{minor.value}"

    def compile(self, source: str, arch: str) -> bytes:
        """Return the cubin of CUDA C++ source for "sm_90" and the like.

        Raises:
            CompileError: the library cannot be opened, or refuses the source or the architecture.
        """
        library, program = _open(self.library), ctypes.c_void_p()
        headers = {} if self._has_libcu() else _STAND_INS
        texts = _array([text.encode() for text in headers.values()])
        names = _array([name.encode() for name in headers])
        _check(
            library,
            library.nvrtcCreateProgram(
                *(ctypes.byref(program), source.encode(), b"kernel.cu"),
                *(len(headers), texts, names),
            ),
        )
        try:
            options = [f"--gpu-architecture={arch}", "--std=c++17"]
            options += [f"--include-path={folder}" for folder in self.includes]
            given = _array([option.encode() for option in options])
            status = library.nvrtcCompileProgram(program, len(options), given)
            if status:
                log = _read(library, program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
                raise CompileError(f"{self} failed: {log.strip() or _text(library, status)}")
            return _read(library, program, "CUBIN")
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))

    def _has_libcu(self) -> bool:
        return any((folder / "cuda" / "std" / "cstdint").is_file() for folder in self.includes)


def find() -> Nvrtc | None:
    """Return the NVRTC of installed packages, else that of a toolkit; None if there is none."""
    for library, include in _places():
        if library.is_file() and (include / "cuda_fp16.h").is_file():
            folders = (include, include / "cccl")  # CUDA 13 keeps libcu++ in a folder of its own
            return Nvrtc(library, tuple(folder for folder in folders if folder.is_dir()))
    return None


def _places() -> Iterator[tuple[Path, Path]]:
    """Libraries, and the headers that would belong to them."""
    for root in _package_folders():
        for folder in sorted(root.glob("cu[1-9]*"), reverse=True):  # the newest first
            yield from ((library, folder / "include") for library in _libraries(folder / "lib"))
        for library in _libraries(root / "cuda_nvrtc" / "lib"):  # CUDA 12
            yield library, root / "cuda_runtime" / "include"
    for toolkit in toolkits():
        for name in ("lib64", "lib", "targets/*/lib"):
            for folder in toolkit.glob(name):
                for library in _libraries(folder):
                    yield library, folder.parent / "include"
                    yield library, toolkit / "include"


def toolkits() -> list[Path]:
    """Folders in which a CUDA toolkit may be, the one that the user names first."""
    named = (os.environ.get(name, "").strip() for name in ("CUDA_HOME", "CUDA_PATH"))
    return [*(Path(text) for text in named if text), Path(sys.prefix), Path("/usr/local/cuda")]


def _package_folders() -> list[Path]:
    spec = importlib.util.find_spec("nvidia")  # a name that several packages share
    return [Path(folder) for folder in (spec and spec.submodule_search_locations) or []]


def _libraries(folder: Path) -> list[Path]:
    """The libraries of a folder, not the same one by its other names."""
    return sorted({path.resolve() for path in folder.glob("libnvrtc.so*")}, reverse=True)


@functools.cache
def _open(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise CompileError(f"NVRTC cannot be opened: {error}") from error
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def _array(texts: list[bytes]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * len(texts))(*texts)


def _read(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(library, getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    data = ctypes.create_string_buffer(size.value)
    _check(library, getattr(library, f"nvrtcGet{what}")(program, data))
    return data.raw


def _check(library: ctypes.CDLL, status: int) -> None:
    if status:
        raise CompileError(f"NVRTC failed: {_text(library, status)}")


def _text(library: ctypes.CDLL, status: int) -> str:
    text: bytes = library.nvrtcGetErrorString(status)
    return text.decode()
