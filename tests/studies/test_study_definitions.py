"""The shipped studies: they can be read at every scale, refer to rows of the paper, and compose."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import yaml

from tinyfusion.errors import InputError
from tinyfusion.report.paper import paper_table
from tinyfusion.settings.compose import locate
from tinyfusion.settings.composed import composed
from tinyfusion.studies.definition import content_of, names, read_study
from tinyfusion.studies.works import CHOICE, Cell, Work, cells_of, typed

GIVEN = {
    "checkpoint": "digits",
    "data.root": "/latents",
    "evaluation.reference": "/reference.npz",
}
EVERY = [(name, scale) for name in names() for scale in content_of(name)["scales"]]


def cells(name: str, scale: str) -> list[Cell]:
    study = read_study(name, scale)
    study = study.with_values({key: f"/{key}" for key in study.parameters})
    given = [f"{key}={GIVEN[key]}" for key in study.needs]
    return cells_of(study, given)


@pytest.mark.parametrize(("name", "scale"), EVERY)
def test_rows_are_those_of_the_paper(name: str, scale: str) -> None:
    study = read_study(name, scale)
    locate(study.report, "report")
    if "table" in study.paper:
        table = paper_table(study.paper["table"])
        printed = [table.row(row.paper) for row in study.rows if row.paper]
        assert len({id(row) for row in printed}) == len(printed)
        columns = {column.name for column in table.columns}
        assert {name for name in study.columns.values() if name} <= columns


def test_every_row_of_the_tables_is_there() -> None:
    for number in (1, 2, 3, 4, 5, 7, 8):
        study = read_study(f"table{number}", "digits")
        found = {id(paper_table(number).row(row.paper)) for row in study.rows if row.paper}
        assert len(found) == len(paper_table(number).rows), number
    assert read_study("table6").scale == "imagenet" and read_study("table4").scale == "digits"
    alone = [row.name for row in read_study("table1", "digits").rows if row.plan is None]
    assert alone == ["U-ViT-H/2", "U-ViT-L", "U-DiT-L", "U-DiT-B"]


@cache
def compose_once(command: str, overrides: tuple[str, ...]) -> None:
    """Studies share command lines."""
    composed(command, typed(overrides))


# Compositions take a tenth of a second each; those of the published experiments are also tested by
# tests/test_configs.py.
@pytest.mark.parametrize(
    ("name", "scale"),
    [(n, s) if s == "digits" else pytest.param(n, s, marks=pytest.mark.slow) for n, s in EVERY],
)
def test_every_command_line_composes(name: str, scale: str) -> None:
    seen = set()
    for cell in cells(name, scale):
        for work in cell.work.all():
            filled = tuple(
                text
                for text in work.filled({need: f"/{need}" for need, _ in work.needs})
                if not text.startswith("seed=")
            )
            if (work.command, filled) not in seen and len(seen) < 12:
                seen.add((work.command, filled))
                compose_once(work.command, filled)
    assert seen or name == "table6"


def test_a_run_is_parted_into_its_choice_and_the_rest() -> None:
    (cell, *_) = cells("table4", "digits")
    run = cell.work
    ((name, choice),) = run.needs
    assert name == CHOICE and (choice.command, run.command) == ("prune", "run")
    assert {"scheme=1:2", "delta=lora", "training.mask_learning.steps=150"} <= set(choice.overrides)
    assert not any(text.startswith(("recovery", "evaluation")) for text in choice.overrides)
    assert "recovery=finetune" in run.overrides
    assert not any(text.startswith(("scheme", "delta", "training.mask")) for text in run.overrides)
    assert (choice.level, run.level) == (0, 1)


def test_seeds_and_overrides_are_passed_on() -> None:
    study = read_study("table1", "digits")
    found = cells_of(study, ["training.recovery.steps=5", "evaluation.num_samples=9"], [7])
    assert {cell.seed for cell in found} == {0, 7}  # rows from scratch have one seed
    for cell in found:
        last = [text for text in cell.work.overrides if text.startswith("training.recovery.steps")]
        assert last in ([], ["training.recovery.steps=5"])
        for work in cell.work.all():
            if work.command == "prune":
                assert not any(text.startswith("evaluation") for text in work.overrides)
    d7 = next(cell for cell in found if "TinyDiT-D7" in cell.row.name)
    levels = [(work.command, work.level) for work in d7.work.all()]
    assert ("run", 0) in levels and ("prune", 1) in levels and levels[-1] == ("run", 2)


def test_what_is_measured_while_recovering_makes_no_other_choice() -> None:
    for cell in cells("figure14", "digits"):
        choice, run = cell.work.all()
        assert any("callbacks.evaluate" in text for text in run.overrides)
        assert not any("callbacks" in text for text in choice.overrides)


def test_picks_of_one_list_are_recovered_with_several_seeds() -> None:
    found = [cell for cell in cells("table3", "digits") if "largest" in cell.row.name]
    assert [cell.seed for cell in found] == [0, 1, 2]
    for cell in found:
        *earlier, choice, run = cell.work.all()
        assert f"seed={cell.seed}" in run.overrides and "seed=0" in choice.overrides
        assert all("seed=0" in work.overrides for work in earlier)
        assert any("pruner.candidates=100000" in work.overrides for work in earlier)


def own_study(folder: Path, **content: object) -> None:
    (folder / "study").mkdir(exist_ok=True)
    (folder / "study" / "mine.yaml").write_text(yaml.safe_dump(content))


DIGITS: dict[str, object] = {"scales": {"digits": {}}}
ROW = {"is": {"method": "a"}, "set": ["keep=2"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (DIGITS | {"rows": [ROW], "colums": {}}, "unknown key 'colums'; valid: .*columns"),
        (DIGITS | {"rows": [ROW | {"sets": []}]}, "unknown key 'sets'"),
        (DIGITS | {"rows": [ROW | {"command": "prun"}]}, "command='prun'; valid: encode"),
        (DIGITS | {"rows": {}}, "rows={} is a dict"),
        (DIGITS | {"rows": []}, "has no rows at scale=digits"),
        ({"scales": {"digits": {}}, "rows": [1]}, "row : 1 must be a mapping"),
        ({"scales": {"digits": {}}, "rows": [{"set": {"all": 3}}]}, "3 in a study must be a list"),
        ({"scales": {"digits": {"seeds": ["a"]}}, "rows": [ROW]}, "must be whole numbers"),
        ({"scales": {"digits": {}}, "axes": {"a": [1]}}, "axis a=.* must be a mapping of labels"),
        ({"scales": {"x": {}}, "rows": [ROW]}, "scale=digits is not one of study mine; valid: x"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, content: dict, message: str) -> None:
    own_study(tmp_path, **content)
    with pytest.raises(InputError, match=message):
        read_study("mine", "digits", [tmp_path])


def test_a_row_that_refers_to_nothing_is_refused(tmp_path: Path) -> None:
    own_study(
        tmp_path, scales={"digits": {}}, rows=[{"is": {"m": "a"}, "set": ["checkpoint={first}/x"]}]
    )
    with pytest.raises(InputError, match=r"\{first\} is no work of it; valid: none"):
        cells_of(read_study("mine", "digits", [tmp_path]))


def test_cells_come_seed_by_seed() -> None:
    seeds = [cell.seed for cell in cells_of(read_study("table4", "digits"))]
    assert seeds == [0] * 9 + [1] * 9 + [2] * 9


def test_levels() -> None:
    first = Work("a", "prune", ("seed=0",))
    assert Work("b", "run", ("seed=0",), (("a", Work("c", "run", (), (("a", first),))),)).level == 2
