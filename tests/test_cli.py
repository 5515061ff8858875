import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer import Exit
from typer.testing import CliRunner

from dcn_tvm import gpu, ops, suites, target
from dcn_tvm.__main__ import app
from dcn_tvm.cache import BuildCache
from dcn_tvm.cli import problems
from dcn_tvm.cli.console import user_input

SMALL = ["in_channels=4", "out_channels=5", "padding=1"]
SMALL_ROI = ["channels=98", "output_size=7"]


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments)


def refused(arguments: Sequence[str], said: str) -> None:
    """Wrong arguments get one line on standard error, exit code 2 and no traceback."""
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert "Traceback" not in line


def test_help_names_every_command() -> None:
    text = call("--help").stdout
    assert all(command in text for command in ("bench", "cache", "demo", "explain"))


@pytest.mark.parametrize("op", ops.registry())
def test_explain_tells_kernels_choices_and_target(op: str) -> None:
    convolution = "conv" in op
    result = call("explain", op, *(SMALL if convolution else SMALL_ROI))
    assert result.exit_code == 0, result.output
    for kernel in ops.registry()[op].kernels():
        assert kernel in result.stdout
    facts = ("in_channels 4", "padding (1, 1)") if convolution else ("channels 98", "(7, 7)")
    for said in ("target:", "lanes", "default", *facts):
        assert said in " ".join(result.stdout.split())


def test_explain_knows_what_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCN_TVM_HOME", str(tmp_path))
    arguments = ["explain", "deform_conv2d", "in_channels=4", "out=7", "padding=1", "layout=nchw"]
    assert "yes" not in call(*arguments).stdout
    code = (
        "import torch, dcn_tvm; x, offset = torch.rand(1, 4, 5, 5), torch.zeros(1, 18, 5, 5)\n"
        "dcn_tvm.deform_conv2d(x, offset, torch.rand(7, 4, 3, 3), padding=1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    rows = call(*arguments).stdout.split("forward -> output")[1].split("backward_data")
    assert "yes" in rows[0]
    assert "yes" not in rows[1]
    assert f"cache: {tmp_path / 'builds'}" in rows[1]


def test_explain_takes_short_names_and_pairs() -> None:
    fields = ["in=8", "out=16", "kernel=3x5", "stride=2", "offset=4", "mod=true", "dtype=float64"]
    result = call("explain", "deform_conv2d", *fields)
    text = " ".join(result.stdout.split())
    for said in ("(3, 5)", "stride (2, 2)", "offset_groups 4", "modulated True", "dtype float64"):
        assert said in text
    assert "grad_mask" in text


@pytest.mark.parametrize("op", ops.registry())
def test_explain_without_fields_takes_the_suite(op: str) -> None:
    result = call("explain", op)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("dtype float32, layout nchw") == len(suites.SUITES[op])


def test_explain_takes_free_sizes() -> None:
    result = call("explain", "deform_conv2d", *SMALL, "batch=2", "he=38", "width=63")
    assert result.exit_code == 0, result.output
    assert "boundary zeros, batch 2, height 38, width 63" in " ".join(result.stdout.split())
    result = call("explain", "ps_roi_align", *SMALL_ROI, "boxes=300", "stride=16")
    assert result.exit_code == 0, result.output
    assert "boxes 300, stride 16" in " ".join(result.stdout.split())


def test_a_size_of_one_op_is_a_field_of_another() -> None:
    texts = ["in=4", "out=5", "stride=2", "batch=1"]
    problem, sizes = problems.parse_case("deform_conv2d", texts)
    assert problem.to_json().count('"stride":[2,2]') == 1
    assert sizes == {"batch": 1}
    problem, sizes = problems.parse_case("roi_align", ["channels=4", "output=7", "stride=2"])
    assert "stride" not in problem.to_json()
    assert sizes == {"stride": 2}


@pytest.mark.parametrize("name", suites.SUITES)
def test_a_suite_has_problems_with_all_their_sizes(name: str) -> None:
    found = problems.suite_problems(name, "bfloat16", "nhwc")
    for (problem, sizes), case in zip(found, suites.SUITES[name], strict=True):
        assert (problem.op, problem.dtype, problem.layout) == (case.op, "bfloat16", "nhwc")
        fields = problem.__dataclass_fields__.keys()
        assert not fields & sizes.keys()
        facts = {name: getattr(problem, name) for name in fields} | sizes
        assert dict(case.sizes).items() <= facts.items()
        # As texts, the same case is met again.
        texts = [f"{name}={_text(value)}" for name, value in case.sizes.items()]
        texts += ["dtype=bfloat16", "layout=nhwc"]
        assert problems.cases(case.op, texts) == [(problem, sizes)]


def _text(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def test_an_op_without_a_suite_needs_its_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "SUITES", {})
    with pytest.raises(ValueError, match="deform_conv2d also needs in_channels, out_channels"):
        problems.cases("deform_conv2d", [])


FACTS = "x86-64-v2,model=some-cpu,name=Some CPU,cores=3,l1_bytes=48K,l2_bytes=1M,l3_bytes=1G"
SHOWN = {
    "name": "Some CPU",
    "model": "some-cpu",
    "level": "x86-64-v2",
    "features": "none",
    "cores": "3",
    "lanes": "4",
    "registers": "16",
    "l1_bytes": "48 KiB",
    "l2_bytes": "1 MiB",
    "l3_bytes": "1 GiB",
    "choices from": "some-cpu → x86-64-v2 → default",
}


def rows(text: str) -> dict[str, str]:
    """The facts that a table tells."""
    cells = (line.split("│") for line in text.splitlines() if line.startswith("│"))
    return {name.strip(): value.strip() for _, name, value, _ in cells}


def spec_of(text: str) -> str:
    (line,) = (line for line in text.splitlines() if line.startswith("spec: "))
    return line.removeprefix("spec: ")


def test_explain_tells_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "detect", lambda: ())
    monkeypatch.delenv("DCN_TVM_TARGET", raising=False)
    result = call("explain", "--target")
    assert result.exit_code == 0, result.output
    here = target.detect()
    found = rows(result.stdout)
    assert (found["name"], found["model"], found["level"]) == (here.name, here.model, here.level)
    assert found["choices from"] == " → ".join((*here.ids, "default"))
    assert spec_of(result.stdout) == here.spec
    assert result.stdout.endswith("no CUDA device\n")
    monkeypatch.setenv("DCN_TVM_TARGET", "cores=77")
    assert rows(call("explain", "--target").stdout)["cores"] == "77"


