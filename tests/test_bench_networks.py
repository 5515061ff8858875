"""The benchmark of whole networks: what it compares, and that it would notice a wrong operator."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from dcn_tvm.__main__ import app
from dcn_tvm.bench import network_tables, networks
from dcn_tvm.models import resnet18
from dcn_tvm.nn import DeformConv2dPack
from dcn_tvm.viz import SampledLayer, record_offsets


@pytest.fixture
def only_rfcn(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [network for network in networks.NETWORKS if network.name == "R-FCN"]
    assert len(chosen) == 1
    monkeypatch.setattr(networks, "NETWORKS", tuple(chosen))


def test_the_command_writes_what_it_measured(only_rfcn: None, tmp_path: Path) -> None:
    files = {name: tmp_path / f"rows.{name}" for name in ("json", "markdown")}
    options = [text for name, path in files.items() for text in (f"--{name}", str(path))]
    result = CliRunner().invoke(app, ["bench", "--networks", "--quick", *options])
    assert result.exit_code == 0, result.output
    (row,) = json.loads(files["json"].read_text())
    assert row["parameters"][1] - row["parameters"][0] == 2_458_786
    assert row["image"] == [60, 100]
    assert set(row["ms"]) == {"plain", "dcn_tvm", "torchvision"}
    assert all(time > 0 for time in row["ms"].values())
    assert row["ratios"]["plain"] == 1
    assert min(row["proposals"]) > 20, "random weights must propose regions, as trained ones do"
    for text in (result.output, files["markdown"].read_text()):
        assert "R-FCN" in text
        assert "+2.46 (+2.4)" in text
        assert "(1.18)" in text


def test_networks_have_no_suites() -> None:
    result = CliRunner().invoke(app, ["bench", "roi_align", "--networks"])
    assert result.exit_code == 2
    assert "no suites" in result.output


def test_the_papers_rows_are_all_there() -> None:
    found = {n.name: (min(n.size), n.paper_parameters) for n in networks.NETWORKS}
    assert found == {
        "DeepLab, Cityscapes": (1024, (46.0, 46.1)),
        "DeepLab, VOC": (360, (46.0, 46.1)),
        "class-aware RPN": (600, (46.0, 46.1)),
        "Faster R-CNN": (600, (58.3, 59.9)),
        "R-FCN": (600, (47.1, 49.5)),
    }


@torch.no_grad()
def test_offsets_are_spread_by_two_pixels() -> None:
    backbone = resnet18(dcn=["res5a", "res5b"]).eval()
    image = torch.rand(1, 3, 128, 128)
    networks._spread_offsets(backbone, lambda: backbone(image))
    with record_offsets(backbone) as recorded:
        backbone(image)
    for layer in recorded.values():
        assert isinstance(layer, SampledLayer)
        assert float(layer.offset.std()) == pytest.approx(2, rel=1e-3)


def test_torchvisions_operator_stands_in_and_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = DeformConv2dPack(4, 4, 3, padding=1)
    nn.init.normal_(layer.conv_offset.weight)
    image, calls = torch.randn(1, 4, 8, 8), []
    theirs = networks.ops.deform_conv2d

    def count(*arguments: object) -> torch.Tensor:
        calls.append(arguments)
        return 1.01 * theirs(*arguments)

    ours = layer(image)
    monkeypatch.setattr(networks.ops, "deform_conv2d", count)
    with networks.torchvisions_op():
        torch.testing.assert_close(layer(image), 1.01 * ours, rtol=1e-4, atol=1e-4)
    assert len(calls) == 1
    assert torch.equal(layer(image), ours)

    class Network(nn.Module):
        def backbone(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"res5": layer(image)}

    with pytest.raises(RuntimeError, match="res5 with torchvision's operator is"):
        networks._compare(Network(), image)


def test_the_table_shows_increments_and_ratios() -> None:
    row = networks.NetworkRow(
        "net",
        (10, 20),
        (1_000_000, 3_500_000),
        (1.0, 3.4),
        {"plain": 10.0, "dcn_tvm": 11.0, "torchvision": 30.0},
        {"plain": 1.0, "dcn_tvm": 1.1, "torchvision": 3.0},
        None,
        (300, 299),
        3,
        networks.Machine("m", 1, {}),
        "2020-01-01",
    )
    (line,) = network_tables.grid([row]).lines
    times = ["10", "11", "1.10", "30 ms", "3.00"]
    assert line == ["net", "10 x 20", "300, 299", "1.0 → 3.5", "+2.50 (+2.4)", *times]
