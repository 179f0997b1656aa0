"""The paper's numbers: packaged, complete, and found by what a row says."""

from __future__ import annotations

import pytest

from tinyfusion.errors import InputError
from tinyfusion.report.paper import paper_figure, paper_table


@pytest.mark.parametrize(
    ("number", "rows"), [(1, 23), (2, 5), (3, 8), (4, 9), (5, 6), (6, 5), (7, 4), (8, 3)]
)
def test_tables_have_all_rows_and_columns(number: int, rows: int) -> None:
    table = paper_table(number)
    assert table.number == number and len(table.rows) == rows
    assert all(set(row) == {column.name for column in table.columns} for row in table.rows)


def test_a_row_is_found_by_its_values() -> None:
    row = paper_table(1).row({"method": "TinyDiT-D14 (KD)", "iters_K": 500})
    assert (row["FID"], row["sampling_it_per_s"]) == (2.86, 13.54)


def test_rows_that_do_not_exist_are_refused() -> None:
    with pytest.raises(InputError, match="table 1 has 2 rows with method=TinyDiT-D14, depth_to=14"):
        paper_table(1).row({"method": "TinyDiT-D14", "depth_to": 14})
    with pytest.raises(InputError, match=r"no column 'fid'; valid: .*FID"):
        paper_table(1).row({"fid": 2.86})
    with pytest.raises(InputError, match="no table 9; valid: 1, 2"):
        paper_table(9)


def test_figures() -> None:
    assert paper_figure(5)["statistics"]["n"] == 100_000
    with pytest.raises(InputError, match="figure 14"):
        paper_figure(14)
