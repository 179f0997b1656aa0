from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from tinyfusion.errors import InputError
from tinyfusion.figures import decision as decision_module
from tinyfusion.figures.canvas import COLOURS
from tinyfusion.figures.decision import _MAP, DecisionRecord, decision_panels, decision_trace

TRACE = [
    DecisionRecord(5, (0, 3), (0.5, 0.5, 0.5, 0.5)),
    DecisionRecord(10, (0, 2), (1.0, 0.0, 0.8, 0.2)),
]


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def count(page: np.ndarray, colour) -> int:
    return (abs(page - 255 * np.array(colour)).max(axis=-1) <= 1).sum()


def test_colours_are_probabilities_and_none_is_the_papers(tmp_path):
    page = pixels(decision_trace(TRACE, tmp_path / "trace.png", title="2 of 4"))
    assert 1000 <= page.shape[1] <= 2000 and 300 <= page.shape[0] <= 2000
    sure, half, never = (count(page, _MAP(p)[:3]) for p in (1.0, 0.5, 0.0))
    # A cell each is drawn for 1 and 0, four for 0.5; the colour bar adds little.
    assert sure > 5000 and sure == pytest.approx(never, rel=0.15)
    assert half == pytest.approx(4 * sure, rel=0.15)
    assert count(page, to_rgb(COLOURS[1])) > 100
    assert min(1 - part for part in _MAP(0.0)[:3]) > 0.03, "0 is not the white of the paper"


def test_every_record_is_drawn_up_to_its_own_step(tmp_path, monkeypatch):
    drawn = {}

    def note(axes, edges, kept_RL, width):
        drawn["edges"], drawn["kept"] = edges.tolist(), kept_RL.tolist()

    monkeypatch.setattr(decision_module, "_draw_cut", note)
    decision_trace(TRACE, tmp_path / "trace.png")
    assert drawn["edges"] == [0, 5, 10]
    assert drawn["kept"] == [[True, False, False, True], [True, False, True, False]]


def test_a_short_run_begins_at_0(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        decision_module, "_draw_cut", lambda _, edges, *__, **___: drawn.update(e=edges)
    )
    last = [DecisionRecord(6, (0,), (1.0, 0.0))]
    decision_trace([DecisionRecord(5, (0,), (1.0, 0.0)), *last], tmp_path / "trace.png")
    assert drawn["e"].tolist() == [0, 5, 6]


def test_borders_and_the_line_between_kept_and_dropped_are_drawn(tmp_path):
    ink = [0.15] * 3
    plain = pixels(decision_trace(TRACE, tmp_path / "a.png"))
    marked = pixels(decision_trace(TRACE, tmp_path / "b.png", borders=[2]))
    every = [DecisionRecord(5, (0, 1, 2, 3), (0.5,) * 4)]
    uncut = pixels(decision_trace(every, tmp_path / "c.png"))
    dark = [(page.max(axis=-1) < 255 * ink[0] + 20).sum() for page in (uncut, plain, marked)]
    assert dark[0] + 300 < dark[1] < dark[2] - 300


def test_deep_models_get_taller_figures_and_single_records_work(tmp_path):
    small = pixels(decision_trace(TRACE[:1], tmp_path / "small.png", names=list("abcd")))
    record = DecisionRecord(3, tuple(range(0, 28, 2)), (0.2,) * 28)
    large = pixels(decision_trace([record], tmp_path / "deep.png", groups=[4, 8]))
    assert large.shape[0] > 1.5 * small.shape[0]


@pytest.mark.parametrize(
    ("trace", "said"),
    [
        ([], "no record"),
        (TRACE[::-1], "strictly increasing"),
        ([DecisionRecord(0, (0,), (0.5,))], "strictly increasing"),
        ([TRACE[0], DecisionRecord(9, (0,), (0.5,))], "4 probabilities"),
        ([DecisionRecord(1, (0,), (0.5, 1.5))], "0..1"),
        ([DecisionRecord(1, (0, 4), (0.5, 0.5))], "beyond 0..1"),
    ],
)
def test_records_that_do_not_fit_are_refused(trace, said, tmp_path):
    with pytest.raises(InputError, match=said):
        decision_trace(trace, tmp_path / "trace.png")
    if trace:
        with pytest.raises(InputError, match=said):
            decision_panels({"good": TRACE, "bad": trace}, tmp_path / "panels.png")
    assert not list(tmp_path.iterdir())


def test_panels_stand_side_by_side_with_what_each_decided(tmp_path, saved):
    deep = DecisionRecord(30, tuple(range(7)), (0.5,) * 14)
    traces = {"1:2, LoRA": TRACE, "1:2, full": TRACE[:1], "7:14, LoRA": [deep], "frozen": TRACE}
    decision_panels(traces, tmp_path / "panels.png", columns=3)
    (figure,) = saved
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in panels] == list(traces)
    for axes, trace in zip(panels, traces.values(), strict=True):
        assert axes.get_xlim() == (0, trace[-1].step)
        marks = {
            line.get_markerfacecolor(): set(line.get_ydata())
            for line in axes.lines
            if line.get_marker() == "s"
        }
        depth = len(trace[0].inclusion)
        assert marks == {
            COLOURS[1]: set(trace[-1].kept),
            "white": set(range(depth)) - set(trace[-1].kept),
        }
    # Rows fill from the left: one row of three panels and one of one.
    tops = [round(axes.get_position().y1, 3) for axes in panels]
    assert len(set(tops[:3])) == 1 and tops[3] < tops[0]
    with pytest.raises(InputError, match="0 traces in 3 columns"):
        decision_panels({}, tmp_path / "none.png")


def test_the_cut_is_one_line_around_what_would_stay(tmp_path, saved):
    kept = [(0, 1), (0, 1), (0, 2), (0, 2)]
    trace = [DecisionRecord(5 * n + 5, own, (0.5,) * 3) for n, own in enumerate(kept)]
    decision_trace(trace, tmp_path / "trace.png")
    ((xs, ys),) = [
        line.get_data() for line in saved[0].axes[0].lines if np.isnan(line.get_xdata()).any()
    ]
    pieces = np.stack([xs, ys]).reshape(2, -1, 3)[..., :2]
    drawn = {tuple(map(tuple, pieces[:, n].T.tolist())) for n in range(pieces.shape[1])}
    assert drawn == {
        ((10.0, 0.5), (20.0, 0.5)),
        ((0.0, 1.5), (20.0, 1.5)),
        ((10.0, 0.5), (10.0, 1.5)),
        ((10.0, 1.5), (10.0, 2.5)),
    }
