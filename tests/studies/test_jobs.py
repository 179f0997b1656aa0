"""Jobs of a study: their command lines, their order, and who does what."""

from __future__ import annotations

import json
import shutil
from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from tinyfusion.decision import Decision
from tinyfusion.errors import InputError
from tinyfusion.interrupts import Interrupted
from tinyfusion.settings.overrides import quote
from tinyfusion.studies.digits import OTHERS, PRUNERS, WIDTH, plan
from tinyfusion.studies.jobs import (
    Job,
    carry_out,
    decision_file,
    options_and_overrides,
    run_study,
    seed_list,
    share_of,
    shares,
    two_or_more,
)
from tinyfusion.studies.random_halves import METHODS
from tinyfusion.studies.random_halves import plan as plan_random


def write(file: Path, content: object = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content or {}))
    return file


def job(folder: Path, command: str = "run", *overrides: str, decided: Path | None = None) -> Job:
    return Job(folder, command, overrides, "first", "kd", 0, decided)


class Commands:
    """Stands for the command line: notes what it is asked, and does it if told to."""

    def __init__(self, statuses: dict[str, int] | None = None) -> None:
        self.statuses, self.seen = statuses or {}, []

    def __call__(self, arguments: list[str]) -> int:
        (folder,) = (Path(a.partition("=")[2]) for a in arguments if a.startswith("hydra.run.dir"))
        self.seen.append(folder.name)
        status = self.statuses.get(folder.name, 0)
        if not status:
            write(folder / "metrics.json")
            write(folder / "decision.json")
        return status


def test_command_line_of_a_job(tmp_path) -> None:
    decided = tmp_path / "decided"
    mine = job(tmp_path / "run", "run", "recovery=kd", "backbone=dit_digits", decided=decided)
    place = f"hydra.run.dir={tmp_path / 'run'}"
    given = f"decision={decided / 'decision.json'}"
    assert mine.arguments() == ["run", "recovery=kd", "backbone=dit_digits", given, place]
    write(decided / "widths.json")
    given = f"decision={decided / 'widths.json'}"
    # What is said for all jobs wins.
    passed_on = ["backbone=sit_digits", "evaluation.num_samples=20"]
    assert mine.arguments(passed_on) == ["run", "recovery=kd", given, place, *passed_on]
    cut = job(tmp_path / "cut", "prune", "pruner=first")
    passed_on = ["+trainer.x=1", "evaluation.seeds=[0]", "start=fresh", "teacher=none"]
    place = f"hydra.run.dir={tmp_path / 'cut'}"
    assert cut.arguments(passed_on) == ["prune", "pruner=first", place, "+trainer.x=1"]
    write(tmp_path / "cut/config.yaml")
    assert cut.arguments(["seed=3"]) == ["prune", f"resume={tmp_path / 'cut'}"]


@pytest.mark.parametrize("name", ["plain-1.0/x_y", "a b", "a=b,c", "{it's}", "(Größe)"])
def test_folders_of_any_name_can_be_given_to_a_command(name: str) -> None:
    path = Path("/root") / name
    parse = OverridesParser.create().parse_override
    assert parse(f"decision={quote(path)}").value() == str(path)
    _, decision, place = job(path, decided=path).arguments()
    assert parse(decision).value() == str(path / "decision.json")
    assert parse(place).value() == str(path)


@pytest.mark.parametrize(
    ("convert", "good", "bad"),
    [
        (share_of, {"0/1": (0, 1), "1/2": (1, 2)}, ["2/2", "0/0", "-1/2", "1", "x", "1/2/3", ""]),
        (seed_list, {"3": [3], "0,2": [0, 2]}, ["", "0,", "a", "1,1"]),
        (two_or_more, {"2": 2, "100000": 100_000}, ["1", "0", "-2", "x", "1e5", ""]),
    ],
)
def test_what_the_studies_take_on_their_command_lines(convert, good, bad) -> None:
    assert {text: convert(text) for text in good} == good
    for text in bad:
        with pytest.raises(ArgumentTypeError, match=repr(text)):
            convert(text)


def test_overrides_stand_among_options_but_unknown_options_are_refused(capsys) -> None:
    parser = ArgumentParser()
    parser.add_argument("--report", action="store_true")
    options, overrides = options_and_overrides(parser, ["seed=3", "--report", "+trainer.x=1"])
    assert options.report and overrides == ["seed=3", "+trainer.x=1"]
    with pytest.raises(SystemExit) as stop:
        options_and_overrides(parser, ["seed=3", "--reprot"])
    assert stop.value.code == 2
    assert "unrecognized arguments: --reprot" in capsys.readouterr().err


def test_a_decision_is_a_file_or_what_its_folder_holds(tmp_path) -> None:
    file = write(tmp_path / "mine.json")
    assert decision_file(file) == file
    assert decision_file(tmp_path) == tmp_path / "decision.json"
    write(tmp_path / "widths.json")
    assert decision_file(tmp_path) == tmp_path / "widths.json"


