"""Scores kept for other runs are those of the same code."""

from __future__ import annotations

from types import SimpleNamespace

from tinyfusion.backbones.dit import DiT
from tinyfusion.commands import evaluate
from tinyfusion.data.digits import Digits
from tinyfusion.group import ALONE
from tinyfusion.metrics.evaluation import Evaluation
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.samplers.ancestral import AncestralSampler
from tinyfusion.samplers.ddim import DDIMSampler
from tinyfusion.samplers.guidance import Guidance


def test_cached_scores_are_not_those_of_other_code(tmp_path, monkeypatch) -> None:
    evaluation = Evaluation(num_samples=4, sampler=AncestralSampler(2), guidance=Guidance(1.0))
    objects = SimpleNamespace(
        config={"evaluation": {}, "process": {}, "data": {}},
        output_root=tmp_path,
        checkpoint="net",
        source_sha256="abc",
        source=Digits(),
        process=GaussianDiffusion(),
        trainer=SimpleNamespace(precision="32-true"),
        bars=False,
        dtype=None,
    )
    net = DiT(input_size=8, in_channels=1, hidden_size=8, depth=1, num_heads=2, num_classes=10)
    scores = iter(range(10))
    monkeypatch.setattr(Evaluation, "score", lambda *_, **__: {"fid": next(scores)})

    def found(evaluation: Evaluation = evaluation) -> float:
        return evaluate.cached_score(objects, evaluation, net, ALONE)["fid"]

    assert [found(), found()] == [0, 0]
    asked: list[tuple[str, ...]] = []
    digest = evaluate.code_digest
    monkeypatch.setattr(
        evaluate, "code_digest", lambda *modules: asked.append(modules) or "changed"
    )
    assert [found(), found()] == [1, 1]
    monkeypatch.setattr(evaluate, "code_digest", digest)
    assert found() == 0
    # Whatever made the samples, judged them or brought the data is among the code.
    assert {
        "tinyfusion.backbones.dit",
        "tinyfusion.data.digits",
        "tinyfusion.metrics.evaluation",
        "tinyfusion.metrics.features",
        "tinyfusion.processes.gaussian",
        "tinyfusion.samplers.ancestral",
    } <= set(asked[0])
    other = Evaluation(num_samples=4, sampler=DDIMSampler(2), guidance=Guidance(1.0))
    assert found(other) == 2
