"""From the CUDA source that TVM emits to a library of emulated kernels.

The source stays what it is, line by line; only this is rewritten:

* declarations of shared memory, whose arrays come from the driver (poisoned, with red zones
  between them),
* includes of CUDA's headers, for which `device/cuda.hpp` stands,
* TVM's own helpers of asynchronous copies, whose bodies are PTX.

What remains of inline assembly outside `#if defined(__CUDA_ARCH__)` is an error: it cannot be
emulated.
"""

from __future__ import annotations

import re

from .toolchain import HERE, CompileError, library

MARK = b"DCN_TVM_EMULATED\n"
FLAGS = [
    "-O1",
    "-w",
    "-fwrapv",
    "-fno-strict-aliasing",  # TVM reads vectors from pointers to scalars
    "-ffp-contract=off",
    "-fno-exceptions",
    "-fstack-clash-protection",  # an array larger than a stack's guard must not step over it
    "-fsanitize=alignment,bounds",  # told through the handlers in device/language.hpp
    "-nodefaultlibs",  # or the sanitizer's library comes with it
    "-lm",
    "-lc",
    "-lgcc",
    "-include",
    str(HERE / "device" / "cuda.hpp"),
]
EMULATED_HEADERS = {
    *("cuda.h", "cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h", "mma.h", "math_constants.h"),
    *("sm_61_intrinsics.h",),
}

_INCLUDE = re.compile(r"^[ \t]*#[ \t]*include[ \t]*[<\"]([^>\"]+)[>\"].*$", re.MULTILINE)
_ALIGNED = r"(?:(?:__align__|alignas)\((\d+)\)\s*)?"
_DYNAMIC = re.compile(rf"\bextern\s+__shared__\s+{_ALIGNED}([\w: ]+?)\s+(\w+)\s*\[\s*\]\s*;")
_STATIC = re.compile(rf"\b__shared__\s+{_ALIGNED}([\w: ]+?)\s+(\w+)\s*((?:\[[^\]]*\])*)\s*;")
_KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\(([^)]*)\)\s*)?(\w+)\s*\('
)
_ASSEMBLY = re.compile(r"\b(?:__asm__|__asm|asm)\b")
_LEGACY_COPY = re.compile(r"ptx_cp_async_legacy_(pred_)?c[ag]_(\d+)_(\d+)_(\d+)$")
_COPY = re.compile(
    r"\"cp\.async\.c[ag]\.shared(?:::cta)?\.global(?:\.L2::\d+B)? \[%0\], \[%1\], (\d+)(, %2)?;\""
)
_HELPER = re.compile(r"^[^\n;{}#]*?\b(\w+)\(([^()]*)\)\s*\{", re.MULTILINE)


def _line(source: str, position: int) -> int:
    return source.count("\n", 0, position) + 1


def _without_headers(source: str) -> str:
    def replace(match: re.Match[str]) -> str:
        header = match[1]
        if header in EMULATED_HEADERS:
            return f"// {header}: device/cuda.hpp"
        return match[0]

    return _INCLUDE.sub(replace, source)


def _shared_from_driver(source: str) -> str:
    def dynamic(match: re.Match[str]) -> str:
        return f"{match[2]}* const {match[3]} = reinterpret_cast<{match[2]}*>(emulated.dynamic);"

    def static(match: re.Match[str]) -> str:
        alignment, kind, name, extents = match.groups()
        site = sites.setdefault(match.start(), len(sites))
        return (
            f"auto& {name} = *static_cast<{kind} (*){extents}>(emulated.shared("
            f"{site}, sizeof({kind}{extents}), {alignment or f'alignof({kind})'}));"
        )

    sites: dict[int, int] = {}
    source = _STATIC.sub(static, _DYNAMIC.sub(dynamic, source))
    left = re.search(r"\b__shared__\b", source)
    if left:
        line = _line(source, left.start())
        text = source.splitlines()[line - 1].strip()
        raise CompileError(f"line {line}: the emulator cannot read this declaration: {text}")
    return source


