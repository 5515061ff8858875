import re
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.nn import functional

from dcn_tvm import demo, reference
from dcn_tvm.demo import evidence, lesson
from dcn_tvm.demo.lesson import STRIDE, Extractor, Lesson, load_photo, make_lesson
from dcn_tvm.nn import DeformConv2dPack
from dcn_tvm.report import write_page
from dcn_tvm.viz import SampledLayer, sampling_points


@pytest.fixture(scope="module")
def tilted() -> Lesson:
    return make_lesson(load_photo())


def test_without_offsets_three_layers_read_the_regular_grid() -> None:
    layers = [SampledLayer(torch.zeros(1, 18, 9, 11))] * 3
    points = sampling_points(layers, (4, 5))
    assert points.shape == (9**3, 2)
    wanted = {(y, x) for y in range(1, 8) for x in range(2, 9)}
    assert {(y, x) for y, x in points.tolist()} == wanted


def test_points_of_one_layer_follow_offset_order_and_geometry() -> None:
    offset = torch.zeros(2, 2 * 2 * 6, 5, 4)
    taps = offset[1, 12:].view(3, 2, 2, 5, 4)  # second group of the second image
    taps[2, 1, :, 3, 2] = torch.tensor([0.25, -7.5])
    layer = SampledLayer(offset, (3, 2), stride=(2, 3), padding=(1, 0), dilation=(2, 1))
    points = sampling_points([layer], (3, 2), image=1, offset_group=1)
    regular = [(3 * 2 - 1 + 2 * a, 2 * 3 + b) for a in range(3) for b in range(2)]
    assert points[:5].tolist() == [list(map(float, p)) for p in regular[:5]]
    assert points[5].tolist() == [regular[5][0] + 0.25, regular[5][1] - 7.5]
    others = sampling_points([layer], (3, 2), image=0, offset_group=1)
    assert others.tolist() == [list(map(float, p)) for p in regular]


def test_between_pixels_offsets_are_interpolated() -> None:
    offset = torch.zeros(1, 2, 1, 5)
    offset[0, 1, 0] = torch.arange(5.0)  # x moves by its own x
    move_half = torch.zeros(1, 2, 1, 5)
    move_half[0, 1] = 0.5
    layers = [SampledLayer(o, (1, 1), padding=(0, 0)) for o in (offset, move_half)]
    assert sampling_points(layers, (0, 2)).tolist() == [[0.0, 2.5 + 2.5]]


def test_points_are_where_the_op_reads() -> None:
    layer = DeformConv2dPack(2, 1, 3, padding=1, bias=False).double()
    torch.nn.init.normal_(layer.conv_offset.weight, std=0.3)
    torch.nn.init.ones_(layer.weight)
    image = torch.rand(1, 2, 8, 8).double()
    points = sampling_points([SampledLayer.of(layer, image)], (4, 3))
    grid = (points / 7 * 2 - 1).flip(-1)[None, None]
    read = functional.grid_sample(image, grid, align_corners=True).sum()
    offset = layer.conv_offset(image)
    output = reference.deform_conv2d(image, offset, layer.weight, padding=1)
    torch.testing.assert_close(output[0, 0, 4, 3], read)


@pytest.mark.parametrize("pixel", [(-1, 0), (0, 4), (5, 0)])
def test_a_pixel_outside_is_refused(pixel: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="pixel must lie"):
        sampling_points([SampledLayer(torch.zeros(1, 18, 5, 4))], pixel)


def test_no_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one layer"):
        sampling_points([], (0, 0))


def test_the_photograph_is_a_photograph() -> None:
    photo = load_photo()
    assert photo.shape == (1, 3, *lesson.SIZE)
    assert 0 <= float(photo.min()) < 0.05
    assert 0.95 < float(photo.max()) <= 1
    assert float(photo.std()) > 0.1


def test_the_origin_of_a_pixel_shows_the_same_content(tilted: Lesson) -> None:
    """What the tilted photograph shows at the origin is what the upright one shows at the pixel."""
    size = torch.tensor(tilted.seen.shape[2:])
    grid = (STRIDE * tilted.origin / (size - 1) * 2 - 1).flip(-1)[None]
    found = functional.grid_sample(tilted.seen, grid, align_corners=True)
    difference = (found - tilted.wanted).abs().mean(1)[0][tilted.visible].mean()
    untilted = tilted.seen[:, :, ::STRIDE, ::STRIDE]
    nothing = (untilted - tilted.wanted).abs().mean(1)[0][tilted.visible].mean()
    assert difference < 0.03 < 4 * difference < nothing * 2
    assert 0.5 < tilted.visible.float().mean() < 1


def test_an_untrained_network_looks_straight_ahead(tilted: Lesson) -> None:
    network = Extractor()
    pixels = torch.cartesian_prod(*(torch.arange(2, n, 6) for n in tilted.visible.shape))
    known = [tuple(p.tolist()) for p in pixels if tilted.visible[tuple(p.tolist())]]
    tilt = sum(torch.dist(tilted.origin[p], torch.tensor(p).float()) for p in known) / len(known)
    assert evidence.misplacement(network, tilted) == pytest.approx(float(tilt), rel=1e-4)


def test_training_moves_the_points_towards_the_content(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lesson, "SIZE", (144, 128))  # a quarter of the work
    tilted, network = make_lesson(load_photo()), Extractor()
    before = evidence.misplacement(network, tilted)
    losses = lesson.train(network, tilted, None, lambda: None, 25)
    assert losses[-1] < 0.5 * losses[0]
    assert evidence.misplacement(network, tilted) < 0.9 * before
    errors = evidence.compare_with_reference(network, tilted)
    assert max(errors.values()) < demo.ERROR_LIMIT
    assert len(errors) == 1 + 5 * len(network.packs)


def test_a_wrong_gradient_is_found(tilted: Lesson, monkeypatch: pytest.MonkeyPatch) -> None:
    def slightly_wrong(*args: torch.Tensor, **kwargs: tuple[int, int]) -> torch.Tensor:
        return reference.deform_conv2d(*args, **kwargs) * 1.01

    monkeypatch.setattr("dcn_tvm.functional.deform_conv2d", slightly_wrong)
    errors = evidence.compare_with_reference(Extractor(), tilted)
    assert max(errors.values()) > demo.ERROR_LIMIT


def test_the_report_needs_no_other_file(tmp_path: Path) -> None:
    console = Console(record=True, width=120)
    path = demo.run(tmp_path / "report", console, steps=2, seconds=0.1)
    page = path.read_text()
    assert path == tmp_path / "report" / "index.html"
    assert len(re.findall(r'<img src="data:image/png;base64,[A-Za-z0-9+/=]{1000,}"', page)) == 4
    assert not re.search(r'(src|href)="(?!data:)', page)
    for said in (page, console.export_text()):
        for wanted in ("network, forward + backward", "conv2d", "first call", "float64"):
            assert wanted in said


def test_a_page_with_a_missing_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="undefined"):
        write_page("demo.html.j2", tmp_path / "page.html")
