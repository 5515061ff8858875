import dataclasses
from pathlib import Path

import pytest

from dcn_tvm.bench import readme
from dcn_tvm.report import Machine
from dcn_tvm.results import Ceiling, Rejection, Results, Row, read, write
from tests.test_results import ROW

ROOT = Path(__file__).parents[1]
KEPT = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


def test_the_readme_says_what_the_kept_results_say() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == readme.update(text, readme.files_in(ROOT / "benchmarks" / "results")), (
        "run `make bench-readme`"
    )
    for name in readme.BLOCKS:
        assert text.count(f"<!-- bench: {name} -->") == 1


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.name)
def test_kept_results_are_whole(path: Path) -> None:
    found = read(path)
    assert found.rows
    assert path.stat().st_size < 1 << 20
    assert not [r for r in found.rejections if r.role == "ours"]
    for row in found.rows:
        assert row.p20_us <= row.median_us <= row.p80_us
        assert row.role == "rest" or row.ratio is not None
        # A copy in a cache that is just too small for it is as noisy as that.
        assert 0 < (row.roofline or 0) < (1.1 if row.role == "ours" else 1.6)
        assert row.date >= "2026-11"
        assert (row.role == "ours") == bool(row.records)
        assert (row.error is not None) == (row.role in ("ours", "peer"))


@pytest.fixture
def files() -> dict[str, Results]:
    """Return files of two machines; the README is of the one with more rows."""

    def row(provider: str, role: str, us: float, **other: object) -> Row:
        sizes = {"batch": 1, "boxes": 3}
        own = {"provider": provider, "role": role, "median_us": us, "sizes": sizes, **other}
        return dataclasses.replace(ROW, **own)

    rows = [
        row(provider, role, us, op=op, mode=mode, ratio=us / 1000)
        for op in ("deform_conv2d", "roi_align")
        for mode in ("forward", "forward+backward")
        for provider, role, us in (
            ("copy", "baseline", 1000.0),
            ("dcn_tvm", "ours", 2000.0),
            ("torchvision", "peer", 24000.0),
        )
    ]
    rows += [
        dataclasses.replace(r, memory_format="channels_last") for r in rows if r.role == "ours"
    ]
    for boxes, us in ((10, 1000.0), (40, 2000.0)):
        point = {"sweep": "boxes", "sizes": {"boxes": boxes}, "problem": f"{boxes} boxes"}
        rows.append(row("dcn_tvm", "ours", us, **point))
    rows.append(row("dcn_tvm", "ours", 9e9, op="roi_align", cache="cold"))
    one = Ceiling("gemm", "float32", 2, 64, 123.0, ROW.device, "2026")
    limits = [one, dataclasses.replace(one, kind="copy", rate=45.0)]
    wrong = Rejection(
        *("roi_align", "P0", "liar", "peer", "3", "forward", "float32", "contiguous"),
        *("wrong", 0.5, "is off"),
    )
    machine = Machine(ROW.device, 2, {})
    other = dataclasses.replace(ROW, device="other CPU", threads=8)
    return {
        "a.json": Results(machine, rows, [wrong], limits),
        "b.json": Results(Machine("other CPU", 8, {}), [other]),
    }


def block(name: str, files: dict[str, Results]) -> str:
    return readme.update(f"A\n<!-- bench: {name} -->\nold\n<!-- bench: end -->\nB", files)


def test_blocks_are_made_of_one_machine_and_leave_the_rest_alone(files: dict[str, Results]) -> None:
    text = block("peers", files)
    assert text.startswith("A\n<!-- bench: peers -->\nsome CPU, 2 threads, 2026-01-01; torch 2.\n")
    assert text.endswith("<!-- bench: end -->\nB")
    assert "old" not in text
    line = "| `roi_align`, forward | torchvision **12 x** (channels_last 12 x; least 12 x) | 2.00 x"
    assert f"{line} copy | 81% |".replace(" x", " \N{MULTIPLICATION SIGN}") in text
    assert readme.update(text, files) == text


def test_each_block_has_its_numbers(files: dict[str, Results]) -> None:
    assert "| P0 | 1 (1.00) | 2 (2.00) |" in block("convolution", files)
    assert "| roi_align P0 | 1 | 1 | 2 (2.0) | 2 |  | 24 tv | 1 |" in block("pooling", files)
    assert "| `op`, forward | 0.50 |" in block("scaling", files)
    assert "| float32 | 123 | 45 | 45 |" in block("ceilings", files)
    machines = block("machines", files)
    assert "| other CPU | 8 | 2026-01-01 | 1 rows: warm caches | none |" in machines
    assert "cold caches, scaling | liar on roi_align |" in machines


def test_an_unknown_block_is_an_error(files: dict[str, Results]) -> None:
    with pytest.raises(ValueError, match=r"block must be one of machines, .*, got weather"):
        block("weather", files)


def test_the_command_checks_and_rewrites(files: dict[str, Results], tmp_path: Path) -> None:
    folder, path = tmp_path / "results", tmp_path / "README.md"
    folder.mkdir()
    with pytest.raises(ValueError, match="must have files of results"):
        readme.main([str(path), str(folder)] if path.write_text("") == 0 else [])
    for name, results in files.items():
        write(results, folder / name)
    path.write_text("<!-- bench: ceilings -->\n<!-- bench: end -->\n")
    arguments = [str(path), str(folder)]
    assert readme.main([*arguments, "--check"]) == 1
    assert readme.main(arguments) == 0
    assert readme.main([*arguments, "--check"]) == 0
    assert "| float32 | 123 |" in path.read_text()