def test_finished_jobs_are_skipped_and_failures_hold_up_what_waits_for_them(tmp_path) -> None:
    names = ("done", "bad", "good")
    cuts = {name: job(tmp_path / name, "prune") for name in names}
    runs = [job(tmp_path / f"{name}_run", decided=cuts[name].folder) for name in names]
    write(tmp_path / "done/metrics.json")
    write(tmp_path / "done/decision.json")
    command = Commands({"bad": 2, "good_run": 1})
    failed = carry_out([*cuts.values(), *runs], command)
    assert command.seen == ["bad", "good", "done_run", "good_run"]
    assert [item.folder.name for item in failed] == ["bad", "bad_run", "good_run"]
    # The next time only what is missing is tried.
    command = Commands()
    assert carry_out([*cuts.values(), *runs], command) == []
    assert command.seen == ["bad", "bad_run", "good_run"]


def test_a_finished_job_serves_for_one_that_differs_in_nothing_else(tmp_path) -> None:
    def decided(name: str, *kept: int) -> Path:
        Decision(source_depth=4, kept=kept, method=name).save(tmp_path / name / "decision.json")
        return tmp_path / name

    one, same, other = decided("one", 0, 1), decided("same", 0, 1), decided("other", 0, 2)
    jobs = [
        Job(tmp_path / "runs" / name, "run", (f"seed={seed}",), "first", "kd", seed, choice, True)
        for name, seed, choice in (
            ("a", 0, one), ("b", 0, same), ("c", 0, other), ("d", 1, same), ("e", 1, one)
        )
    ]  # fmt: skip
    asked = Commands()
    assert not carry_out(jobs[:4], asked) and asked.seen == ["a", "c", "d"]
    assert (tmp_path / "runs/b").resolve() == tmp_path / "runs/a"
    # What another process has finished serves as well; what is there already is left alone.
    assert not carry_out(jobs[4:], asked, others=jobs) and asked.seen == ["a", "c", "d"]
    assert not carry_out(jobs, asked) and all(job.done for job in jobs)
    shutil.rmtree(tmp_path / "runs/a")
    assert not carry_out(jobs[1:2], asked) and asked.seen[-1] == "b"


def test_a_study_says_how_it_ended(tmp_path, capsys) -> None:
    jobs = [job(tmp_path / name) for name in ("a", "b", "c")]

    def refuse(_: list[Job]) -> str:
        raise InputError("nothing is there")

    def end(report, command) -> tuple[int, str, str]:
        status = run_study("mine", lambda: jobs, report, command)
        said = capsys.readouterr()
        return status, said.out, said.err

    assert end(lambda found: f"{len(found)} jobs", None) == (0, "3 jobs\n", "")
    status, out, err = end(lambda _: "report", Commands({"a": 130}))
    assert (status, out) == (
        130,
        "",
    ) and err == "mine: interrupted by SIGINT; the same command resumes it\n"
    failed = f"mine: {tmp_path / 'b'} failed\n"
    assert end(lambda _: "report", Commands({"b": 1})) == (1, "report\n", failed)
    # What failed is said even where nothing can be reported.
    assert end(refuse, Commands({"b": 1})) == (2, "", f"mine: nothing is there\n{failed}")
    first, other = Commands(), Commands()
    jobs = [job(tmp_path / f"new_{name}") for name in ("a", "b", "c")]
    assert run_study("mine", lambda: jobs, lambda _: "", first, part=(0, 2)) == 0
    assert run_study("mine", lambda: jobs, lambda _: "", other, part=(1, 2)) == 0
    assert sorted(first.seen + other.seen) == ["new_a", "new_b", "new_c"] and other.seen


def test_a_folder_with_other_settings_is_refused_before_any_work(tmp_path) -> None:
    mine = job(tmp_path / "a", "run", "recovery=kd", "seed=0", decided=tmp_path / "d")
    said = "tinyfusion run recovery=kd seed=0 decision=/elsewhere/d/decision.json {}\n"
    command_file = tmp_path / "a/command.txt"
    write(command_file)
    for passed_on, more in (
        ([], ""),
        (["trainer.threads=1"], "output_root=x trainer.progress=false"),
        (["training.recovery.steps=5"], "training.recovery.steps=5"),
    ):
        command_file.write_text(said.format(more))
        mine.check_same(passed_on)
    for passed_on, more, how in (
        ([], "training.recovery.steps=5", "with training.recovery.steps=5"),
        (["training.recovery.steps=5"], "", "without training.recovery.steps=5"),
        (["seed=1"], "", "with seed=0 and without seed=1"),
    ):
        command_file.write_text(said.format(more))
        first, command = job(tmp_path / "first"), Commands()
        with pytest.raises(InputError, match=f"was run {how}: give another"):
            carry_out([first, mine], command, passed_on)
        assert command.seen == []


