"""Making a bundle: every kernel of some workloads for every target, compiled, linked, written down.

1. `plan` says which kernels. A backward kernel is compiled for exactly the gradients asked for, so
   a bundle must foresee them: by default all, as when a whole network is trained, and all but the
   first tensor's, as in a layer whose input needs none.
2. `make` schedules each with the choices that records have for its target, compiles and links it.
   Builds are kept in the cache, so an interrupted bundle is soon made again.
3. Hosts with kernels for their CPU also get the library that launches these, so that they need no
   C compiler.
4. All is written beside its place and moved there in the end: there is no half of a bundle.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import platform
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from dcn_tvm import build, openmp, ops, records, settings
from dcn_tvm.build import Recorded, Request
from dcn_tvm.bundles import manifest, targets
from dcn_tvm.bundles.linking import link
from dcn_tvm.bundles.manifest import Compiled, Library, Manifest
from dcn_tvm.bundles.targets import Code, Host
from dcn_tvm.cache import SUFFIX, BuildCache
from dcn_tvm.gpu import Gpu
from dcn_tvm.kernels import possible_outputs
from dcn_tvm.target import Target
from dcn_tvm.workload import Workload


@dataclass(frozen=True)
class Job:
    """A kernel that is to be compiled for a target, and where each recorded choice comes from."""

    request: Request
    code: Code
    host: Host
    provenances: tuple[str, ...]

    @property
    def target(self) -> str:
        """The target in a few characters."""
        return targets.name(self.code)

    def __str__(self) -> str:
        return f"{self.request} for {self.target}"


def plan(
    workloads: Iterable[Workload],
    codes: Sequence[Code],
    gradients: Sequence[Sequence[str]] = (),
    *,
    inference: bool = False,
    host: Host | None = None,
) -> list[Job]:
    """Return the kernels of a bundle, each once: at the sizes of the first workload that has it.

    Args:
        workloads: what will be called.
        codes: targets to compile for.
        gradients: sets of gradients such as ("grad_input", "grad_weight"), one for each way to call
            backward; by default all, and all but the first tensor's.
        inference: compile no backward kernels.
        host: the machines that the GPUs are in; such as this one if absent.

    Raises:
        ValueError: no kernel has such a gradient, or there is nothing to compile.
    """
    jobs: dict[tuple[object, ...], Job] = {}
    known: set[str] = set()
    for workload in workloads:
        op = ops.registry()[workload.problem.op]
        for name in workload.kernels:
            kernel = op.kernels()[name]
            if inference and kernel is not op.forward:
                continue
            possible = possible_outputs(workload.problem, kernel.outputs)
            wanted = [possible]
            if kernel is not op.forward:
                known.update(possible)
                first = f"grad_{op.tensors[0].name}"
                usual = (possible, tuple(n for n in possible if n != first))
                wanted = _restricted(possible, gradients or usual)
            for outputs in wanted:
                for code in codes:
                    key = (workload.problem, name, outputs, targets.name(code))
                    if key not in jobs:
                        jobs[key] = _job(workload, name, outputs, code, host)
    if unknown := sorted({name for names in gradients for name in names} - known):
        raise ValueError(f"outputs must be some of {', '.join(sorted(known))}, got {unknown[0]}")
    if not jobs:
        raise ValueError("there is nothing to compile")
    return list(jobs.values())


def check_place(path: Path, *, overwrite: bool) -> None:
    """Refuse a path that holds something that is not to be replaced.

    Raises:
        ValueError: it does; says what to do.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / manifest.NAME).is_file():
        raise ValueError(f"{path} exists and is no bundle: name another folder")
    if not overwrite:
        raise ValueError(f"{path} is a bundle already: name another folder, or say --overwrite")


