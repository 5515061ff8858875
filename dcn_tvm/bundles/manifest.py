"""The manifest of a bundle: what each library computes, where it runs, and its checksum.

It is JSON, and has a checksum of its own, over all else that it says. Checksums notice damage; they
do not tell who made a bundle, unless its checksum came by a way of its own (`load(path, sha256)`).
Nothing of a manifest is believed before it was checked: it may come from anywhere.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from dcn_tvm import ops
from dcn_tvm.bundles import targets
from dcn_tvm.bundles.targets import Code, Host
from dcn_tvm.errors import BundleError
from dcn_tvm.gpu import Gpu
from dcn_tvm.knobs import Choice
from dcn_tvm.problem import Problem

NAME = "manifest.json"
FORMAT = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PART = r"[A-Za-z0-9_+][A-Za-z0-9_+.-]*"  # of a path; no way up, and none to anywhere else
_FILE = re.compile(rf"{_PART}(/{_PART})*")
_MANNERS = ("deterministic", "tf32")


@dataclass(frozen=True)
class Library:
    """A shared library of a bundle.

    Attributes:
        file: its path in the bundle's folder, with slashes.
        bytes: its size.
        sha256: of its bytes.
        host: the processes that can load it.
    """

    file: str
    bytes: int
    sha256: str
    host: Host


@dataclass(frozen=True)
class Compiled:
    """A kernel of a bundle.

    Attributes:
        problem: the op's static facts.
        kernel: its name in the op's contract.
        outputs: what it computes.
        code: the target that it is compiled for.
        library: where it is.
        choices: of its schedule.
        provenance: where the choices come from, for people.
    """

    problem: Problem
    kernel: str
    outputs: tuple[str, ...]
    code: Code
    library: Library
    choices: Mapping[str, Choice]
    provenance: str

    def __str__(self) -> str:
        outputs = ", ".join(self.outputs)
        return f"{self.problem.op}.{self.kernel} -> {outputs} for {targets.name(self.code)}"


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds.

    Attributes:
        versions: of dcn_tvm and of apache-tvm-ffi, for which the kernels are.
        created: when, and by which compiler; for people.
        kernels: the compiled ones.
        shims: libraries that launch kernels, one for each host.
    """

    versions: Mapping[str, str]
    created: Mapping[str, str]
    kernels: tuple[Compiled, ...]
    shims: tuple[Library, ...]

    def to_json(self) -> str:
        """Return the manifest as text, its checksum included."""
        content = self._content()
        return json.dumps({**content, "sha256": _digest(content)}, indent=1) + "\n"

    @property
    def sha256(self) -> str:
        """The checksum over all that the manifest says, and so over all libraries."""
        return _digest(self._content())

    def libraries(self) -> Iterator[Library]:
        """Yield every library once."""
        yield from dict.fromkeys((*(kernel.library for kernel in self.kernels), *self.shims))

    def _content(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "versions": dict(self.versions),
            "created": dict(self.created),
            "kernels": [_kernel_facts(kernel) for kernel in self.kernels],
            "shims": [_library_facts(shim) for shim in self.shims],
        }


