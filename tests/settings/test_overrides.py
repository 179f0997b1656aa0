"""What a user types is what Hydra reads, whatever characters stand in it."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from tinyfusion.errors import InputError
from tinyfusion.settings.compose import MAX_NAME, locate, run_name
from tinyfusion.settings.overrides import as_typed, quote, split, swept, text_of
from tinyfusion.settings.overview import conf_folder
from tinyfusion.settings.paths import holds_path
from tinyfusion.settings.types import hints_of

PARSER = OverridesParser.create()

NAMES = [
    *("scheme=1of2,delta=lora", "Größe", "日本", "😀", "a#b", "a&b", "a!b", "a[b]", "[x]", "{x}"),
    *("a{b}", "a'b", 'a"b', "'q'", "a(b)", "(", "a$b", "~x", "a%b", "a\\b", "a\\,b", "back\\"),
    *("a:b", "a;b", "a*b", "a?b", " lead", "trail ", "mid dle", "a\tb", "a\nb", "a,b", "=", "a=b"),
    *("a^b`c", "a<b>c|d", "null,x", "1e3", "007", "1_000", "true", "nan", "-1", "@", "+x"),
]


def read(override: str) -> Override:
    return PARSER.parse_override(override)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The working folder, in which all `NAMES` are folders."""
    for name in NAMES:
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_hydra_reads_what_was_quoted() -> None:
    draws = random.Random(0)
    alphabet = "ab1./=,'\"\\[]{}()$~%:;*? #&!äß\t\n日@+-_|"
    for text in (
        *NAMES,
        *("null", "True", "inf", "", "${x}", "choice(a,b)", "1:2"),
        *("".join(draws.choices(alphabet, k=draws.randint(0, 8))) for _ in range(400)),
    ):
        found = read(f"key={quote(text)}").value()
        assert found == text and isinstance(found, str), text
        assert text_of(quote(text)) == text
        # Once more, as Hydra writes the runs of a sweep.
        again = read(f"key={read(f'key={quote(text)}').get_value_element_as_str()}")
        assert again.value() == text


def test_what_is_plain_stays_as_it_is() -> None:
    assert quote("/a/b-c_1.0") == "/a/b-c_1.0"
    assert split("+a.b=c=d") == ("+a.b", "c=d") and split("~a") == ("~a", None)


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("checkpoint", NAMES),
        ("data.root", NAMES[::6]),
        ("callbacks.evaluate.evaluation.weights", NAMES[::7]),
        ("hydra.run.dir", NAMES[::8]),
    ],
)
def test_folders_of_any_name_relative_and_absolute(here, key: str, names: list[str]) -> None:
    for name in names:
        for typed in (name, f"{here}/{name}", f"./{name}"):
            for sweeping in (False, True):
                written = as_typed(f"{key}={typed}", sweeping)
                value = read(written).value()
                assert isinstance(value, str), written
                assert Path(value) == here / name, written
                # What is written can be given again, from anywhere.
                os.chdir("/")
                assert as_typed(written, sweeping) == written
                os.chdir(here)


def test_in_a_sweep_a_comma_separates_but_not_within_what_exists(here) -> None:
    names = ["scheme=1of2,delta=lora", "a,b", "a'b", "a\\,b", "back\\", "[x]", "1e3", "Größe"]
    written = as_typed(f"checkpoint={','.join(names)},digits,null,no=ne,'x,y'", sweeping=True)
    found = [PARSER.parse_override(f"k={v}").value() for v in read(written).sweep_string_iterator()]
    assert found == [*(f"{here}/{name}" for name in names), "digits", None, "no=ne", "x,y"]
    chosen = as_typed("checkpoint=choice(a=b,digits)", sweeping=True)
    assert chosen == f"checkpoint='{here}/a=b',digits"


