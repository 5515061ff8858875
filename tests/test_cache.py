"""The build cache keeps what it is given, and loses nothing but the damaged entry."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from dcn_tvm.cache import SUFFIX, BuildCache, Entry
from dcn_tvm.errors import CacheError

REQUEST, OTHER_REQUEST, CONTENT = "a" * 64, "b" * 64, "c" * 64
FACTS = {"kernel": "forward", "choices": {"rows": [32, 2]}}


class Producer:
    """Writes a library and counts how often it was asked to."""

    def __init__(self, data: bytes = b"library") -> None:
        self.data, self.calls = data, 0

    def __call__(self, path: Path) -> None:
        self.calls += 1
        path.write_bytes(self.data)


def library_of(root: Path) -> Path:
    return root / "objects" / f"{CONTENT}{SUFFIX}"


@pytest.fixture
def cache(tmp_path: Path) -> BuildCache:
    return BuildCache(tmp_path / "builds")


def test_stored_build_is_fetched_in_another_cache_object(cache: BuildCache, tmp_path: Path) -> None:
    assert cache.fetch(REQUEST) is None
    stored = cache.store(REQUEST, CONTENT, Producer(), FACTS)
    fetched = BuildCache(tmp_path / "builds").fetch(REQUEST)
    assert fetched == stored == Entry(library_of(tmp_path / "builds"), FACTS)
    assert fetched.path.read_bytes() == b"library"


def test_two_requests_with_one_content_share_the_library(cache: BuildCache) -> None:
    producer = Producer()
    cache.store(REQUEST, CONTENT, producer, {"request": 1})
    cache.store(OTHER_REQUEST, CONTENT, producer, {"request": 2})
    assert producer.calls == 1
    first, second = cache.fetch(REQUEST), cache.fetch(OTHER_REQUEST)
    assert first and second
    assert first.path == second.path
    assert (first.facts, second.facts) == ({"request": 1}, {"request": 2})


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def garbage(path: Path) -> None:
    path.write_bytes(b"\x00\xff" * 50)


def other_json(path: Path) -> None:
    path.write_text("[]")


def json_of_other_types(path: Path) -> None:
    path.write_text(json.dumps({"content": "../../etc", "facts": 3, "sha256": 4}))


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("part", ["index", "library", "digest"])
@pytest.mark.parametrize(
    "damage", [empty, truncate, garbage, other_json, json_of_other_types, Path.unlink]
)
def test_damaged_file_is_absent_and_rebuilt(
    cache: BuildCache, tmp_path: Path, part: str, damage: Callable[[Path], None]
) -> None:
    cache.store(REQUEST, CONTENT, Producer(b"damaged later"), FACTS)
    library = library_of(tmp_path / "builds")
    index = tmp_path / "builds" / "index" / f"{REQUEST}.json"
    damage({"index": index, "library": library, "digest": library.with_suffix(".json")}[part])
    assert cache.fetch(REQUEST) is None
    assert not index.exists()
    assert library.exists() == (part == "index")  # the object goes only if it is the bad one
    rebuilt = Producer(b"rebuilt")
    cache.store(REQUEST, CONTENT, rebuilt, FACTS)
    assert rebuilt.calls == (part != "index")
    entry = cache.fetch(REQUEST)
    assert entry and entry.path.read_bytes() == (b"damaged later", b"rebuilt")[rebuilt.calls]


def test_index_that_is_a_folder_is_absent(cache: BuildCache, tmp_path: Path) -> None:
    cache.store(REQUEST, CONTENT, Producer(), FACTS)
    folder_instead(tmp_path / "builds" / "index" / f"{REQUEST}.json")
    assert cache.fetch(REQUEST) is None


def test_damaged_library_is_rebuilt_for_every_request_that_shares_it(
    cache: BuildCache, tmp_path: Path
) -> None:
    for request in (REQUEST, OTHER_REQUEST):
        cache.store(request, CONTENT, Producer(b"first"), FACTS)
    garbage(library_of(tmp_path / "builds"))
    cache.store(REQUEST, CONTENT, Producer(b"second"), FACTS)
    assert cache.fetch(REQUEST)
    assert cache.fetch(OTHER_REQUEST)  # no ping-pong between the two


def test_rebuild_leaves_a_mapped_library_alone(cache: BuildCache, tmp_path: Path) -> None:
    cache.store(REQUEST, CONTENT, Producer(b"first"), FACTS)
    library = library_of(tmp_path / "builds")
    with library.open("rb") as mapped:
        library.with_suffix(".json").unlink()
        cache.store(REQUEST, CONTENT, Producer(b"second"), FACTS)
        assert mapped.read() == b"first"
    assert library.read_bytes() == b"second"


def test_error_of_produce_comes_through_and_leaves_nothing(
    cache: BuildCache, tmp_path: Path
) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOENT, "no such compiler")

    with pytest.raises(OSError, match="no such compiler"):
        cache.store(REQUEST, CONTENT, fail, FACTS)
    assert cache.fetch(REQUEST) is None
    assert list((tmp_path / "builds" / "objects").iterdir()) == []


def test_draft_of_a_killed_process_is_swept_away(cache: BuildCache, tmp_path: Path) -> None:
    cache.store(REQUEST, CONTENT, Producer(), FACTS)
    library = library_of(tmp_path / "builds")
    draft = library.parent / f".{CONTENT}-dead{SUFFIX}"
    draft.write_bytes(b"half a library")
    assert cache.info().entries == 1
    library.unlink()
    cache.store(REQUEST, CONTENT, Producer(), FACTS)
    assert not draft.exists()


def build_slowly(root: Path, log: Path, start: float) -> None:
    def produce(path: Path) -> None:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        path.write_bytes(b"library")

    time.sleep(max(0.0, start - time.time()))
    entry = BuildCache(root).store(REQUEST, CONTENT, produce, FACTS)
    assert entry.path.read_bytes() == b"library"


def test_of_several_processes_one_builds(tmp_path: Path) -> None:
    log, context = tmp_path / "log", multiprocessing.get_context("spawn")
    arguments = (tmp_path / "builds", log, time.time() + 1.0)
    processes = [context.Process(target=build_slowly, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(log.read_text().split()) == 1


def test_of_several_threads_one_builds(tmp_path: Path) -> None:
    log = tmp_path / "log"
    arguments = (tmp_path / "builds", log, 0.0)
    threads = [threading.Thread(target=build_slowly, args=arguments) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(log.read_text().split()) == 1


def test_lock_that_is_never_released_only_delays(tmp_path: Path) -> None:
    (tmp_path / "locks").mkdir()
    with FileLock(tmp_path / "locks" / f"{CONTENT}.lock", thread_local=False):
        with pytest.warns(UserWarning, match="building without it"):
            entry = BuildCache(tmp_path, wait_s=0.05).store(REQUEST, CONTENT, Producer(), FACTS)
    assert entry.path.read_bytes() == b"library"


def check_falls_back(root: Path, calls: int = 1) -> None:
    cache, producer = BuildCache(root), Producer()
    with pytest.warns(UserWarning, match="set DCN_TVM_HOME to a writable folder") as warned:
        entry = cache.store(REQUEST, CONTENT, producer, FACTS)
        cache.store(OTHER_REQUEST, CONTENT, producer, FACTS)
    assert len(warned) == 1
    assert producer.calls == calls
    assert cache.fetch(REQUEST) == cache.fetch(OTHER_REQUEST) == entry
    assert root not in entry.path.parents
    assert entry.path.parents[1].stat().st_mode & 0o077 == 0


def test_root_below_a_file_falls_back(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_falls_back(tmp_path / "file" / "builds")


@pytest.fixture
def without_privileges() -> Iterator[Path]:
    """Give a folder to a user for whom permissions count; the superuser steps down meanwhile."""
    user, folder = os.geteuid(), Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    os.seteuid(user)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(folder)


def test_read_only_home_serves_what_it_has_and_falls_back_for_the_rest(
    without_privileges: Path,
) -> None:
    root = without_privileges / "builds"
    BuildCache(root).store("d" * 64, "e" * 64, Producer(b"shipped"), FACTS)
    for folder in (root, root / "index", root / "objects", root / "locks"):
        folder.chmod(0o555)
    if os.geteuid() == 0:
        os.seteuid(65534)
    check_falls_back(root)
    entry = BuildCache(root).fetch("d" * 64)
    assert entry and entry.path.parent == root / "objects"


def test_full_disk_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, rename = tmp_path / "builds", Path.replace

    def replace(self: Path, target: Path) -> Path:
        if root in self.parents:
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    check_falls_back(root, calls=2)  # only the first build is made twice


def test_compiler_that_fails_on_a_full_disk_is_asked_again_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, producer = tmp_path / "builds", Producer()

    def produce(path: Path) -> None:
        if root in path.parents:
            raise RuntimeError("ld: final link failed")
        producer(path)

    with pytest.raises(RuntimeError, match="final link failed"):
        BuildCache(root).store(REQUEST, CONTENT, produce, FACTS)
    usage = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.warns(UserWarning, match="the disk is full"):
        entry = BuildCache(root).store(REQUEST, CONTENT, produce, FACTS)
    assert entry.path.read_bytes() == b"library"


def test_nowhere_to_write_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    with pytest.raises(CacheError, match="DCN_TVM_HOME"):
        BuildCache(tmp_path / "file" / "builds").store(REQUEST, CONTENT, Producer(), FACTS)


def test_temporary_folder_goes_with_its_process_and_not_with_a_child(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    program = f"""
import os, pathlib, sys, warnings
from dcn_tvm.cache import BuildCache
warnings.simplefilter("ignore")
cache = BuildCache(pathlib.Path({str(tmp_path / "file" / "builds")!r}))
entry = cache.store("{REQUEST}", "{CONTENT}", lambda path: path.write_bytes(b"x") and None, {{}})
if os.fork() == 0:
    sys.exit(0)