def make(
    path: Path,
    jobs: Sequence[Job],
    *,
    overwrite: bool = False,
    started: Callable[[Job, int], None] = lambda job, number: None,
) -> Manifest:
    """Compile the jobs' kernels into a bundle at `path` and return what it holds.

    Args:
        path: of the folder.
        jobs: what `plan` returned.
        overwrite: replace a bundle that is there.
        started: told each job before it is done, and its number from 0.

    Raises:
        ValueError: there is something at `path`.
        CompileError: a kernel cannot be compiled, or linked for its machine.
        NotImplementedError: an op has no schedule for a target.
    """
    path = path.absolute()
    check_place(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as scratch:
        folder = Path(scratch) / "bundle"
        folder.mkdir()
        kernels = []
        for number, job in enumerate(jobs):
            started(job, number)
            kernels.append(_compiled(job, folder))
        hosts = dict.fromkeys(k.library.host for k in kernels if isinstance(k.code, Target))
        made = Manifest(
            versions=manifest.versions(),
            created=_created(),
            kernels=tuple(kernels),
            shims=tuple(_shim(host, folder) for host in hosts),
        )
        (folder / manifest.NAME).write_text(made.to_json(), encoding="utf-8")
        check_place(path, overwrite=overwrite)
        if path.exists():
            path.rename(Path(scratch) / "old")
        folder.rename(path)
    return made


def _restricted(possible: tuple[str, ...], sets: Iterable[Sequence[str]]) -> list[tuple[str, ...]]:
    """The outputs of one kernel for sets that may name those of others, each once."""
    found = (tuple(name for name in possible if name in wanted) for wanted in sets)
    return [outputs for outputs in dict.fromkeys(found) if outputs]


def _job(
    workload: Workload, kernel: str, outputs: tuple[str, ...], code: Code, host: Host | None
) -> Job:
    sizes = dict(workload.sizes)
    found = records.find(workload.problem, kernel, sizes, code.ids, code.cores)
    recorded: list[Recorded] = []
    for each in found:
        choices = each.record.choices
        recorded.append(None if choices is None else tuple(sorted(choices.items())))
    device = code if isinstance(code, Gpu) else None
    request = Request(workload.problem, kernel, outputs, tuple(recorded), device)
    made_for = targets.host_of(code, host)
    return Job(request, code, made_for, tuple(each.provenance for each in found))


def _compiled(job: Job, folder: Path) -> Compiled:
    """Compile and link a job's kernel, unless the build cache has it, and put it in the folder."""
    request, code = job.request, job.code
    scheduled = build.schedule_recorded(request, code)
    host = job.host
    launcher = targets.any_of(host) if isinstance(code, Gpu) else None

    def produce(path: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            built = Path(scratch) / "kernel.o"
            build.compile(request, scheduled, code, launcher).write_to_file(str(built), "o")
            link([built], path, host)

    content = f"{scheduled.content_key(code)} of a bundle for {host}"
    data = _cached(content, produce, {"request": str(request), "bundle for": job.target})
    name = f"{request.problem.op}.{request.kernel}"
    place = "default" if scheduled.place is None else job.provenances[scheduled.place]
    return Compiled(
        *(request.problem, request.kernel, request.outputs, code),
        library=_placed(data, folder, job.target, name, host),
        choices=scheduled.choices,
        provenance=place,
    )


def _shim(host: Host, folder: Path) -> Library:
    """Compile the library that launches kernels."""
    content = f"{openmp.SOURCE.read_text()} of a bundle for {host}"
    data = _cached(
        content, functools.partial(_link_shim, host), {"kernel": f"openmp shim for {host}"}
    )
    return _placed(data, folder, f"{host.system}-{host.arch}", "openmp", host)


def _link_shim(host: Host, path: Path) -> None:
    link([openmp.SOURCE], path, host)


def _cached(content: str, produce: Callable[[Path], None], facts: dict[str, object]) -> bytes:
    key = hashlib.sha256(content.encode()).hexdigest()
    cache = BuildCache(settings.home() / "builds")
    entry = cache.fetch(key) or cache.store(key, key, produce, facts)
    return entry.path.read_bytes()


def _placed(data: bytes, folder: Path, target: str, name: str, host: Host) -> Library:
    """Write a library under a name that tells what it is, and no two libraries have."""
    digest = hashlib.sha256(data).hexdigest()
    file = f"{target.replace(' ', '-')}/{name}-{digest[:12]}{SUFFIX}"
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return Library(file, len(data), digest, host)


def _created() -> dict[str, str]:
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "date": now.isoformat(timespec="seconds"),
        "compiler": f"apache-tvm {metadata.version('apache-tvm')}",
        "on": f"{platform.system()} {platform.machine()}",
    }
