"""What makes two command lines the same work."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest

from tinyfusion.decision import Decision
from tinyfusion.settings.composed import composed
from tinyfusion.studies.identity import decision_digest, identity, is_of_results
from tinyfusion.training.phase_settings import TrainingSettings
from tinyfusion.version import changed_modules, digest_of_versions, imported_modules

RUN = ("experiment=digits_study", "decision=/choice/decision.json", "recovery=kd")


def of(command: str, *overrides: str, read: dict[str, str] | None = None, seed: int = 0) -> str:
    return identity(command, composed(command, list(overrides)), read or {}, seed)


def test_what_changes_no_result_changes_no_identity() -> None:
    one = of("run", *RUN)
    assert one == of("run", *RUN, "trainer.threads=2", "name=mine", "output_root=/elsewhere")
    assert one == of("run", *RUN, "logger=tensorboard", "trainer.progress=false")
    tracked = ("logger=wandb", "logger.wandb.group=g", "logger.wandb.tags=[a]")
    assert one == of("run", *RUN, *tracked, "optimized_metric=recovered/fid")
    # A decision is given: how another one would be chosen is not read.
    assert one == of("run", *RUN, "pruner=shortgpt", "keep=3", "training.mask_learning.steps=9")
    assert one == of("run", *RUN, "recovery.task_weight=0.1")  # as it is by itself


def test_the_folder_of_a_command_changes_no_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do the caches below it, also those of scores during training."""
    scored = (*RUN, "callbacks=evaluate")
    here = of("run", *scored), of("evaluate", "experiment=digits_study")
    monkeypatch.chdir(tmp_path)
    assert here == (of("run", *scored), of("evaluate", "experiment=digits_study"))


@pytest.mark.parametrize(
    ("key", "is_so"),
    [
        ("logger", False),
        ("logger.wandb.project", False),
        ("+logger.mine._target_", False),
        ("trainer.threads", False),
        ("trainer.precision", True),
        ("training.recovery.steps", True),
    ],
)
def test_which_settings_a_report_tells_of(key: str, is_so: bool) -> None:
    assert is_of_results(key) == is_so


def test_a_setting_that_comes_to_be_changes_no_identity() -> None:
    config = composed("run", list(RUN))
    later = deepcopy(config)
    assert "warm_up" not in config["training"]["recovery"]
    later["training"]["recovery"]["warm_up"] = TrainingSettings.warm_up
    assert identity("run", later, {}, 0) == identity("run", config, {}, 0)
    later["training"]["recovery"]["warm_up"] = TrainingSettings.warm_up + 1
    assert identity("run", later, {}, 0) != identity("run", config, {}, 0)


def test_what_changes_a_result_does() -> None:
    others = [
        of("run", *RUN, seed=1),
        of("run", *RUN, "training.recovery.steps=9"),
        of("run", *RUN, "recovery=finetune"),
        of("run", *RUN, "trainer.precision=bf16-mixed"),
        of("run", *RUN, "checkpoint=sit_digits"),
        of("run", *RUN, read={"/choice/decision.json": "0123"}),
        of("run", *RUN, read={"/choice/decision.json": "4567"}),
        of("prune", "keep=3"),
        of("prune", "keep=4"),
        of("prune", "keep=4", "pruner=shortgpt"),
    ]
    assert len({of("run", *RUN), *others}) == 1 + len(others)


def test_recoveries_of_equal_choices_are_equal_work() -> None:
    learned = Decision((0, 2), 4, "learned", scores={"steps": 9}, seed=1, source_sha256="a")
    first = Decision((0, 2), 4, "first", source_sha256="a")
    assert decision_digest(learned) == decision_digest(first)
    # Groups decide which states are compared in distillation.
    grouped = Decision((0, 2), 4, "learned", scheme=[[1, 2], [1, 2]], source_sha256="a")
    other = Decision((0, 3), 4, "first", source_sha256="a")
    source = Decision((0, 2), 4, "first", source_sha256="b")
    digests = [decision_digest(d) for d in (learned, grouped, other, source)]
    assert len(set(digests)) == 4


def test_versions_of_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    found = imported_modules()
    assert "tinyfusion.decision" in found and "tinyfusion.checkpoints.locate" in found
    assert not any(name.startswith(("tinyfusion.studies", "tinyfusion.cli")) for name in found)
    assert changed_modules(found) == []
    other = found | {"tinyfusion.decision": "00000000", "tinyfusion.gone": "11111111"}
    assert changed_modules(other) == ["tinyfusion.decision", "tinyfusion.gone"]
    assert digest_of_versions(other) != digest_of_versions(found)
