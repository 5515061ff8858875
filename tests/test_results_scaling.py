import pytest
from results_cases import linear, row, sweep

from dcn_tvm.results.causes import causes, sentences
from dcn_tvm.results.scaling import Curve, Span, curves, position, steep_spans, whole


def curve(name: str, times_us: dict[int, float], **changed: object) -> Curve:
    """Return a curve whose work, roofline and memory stay as they are, but for what is changed."""
    (found,) = curves(sweep(name, times_us, **changed))
    return found


def text(found: Curve) -> str:
    """Return the one sentence about a curve."""
    (sentence,) = sentences(found)
    return sentence


@pytest.mark.parametrize(
    ("name", "sizes", "wanted"),
    [
        ("pixels", {"height": 5, "width": 7}, 35),
        ("channels", {"channels": 64}, 64),
        ("channels", {"in_channels": 32, "out_channels": 8}, 32),
        ("boxes", {"boxes": 300}, 300),
        ("batch", {"batch": 4}, 4),
        ("threads", {}, 2),
    ],
)
def test_the_position_on_each_axis(name: str, sizes: dict[str, int], wanted: int) -> None:
    assert position(row(sweep=name, sizes=sizes)) == wanted


@pytest.mark.parametrize(
    ("name", "sizes"), [("boxes", {}), ("", {"boxes": 3}), ("mode", {"mode": "max"})]
)
def test_a_row_without_its_size_has_no_position(name: str, sizes: dict[str, int | str]) -> None:
    with pytest.raises(ValueError, match="must have its sizes"):
        position(row(sweep=name, sizes=sizes))


def test_curves_are_apart_in_everything_but_the_size() -> None:
    peers = linear("batch", provider="torchvision", role="peer")
    rows = [*peers, *linear("batch"), *linear("batch", cache="cold"), *linear("boxes"), row()]
    other_threads, alone = linear("batch", threads=8), sweep("channels", {64: 1.0})
    found = curves([*rows, *other_threads, *alone])
    assert [len(c.rows) for c in found] == [4] * 5
    assert [c.role for c in found] == ["ours"] * 4 + ["peer"]


def test_points_are_in_order_and_the_later_measurement_stays() -> None:
    old = sweep("batch", {4: 1.0, 1: 1.0}, date="2025")
    new = sweep("batch", {2: 5.0, 4: 7.0}, date="2026")
    (found,) = curves([*new, *old])
    assert [(position(r), r.median_us) for r in found.rows] == [(1, 1.0), (2, 5.0), (4, 7.0)]


def test_exponents() -> None:
    span = whole(curve("batch", {1: 10.0, 2: 40.0, 8: 640.0}, peak_mib=lambda x: 2.0 * x**1.5))
    assert span.time == pytest.approx(2.0)
    assert span.memory == pytest.approx(1.5)
    assert span.exponent(lambda row: None) is None
    assert span.exponent(lambda row: 0.0) is None


def test_linear_growth_has_nothing_to_explain() -> None:
    for name in ("batch", "pixels", "channels", "boxes"):
        (found,) = curves(linear(name))
        assert sentences(found) == []


def test_noise_is_no_growth() -> None:
    times = {1: 100.0, 2: 260.0}
    assert steep_spans(curve("batch", times))
    noisy = curve("batch", times, p20_us=lambda x: 60.0 * x, p80_us=lambda x: 150.0 * x)
    assert not steep_spans(noisy)


def test_neighbouring_steep_steps_are_one_span() -> None:
    found = curve("batch", {1: 1.0, 2: 4.0, 4: 16.0, 8: 32.0, 16: 128.0})
    spans = [(position(s.first), position(s.last)) for s in steep_spans(found)]
    assert spans == [(1, 4), (8, 16)]


def test_steps_within_the_noise_add_up() -> None:
    (found,) = curves(
        [
            row(sweep="batch", sizes={"batch": x}, median_us=t, p20_us=0.8 * t, p80_us=1.2 * t)
            for x, t in ((1, 1.0), (2, 2.8), (4, 7.84), (8, 22.0))
        ]
    )
    (span,) = steep_spans(found)
    assert (position(span.first), position(span.last)) == (1, 8)


def test_the_work_itself() -> None:
    square = {"flops": lambda x: x**2, "floor_us": lambda x: x**2 / 1e3}
    found = curve("channels", {64: 100.0, 512: 5504.0}, **square)
    assert text(found) == (
        "roi_align forward, dcn_tvm: time grows as channels^1.93 from 64 to 512: "
        "its operations grow as channels^2.00."
    )
    found = curve("channels", {64: 1.0, 128: 4.0}, bytes_moved=lambda x: x**2)
    assert causes(whole(found)) == ["its bytes grow as channels^2.00"]