def test_explain_tells_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = (gpu.assumed("sm_90,name=NVIDIA H200,multiprocessors=132"), gpu.assumed("sm_75"))
    monkeypatch.setattr(gpu, "detect", lambda: devices)
    text = call("explain", "--target").stdout
    for said in ("nvidia-h200 → sm_90 → default", "132", "227 KiB", "│ sm_75 → default", "64 KiB"):
        assert said in text
    assert all(f"spec: {device.spec}" in text.splitlines() for device in devices)
    assert "no CUDA device" not in text


def test_explain_tells_of_another_machine() -> None:
    result = call("explain", "--for", FACTS)
    assert result.exit_code == 0, result.output
    assert rows(result.stdout).items() >= SHOWN.items()
    again = call("explain", "--for", spec_of(result.stdout))
    assert again.stdout == result.stdout
    found = rows(call("explain", "--for", "sm_80,multiprocessors=108").stdout)
    assert (found["arch"], found["multiprocessors"]) == ("sm_80", "108")
    assert found["shared_bytes_per_block_optin"] == "163 KiB"
    assert found["l2_bytes"] == found["name"] == "unknown"


def test_explain_tells_of_kernels_and_machine_at_once() -> None:
    result = call("explain", "roi_align", "channels=4", "output=7", "--target")
    assert result.exit_code == 0, result.output
    assert "│ l1_bytes" in result.stdout
    assert "grad_input" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name an op, or say --target"),
        (["--for", "skylake"], "level must be one of x86-64, x86-64-v2"),
        (["--for", "cores=4"], "level must be one of x86-64, x86-64-v2"),
        (["--for", "armv8,cores=0"], "cores must be a positive number, got '0'"),
        (["--for", "sm_90,colour=4"], "fact must be one of name"),
        (["--for", "armv8", "--target"], "leave the op and --target out"),
        (["roi_align", "--for", "armv8"], "leave the op and --target out"),
        (["convolution", "--target"], "op must be one of"),
    ],
)
def test_explain_refuses_wrong_machines(arguments: list[str], said: str) -> None:
    refused(["explain", *arguments], said)