def read(data: bytes) -> Manifest:
    """Return the manifest that `to_json` wrote.

    Raises:
        BundleError: it is damaged, of another format, or says something that cannot be.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{NAME} is not JSON: {error}") from error
    facts = _Facts(content, "the manifest")
    number = facts.take("format", int)
    if number != FORMAT:
        raise BundleError(
            f"{NAME} must have format {FORMAT}, got {number}: compile the bundle again"
        )
    told, digest = facts.sha256("sha256"), _digest({**content, "sha256": None})
    if told != digest:
        raise BundleError(
            f"{NAME} was changed after it was written: its sha256 must be {told}, got {digest}"
        )
    kernels = tuple(_kernel(each) for each in facts.each("kernels"))
    known: set[tuple[object, ...]] = set()
    for kernel in kernels:
        where = (kernel.library.host, targets.written(kernel.code), targets.name(kernel.code))
        key = (kernel.problem, kernel.kernel, kernel.outputs, where)
        if key in known:
            raise BundleError(f"{NAME} has {kernel} twice")
        known.add(key)
    return Manifest(
        versions=facts.texts("versions"),
        created=facts.texts("created"),
        kernels=kernels,
        shims=tuple(_library(each) for each in facts.each("shims")),
    )


def versions() -> dict[str, str]:
    """Return the versions of what calls kernels, as they are installed."""
    import dcn_tvm

    return {"dcn_tvm": dcn_tvm.__version__, "apache-tvm-ffi": metadata.version("apache-tvm-ffi")}


def _digest(content: Mapping[str, Any]) -> str:
    """Hash of what a manifest says, however it is written."""
    facts = {name: value for name, value in content.items() if name != "sha256"}
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class _Facts:
    """An object of JSON whose values are checked as they are taken out of it."""

    def __init__(self, values: object, place: str) -> None:
        self.place = place
        if not isinstance(values, dict):
            raise BundleError(f"{place} must be an object, got {_short(values)}")
        self._values: dict[str, Any] = values

    def take(self, name: str, kind: type) -> Any:
        value = self._values.get(name)
        if type(value) is not kind:  # a bool is an int to isinstance
            raise BundleError(f"{self.place}: {name} must be {_KINDS[kind]}, got {_short(value)}")
        return value

    def sha256(self, name: str) -> str:
        text: str = self.take(name, str)
        if not _SHA256.fullmatch(text):
            raise BundleError(f"{self.place}: {name} must be 64 hex digits, got {_short(text)}")
        return text

    def strings(self, name: str) -> tuple[str, ...]:
        values = self.take(name, list)
        if wrong := [value for value in values if type(value) is not str]:
            raise BundleError(f"{self.place}: {name} must be texts, got {_short(wrong[0])}")
        return tuple(values)

    def texts(self, name: str) -> dict[str, str]:
        facts = _Facts(self.take(name, dict), f"{self.place}: {name}")
        return {key: facts.take(key, str) for key in facts._values}

    def each(self, name: str) -> Iterator[_Facts]:
        for place, values in enumerate(self.take(name, list)):
            yield _Facts(values, f"{name}[{place}]")


_KINDS = {int: "a whole number", str: "a text", list: "a list", dict: "an object"}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _library_facts(library: Library) -> dict[str, Any]:
    return {
        "file": library.file,
        "bytes": library.bytes,
        "sha256": library.sha256,
        "system": library.host.system,
        "arch": library.host.arch,
    }


def _library(facts: _Facts) -> Library:
    file, size = facts.take("file", str), facts.take("bytes", int)
    if not _FILE.fullmatch(file):
        raise BundleError(f"{facts.place}: file must be a path in the bundle, got {_short(file)}")
    if size < 1:
        raise BundleError(f"{facts.place}: bytes must be positive, got {size}")
    host = Host(facts.take("system", str), facts.take("arch", str))
    return Library(file, size, facts.sha256("sha256"), host)


def _kernel_facts(kernel: Compiled) -> dict[str, Any]:
    code = kernel.code
    return {
        "op": kernel.problem.op,
        "problem": json.loads(kernel.problem.to_json()),
        "kernel": kernel.kernel,
        "outputs": list(kernel.outputs),
        "target": targets.written(code),
        "manner": list(targets.manners(code)) if isinstance(code, Gpu) else [],
        **_library_facts(kernel.library),
        "choices": dict(kernel.choices),
        "provenance": kernel.provenance,
    }


def _kernel(facts: _Facts) -> Compiled:
    op, kernel, outputs = facts.take("op", str), facts.take("kernel", str), facts.strings("outputs")
    contract = ops.registry().get(op)
    if contract is None:
        raise BundleError(f"{facts.place}: op must be one of {', '.join(ops.registry())}, got {op}")
    known = contract.kernels().get(kernel)
    if known is None or not outputs or outputs != tuple(n for n in known.outputs if n in outputs):
        raise BundleError(f"{facts.place}: {op} has no kernel {kernel} -> {', '.join(outputs)}")
    try:
        problem = contract.problem.from_mapping(facts.take("problem", dict))
        hash(problem)
        code = _code(facts)
    except BundleError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{facts.place}: {error}") from error
    return Compiled(
        *(problem, kernel, outputs, code, _library(facts)),
        choices=facts.take("choices", dict),
        provenance=facts.take("provenance", str),
    )


def _code(facts: _Facts) -> Code:
    text, manner = facts.take("target", str), facts.strings("manner")
    if text == "cpu":
        raise BundleError(f"{facts.place}: target must say which CPU, got {text}")
    code = targets.parse(text)
    if any(name not in _MANNERS for name in manner) or (manner and not isinstance(code, Gpu)):
        raise BundleError(f"{facts.place}: {text} has no manner {', '.join(manner)}")
    return targets.in_manner(code, manner) if isinstance(code, Gpu) else code
