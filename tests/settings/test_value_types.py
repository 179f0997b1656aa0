"""Values of a wrong type: one line with the key, what was found and what is valid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tinyfusion.errors import InputError
from tinyfusion.settings.commands import COMMANDS
from tinyfusion.settings.schema import Iterative
from tinyfusion.settings.types import check_fields, check_type


class Part:
    """Stands for an object that a configuration builds."""


def node(value: Any) -> Any:
    return OmegaConf.create({"key": value}).key


@pytest.mark.parametrize(
    ("hint", "good", "bad", "valid"),
    [
        (int, [3], [1.5, "3", True, [1], {"a": 1}], "a whole number"),
        (int, [], [1e3], "a whole number, such as 1000"),
        (float, [3, 0.5], ["high", True, [1], {"a": 1}], "a number"),
        (bool, [True], [1, "yes", "maybe"], "true or false"),
        (str, ["x"], [3, True, ["x"], {"a": 1}], "text"),
        (Path | str, ["x"], [3, ["x"]], "text"),
        (int | None, [3, None], ["x"], "a whole number"),
        (int | str, [3, "x"], [1.5, [1]], "a whole number or text"),
        (Sequence[int], [[], [0, 1]], [3, ["a"], [[0]], {"a": 1}], "a list of whole numbers, such"),
        (list[str], [["a"]], ["a", [1]], r"a list of texts, such as \[a,b\]"),
        (tuple[float, float], [[0, 1.5]], [3, ["a", 1]], "a list of numbers"),
        (list[Any], [[1, "a", [2]]], [3], r"a list, such as \[0,1\]"),
        (Sequence[int] | str, [[1], "a"], [1, ["a"]], "a list of whole numbers, such .* or text"),
        (Mapping[str, int], [{"a": 1}], [3, [1]], "a dictionary"),
        (Part, [{"_target_": "x"}], [3, [1], "x"], "a configuration with a _target_"),
        (Any, [3, "x", [1], None], [], ""),
    ],
)
def test_types(hint: Any, good: list[Any], bad: list[Any], valid: str) -> None:
    for value in good:
        check_type("some.key", node(value), hint)
    for value in bad:
        with pytest.raises(InputError, match=rf"^some\.key=.* must be {valid}") as error:
            check_type("some.key", node(value), hint)
        assert repr(node(value)) in str(error.value)


def test_an_object_may_stand_for_any_value() -> None:
    check_type("key", node({"_target_": "math.sqrt", "x": 4}), float)


def test_null() -> None:
    with pytest.raises(InputError, match="n=null: a value must be given: a whole number"):
        check_type("n", None, int)


@pytest.mark.parametrize(
    ("command", "values", "fragments"),
    [
        ("sample", {"n": "abc"}, ["n='abc' must be a whole number"]),
        ("sample", {"labels": [1, "a"]}, ["labels=[1, 'a'] must be a list of whole numbers"]),
        ("sample", {"pack": 2}, ["pack=2 must be true or false"]),
        ("sample", {"name": [1]}, ["name=[1] must be text"]),
        ("run", {"teacher": {"path": {"a": 1}}}, ["teacher.path={'a': 1} must be text"]),
        ("run", {"teacher": {"pth": "x"}}, ["unknown key 'teacher.pth'", "valid", "path"]),
        ("run", {"iterative": {"depths": 3}}, ["iterative.depths=3", "a list of whole numbers"]),
        ("run", {"iterative": 3}, ["iterative=3 must be a configuration", *Iterative().__dict__]),
        ("benchmark", {"widths": 0.5}, ["widths=0.5 must be a list of numbers"]),
    ],
)
def test_values_of_a_command(command: str, values: dict[str, Any], fragments: list[str]) -> None:
    with pytest.raises(InputError) as error:
        check_fields(OmegaConf.create(values), COMMANDS[command])
    for fragment in fragments:
        assert fragment in str(error.value)


def test_what_the_schema_converts_is_no_error() -> None:
    values = {"n": "3", "pack": "no", "name": 7, "seed": 1, "labels": ["1"], "checkpoint": None}
    check_fields(OmegaConf.create(values), COMMANDS["sample"])
