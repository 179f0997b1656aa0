"""`tinyfusion study` from the command line: run, found again, resumed, published, reported."""

from __future__ import annotations

import copy
import fcntl
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.utils import JobReturn, JobStatus

from tests.cli.conftest import tiny_model
from tinyfusion.cli import main
from tinyfusion.interrupts import Interrupted
from tinyfusion.studies import session

TINY = [
    "training.recovery.steps=2",
    "training.recovery.batch_size=8",
    "evaluation.num_samples=20",
    "evaluation.reference_samples=200",
    "evaluation.held_out_repeats=1",
    "sampler.steps=2",
]
STUDY: dict[str, Any] = {
    "title": "Two ways",
    "columns": {"fid": "FID", "calibration_loss": None},
    "paper": {"table": 4},
    "seeds": [0, 1],
    "scales": {"digits": {"all": ["experiment=digits_study", "recovery=finetune", *TINY]}},
    "rows": [
        {"is": {"method": "first"}, "paper": {"pattern": "1:2", "delta_w": "LoRA"},
         "set": ["pruner=first", "keep=3"]},
        {"is": {"method": "the same by hand"}, "set": ["pruner=indices", "pruner.kept=[0,1,2]"]},
        {"is": {"method": "only the paper's"}, "paper": {"pattern": "2:4", "delta_w": "Full"}},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of four small blocks, which takes a fraction of the digits teacher's time."""
    return tiny_model(tmp_path_factory.mktemp("source") / "model")


def write_study(folder: Path, model: Path, **changed: Any) -> None:
    """The study, or another one, of this model as ``study/mine.yaml``."""
    content = copy.deepcopy(STUDY | changed)
    scale = content["scales"]["digits"]
    scale["all"] = [f"checkpoint={model}", *scale.get("all", [])]
    (folder / "study").mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(content, sort_keys=False)
    (folder / "study" / "mine.yaml").write_text(text)


@pytest.fixture
def place(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a study of one's own, from which commands are started."""
    write_study(tmp_path / "conf", model)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session, "PUBLISHED", tmp_path / "published")
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """Folder of the study's runs of seed 0, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    write_study(folder, model)
    root = ["--config-dir", str(folder), "--root", str(folder / "runs_of_seed_0")]
    assert main(["study", "mine", "seeds=0", *root]) == 0
    return folder / "runs_of_seed_0"


@pytest.fixture
def done(place: Path, finished: Path) -> Path:
    """A place where the runs of seed 0 are complete."""
    shutil.copytree(finished, "outputs/study")
    return place


def study(*arguments: str) -> int:
    return main(["study", "mine", "--config-dir", "conf", *arguments])


def runs(root: str = "outputs/study") -> list[Path]:
    return sorted(file.parent for file in Path(root, "runs").glob("*/finished.json"))


def test_a_study_is_run_once_and_found_again(place: Path, capsys) -> None:
    assert study("seeds=0", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "0 of 2 cells are complete" in said and not Path("outputs").exists()
    assert study("seeds=0") == 0
    reported = place / "outputs/study/reports/mine.digits"
    text = (reported / "mine.md").read_text()
    html = (reported / "mine.html").read_text()
    assert "Two ways" in html and "the same by hand" in html and "table 4" in html
    # Two choices, and one recovery of both: they keep the same blocks.
    folders = runs()
    assert len(folders) == 3
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in lines]
    head, _, first, same, paper = rows
    assert head[:3] == ["method", "seeds", "FID ↓"] and "paper: FID ↓" in head
    assert first[1:4] == same[1:4] and first[-1] == "33.39" and same[-1] == "-"
    assert paper[:3] == ["only the paper's", "-", "-"] and paper[-1] == "34.41"

    before = [(folder / "finished.json").stat().st_mtime_ns for folder in folders]
    assert study("seeds=0") == 0
    assert [(folder / "finished.json").stat().st_mtime_ns for folder in runs()] == before
    # Another seed is further work; what one seed has stays.
    assert study("seeds=0,1", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "2 of 4 cells are complete" in said


def test_records_are_published_and_count_as_complete(done: Path, capsys) -> None:
    assert study("seeds=0", "--publish", "published") == 0
    text = (done / "published/mine.md").read_text()
    file = done / "published/records/mine.digits.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    modules = [line for line in lines if "modules" in line]
    records = [line for line in lines if "identity" in line]
    assert len(records) == 3 and {r["code"] for r in records} == {m["code"] for m in modules}
    assert all(record["libraries"]["torch"] for record in records)
    shutil.rmtree("outputs")
    assert study("seeds=0", "--report") == 0
    assert capsys.readouterr().out.endswith(text)
    assert not runs()
    # A recovery of another length needs the decision, which the record has.
    assert study("seeds=0", "training.recovery.steps=3") == 0
    (folder,) = runs()
    assert json.loads((folder / "decision.json").read_text())["kept"] == [0, 1, 2]


def test_changes_of_code_are_marked(done: Path, capsys) -> None:
    assert study("seeds=0", "--publish", "published") == 0
    file = done / "published/records/mine.digits.jsonl"
    shutil.rmtree("outputs")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:  # of each set of modules that was imported by then
        if "modules" in line:
            line["modules"]["tinyfusion.surgery"] = "00000000"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    capsys.readouterr()
    assert study("seeds=0", "--report") == 0
    said = capsys.readouterr().out
    assert "| first *" in said and "Run before changes of `tinyfusion.surgery`." in said
    assert not runs()  # marked, not run again


def test_what_fails_is_said_and_tried_again(place: Path, model: Path, capsys) -> None:
    first, second, third = STUDY["rows"]
    # Refused by the run itself, not by its configuration.
    wrong = second | {"set": ["pruner=indices", "pruner.kept=[0,99]"]}
    write_study(place / "conf", model, rows=[first, wrong, third])
    assert study("seeds=0") == 1
    said = capsys.readouterr()
    assert "study: digits_the_same_by_hand_seed0_choice failed\n" in said.err
    assert "the_same_by_hand_seed0 waits for digits_the_same_by_hand_seed0_choice\n" in said.err
    assert "1 of 2 runs are missing" in said.out
    assert "    tinyfusion run " in said.out and "'pruner.kept=[0,99]'" in said.out
    assert len(runs()) == 2
    write_study(place / "conf", model)
    assert study("seeds=0") == 0


def test_a_killed_run_is_resumed(place: Path, capsys) -> None:
    assert study("seeds=0") == 0
    (run,) = [folder for folder in runs() if "choice" not in folder.name]
    (run / "finished.json").unlink()
    (run / "metrics.json").unlink()
    weights = (run / "recovered/model.safetensors").stat().st_mtime_ns
    assert study("seeds=0", "--dry-run") == 0
    # What changes no result does not keep it from being resumed.
    assert study("seeds=0", "trainer.log_every=5") == 0
    assert (run / "metrics.json").is_file() and (run / "finished.json").is_file()
    assert (run / "recovered/model.safetensors").stat().st_mtime_ns == weights


def test_a_row_by_another_name_finds_its_runs(done: Path, model: Path, capsys) -> None:
    write_study(done / "conf", model, rows=[STUDY["rows"][0] | {"is": {"method": "renamed"}}])
    assert study("seeds=0", "--dry-run") == 0
    assert "1 of 1 cells are complete" in capsys.readouterr().out


def test_random_choices_with_marks_are_drawn(place: Path, model: Path) -> None:
    marks = "pruner.marks={first:{first}/decision.json}"
    random = ["pruner=random", "keep=2", "pruner.candidates=6", marks]
    write_study(
        place / "conf",
        model,
        report="tinyfusion.studies.paper_figures.figure_5",
        scales={"digits": {"seeds": [0]}},
        works={"first": {"command": "prune", "set": ["pruner=first", "keep=2"]}},
        rows=[{"is": {"choice": "random"}, "command": "prune", "set": random}],
    )
    assert study() == 0
    folder = place / "outputs/study/reports/mine.digits"
    assert "| first " in (folder / "mine.md").read_text() and (folder / "mine.png").is_file()


def test_publishing_one_seed_keeps_the_records_of_others(done: Path) -> None:
    file = done / "published/records/mine.digits.jsonl"

    def recorded() -> set[str]:
        lines = map(json.loads, file.read_text().splitlines())
        return {line["identity"] for line in lines if "identity" in line}

    assert study("seeds=0", "--publish", "published") == 0
    first = recorded()
    shutil.rmtree("outputs")
    assert study("seeds=1", "--publish", "published") == 0
    assert first < recorded()


def test_a_row_and_a_work_may_have_one_name(place: Path, model: Path) -> None:
    row = {
        "is": {"method": "twice"},
        "set": ["checkpoint={twice}/pruned", "pruner=first", "keep=2"],
    }
    works = {"twice": {"command": "prune", "set": ["pruner=first", "keep=3"]}}
    write_study(place / "conf", model, works=works, rows=[row])
    assert study("seeds=0") == 0
    names = [folder.name.partition("_")[2] for folder in runs()]
    assert sorted(names) == [
        "digits_twice_seed0",
        "digits_twice_seed0",
        "digits_twice_seed0_choice",
    ]


def test_overrides_of_all_runs_stand_in_the_report(place: Path, capsys) -> None:
    assert study("seeds=0", "--report", "training.recovery.steps=3", "trainer.progress=false") == 0
    said = capsys.readouterr().out
    assert "Every run with `training.recovery.steps=3`." in said
    again = "tinyfusion study mine scale=digits training.recovery.steps=3 trainer.progress=false"
    assert f"`{again} seeds=0 --config-dir {place / 'conf'}` fills them" in said


def test_a_run_that_another_process_is_doing_has_not_failed(done: Path, capsys) -> None:
    (run,) = [folder for folder in runs() if "choice" not in folder.name]
    (run / "finished.json").unlink()
    with open(run / "config.yaml") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert study("seeds=0", "--dry-run") == 0
        assert "\n1 of them are being run by other processes.\n" in capsys.readouterr().out
        assert study("seeds=0") == 1
    said = capsys.readouterr()
    assert "run: skipped, as another process is working in" in said.out
    assert "_seed0 is being run by another process, in" in said.err
    assert "error" not in said.err and "failed" not in said.err


def test_faults_of_jobs_in_other_processes_are_raised(place: Path, monkeypatch) -> None:
    class Launcher:
        def launch(self, jobs: list[Any], initial_job_idx: int) -> list[JobReturn]:
            fault = RuntimeError("lost its folder")
            return [JobReturn(status=JobStatus.FAILED, _return_value=fault) for _ in jobs]

    plugins = "hydra.core.plugins.Plugins.instantiate_launcher"
    monkeypatch.setattr(plugins, lambda *_, **__: Launcher())
    with pytest.raises(RuntimeError, match="lost its folder"):
        study("seeds=0")


def test_an_interrupted_study_says_how_it_goes_on(place: Path, capsys, monkeypatch) -> None:
    def stopped(*_: object) -> int:
        stop = Interrupted(15)
        stop.resume = place / "outputs/study/runs/one"
        raise stop

    monkeypatch.setattr("tinyfusion.studies.carry_out.multirun", stopped)
    assert study("seeds=0") == 128 + 15
    said = capsys.readouterr().err
    assert "interrupted by SIGTERM; the same command resumes it" in said and "resume=" not in said


def test_a_report_that_there_is_not_is_refused_before_anything_is_run(
    place: Path, model: Path, capsys
) -> None:
    write_study(place / "conf", model, report="nowhere.report")
    assert study("seeds=0") == 2
    assert "'nowhere.report' can't be imported" in capsys.readouterr().err
    assert not runs()


def test_the_list(capsys) -> None:
    assert main(["study", "--list"]) == 0
    said = capsys.readouterr().out
    assert "table4" in said and "imagenet" in said


def test_the_runs_of_a_study_are_a_group(place: Path, monkeypatch) -> None:
    """Not named by the folder that the runs of all studies lie in."""
    seen = []
    monkeypatch.setattr(
        "tinyfusion.commands.execute.execute", lambda cfg, *_: seen.append(cfg.logger.wandb.group)
    )
    assert study("seeds=0", "logger=wandb") == 1  # nothing was done
    assert len(seen) == 2 and set(seen) == {"mine-digits"}
