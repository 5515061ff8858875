"""The plan of the house, proved by reading the imports: they point down, and doors stay doors."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcn_tvm import ops

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dcn_tvm"

FLOORS = (
    ("errors", "settings", "_resources", "problem"),
    ("ops",),
    ("te", "knobs", "space", "workload", "records", "target", "gpu", "schedules", "suites"),
    (
        *("build", "cuda", "cache", "openmp", "kernels", "bundles", "measure"),
        *("reference", "examples", "agreement"),
    ),
    ("binding", "bridge"),
    ("functional", "tuning"),
    (
        *("nn", "models", "compat", "viz", "analysis"),
        *("results", "guard", "bench", "report", "demo", "training", "device"),
    ),
    ("cli", "__main__"),
)
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}

# Rooms that exist once per op, or that show and measure particular ops. All others are generic.
OP_ROOMS = {"ops", "te", "schedules", "reference", "functional", "nn"}
OP_ROOMS |= {"suites", "examples", "bench", "viz", "demo", "report", "__init__"}
OP_ROOMS |= {"models", "compat", "analysis", "training"}

WITHOUT_TORCH = {"ops", "te", "schedules", "build", "cuda", "cache", "openmp", "kernels", "measure"}
WITHOUT_TORCH |= {"knobs", "space", "workload", "records", "target", "suites", *FLOORS[0]}
WITHOUT_TORCH |= {"bundles"}
WITHOUT_COMPILER = {"ops", "cache", "measure", "reference", "functional", "nn", "suites", "viz"}
WITHOUT_COMPILER |= {"examples", "agreement", "gpu", "bundles", *FLOORS[0]}
WITHOUT_COMPILER |= {"models", "compat", "analysis", "training"}


def source_files() -> dict[str, Path]:
    """Return every module of the package, the schedules included, by its import name."""
    files = {}
    for base, prefix in ((PACKAGE, "dcn_tvm"), (ROOT / "schedules", "dcn_tvm.schedules")):
        for path in sorted(base.rglob("*.py")):
            parts = [prefix, *path.relative_to(base).with_suffix("").parts]
            files[".".join(part for part in parts if part != "__init__")] = path
    return files


FILES = source_files()


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def imports(path: Path) -> tuple[str, ...]:
    """Return the dotted names that a file imports anywhere, functions included."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from dcn_tvm import kernels` names a module, `from x import y` maybe a function.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def rooms_imported(path: Path) -> set[str]:
    own = (name for name in imports(path) if name.split(".")[0] == "dcn_tvm")
    return {room(name) for name in own if room(name) in FLOOR}


@pytest.mark.parametrize("module", FILES)
def test_imports_point_down(module: str) -> None:
    here = room(module)
    if here == "__init__":
        return  # the package's own face; what it loads is tested below
    assert here in FLOOR, f"dcn_tvm/{here} stands on no floor: give it one in this test"
    for other in rooms_imported(FILES[module]):
        assert FLOOR[other] <= FLOOR[here], f"{module} imports {other}, which stands above it"


def test_rooms_of_one_floor_do_not_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for module, path in FILES.items():
        graph.setdefault(room(module), set()).update(rooms_imported(path) - {room(module)})
    while leaves := {name for name, others in graph.items() if not others & graph.keys()}:
        graph = {name: others for name, others in graph.items() if name not in leaves}
    assert not graph, f"these import each other: {sorted(graph)}"


COMPILER = {"tvm", "tvm_ffi"}


def test_no_module_imports_both_torch_and_tvm() -> None:
    used = {module: roots(path) for module, path in FILES.items()}
    both = {module for module, names in used.items() if "torch" in names and names & COMPILER}
    assert not both, "they meet where dcn_tvm.binding calls dcn_tvm.kernels"


@pytest.mark.parametrize("module", FILES)
def test_rooms_keep_to_their_side(module: str) -> None:
    used = roots(FILES[module])
    if room(module) in WITHOUT_TORCH:
        assert not used & {"torch", "torchvision"}
    if room(module) in WITHOUT_COMPILER:
        assert not used & COMPILER


def test_reference_stands_alone() -> None:
    for module, path in FILES.items():
        if room(module) == "reference":
            assert rooms_imported(path) <= {"reference"}, module


OP_NAMES = list(ops.registry())


def words(path: Path) -> Iterator[str]:
    """Yield names and strings of the code; docstrings may give an op as an example."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree(path))
        if isinstance(node, documented) and ast.get_docstring(node) is not None
    }
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in docstrings:
                yield node.value
        elif isinstance(node, ast.alias | ast.FunctionDef | ast.ClassDef):
            yield node.name


@pytest.mark.parametrize("module", [m for m in FILES if room(m) not in OP_ROOMS])
def test_generic_rooms_name_no_op(module: str) -> None:
    assert OP_NAMES, "no op was found"
    for word in words(FILES[module]):
        plain = word.lower().replace("_", "")
        assert not any(name.replace("_", "") in plain for name in OP_NAMES), f"{module}: {word}"


@pytest.mark.parametrize("module", [m for m in FILES if room(m) not in OP_ROOMS])
def test_generic_rooms_import_no_op(module: str) -> None:
    for name in imports(FILES[module]):
        parts = name.split(".")
        assert not set(parts[2:]) & set(OP_NAMES), f"{module} imports {name}"


def run(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    "statement",
    [
        "import dcn_tvm",
        "import dcn_tvm.nn",
        "import dcn_tvm; dcn_tvm.deform_conv2d, dcn_tvm.convert, dcn_tvm.compat",
        "import dcn_tvm; dcn_tvm.viz, dcn_tvm.analysis",
    ],
)
def test_importing_loads_neither_tvm_nor_a_schedule(statement: str) -> None:
    loaded = set(run(f"import sys; {statement}; print(*sys.modules)").split())
    assert "dcn_tvm" in loaded
    heavy = {"tvm", "matplotlib", "typer", "rich", "jinja2", "onnxruntime", "torchvision", "altair"}
    assert not loaded & heavy
    assert not {name for name in loaded if name.startswith("dcn_tvm.schedules.")}


WITHOUT_TVM = """
import sys
sys.modules["tvm"] = None
import torch, dcn_tvm
x, weight = torch.empty(1, 4, 5, 6, device="meta"), torch.empty(3, 4, 3, 3, device="meta")
offset = torch.empty(1, 18, 3, 4, device="meta")
assert dcn_tvm.deform_conv2d(x, offset, weight).shape == (1, 3, 3, 4)
"""


def test_the_shape_rules_work_without_tvm() -> None:
    run(WITHOUT_TVM)
