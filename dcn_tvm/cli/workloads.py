"""Workloads as a user names them: suites, an op with its fields, or what a model calls."""

from __future__ import annotations

import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from dcn_tvm import workload
from dcn_tvm.cli import problems
from dcn_tvm.workload import Workload


def named(
    what: Sequence[str] | None,
    from_model: Sequence[Path] | None,
    dtype: Sequence[str] | None,
    layout: Sequence[str] | None,
    *,
    sizes: bool,
) -> list[Workload]:
    """Return what is named, by suite, by op and fields, or by what a model met.

    Args:
        what: suites, or an op and texts such as "channels=64".
        from_model: files of `record_problems`, or programs to run.
        dtype: of suites.
        layout: of suites.
        sizes: whether an op must come with all its free sizes.

    Raises:
        ValueError: nothing is named, or something that there is not.
        TypeError: there is no such dtype.
    """
    names = list(what or [])
    if not names and not from_model:
        raise ValueError("name a suite, or an op with its fields, or say --from-model FILE")
    fields = any("=" in text for text in names)
    if (dtype or layout) and (fields or not names):
        raise ValueError("--dtype and --layout are for suites; to an op say dtype=float16")
    found: list[Workload] = []
    if fields:
        problem, given = problems.parse_case(names[0], names[1:])
        missing = [name for name in problems.size_names(names[0]) if name not in given]
        if missing and sizes:
            raise ValueError(f"tuning also needs the sizes {', '.join(missing)}")
        found.append(Workload.of(problem, given))
    else:
        for name in names:
            for wanted_layout in layout or ["nchw"]:
                for wanted_dtype in dtype or ["float32"]:
                    cases = problems.suite_problems(name, wanted_dtype, wanted_layout)
                    found += [Workload.of(problem, free) for problem, free in cases]
    for path in from_model or []:
        found += _of_model(path)
    return found


def _of_model(path: Path) -> list[Workload]:
    """Return what a file of `record_problems` says, or what a program meets when it runs."""
    try:
        path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} must be a .py file or what record_problems saved, and is not even text"
        ) from error
    found = workload.load(path) if path.suffix != ".py" else _met_by(path)
    if not found:
        raise ValueError(f"{path} calls no op of dcn_tvm")
    return found


def _met_by(path: Path) -> list[Workload]:
    """Run a program as `python FILE` does, and return what it calls until it ends."""
    import dcn_tvm  # the program's calls go through it

    arguments, places = sys.argv, list(sys.path)
    sys.argv, sys.path[:0] = [str(path)], [str(path.parent.resolve())]
    try:
        with dcn_tvm.record_problems() as met:
            runpy.run_path(str(path), run_name="__main__")
    except SystemExit as error:
        if error.code not in (None, 0):
            raise ValueError(f"{path} ended with {error.code!r}") from error
    except Exception as error:
        traceback.print_exc()
        raise ValueError(f"{path} raised {type(error).__name__}: {error}") from error
    finally:
        sys.argv, sys.path[:] = arguments, places
    return list(met)


def restricted(workloads: list[Workload], kernels: Sequence[str] | None) -> list[Workload]:
    """Return the workloads with these kernels only, without those that have none of them.

    Raises:
        ValueError: none has such a kernel.
    """
    if not kernels:
        return workloads
    known = {kernel for w in workloads for kernel in w.kernels}
    if unknown := sorted(set(kernels) - known):
        raise ValueError(f"kernel must be one of {', '.join(sorted(known))}, got {unknown[0]}")
    chosen = ((w, [k for k in w.kernels if k in kernels]) for w in workloads)
    return [Workload.of(w.problem, dict(w.sizes), names) for w, names in chosen if names]
