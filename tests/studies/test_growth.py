"""How cost grows: what is measured, what is fitted, and what the tables say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tinyfusion.backbones.presets import build, build_empty
from tinyfusion.errors import InputError
from tinyfusion.figures.canvas import FORMS
from tinyfusion.files import write_json
from tinyfusion.metrics.speed import macs, parameters
from tinyfusion.studies import growth, growth_report
from tinyfusion.studies.cost_model import (
    BYTES,
    SECONDS,
    attention_macs,
    fit,
    fit_peak,
    fit_seconds,
    states,
)
from tinyfusion.studies.growth import BASE, WORK, Point, Size, fitted_sizes, held_out_sizes

TINY = Size(depth=2, width=32, tokens=16, batch=8)


def point(size: Size, work: str = "sampling") -> Point:
    """A point of a DiT of that size, with counts by formula instead of by building it."""
    width, head = size.width, 4 * 8 * size.width
    block = 18 * width**2 + 13 * width
    work_macs = size.tokens * size.depth * 12 * width**2 + attention_macs(size) + head
    return Point(work, size, (1.0,), 0, 1000 * size.depth, work_macs, size.depth * block)


def test_planted_coefficients_are_found_and_foretell_larger_sizes() -> None:
    planted = dict(zip(SECONDS, (0.05, 0.11, 3.0, 2.0, 1e-3, 4e-3), strict=True))

    def measured(size: Size) -> Point:
        bare = point(size)
        return replace(bare, seconds=sum(planted[n] * term(bare) for n, term in SECONDS.items()))

    model = fit_seconds([measured(size) for size in fitted_sizes()])
    assert model.coefficients == pytest.approx(planted, rel=1e-3)
    larger = [measured(size) for size in held_out_sizes()]
    assert max(model.errors(larger, lambda p: p.seconds)) < 1e-4


def test_what_stays_between_steps_is_not_fitted() -> None:
    planted = dict(zip(BYTES, (21.0, 8.0, 20.0, 1.0, 0.1), strict=True))

    def measured(size: Size) -> Point:
        bare = point(size)
        added = sum(planted[n] * term(bare) for n, term in BYTES.items())
        return replace(bare, peak=round(bare.state + added))

    model = fit_peak([measured(size) for size in fitted_sizes()])
    assert model.coefficients == pytest.approx(planted, rel=1e-2)
    bare = point(TINY)
    assert model(replace(bare, state=bare.state + 500)) == pytest.approx(model(bare) + 500)


def test_no_coefficient_is_negative() -> None:
    # Falls with depth, which no term does: the best that is left is a constant.
    points = [replace(point(replace(BASE, depth=d)), seconds=1.0 / d) for d in (2, 4, 8, 16)]
    terms = {name: SECONDS[name] for name in ("each block", "each step")}
    model = fit(points, terms, lambda p: p.seconds, lambda p: 0.0)
    assert model.coefficients["each block"] == 0 and model.coefficients["each step"] > 0
    with pytest.raises(InputError, match=r"1 point\(s\) can't tell 2 terms apart"):
        fit(points[:1], terms, lambda p: p.seconds, lambda p: 0.0)


def test_all_but_attention_grows_in_proportion_to_tokens() -> None:
    def rest(side: int) -> int:
        size = Size(4, 64, side**2, 1)
        net = build(
            {
                "input_size": 2 * side,
                "patch_size": 2,
                "in_channels": 4,
                "hidden_size": size.width,
                "depth": size.depth,
                "num_heads": 2,
                "num_classes": 10,
            }
        )
        return macs(net) - attention_macs(size)

    few, more, most = rest(2), rest(4), rest(6)
    assert (most - more) * 12 == (more - few) * 20 and more > few
    assert states(Size(4, 64, 16, 3)) == 4 * 64 * 16 * 3


@pytest.mark.parametrize(
    "sizes",
    [{"depth": 3}, {"depth": 0}, {"width": 48}, {"tokens": 8}, {"tokens": -4}, {"batch": 0}],
)
def test_sizes_that_no_network_has(sizes: dict[str, int]) -> None:
    ((name, value),) = sizes.items()
    with pytest.raises(InputError, match=f"{name}={value} must be"):
        Size(**sizes)


def test_held_out_sizes_are_no_fitted_ones_and_larger() -> None:
    fitted, larger = fitted_sizes(), held_out_sizes()
    assert len({*fitted, *larger}) == len(fitted) + len(larger)
    for axis in growth.AXES:
        along = [s for s in fitted if replace(s, **{axis: getattr(BASE, axis)}) == BASE]
        assert max(getattr(s, axis) for s in along) < growth.LARGEST[axis]


def test_steps_of_every_kind_are_measured(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(growth, "BASE", TINY)
    monkeypatch.setattr(growth, "LEAST_SECONDS", 0.0)
    sizes = [TINY, replace(TINY, batch=16)]
    file = tmp_path / "points.json"
    points = growth.measure_all(sizes, file, passes=1, say=lambda text: None)
    assert [(p.size, p.work) for p in points] == [(s, w) for s in sizes for w in WORK]
    assert all(p.seconds > 0 and len(p.rounds) == growth.LEAST_ROUNDS for p in points)
    small, large = points[:3], points[3:]
    for one, other in zip(small, large, strict=True):
        assert one.peak > one.state == other.state
        # Activations double with the batch.
        assert 1.5 < (other.peak - other.state) / (one.peak - one.state) < 2.1
    by_work = dict(zip(WORK, small, strict=True))
    # Sampling holds weights alone; training their update's moments, or all of a student's, too.
    assert by_work["sampling"].state < by_work["mask_learning"].state < by_work["recovery"].state
    assert by_work["sampling"].state == 4 * by_work["sampling"].parameters

    def nothing(*_: object) -> None:
        raise AssertionError("measured again")

    with monkeypatch.context() as patched:
        patched.setattr(growth, "measure", nothing)
        patched.setattr(growth, "Reference", nothing)
        assert growth.measure_all(sizes, file, 1, lambda text: None) == points
    again = growth.measure_all(sizes, file, passes=2, say=lambda text: None)
    assert [len(p.rounds) for p in again] == [2 * len(p.rounds) for p in points]


def test_the_median_of_all_rounds_counts() -> None:
    passes = [replace(point(TINY), rounds=rounds) for rounds in ((2.0, 9.0, 2.0), (2.5, 1.9))]
    assert growth.merged(passes, {"sampling": 3.0}).seconds == 6.0


@pytest.mark.parametrize("content", [{}, {"points": [[]], "reference": {}}, {"points": [[{}]]}])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: object) -> None:
    file = tmp_path / "points.json"
    write_json(file, content)
    with pytest.raises(InputError, match=r"holds no points of this study; give another --root"):
        growth.read_points(file)


def test_our_counts_are_the_papers() -> None:
    for name, said in growth_report.PUBLISHED.items():
        with torch.device("meta"):
            net = build_empty(name)
        # Printed in millions, cut or rounded.
        assert abs(parameters(net) / 1e6 - said.parameters) < 1, name
        if said.gmacs is not None:
            assert macs(net) / 1e9 == pytest.approx(said.gmacs, rel=3e-4), name


def test_speed_by_counts_stands_beside_the_measured_one(monkeypatch) -> None:
    whole, small = (growth_report.PUBLISHED[name] for name in ("dit_l_2", "dit_b_2"))
    monkeypatch.setattr(growth_report, "PUBLISHED", {"dit_l_2": whole, "dit_b_2": small})
    cells = [line.split("|")[1:-1] for line in growth_report.published_table().splitlines()]
    last = [cell.strip() for cell in cells[-1]]
    assert last == ["dit_b_2", "130.51", "130", "23.01", "23.01", "3.51", f"{28.30 / 9.73:.2f}"]


@pytest.fixture
def small_study(tmp_path: Path, monkeypatch, script):
    """The script with a few tiny sizes, already measured, and without large networks."""
    root, fitted = tmp_path / "root", [replace(s, width=32) for s in fitted_sizes()[:14]]
    larger = [replace(BASE, depth=28, width=32)]
    rows = []
    for size in (*fitted, *larger):
        own = [replace(point(size, work), rounds=(size.batch / 8, size.depth / 8)) for work in WORK]
        own = [replace(p, peak=p.state + 4 * states(size)) for p in own]
        rows.append([{**vars(p), "size": vars(p.size)} for p in own])
    write_json(root / "points.json", {"reference": dict.fromkeys(WORK, 0.1), "points": rows})
    module = script("cost_growth")
    for place in (module, growth_report):
        monkeypatch.setattr(place, "held_out_sizes", lambda: larger)
    monkeypatch.setattr(growth_report, "BASE", replace(BASE, width=32))
    monkeypatch.setattr(module, "fitted_sizes", lambda: fitted)
    monkeypatch.setattr(module, "network_parts", lambda: ["#### none\n"])
    monkeypatch.setattr(module, "published_table", lambda: "")
    return module, root


def test_the_script_writes_between_its_marks(small_study, tmp_path: Path, capsys) -> None:
    module, root = small_study
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{module.MARKS[0]}\nold\n{module.MARKS[1]}\n\n## After\n")
    module.main(["--root", str(root), "--passes", "1", "--output", str(page)])
    text = page.read_text()
    assert text.startswith("# Title\n\n") and text.endswith("\n\n## After\n") and "old" not in text
    assert "| recovery, with teacher " in text and "#### none" in text
    assert "larger sizes: median error" in capsys.readouterr().out
    assert (tmp_path / "cost_growth.png").stat().st_size > 10_000
    module.main(["--root", str(root), "--passes", "1", "--output", str(page)])
    assert page.read_text() == text


def test_without_a_page_the_report_lies_beside_the_points(small_study) -> None:
    module, root = small_study
    module.main(["--root", str(root), "--passes", "1"])
    pictures = {f"cost_growth.{form}" for form in FORMS}
    assert {p.name for p in root.iterdir()} == {"points.json", "report.md", *pictures}
    with pytest.raises(SystemExit):
        module.main(["--passes", "0"])
