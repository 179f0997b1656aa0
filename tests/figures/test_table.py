from __future__ import annotations

import io

from rich.console import Console

from tinyfusion.figures.table import Column, markdown_table, print_table

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