def _body_end(source: str, start: int) -> int:
    """Past the brace that closes the one before `start`; braces in strings do not count."""
    depth = 1
    for token in re.finditer(r'"(?:\\.|[^"\\\n])*"|[{}]', source[start:]):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if not depth:
            return start + token.end()
    raise CompileError(f"line {_line(source, start)}: a brace that is never closed")


def _copy_body(name: str, parameters: list[str], body: str) -> str | None:
    """What an asynchronous copy's helper does, in C++."""
    legacy = _LEGACY_COPY.search(name)
    if legacy:
        predicate, size, to_scale, read_scale = legacy.groups()
        present = f"predicate ? {size} : 0" if predicate else size
        return (
            f"emulated.copy((char*)dst + dst_off * {to_scale}, "
            f"(char*)src + src_off * {read_scale}, {size}, {present});"
        )
    if name == "dcn_copy_16":  # ours: pointers, and whether there is something to copy
        to, read, inside = [parameter.split()[-1] for parameter in parameters]
        return f"emulated.copy({to}, {read}, 16, {inside} ? 16 : 0);"
    copy = _COPY.search(body)
    if copy:
        to, read, *present = [parameter.split()[-1] for parameter in parameters]
        return (
            f"emulated.copy(emulated.shared_base + {to}, {read}, {copy[1]}, "
            f"{present[0] if copy[2] else copy[1]});"
        )
    if "cp.async.commit_group" in body:
        return "emulated.commit_copies();"
    wait = re.search(r"cp\.async\.wait_group\s+(\d+)", body)
    if wait:
        return f"emulated.wait_copies({wait[1]});"
    if "cp.async.wait_all" in body:
        return "emulated.commit_copies(); emulated.wait_copies(0);"
    return None


def _with_copies(source: str) -> str:
    pieces: list[str] = []
    at = 0
    for match in _HELPER.finditer(source):
        if match.start() < at:
            continue
        end = _body_end(source, match.end())
        body = source[match.end() : end - 1]
        if "cp.async" not in body or not _ASSEMBLY.search(body):
            continue
        emulated = _copy_body(match[1], match[2].split(","), body)
        if emulated is None:
            continue
        pieces += [source[at : match.end()], emulated, "\n" * body.count("\n"), "}"]
        at = end
    return "".join(pieces) + source[at:]


def _table(source: str) -> str:
    """Kernels by name, and how to call them."""
    bounds: dict[str, str] = {}
    for match in _KERNEL.finditer(source):
        bounds[match[2]] = (match[1] or "1024").split(",")[0]
    if not bounds:
        raise CompileError('the source holds no kernel: extern "C" __global__ void name(...)')
    rows = ",\n".join(
        f'  {{"{name}", {most}, emulated_parameters(&{name}), '
        f"[](void **values) {{ emulated_call(&{name}, values); }}}}"
        for name, most in bounds.items()
    )
    return f"""
static const emulator::Kernel emulated_kernels[] = {{
{rows}}};
static const emulator::Module emulated_module = {{&emulated, emulated_kernels, {len(bounds)}}};
extern "C" __attribute__((visibility("default"))) const emulator::Module *dcn_tvm_emulated() {{
  return &emulated_module;
}}
"""


def _explain(error: str, source: str) -> str:
    """g++'s words, or ours where assembly is the reason."""
    lines = source.splitlines()
    places = {int(n) for n in re.findall(r":(\d+):\d+: error: attempt to use poisoned", error)}
    if not places:
        return error
    shown = "\n".join(f"  line {n}: {lines[n - 1].strip()}" for n in sorted(places))
    return (
        "inline assembly cannot be emulated; where it stands in #if defined(__CUDA_ARCH__) the "
        f"emulator takes the #else:\n{shown}"
    )


def image(source: str) -> bytes:
    """Compile a CUDA source and return what `cuLibraryLoadData` of the emulated driver takes.

    Args:
        source: As TVM's code generator emits it: includes, device functions and kernels.

    Raises:
        CompileError: g++ refused it, or it holds assembly for a device.
    """
    translated = _shared_from_driver(_with_copies(_without_headers(source)))
    try:
        path = library("kernels", translated + _table(source), FLAGS)
    except CompileError as error:
        raise CompileError(_explain(str(error), translated)) from None
    return MARK + str(path).encode() + b"\0"