@pytest.mark.parametrize(
    ("typed", "written"),
    [
        # names, nulls, quotes, escapes and interpolations
        ("checkpoint=digits", "checkpoint=digits"),
        ("checkpoint=null", "checkpoint=null"),
        ("checkpoint=", "checkpoint="),
        ("teacher.path=source", "teacher.path=source"),
        ("checkpoint='no,ne'", "checkpoint='no,ne'"),
        ("checkpoint='a=b'", "checkpoint='{here}/a=b'"),
        (r"checkpoint=a\=b", "checkpoint='{here}/a=b'"),
        ("checkpoint=no=ne", "checkpoint='no=ne'"),
        ("checkpoint=[no,ne]", "checkpoint='[no,ne]'"),
        ("checkpoint= a=b", "checkpoint='{here}/a=b'"),
        ("output_root=${oc.env:HOME}/x", "output_root=${oc.env:HOME}/x"),
        ("output_root=${oc.env:HOME}/x=1", "output_root='${oc.env:HOME}/x=1'"),
        # what is to be made is a path, whether it exists or not
        ("store=new/it's 1,2", r"store='{here}/new/it\'s 1,2'"),
        ("output_root=~/x", "output_root={home}/x"),
        ("hydra.run.dir=true", "hydra.run.dir={here}/true"),
        # lists, dictionaries and keys of a user's own
        ("models=[a=b,digits,[x]]", "models=['{here}/a=b',digits,'{here}/[x]']"),
        ("models=[scheme=1of2,delta=lora]", "models=['{here}/scheme=1of2,delta=lora']"),
        ("models=[a,b,m]", "models=['{here}/a,b',m]"),
        ("pruner.marks={x:./a=b,y:no}", "pruner.marks={x:'{here}/a=b',y:no}"),
        ("+pruner.table=./a=b", "+pruner.table='{here}/a=b'"),
        ("+pruner.table=a=b", "+pruner.table='a=b'"),
        # text and numbers
        ("name=run #1", "name='run #1'"),
        ("name=1e3", "name='1e3'"),
        ("n=1e3", "n=1e3"),
        ("seed=007", "seed=007"),
        ("n=1#2", "n='1#2'"),
        ("labels=[1,2", "labels=[1,2"),
        ("labels=[1,2]", "labels=[1,2]"),
        ("scheme=1:2", "scheme=1:2"),
        # choices and deletions
        ("trainer=3", "trainer='3'"),
        ("pruner=größe", "pruner='größe'"),
        ("experiment=[iterative,demo]", "experiment=[iterative,demo]"),
        ("hydra/launcher=joblib", "hydra/launcher=joblib"),
        ("~callbacks", "~callbacks"),
    ],
)  # fmt: skip
def test_as_typed(here, monkeypatch, typed: str, written: str) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    expected = written.replace("{here}", str(here)).replace("{home}", "/home/me")
    assert as_typed(typed) == expected
    assert as_typed(expected) == expected


@pytest.mark.parametrize(
    "typed", ["seed=0,1", "scheme=[[1,2],[1,2]],[[1,4]],2:4", "seed=range(1,5)", "delta=lora,full"]
)
def test_sweeps_over_other_values_stay_as_they_are(here, typed: str) -> None:
    assert as_typed(typed, sweeping=True) == typed


def test_values_in_a_group_that_is_swept_are_looked_at_in_its_runs() -> None:
    given = ["pruner=sensitivity,shortgpt", "pruner.num_samples=16", "delta.rank=2", "seed=0,1"]
    assert swept(given) == [given[0], "pruner.num_samples=choice(16)", *given[2:]]
    assert swept(["pruner=oracle", "pruner.x=1"]) == ["pruner=oracle", "pruner.x=1"]
    alone = ["+pruner.new=1", "~pruner.stop", "pruner.bins=1,2", "pruner=a,b"]
    assert swept(alone) == alone


def test_choices_are_names(here) -> None:
    assert as_typed("trainer=cpu,3,größe", sweeping=True) == "trainer=cpu,'3','größe'"
    assert as_typed("trainer=cpu,gpu") == "trainer=cpu,gpu"


def test_a_word_stays_a_word_whatever_lies_in_the_working_folder(here) -> None:
    for name in ("cpu", "dit_xl_2", "source", "8"):
        (here / name).mkdir()
    for text in ("trainer.accelerator=cpu", "teacher.path=source", "models=[dit_xl_2]", "n=8"):
        assert as_typed(text) == text


@pytest.mark.parametrize(
    ("typed", "fragment"),
    [("checkpoint=~nobody-here/x", "'~nobody-here'"), ("checkpoint=a\udcff", "not UTF-8")],
)
def test_what_names_no_file_is_refused(typed: str, fragment: str) -> None:
    with pytest.raises(InputError, match=fragment):
        as_typed(typed)


def test_every_packaged_argument_that_takes_a_path_is_declared() -> None:
    declared = 0
    for file in sorted(conf_folder().glob("*/*.yaml")):
        target = OmegaConf.load(file).get("_target_")
        for name, hint in hints_of(locate(target, file.parent.name)).items() if target else ():
            if "Path" in str(hint):
                assert holds_path(f"{file.parent.name}.{name}"), (file, name)
                declared += 1
    assert declared


def test_names_of_folders_fit_into_a_file_system() -> None:
    names = {run_name([f"checkpoint=/{letter * 100}"]) for letter in "日本"}
    assert len(names) == 2 and all(len(name.encode()) <= MAX_NAME + 7 for name in names)
    assert run_name(["checkpoint='/x/scheme=1of2,delta=lora'"]).startswith("checkpoint=scheme=1of2")