os.wait()
assert entry.path.exists(), "a forked child removed its parent's builds"
print(entry.path)
"""
    command = [sys.executable, "-c", program]
    path = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    assert path.endswith(f"{CONTENT}{SUFFIX}")
    assert not Path(path).parents[1].exists()


def test_real_write_failure_falls_back_or_explains(tmp_path: Path) -> None:
    program = f"""
import pathlib, resource, dcn_tvm.cache as c, dcn_tvm.errors as e
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
try:
    c.BuildCache(pathlib.Path({str(tmp_path)!r})).store("{REQUEST}", "{CONTENT}",
        lambda path: path.touch(), {{}})
except e.CacheError as error:
    print("CacheError", error)
"""
    assert resource.RLIMIT_FSIZE is not None
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.startswith("CacheError cannot store a build")
    assert BuildCache(tmp_path).fetch(REQUEST) is None


def test_info_and_clear(cache: BuildCache, tmp_path: Path) -> None:
    assert (cache.info().entries, cache.info().bytes, cache.clear()) == (0, 0, 0)
    cache.store(REQUEST, CONTENT, Producer(b"x" * 1000), FACTS)
    cache.store(OTHER_REQUEST, "d" * 64, Producer(b"y" * 1000), FACTS)
    info = cache.info()
    assert (info.path, info.entries) == (tmp_path / "builds", 2)
    assert 2000 < info.bytes < 4000
    assert cache.clear() == 2
    assert cache.fetch(REQUEST) is None
    assert (cache.info().entries, cache.info().bytes) == (0, 0)
    cache.store(REQUEST, CONTENT, Producer(), FACTS)
    assert cache.info().entries == 1


@pytest.mark.parametrize("key", ["", "../../etc/passwd", "A" * 64, "short", "g" * 64])
def test_key_that_is_no_hash_is_refused(cache: BuildCache, key: str) -> None:
    with pytest.raises(ValueError, match="hexadecimal"):
        cache.fetch(key)
    with pytest.raises(ValueError, match="hexadecimal"):
        cache.store(REQUEST, key, Producer(), FACTS)