def test_a_roofline_that_bends() -> None:
    found = curve(
        "pixels",
        {1024: 10.0, 4096: 200.0},
        bytes_moved=lambda x: 1024 * x,
        flops=lambda x: x,
        floor_us=lambda x: 10.0 if x == 1024 else 200.0,
        bound="memory",
    )
    (cause,) = causes(whole(found))
    assert cause == (
        "the roofline itself bends, growing as pixels^2.16: a copy of 1 MiB at 105 GB/s runs in a "
        "cache, a copy of 4 MiB at 21 GB/s does not"
    )


def test_a_roofline_that_changes_sides() -> None:
    found = curve(
        "batch",
        {1: 1.0, 2: 4.0},
        floor_us=lambda x: x**2,
        bound=lambda x: {1: "arithmetic", 2: "memory"}[x],
    )
    assert causes(whole(found))[0].endswith("batch^2.00, from arithmetic to memory")


def faulty(more_us: float) -> Curve:
    """Return a curve that would be linear but for 10 000 page faults at its end."""
    times = {100: 1000.0, 200: 2000.0 + more_us}
    return curve("boxes", times, flops=lambda x: x, faults=lambda x: 10_000.0 * (x == 200))


def test_page_faults_explain_what_they_can() -> None:
    (cause,) = causes(whole(faulty(12_000.0)))
    assert cause == (
        "page faults appear, 10,000 in a call after 0 (large results are fresh pages in every "
        "call), which explains it if each takes 1.2 us"
    )
    cause, rest = causes(whole(faulty(120_000.0)))
    assert "cannot be all: they would take 12 us each" in cause
    assert rest.startswith("the rest is not explained by work, roofline or page faults")


def test_page_faults_explain_what_work_leaves() -> None:
    times = {100: 1000.0, 200: 4000.0 + 12_000.0}
    work = {"flops": lambda x: x**2, "faults": lambda x: 10_000.0 * (x == 200)}
    operations, faults = causes(whole(curve("boxes", times, **work)))
    assert operations == "its operations grow as boxes^2.00"
    assert faults.endswith("explains it if each takes 1.2 us")


def test_few_faults_explain_nothing() -> None:
    found = curve("boxes", {100: 10.0, 200: 40.0}, faults=lambda x: 50.0 * (x == 200))
    assert [cause.split()[0] for cause in causes(whole(found))] == ["this"]


def test_a_part_is_explained_and_the_rest_is_not() -> None:
    found = curve("batch", {1: 1.0, 4: 64.0}, flops=lambda x: x**2)
    work, rest = causes(whole(found))
    assert work == "its operations grow as batch^2.00"
    assert rest.startswith("the rest is not explained")


def test_what_nothing_explains_tells_the_fraction_of_the_roofline() -> None:
    found = curve("batch", {1: 1.0, 2: 4.0}, floor_us=lambda x: 0.5 * x, flops=lambda x: x)
    (cause,) = causes(whole(found))
    assert "from 0.5 to 0.25" in cause
    found = curve("batch", {1: 1.0, 2: 4.0}, floor_us=None, roofline=None)
    assert "no roofline was measured" in causes(whole(found))[-1]


def test_memory_is_judged_by_the_bytes() -> None:
    grown = {"peak_mib": lambda x: x**2 / 64, "flops": lambda x: x}
    (found,) = curves(linear("channels", **grown))
    assert sentences(found) == []  # below a mebibyte nothing counts
    grown["peak_mib"] = lambda x: 2.0 * x**2
    (found,) = curves(linear("channels", **grown))
    assert text(found) == (
        "roi_align forward, dcn_tvm: memory grows as channels^2.00 from 1 to 8, 2 to 128 MiB: "
        "not explained by the bytes that the op moves, which grow as channels^1.00."
    )
    (found,) = curves(linear("channels", **grown, bytes_moved=lambda x: x**2))
    assert "what it moves grows alike" in text(found)
    (found,) = curves(linear("channels", peak_mib=None))
    assert sentences(found) == []


def test_threads_are_judged_by_their_speedup() -> None:
    half = {"floor_us": lambda x: 400.0 / x}
    assert sentences(curve("threads", {1: 1000.0, 2: 520.0}, **half)) == []
    found = text(curve("threads", {1: 1000.0, 4: 500.0}, **half))
    assert "from 1 to 4 threads it becomes 2.00 times as fast, an efficiency of 50%" in found
    assert "went from 0.4 to 0.2" in found
    flat = text(curve("threads", {1: 1000.0, 4: 500.0}, floor_us=lambda x: 400.0 / x**0.5))
    assert flat.endswith("the roofline itself becomes only 2.00 times as high.")
    part = text(curve("threads", {1: 1000.0, 4: 800.0}, floor_us=lambda x: 400.0 / x**0.5))
    assert part.endswith("only 2.00 times as high; the rest is not explained.")
    noisy = {"p20_us": lambda x: 200.0, "p80_us": lambda x: 1100.0}
    assert sentences(curve("threads", {1: 1000.0, 4: 500.0}, **half, **noisy)) == []


def test_a_span_needs_no_more_than_two_rows() -> None:
    first, last = sweep("batch", {1: 1.0, 10: 1000.0})
    assert Span("batch", first, last).time == pytest.approx(3.0)
