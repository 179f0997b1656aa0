"""`tinyfusion sample` at length: the same images however they are drawn, and scored afterwards."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

N = 50
BASE = (f"n={N}", "batch_size=8", "sampler.steps=4", "seed=3", "guidance.scale=1.5")


def packed(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "samples.npz", allow_pickle=False) as archive:
        return dict(archive)


@pytest.fixture
def sample(tf, root):
    """Draw into a named folder and give the folder."""

    def run(name: str, *overrides: str) -> Path:
        folder = root / name
        result = tf("sample", *BASE, *overrides, f"hydra.run.dir={folder}")
        assert result.status == 0, result.err
        return folder

    return run


def test_images_and_labels_do_not_depend_on_how_they_are_drawn(sample) -> None:
    whole = packed(sample("whole"))
    assert whole["arr_0"].shape == (N, 8, 8, 1) and whole["arr_0"].dtype == np.uint8
    assert len(np.unique(whole["arr_0"].reshape(N, -1), axis=0)) == N
    shards = sample("shards", "format=npz", "shard_size=20")
    names = sorted(path.name for path in (shards / "samples").iterdir())
    assert names == ["000000.npz", "000016.npz", "000032.npz", "000048.npz"]
    for key, value in packed(shards).items():
        assert (value == whole[key]).all(), key
    # Other batches: other rounding, which one pixel in a while shows.
    other = packed(sample("other", "batch_size=7"))
    assert (other["labels"] == whole["labels"]).all()
    assert np.abs(other["arr_0"].astype(int) - whole["arr_0"]).max() <= 1
    # Fewer images are the first ones of more; their last batch is a smaller one.
    few = packed(sample("few", "n=20"))
    assert (few["labels"] == whole["labels"][:20]).all()
    assert (few["arr_0"][:16] == whole["arr_0"][:16]).all()
    assert np.abs(few["arr_0"].astype(int) - whole["arr_0"][:20]).max() <= 1


@pytest.mark.parametrize("form", ["png", "npz"])
def test_a_run_that_was_interrupted_ends_in_the_same_bytes(
    tf, sample, root, assert_same_files, form
) -> None:
    whole = sample("whole", f"format={form}", "shard_size=16")
    broken = sample("broken", f"format={form}", "shard_size=16")
    files = sorted((broken / "samples").iterdir())
    gone = [files[1], files[-1]]
    for file in (*gone, *(broken / name for name in ("finished.json", "samples.npz", "grid.png"))):
        file.unlink()
    torn = broken / "samples" / f".{files[1].stem}.0123abcd{files[1].suffix}"
    torn.write_bytes(b"half a file")
    kept = {file: file.stat().st_mtime_ns for file in files if file not in gone}
    result = tf("sample", f"resume={broken}", exact=True)
    assert result.status == 0, result.err
    assert "of 50 images are there already" in result.out
    again = {file: file.stat().st_mtime_ns for file in kept}
    # Of pictures, those of a batch that is not whole are written again.
    assert sum(again[file] == kept[file] for file in kept) >= len(kept) - 2 * 7
    names = [f"samples/{file.name}" for file in files]
    assert_same_files(whole, broken, "samples.npz", "grid.png", *names)
    assert not torn.exists()


@pytest.mark.slow
def test_killed_and_resumed(tf, sample, root, killed_when, assert_same_files) -> None:
    whole = sample("whole", "sampler.steps=20")
    folder = root / "killed"
    arguments = [*(whole / "command.txt").read_text().split()[1:], f"hydra.run.dir={folder}"]
    killed_when(lambda: len(list((folder / "samples").glob("[0-9]*"))) >= 9, arguments)
    there = len(list((folder / "samples").glob("[0-9]*.png")))
    assert 9 <= there < N and not (folder / "finished.json").exists()
    assert tf("sample", f"resume={folder}", exact=True).status == 0
    assert_same_files(whole, folder, "samples.npz")
    assert len(list((folder / "samples").iterdir())) == N


def test_classes_are_drawn_as_published_or_balanced(sample) -> None:
    many = ("n=200", "sampler.steps=1", "format=npz", "batch_size=50")
    drawn = packed(sample("drawn", *many))["labels"]
    counts = np.bincount(drawn, minlength=10)
    assert counts.min() > 5 and counts.max() < 40 and counts.std() > 1
    assert (packed(sample("same", *many, "batch_size=200"))["labels"] == drawn).all()
    assert (packed(sample("seed", *many, "seed=4"))["labels"] != drawn).any()
    even = packed(sample("even", *many, "class_balance=balanced"))["labels"]
    assert (np.bincount(even) == 20).all()
    named = packed(sample("named", "labels=[3,7]"))["labels"]
    assert named.tolist() == [3, 7] * 25


def test_without_the_packed_file_labels_stand_alone(sample) -> None:
    folder = sample("loose", "pack=false")
    assert not (folder / "samples.npz").exists()
    assert (np.load(folder / "labels.npy") == packed(sample("packed"))["labels"]).all()


def test_samples_are_scored_from_wherever_they_lie(tf, sample, root) -> None:
    folder = sample("drawn")
    rows = []
    for images in (folder, folder / "samples", folder / "samples.npz"):
        out = root / f"scores{len(rows)}"
        result = tf("evaluate", f"images={images}", f"hydra.run.dir={out}")
        assert result.status == 0, result.err
        rows.append(json.loads((out / "metrics.json").read_text()))
    assert rows[0]["images"] == rows[1]["images"] == rows[2]["images"]
    found = rows[0]["images"]
    assert found["images"] == N and found["fid"] > 1 and found["sfid"] > 0
    assert {"inception_score", "precision", "recall"} <= set(found)
    assert rows[0]["protocol"]["extractor"] == "tinyfusion-digits"
    # The same images as the reference: nothing is as near.
    out = root / "same"
    result = tf(
        "evaluate",
        f"images={folder}",
        f"evaluation.reference={folder / 'samples.npz'}",
        f"hydra.run.dir={out}",
    )
    assert result.status == 0, result.err
    found = json.loads((out / "metrics.json").read_text())
    assert abs(found["images"]["fid"]) < 1e-6 and found["images"]["recall"] == 1


def test_a_live_model_gets_the_figures_of_its_samples(tf, sample, root) -> None:
    """`evaluate` draws what `sample` draws with the same settings."""
    folder = sample("drawn", "guidance.scale=1", "n=20", "class_balance=balanced", "seed=0")
    tf("evaluate", f"images={folder}", f"hydra.run.dir={root / 'images'}")
    result = tf(
        "evaluate",
        "sampler.steps=4",
        "evaluation.num_samples=20",
        "evaluation.batch_size=8",
        "evaluation.seeds=[0]",
        f"hydra.run.dir={root / 'live'}",
    )
    assert result.status == 0, result.err
    live = json.loads((root / "live" / "metrics.json").read_text())["model"]
    images = json.loads((root / "images" / "metrics.json").read_text())["images"]
    for key in ("fid", "sfid", "inception_score", "precision", "recall"):
        assert live[key] == pytest.approx(images[key], rel=1e-6), key


def test_a_live_models_samples_are_kept_on_demand(tf, sample, root) -> None:
    folder = root / "live"
    scoring = ("evaluation.num_samples=20", "evaluation.batch_size=8", "evaluation.seeds=[0,5]")
    overrides = ("sampler.steps=4", "keep_samples=true", *scoring)
    assert tf("evaluate", *overrides, f"hydra.run.dir={folder}").status == 0
    for seed in (0, 5):
        own = packed(folder / f"seed_{seed}")
        drawn = sample(
            f"seed{seed}", f"seed={seed}", "n=20", "guidance.scale=1", "class_balance=balanced"
        )
        for key, value in packed(drawn).items():
            assert (value == own[key]).all()
    row = json.loads((folder / "metrics.json").read_text())["model"]
    # An interrupted one draws only what is missing, and comes to the same figures.
    (folder / "metrics.json").unlink()
    (folder / "finished.json").unlink()
    (folder / "seed_5" / "samples" / "000009.png").unlink()
    result = tf("evaluate", f"resume={folder}", exact=True)
    assert result.status == 0, result.err
    again = json.loads((folder / "metrics.json").read_text())["model"]
    assert {k: v for k, v in again.items() if "images_per" not in k} == {
        k: v for k, v in row.items() if "images_per" not in k
    }
    assert len(list((folder / "seed_5" / "samples").iterdir())) == 20


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["n=0"], "n=0 must be at least 1"),
        (["batch_size=0"], "batch_size=0 must be at least 1"),
        (["shard_size=0", "format=npz"], "shard_size=0 must be at least 1"),
        (["format=jpg"], "format='jpg' is not known; valid: png, npz"),
        (["class_balance=even"], "class_balance='even' is not known; valid: random, balanced"),
        (["labels=[10]"], "labels=[10]: valid are classes 0..9"),
    ],
)
def test_wrong_settings_leave_no_folder(tf, root, overrides, message) -> None:
    result = tf("sample", *overrides)
    assert result.status == 2 and message in result.err, result.err
    assert not root.exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["images="], "images= is empty; give an .npz batch or a folder"),
        (["images=absent.npz"], "images='absent.npz' does not exist; valid: an .npz file"),
        (["images={colour}"], "images: images are 3x8x8, but extractor 'tinyfusion-digits' takes"),
        (["images={float}"], "arr_0 is float32 of shape (5, 8, 8, 1); valid: uint8"),
        (["images={few}"], "samples: 3 images are too few, neighbours=3 needs at least 4"),
        (["images={good}", "evaluation.is_split_size=6"], "is_split_size=6: valid for 5 samples"),
        (["images={good}", "evaluation.reference={large}"], "holds images of shape (1, 16, 16)"),
        (["images={uneven}"], "is 4x4 pixels, but"),
        (
            ["images={good}", "evaluation.reference={nan}"],
            "evaluation.reference='{nan}': sigma holds values that are not finite",
        ),
        (
            ["images={good}", "evaluation=adm", "evaluation.reference={good}"],
            "evaluation.weights='/absent' does not exist; get https://",
        ),
    ],
)
def test_images_that_can_not_be_scored_leave_no_folder(
    tf, root, tmp_path, overrides, message
) -> None:
    batches = {
        "good": np.zeros((5, 8, 8, 1), np.uint8),
        "few": np.zeros((3, 8, 8, 1), np.uint8),
        "colour": np.zeros((5, 8, 8, 3), np.uint8),
        "float": np.zeros((5, 8, 8, 1), np.float32),
        "large": np.zeros((5, 16, 16, 1), np.uint8),
    }
    places = {name: tmp_path / f"{name}.npz" for name in (*batches, "nan")}
    for name, images in batches.items():
        np.savez(places[name], arr_0=images)
    statistics = {"mu": np.zeros(64), "sigma": np.full((64, 64), np.nan)}
    np.savez(places["nan"], arr_0=batches["good"], **statistics)
    places["uneven"] = tmp_path / "uneven"
    places["uneven"].mkdir()
    for name, size in (("a", 8), ("b", 4)):
        Image.new("L", (size, size)).save(places["uneven"] / f"{name}.png")
    given = [override.format(**places) for override in overrides]
    if "evaluation=adm" in given:
        given.append("evaluation.weights=/absent")
    result = tf("evaluate", *given)
    assert result.status == 2 and message.format(**places) in result.err, result.err
    assert len(result.err.strip().splitlines()) == 1
    assert not root.exists()


TWO = ("trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp")
THREE = ("trainer.accelerator=cpu", "trainer.devices=3", "trainer.strategy=ddp")


@pytest.mark.parametrize("form", ["png", pytest.param("npz", marks=pytest.mark.slow)])
def test_two_ranks_draw_what_one_draws(tf, sample, root, on_ranks, assert_same_files, form) -> None:
    forms = (f"format={form}", "shard_size=16")
    whole, shared = sample("whole", *forms), root / "shared"
    first, second = on_ranks(
        2, lambda: tf("sample", *BASE, *forms, *TWO, f"hydra.run.dir={shared}")
    )
    assert (first.status, second.status) == (0, 0), first.err + second.err
    assert first.out.count("50 of 50 images (100.0 %)") == 1 and second.out == ""
    names = [f"samples/{file.name}" for file in sorted((whole / "samples").iterdir())]
    assert_same_files(whole, shared, "samples.npz", "grid.png", "sampling.json", *names)


@pytest.mark.slow
def test_two_processes_draw_what_one_draws(tf, sample, root, monkeypatch, assert_same_files):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    whole, shared = sample("whole"), root / "shared"
    result = tf("sample", *BASE, *TWO, "trainer.precision=32-true", f"hydra.run.dir={shared}")
    assert result.status == 0, result.err
    assert_same_files(whole, shared, "samples.npz", "grid.png")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["png", "npz"])
def test_three_processes_killed_and_resumed(
    tf, sample, root, monkeypatch, killed_when, assert_same_files, form
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    own = (f"format={form}", "shard_size=8", "sampler.steps=20")
    whole = sample("whole", *own)
    folder = root / "killed"
    line = (whole / "command.txt").read_text().split()[1:]
    line = [text for text in line if "hydra.run.dir" not in text]
    killed_when(
        lambda: len(list((folder / "samples").glob("[0-9]*"))) >= (9 if form == "png" else 2),
        [*line, *THREE, f"hydra.run.dir={folder}"],
    )
    deadline = time.monotonic() + 60
    while True:  # the ranks end with the process that started them; until then they hold it
        result = tf("sample", f"resume={folder}", exact=True)
        if "another process is working" not in result.err or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert result.status == 0, result.err
    assert_same_files(whole, folder, "samples.npz", "grid.png")
    assert len(list((folder / "samples").iterdir())) == (N if form == "png" else 7)


def figures(folder: Path) -> dict:
    found = json.loads((folder / "metrics.json").read_text())
    for row in (found.get("model"), found.get("images")):
        for name in [name for name in row or () if name.startswith("images_per")]:
            del row[name]  # times
    return found


@pytest.mark.parametrize("keep", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_model_is_scored_on_all_devices(tf, root, on_ranks, monkeypatch, keep) -> None:
    scoring = ("sampler.steps=4", "evaluation.batch_size=4", "evaluation.seeds=[0,5]")
    scoring = (*scoring, "evaluation.num_samples=30", f"keep_samples={keep}")
    scoring = (*scoring, "evaluation.reference_samples=200", "evaluation.features_folder=null")
    assert tf("evaluate", *scoring, f"hydra.run.dir={root / 'one'}").status == 0
    # Not from what the first one has left.
    two = (*TWO, f"output_root={root / 'elsewhere'}", f"hydra.run.dir={root / 'two'}")
    ranks = on_ranks(2, lambda: tf("evaluate", *scoring, *two))
    assert [rank.status for rank in ranks] == [0, 0], ranks
    assert figures(root / "one") == figures(root / "two")
    assert (root / "two" / "seed_5" / "samples.npz").exists() is keep
    assert "one of the 2 devices" not in ranks[0].out and ranks[1].out == ""


def test_images_are_scored_on_all_devices(tf, sample, root, on_ranks) -> None:
    images = sample("drawn", "n=150", "sampler.steps=1")
    own = (
        f"images={images}",
        "evaluation.features_folder=null",
        "evaluation.reference_samples=200",
    )
    assert tf("evaluate", *own, f"hydra.run.dir={root / 'one'}").status == 0
    ranks = on_ranks(3, lambda: tf("evaluate", *own, *THREE, f"hydra.run.dir={root / 'three'}"))
    assert [rank.status for rank in ranks] == [0, 0, 0], ranks
    assert figures(root / "one") == figures(root / "three")


@pytest.mark.slow
def test_two_processes_score_as_one(tf, root, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name, more in (("one", ()), ("two", TWO)):
        own = ("sampler.steps=4", "evaluation.batch_size=4", f"output_root={root / name}")
        result = tf("evaluate", *own, *more, f"hydra.run.dir={root / name / 'run'}")
        assert result.status == 0, result.err
    assert figures(root / "one" / "run") == figures(root / "two" / "run")


def test_a_model_that_is_not_asked_for_is_named(tf, tmp_path, caplog) -> None:
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((5, 8, 8, 1), np.uint8))
    result = tf("evaluate", f"images={tmp_path / 'a.npz'}", "teacher.path=digits")
    assert result.status == 0, result.err
    assert "teacher= changes nothing: images= are scored" in caplog.text


def test_images_of_something_else_are_not_taken_as_ones_own(tf, sample, root, make_model) -> None:
    folder = root / "foreign"
    (folder / "samples").mkdir(parents=True)
    Image.new("L", (8, 8)).save(folder / "samples" / "000000.png")
    result = tf("sample", *BASE, f"hydra.run.dir={folder}")
    assert result.status == 2 and "holds files that no run of this package has made" in result.err
    # Nor are those of a checkpoint that was replaced meanwhile.
    model = make_model(root / "model", seed=1)
    whole = sample("own", f"checkpoint={model}")
    (whole / "finished.json").unlink()
    (whole / "samples" / "000003.png").unlink()
    make_model(root / "model", seed=2)
    result = tf("sample", f"resume={whole}", exact=True)
    assert result.status == 2 and "holds samples of other weights" in result.err


def test_a_disk_that_is_too_small_is_refused_before_work(tf, root, monkeypatch) -> None:
    class Usage:
        free = 100

    monkeypatch.setattr("tinyfusion.data.sample_store.shutil.disk_usage", lambda _: Usage)
    result = tf("sample", *BASE)
    assert result.status == 2 and "n=50: up to" in result.err
    assert not list(root.rglob("*.png"))


def test_blocks_are_compiled_and_precision_is_the_trainers(tf, sample, monkeypatch) -> None:
    compiled = []
    monkeypatch.setattr(
        "tinyfusion.commands.sample.compile_blocks", lambda net, backend: compiled.append(backend)
    )
    plain = packed(sample("plain"))["arr_0"]
    half = ("trainer.compile=true", "trainer.compile_backend=eager", "trainer.precision=bf16-mixed")
    assert (packed(sample("half", *half))["arr_0"] != plain).any()
    assert compiled == ["eager"]


def test_a_callbacks_reference_is_looked_at_before_training(tf, root) -> None:
    result = tf("run", "callbacks=evaluate", "callbacks.evaluate.evaluation.reference=/absent.npz")
    assert result.status == 2
    assert "callbacks.evaluate.evaluation.reference='/absent.npz' does not exist" in result.err
    assert not list(root.rglob("decision.json"))
