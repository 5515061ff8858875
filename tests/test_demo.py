import re
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.nn import functional

from dcn_tvm import demo, reference
from dcn_tvm.demo import evidence, lesson, pooling
from dcn_tvm.demo.lesson import STRIDE, Extractor, Lesson, load_photo, make_lesson
from dcn_tvm.report import write_page
from dcn_tvm.viz import SampledLayer


@pytest.fixture(scope="module")
def tilted() -> Lesson:
    return make_lesson(load_photo())


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


def test_the_sampled_layers_are_those_of_the_network(tilted: Lesson) -> None:
    network = Extractor()
    for layer in network.packs:
        torch.nn.init.normal_(layer.conv_offset.weight, std=0.01)
    maps = network.run_layers(tilted.seen)[:-1]
    for found, layer, map_ in zip(network.sampled(tilted.seen), network.packs, maps, strict=True):
        assert torch.equal(found.offset, SampledLayer.of(layer, map_).offset)


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


def test_learning_moves_the_bins_towards_their_content(tilted: Lesson) -> None:
    still, moved = (pooling.move_bins(tilted, lambda: None, steps) for steps in (0, 100))
    assert still.misplacement_before == still.misplacement_after == moved.misplacement_before > 10
    assert moved.misplacement_after < 0.4 * moved.misplacement_before
    distance = {t: (moved.pooled[t] - moved.pooled["wanted"]).abs().mean() for t in moved.pooled}
    assert distance["after"] < 0.3 * distance["before"]


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
    assert len(re.findall(r'<img src="data:image/png;base64,[A-Za-z0-9+/=]{1000,}"', page)) == 6
    assert not re.search(r'(src|href)="(?!data:)', page)
    for said in (page, console.export_text()):
        for wanted in ("network, forward + backward", "conv2d", "first call", "float64"):
            assert wanted in said


def test_a_page_with_a_missing_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="undefined"):
        write_page("demo.html.j2", tmp_path / "page.html")
