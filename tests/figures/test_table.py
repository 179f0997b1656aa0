from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from rich.console import Console

from tinyfusion.figures.table import (
    Column,
    csv_table,
    latex_table,
    markdown_table,
    marks,
)
from tinyfusion.figures.terminal_table import print_table

COLUMNS = {
    "model": Column("model"),
    "parameters": Column("parameters", ",d"),
    "fid": Column("FID", ".2f"),
}
ROWS = [
    {"model": "teacher", "parameters": 2122760, "fid": (0.17, 0.02)},
    {"model": "kept [0,1] a|b", "parameters": None},
]


def test_markdown_aligns_formats_and_marks_what_is_missing():
    assert markdown_table(ROWS, COLUMNS) == (
        "| model           | parameters |         FID |\n"
        "| --------------- | ---------: | ----------: |\n"
        "| teacher         |  2,122,760 | 0.17 ± 0.02 |\n"
        "| kept [0,1] a\\|b |          - |           - |\n"
    )


def test_column_without_any_value_is_all_dashes():
    lines = markdown_table([{}, {}], {"x": Column("x", ".2f")}).splitlines()
    assert lines[2:] == ["| -   |", "| -   |"]


def printed(width: int, title: str | None = None) -> str:
    out = io.StringIO()
    print_table(ROWS, COLUMNS, title, Console(file=out, width=width))
    return out.getvalue()


def test_printed_table_shows_text_as_it_is():
    text = printed(80, "Digits [demo]")
    assert text.startswith("Digits [demo]")
    for cell in ("kept [0,1] a|b", "2,122,760", "0.17 ± 0.02", "parameters"):
        assert cell in text


def test_log_files_are_not_wrapped_to_a_terminal_width():
    assert printed(20) == printed(200)


def test_narrow_terminals_are_not_overrun_and_lose_nothing():
    out = io.StringIO()
    console = Console(file=out, width=30, force_terminal=True, no_color=True, color_system=None)
    print_table(ROWS, COLUMNS, None, console)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 30
    assert "\u2026" not in out.getvalue()


def test_narrow_terminals_get_the_table_turned():
    rows = [{"model": name, **{key: 1.25 for key in "abcdefgh"}} for name in ("deep", "shallow")]
    columns = {"model": Column("model")} | {k: Column(f"figure {k}", ".2f") for k in "abcdefgh"}
    wide, narrow = (
        Console(file=io.StringIO(), width=width, force_terminal=True) for width in (200, 60)
    )
    for console in (wide, narrow):
        print_table(rows, columns, console=console)
    assert "figure a" in wide.file.getvalue().splitlines()[1]
    lines = narrow.file.getvalue().splitlines()
    assert "deep" in lines[1] and "shallow" in lines[1] and "figure a" not in lines[1]
    assert sum("1.25" in line for line in lines) == 8


SCORES = {
    "name": Column("model"),
    "fid": Column("FID", ".2f", "lower"),
    "score": Column("IS", ".1f", "higher"),
    "depth": Column("depth"),
}
SCORED = [
    {"name": "a_1 & b", "fid": (3.0, 0.5), "score": 9.0, "depth": 7},
    {"name": "b", "fid": 2.001, "score": 12.0, "depth": 7},
    {"name": "c", "fid": 2.004, "score": None, "depth": 14},
    {"name": "d", "fid": float("nan"), "score": 7.0, "depth": 14},
]


def test_best_and_second_best_are_marked_by_direction_and_alike_where_shown_alike():
    found = marks(SCORED, SCORES)
    assert [line["fid"] for line in found] == ["", "best", "best", ""]
    assert [line["score"] for line in found] == ["second", "best", "", ""]
    assert not any(line["depth"] or line["name"] for line in found)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0], [""]),
        ([1.0, 1.0], ["", ""]),
        ([1.0, 2.0], ["best", ""]),
        ([1.0, 2.0, 3.0], ["best", "second", ""]),
        ([2.0, 1.0, 2.0, 3.0], ["second", "best", "second", ""]),
        ([1.0, 1.001, 2.0, 3.0], ["best", "best", "second", ""]),
        ([None, 3.0, 1.0, (2.0, 0.1)], ["", "", "best", "second"]),
        ([True, "text", 5.0], ["", "", ""]),
        ([], []),
    ],
)
def test_marks(values: list[Any], expected: list[str]):
    columns = {"x": Column("x", ".2f", "lower")}
    assert [line["x"] for line in marks([{"x": value} for value in values], columns)] == expected


def test_only_rows_that_agree_are_compared():
    found = marks(SCORED, SCORES, within=["depth"])
    assert [line["fid"] for line in found] == ["", "best", "", ""]


def test_markdown_shows_marks_and_arrows():
    lines = markdown_table(SCORED, SCORES).splitlines()
    assert "FID ↓" in lines[0] and "IS ↑" in lines[0] and "depth " in lines[0]
    assert " **2.00** |" in lines[3] and "**12.0**" in lines[3]
    assert "*9.0*" in lines[2]
    assert len({len(line) for line in lines}) == 1


def test_csv_is_read_back_in_full():
    rows = list(csv.DictReader(io.StringIO(csv_table(SCORED, SCORES))))
    assert rows[0] == {
        "name": "a_1 & b", "fid": "3.0", "fid_std": "0.5", "score": "9.0", "depth": "7"
    }  # fmt: skip
    assert rows[1]["fid"] == "2.001" and rows[1]["fid_std"] == "" and rows[2]["score"] == ""


def test_csv_quotes_what_it_has_to():
    text = csv_table([{"name": 'say "a", b\nc'}], {"name": Column("model")})
    assert text == 'name\n"say ""a"", b\nc"\n'


def test_latex_is_escaped_and_marked():
    text = latex_table(SCORED, SCORES, caption="50% of {blocks}")
    assert r"\begin{tabular}{lrrr}" in text and r"\caption{50\% of \{blocks\}}" in text
    assert r"model & FID $\downarrow$ & IS $\uparrow$ & depth \\" in text
    assert r"a\_1 \& b & 3.00 $\pm$ 0.50 & \underline{9.0} & 7 \\" in text
    assert r"b & \textbf{2.00} & \textbf{12.0} & 7 \\" in text
    assert text.count("\\toprule") == text.count("\\bottomrule") == 1
    assert "\\begin{table}" not in latex_table(SCORED, SCORES)


def test_latex_escapes_every_special_character_once():
    text = latex_table([{"name": r"\{}&%$#_~^"}], {"name": Column("x")})
    expected = r"\textbackslash{}\{\}\&\%\$\#\_\textasciitilde{}\textasciicircum{}"
    assert expected in text


def test_the_terminal_shows_best_bold_and_second_best_underlined():
    out = io.StringIO()
    print_table(SCORED, SCORES, None, Console(file=out, width=200, force_terminal=True))
    assert "\x1b[1m12.0\x1b[0m" in out.getvalue() and "\x1b[4m" in out.getvalue()
