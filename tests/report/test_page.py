"""The page is one file that needs no other, stays small, and says what is to be said."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tinyfusion.cli import main
from tinyfusion.figures.table import Column, Rows, Table
from tinyfusion.report.page import page
from tinyfusion.report.paper import paper_table
from tinyfusion.report.reading import find_runs, read_run
from tinyfusion.report.write import write_report

MakeRun = Callable[..., Path]


class Parsed(HTMLParser):
    """Elements and what would be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._in = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self._in = tag
        if tag == "a":
            self.links.append(found["href"] or "")
        elif tag == "img":
            self.images.append(found)
        for key in ("src", "href", "srcset", "data"):
            if tag != "a" and found.get(key):
                self.fetched.append(found[key] or "")

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "script":
            self.scripts.append(data)
        elif self._in != "style":
            self.text += data

    def data(self) -> dict[str, Any]:
        return json.loads(next(text for text in self.scripts if text.startswith("{")))


def made(make_run: MakeRun, count: int, tmp_path: Path, **how: Any) -> str:
    pruners = ("learned", "random", "shortgpt")
    folders = [
        make_run(f"run{i}", fid=2.0 + i, pruner=pruners[i % 3], seed=i // 3, **how)
        for i in range(count)
    ]
    return page(find_runs(folders), "Some runs", tmp_path)


def test_fifty_runs_stay_below_five_megabytes(make_run: MakeRun, tmp_path: Path):
    text = made(make_run, 50, tmp_path, pictures=True, steps=500, speed_up=2.0)
    parsed = Parsed(text)
    assert 1_300_000 < len(text.encode()) < 5_000_000
    assert len(parsed.data()["rows"]) == 50
    # One row of the teacher for each seed, one a run, and its decision figure.
    assert len(parsed.images) == 50 + 17 + 50


def test_nothing_is_fetched(make_run: MakeRun, tmp_path: Path):
    parsed = Parsed(made(make_run, 3, tmp_path, pictures=True, steps=5))
    assert parsed.images and all(address.startswith("data:") for address in parsed.fetched)
    assert "@import" not in made_style() and "url(" not in made_style()


def made_style() -> str:
    from tinyfusion.report import page as module

    return module._raw(module._WEB / "tabulator.min.css") + module._raw(module._HERE / "page.css")


def test_links_lead_to_the_files_of_the_runs(make_run: MakeRun, tmp_path: Path):
    (tmp_path / "report").mkdir()
    parsed = Parsed(made(make_run, 2, tmp_path / "report"))
    assert "../runs/run0/metrics.json" in parsed.links and "../runs/run1" in parsed.links
    assert all((tmp_path / "report" / link).exists() for link in parsed.links)


def test_every_picture_says_what_it_shows(make_run: MakeRun, tmp_path: Path):
    images = Parsed(made(make_run, 2, tmp_path, pictures=True)).images
    assert images and all(image["alt"] and image["width"] for image in images)


def test_the_best_run_is_said_first_in_plain_words(make_run: MakeRun, tmp_path: Path):
    words = " ".join(Parsed(made(make_run, 3, tmp_path, speed_up=1.9)).text.split())
    start = words.index("digits, 2 of 4 blocks")
    assert words[start:].startswith("digits, 2 of 4 blocks FID 2.000 learned best of 3;")
    assert "before pruning 1.000; 1.90 times as fast" in words and start < words.index("Search")


def test_text_of_runs_can_not_break_the_page(make_run: MakeRun, tmp_path: Path):
    bad = "</script><script>alert(1)</script>"
    runs = find_runs([make_run("a", note=bad), make_run("b", note="x")])
    text = page(runs, bad, tmp_path)
    assert bad not in text
    assert bad in json.dumps(Parsed(text).data()["own"])


def test_configurations_are_stored_once_where_they_agree(make_run: MakeRun, tmp_path: Path):
    data = Parsed(page(find_runs([make_run("a"), make_run("b", keep=1)]), "t", tmp_path)).data()
    assert data["shared"]["training.recovery.steps"] == "100"
    assert sorted(own["keep"] for own in data["own"]) == ["1", "2"]
    assert not set(data["own"][0]) & set(data["shared"])


def test_runs_without_figures_are_counted(make_run: MakeRun, tmp_path: Path):
    runs = find_runs([make_run("a"), make_run("b", state="failed"), make_run("c", state="begun")])
    words = " ".join(Parsed(page(runs, "t", tmp_path)).text.split())
    assert "3 runs of tinyfusion run, 1 failed" in words and "Not finished: 2" in words
    assert "failed: b run stopped; continue with resume=x" in words


def test_runs_of_other_commands_are_listed_with_their_files(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = make_run("b", state="begun", command="activations")
    (folder / "finished.json").write_text('{"seconds": 1.0}')
    (folder / "activations.png").write_bytes(b"")
    make_run("a")
    parsed = Parsed(page(find_runs([tmp_path / "runs"]), "t", tmp_path))
    assert "activations: b folder" in " ".join(parsed.text.split())
    assert "runs/b/activations.png" in parsed.links
    assert main(["report", str(tmp_path / "runs")]) == 0
    assert "figures of activations, in files of their own: b" in capsys.readouterr().out


def test_samples_are_captioned_with_the_figure_that_ranks(make_run: MakeRun, tmp_path: Path):
    words = " ".join(Parsed(made(make_run, 2, tmp_path, pictures=True)).text.split())
    assert "before pruning learned: FID 2.000 random: FID 3.000" in words


def test_without_the_first_model_no_row_is_called_before_pruning(make_run: MakeRun, tmp_path: Path):
    run = read_run(make_run("a", pictures=True))
    models = {"pruned": {}, "other": {}, "recovered": run.result}
    words = Parsed(page([replace(run, models=models)], "t", tmp_path)).text
    assert "before pruning" not in words and "learned: FID 2.000" in words


def test_the_number_of_seeds_stands_beside_the_headline(make_run: MakeRun, tmp_path: Path):
    words = " ".join(Parsed(made(make_run, 4, tmp_path)).text.split())
    assert "FID 3.500 ± 2.121 2 seeds learned" in words or "FID 3.000 1 seed random" in words
    assert "seed random" not in " ".join(Parsed(made_again(make_run, tmp_path)).text.split())


def made_again(make_run: MakeRun, tmp_path: Path) -> str:
    folders = [make_run(f"other{i}", fid=1.0 + i, pruner=name) for i, name in enumerate("ab")]
    return page(find_runs(folders), "Others", tmp_path)


def test_a_page_of_runs_that_all_failed(make_run: MakeRun, tmp_path: Path):
    assert "No run has figures yet" in page(
        find_runs([make_run("b", state="failed")]), "t", tmp_path
    )


def test_the_paper_stands_beside_ours(make_run: MakeRun, tmp_path: Path):
    columns = {"x": Column("FID", ".2f", "lower"), "p": Column("paper: FID", "g", "lower")}
    rows: Rows = [{"x": 2.5, "p": 2.0, "g": "a"}, {"x": 1.5, "g": "a"}, {"x": 1.0, "g": "b"}]
    table = Table(rows, columns, within=("g",))
    text = page(find_runs([make_run("a")]), "t", tmp_path, table, paper_table(4))
    assert '<td class="best">1.50</td>' in text and '<td class="best">1.00</td>' not in text
    assert "paper: FID ↓" in text
    assert "The paper's table 4" in text or "The paper&#39;s table 4" in text


def test_all_files_are_written(make_run: MakeRun, tmp_path: Path):
    runs = find_runs([make_run("a"), make_run("b", fid=1.0, pruner="random")])
    files = write_report(runs, tmp_path / "out", "Runs")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "report.html", "report.md", "report.csv", "report.tex"
    }  # fmt: skip
    with open(files["csv"], newline="") as handle:
        assert [row["fid"] for row in csv.DictReader(handle)] == ["1.0", "2.0"]
    assert "| **1.000** |" in files["md"].read_text().replace("  ", " ")
    assert "\\textbf{1.000}" in files["tex"].read_text()


@pytest.mark.parametrize(
    ("form", "expected"),
    [("text", "│ learned"), ("md", "| learned"), ("csv", "method,fid"), ("latex", "\\toprule")],
)
def test_the_tool_prints_and_writes(
    make_run: MakeRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    form: str,
    expected: str,
):
    make_run("a")
    make_run("b", pruner="random", fid=1.0)
    out = tmp_path / "here" / "page.html"
    options = ["--columns", "method,fid", "--format", form, "--out", str(out), "--paper", "4"]
    assert main(["report", str(tmp_path / "runs"), *options]) == 0
    printed = capsys.readouterr()
    assert expected in printed.out and str(out) in printed.err
    assert [file.name for file in out.parent.iterdir()] == ["page.html"]


def test_by_default_the_files_lie_in_the_folder(make_run: MakeRun, tmp_path: Path):
    make_run("a")
    assert main(["report", str(tmp_path / "runs")]) == 0
    assert (tmp_path / "runs" / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere is not a folder"),
        (["runs", "--format", "pdf"], "--format pdf; valid: text, md, csv, latex"),
        (["runs", "--paper", "four"], "--paper four must be the number of a table"),
        (["runs", "--paper", "40"], "the paper has no table 40"),
        (["runs", "--sort", "x"], "there is no column 'x'"),
        (["runs", "--columns", "fids"], "no run has 'fids'"),
        (["runs", "--out", "runs/a/config.yaml"], "can't be written: runs/a/config.yaml"),
        (["runs", "--out", "runs/a/config.yaml/r.html"], "can't be written: runs/a/config.yaml"),
    ],
)
def test_wrong_input_is_refused_in_a_line(
    make_run: MakeRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
):
    make_run("a")
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not list(tmp_path.rglob("report.*"))


def test_long_names_and_many_names_are_shortened_in_the_terminal(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    long = "begin" + "x" * 50 + "end"
    make_run(long)
    for place in range(9):
        make_run(f"b{place}", state="failed")
    assert main(["report", str(tmp_path / "runs"), "--columns", "run,fid"]) == 0
    printed = capsys.readouterr().out
    assert long not in printed and "begin" in printed and "end │" in printed
    assert "failed: 9 of 10 runs: b0, b1, b2, b3, b4, b5 and 3 more" in printed
    assert long in (tmp_path / "runs" / "report.csv").read_text()