@pytest.mark.parametrize("arguments", [["--target"], ["deform_conv2d", *SMALL]])
@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("x86-64-v9", "level must be one of"),
        ("lanes=0", "lanes must be a positive number, got '0'"),
        ("-v4", "DCN_TVM_TARGET must be LEVEL,FACT=VALUE,..."),
    ],
)
def test_a_wrong_target_is_refused(
    arguments: list[str], spec: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DCN_TVM_TARGET", spec)
    refused(["explain", *arguments], said)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (["in_channels"], "expected FIELD=VALUE, got in_channels"),
        (["in_channels=4"], "also needs out_channels"),
        (["colour=4"], "field must be one of dtype"),
        (["d=1"], "field must be one of dtype, dilation, got d"),
        (["b=1"], "field must be one of bias, boundary, batch, got b"),
        ([*SMALL, "boxes=4"], "width, got boxes"),
        ([*SMALL, "height=0"], "height must be positive, got 0"),
        ([*SMALL, "height=3x3"], "height must be n, got 3x3"),
        ([*SMALL, "kernel=3x3x3"], "kernel_size must be nxn, got 3x3x3"),
        ([*SMALL, "stride=-1"], "stride must be made of whole numbers, got -1"),
        ([*SMALL, "stride=0"], "stride must be"),
        ([*SMALL, "modulated=maybe"], "modulated must be true or false, got maybe"),
        ([*SMALL, "dtype=int8"], "dtype must be one of float32"),
        ([*SMALL, "offset_groups=3"], "multiple of 3 groups, got 4"),
    ],
)
def test_explain_refuses(fields: list[str], said: str) -> None:
    refused(["explain", "deform_conv2d", *fields], said)


def test_unknown_names_are_refused() -> None:
    names = ", ".join(ops.registry())
    refused(["explain", "convolution"], f"op must be one of {names}, got convolution")
    known = f"{names}, {', '.join(suites.NETWORKS)}"
    refused(["bench", "nothing"], f"suite must be one of {known}, got nothing")
    refused(["bench", "--mode", "sideways"], "mode must be one of forward")


def test_a_mistake_is_one_line_whatever_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Exit) as raised, user_input():
        raise ValueError("[bold]two\nlines[/bold] " + "long " * 40)
    assert raised.value.exit_code == 2
    assert capsys.readouterr().err == f"error: [bold]two lines[/bold] {'long ' * 40}".strip() + "\n"


def test_unknown_commands_and_options_are_refused() -> None:
    assert call("fly").exit_code == 2
    assert call("demo", "--steps", "0").exit_code == 2


def test_a_wrong_home_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCN_TVM_HOME", "relative/path")
    refused(["cache", "info"], "DCN_TVM_HOME must be an absolute path")


def test_cache_info_and_clear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCN_TVM_HOME", str(tmp_path))
    assert call("cache", "info").stdout == f"{tmp_path / 'builds'}: 0 kernels, 0.0 MiB\n"
    cache = BuildCache(tmp_path / "builds")
    for digit in "ab":
        cache.store(
            digit * 8, digit * 8, lambda path: path.write_bytes(bytes(2 << 20)) and None, {}
        )
    assert call("cache", "info").stdout == f"{tmp_path / 'builds'}: 2 kernels, 4.0 MiB\n"
    assert call("cache", "clear").stdout == "2 kernels removed\n"
    assert "0 kernels" in call("cache", "info").stdout


def test_demo_without_torchvision_says_so_and_where_the_report_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)
    result = call("demo", "-o", str(tmp_path), "--steps", "1", "--seconds", "0.1")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"report: {tmp_path / 'index.html'}"
    page = (tmp_path / "index.html").read_text()
    assert page.count('<td class="number">absent</td>') == 4
    assert "pip install torchvision" in page


def test_the_module_runs_and_help_is_light() -> None:
    code = (
        "import sys; from dcn_tvm.__main__ import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: print(*sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(shown.stdout.split())
    assert "dcn_tvm.__main__" in loaded
    assert not loaded & {"tvm", "matplotlib", "jinja2", "onnxruntime", "torchvision"}
    assert not loaded & {f"dcn_tvm.{name}" for name in ("bench", "demo", "measure")}
    command = [sys.executable, "-m", "dcn_tvm", "cache", "info"]
    assert "kernels" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