def test_what_a_checkpoint_brings_along_is_no_other_setting(tmp_path) -> None:
    mine = job(tmp_path / "a", "prune", "checkpoint=sit_digits", "keep=7")
    written = "tinyfusion prune {} checkpoint=sit_digits keep=7 trainer.threads=1\n"
    for brought in ("", "process=sit sampler=ode_heun_10"):
        write(tmp_path / "a/command.txt").write_text(written.format(brought))
        mine.check_same(["trainer.threads=1"])
        mine.check_same()
    (tmp_path / "a/command.txt").write_text(written.format("process=ddpm"))
    with pytest.raises(InputError, match="was run with process=ddpm"):
        mine.check_same()


def test_an_interrupted_job_ends_the_study(tmp_path) -> None:
    command = Commands({"a": 130})
    with pytest.raises(Interrupted):
        carry_out([job(tmp_path / "a"), job(tmp_path / "b")], command)
    assert command.seen == ["a"]


def test_plan_of_the_digits_study(tmp_path) -> None:
    added = {"random, least loss": write(tmp_path / "least.json")}
    jobs = plan(tmp_path, [0, 1, 2], added)
    assert len({item.folder for item in jobs}) == len(jobs)
    cuts = [item for item in jobs if item.command == "prune"]
    patterns = [name for name, choice in PRUNERS.items() if not choice.seeded]
    assert sorted(patterns) == ["first", "last", "oracle", "uniform"]
    assert len(cuts) == 3 * (len(PRUNERS) + len(WIDTH)) - 2 * len(patterns)
    runs = [item for item in jobs if item.command == "run"]
    names = len(PRUNERS) + len(added)
    assert len(runs) == 3 * (2 * names + len(WIDTH) + len(OTHERS))
    seen: set[Path] = set(added.values())
    for item in jobs:
        assert item.decided is None or item.decided in seen
        seen.add(item.folder)
    recoveries = [item.recovery for item in runs]
    assert recoveries[: 3 * names].count("masked_kd") == 0
    assert "masked_kd" not in recoveries[-3 * (len(OTHERS) - 1) :]
    first = names + len(WIDTH) + 1  # and from scratch
    assert [item.seed for item in runs[: 3 * first]] == sorted([0, 1, 2] * first)
    more = plan(tmp_path, [0, 1, 2], added, finetune=True)
    assert len(more) - len(jobs) == 3 * (names - 1)


@pytest.mark.parametrize("name", ["shortgpt", "learned_1:2", "diff_pruning, 50 %", "a/b"])
def test_further_decisions_need_names_of_their_own(tmp_path, name: str) -> None:
    file = write(tmp_path / "mine.json")
    with pytest.raises(InputError, match=f"decision '{name}': the name is taken or"):
        plan(tmp_path, [0], {name: file})
    with pytest.raises(InputError, match="decision 'my own': the name is taken"):
        plan(tmp_path, [0], {"my_own": file, "my own": file})


def test_shares_keep_decisions_with_their_runs(tmp_path) -> None:
    jobs = plan(tmp_path, [0, 1, 2])
    split = shares(jobs, 2)
    assert sorted(item.folder for share in split for item in share) == sorted(
        item.folder for item in jobs
    )
    sizes = [len(share) for share in split]
    assert max(sizes) - min(sizes) <= 4
    for share in split:
        assert [item for item in jobs if item in share] == share  # in the order of the plan
        cut = {item.folder for item in share if item.command == "prune"}
        assert {item.decided for item in share if item.command == "run"} == cut


def test_plan_of_the_random_study_takes_decisions_that_are_there(tmp_path) -> None:
    there = tmp_path / "study/decisions"
    write(there / "shortgpt_seed4/decision.json")
    write(there / "oracle/decision.json")
    jobs = plan_random(tmp_path / "random", [4, 5], 1000, 32, decisions=there)
    cuts = [item for item in jobs if item.command == "prune"]
    assert [item.pruner for item in cuts[:-3]] == [
        name for name in METHODS if name not in ("shortgpt", "oracle")
    ]
    median, most, least = cuts[-3:]
    (marks,) = (text for text in median.overrides if text.startswith("pruner.marks="))
    assert f"shortgpt:{there / 'shortgpt_seed4/decision.json'}" in marks and "learned:/" in marks
    for other, pick in ((most, "max"), (least, "min")):
        assert f"pruner.choose={pick}" in other.overrides
        assert f"pruner.losses={median.folder / 'prune/candidates.csv'}" in other.overrides
    assert all("pruner.candidates=1000" in item.overrides for item in cuts[-3:])
    runs = [item for item in jobs if item.command == "run"]
    assert len(runs) == 2 * (3 + len(METHODS))
    assert all("recovery=finetune" in item.overrides for item in runs)
