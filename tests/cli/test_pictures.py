"""Folders of pictures from the command line: the same for training, encoding and scoring."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

DATA = ("data=imagefolder", "data.size=8", "data.channels=1", "data.held_out=4")
TRAINING = (
    *("pretrain", *DATA, "evaluation=none", "trainer.threads=1", "trainer.num_workers=1"),
    *("backbone.depth=2", "backbone.hidden_size=16", "backbone.num_classes=2"),
    *("training.pretrain.steps=3", "training.pretrain.batch_size=8"),
)
SCORING = ("evaluate", "evaluation.reference_samples=200", "trainer.threads=1")
ENCODING = ("encode", "data.size=8", "autoencoder=kl", "trainer.threads=1")


@pytest.fixture
def run(tf, tmp_path, tiny_autoencoder):
    """Run a command line in a folder of its own: ``run(name, *TRAINING, ...)``."""

    def start(name: str, *line: str):
        more = [f"hydra.run.dir={tmp_path / name}", f"output_root={tmp_path / 'outputs'}"]
        if line[0] == "encode":
            more += [f"store={tmp_path / 'store'}", f"autoencoder.path={tiny_autoencoder}"]
        return tf(*line, *more, small=False, exact=True)

    return start


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes 40 digits of the first two classes, as numbers of some range and type."""
    digits = load_digits(n_class=2)

    def write(name: str, white: float, kind: str, ending: str = "png") -> Path:
        for number, (digit, label) in enumerate(
            zip(digits.images[:40], digits.target, strict=False)
        ):
            file = tmp_path / name / str(label) / f"{number:02}.{ending}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.rint(digit / 16 * white).astype(kind)).save(file)
        return tmp_path / name

    return write


def lines_at_the_end(out: str) -> list[str]:
    """What was noted, as the last lines repeat it."""
    return [line.strip() for line in out.partition("in all, noted on the way:")[2].splitlines()[1:]]


def test_16_bit_pictures_are_their_8_bit_twins(run, folder, tmp_path) -> None:
    scores = []
    for name, white, kind in (("d8", 255, "uint8"), ("d16", 65535, "uint16")):
        path = folder(name, white, kind)
        assert run(f"{name}_scores", *SCORING, f"images={path}").status == 0
        metrics = json.loads((tmp_path / f"{name}_scores" / "metrics.json").read_text())
        scores.append(metrics["images"])
        result = run(f"{name}_model", *TRAINING, f"data.root={path}")
        assert result.status == 0, result.err
        assert f"data: 40 picture(s) in 2 class(es) of {path}" in result.out
    assert scores[0] == scores[1]
    models = [(tmp_path / f"{n}_model/model/model.safetensors").read_bytes() for n in ("d8", "d16")]
    assert models[0] == models[1]
    what = "picture(s) of more than 8 bits per channel, scaled to 8"
    assert lines_at_the_end(result.out) == [f"40 {what}"]
    assert result.out.count(f"note: 1 {what}") == 5


@pytest.mark.parametrize(("white", "kind"), [(1.0, "float32"), (65535, "int32")])
def test_numbers_of_unknown_range_are_refused_in_one_line(run, folder, white, kind) -> None:
    path = folder("d", white, kind, "tif")
    for number, line in enumerate(
        (
            (*TRAINING, f"data.root={path}"),
            (*SCORING, "checkpoint=digits", *DATA, f"data.root={path}"),
            (*SCORING, f"images={path}"),
            (*SCORING, "checkpoint=digits", f"evaluation.reference={path}"),
            (*ENCODING, f"data.root={path}"),
        )
    ):
        result = run(str(number), *line)
        assert result.status == 2
        error = result.err.splitlines()[-1]
        assert f"0/00.tif' has pixels of Pillow's mode {kind[0].upper()!r}" in error, error
        assert "convert it to 8 bits per channel" in error


def test_one_count_for_training_encoding_and_scoring(run, folder) -> None:
    path = folder("d", 255, "uint8")
    for inner in (".ipynb_checkpoints", "@eaDir"):
        (path / "0" / inner).mkdir()
        (path / "0" / inner / "x.png").write_bytes((path / "0" / "00.png").read_bytes())
    (path / "1" / "mask.png").mkdir()
    (path / "1" / "loop").symlink_to(path / "1")
    for name, line in {
        "trained": (*TRAINING, f"data.root={path}"),
        "encoded": (*ENCODING, f"data.root={path}"),
        "scored": (*SCORING, f"images={path}"),
    }.items():
        result = run(name, *line)
        assert result.status == 0 and "40 picture(s)" in result.out, result.err
        (last,) = lines_at_the_end(result.out)
        assert "2 hidden name(s) or tools' own folder(s) (0/.ipynb_checkpoints, 0/@eaDir)" in last
        assert "1 link(s) to folders that are read already (1/loop)" in last
