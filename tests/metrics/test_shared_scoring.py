"""Several ranks score as one does: the same figures to the last bit, each doing its share."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tinyfusion.backbones.dit import DiT
from tinyfusion.data.adm_batch import AdmImages
from tinyfusion.data.digits import Digits
from tinyfusion.data.image_sets import ImageSet, PictureFiles, TensorImages
from tinyfusion.data.open_images import Shards
from tinyfusion.group import Group, joined
from tinyfusion.metrics.collected import CollectedFeatures
from tinyfusion.metrics.evaluation import Evaluation
from tinyfusion.metrics.features import DIGITS_EXTRACTOR, extract
from tinyfusion.processes.gaussian import GaussianDiffusion
from tinyfusion.samplers.ddim import DDIMSampler
from tinyfusion.samplers.generate import Drawing
from tinyfusion.samplers.guidance import Guidance


def net_of(seed: int) -> DiT:
    torch.manual_seed(seed)
    net = DiT(8, 2, 1, hidden_size=16, depth=2, num_heads=2, num_classes=10)
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return net


def scores(group: Group, folder: str | None = None) -> dict[str, Any]:
    """Figures of two models and the floor, and which batches this rank has drawn."""
    torch.set_num_threads(1)
    drawn: list[int] = []
    draw = Drawing.draw

    def noted(self: Drawing, batch: int, on_step: Any = None) -> torch.Tensor:
        drawn.append(batch)
        return draw(self, batch, on_step)

    evaluation = Evaluation(
        150,
        DDIMSampler(2),
        Guidance(1.5),
        seeds=(0, 3),
        batch_size=70,
        reference_samples=300,
        features_folder=folder,
    )
    process, source, teacher = GaussianDiffusion(clip=True), Digits(), net_of(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Drawing, "draw", noted)
        rows = [
            evaluation.score(net, process, source, teacher, group=group)
            for net in (teacher, net_of(1))
        ]
    return {"rows": rows, "floor": evaluation.floor(source, group=group), "drawn": drawn}


def test_figures_do_not_depend_on_the_number_of_ranks(on_ranks, tmp_path) -> None:
    one = scores(Group())
    assert one["drawn"] == [0, 1, 2] * 4 and one["rows"][0]["fid_std"] > 0
    for count, shares in ((2, ([0, 2], [1])), (3, ([0], [1], [2]))):
        folder = str(tmp_path / f"features{count}")
        ranks = on_ranks(count, lambda f=folder: scores(joined(), f))
        for rank, share in zip(ranks, shares, strict=True):
            assert rank["rows"] == one["rows"] and rank["floor"] == one["floor"]
            assert rank["drawn"] == share * 4
        # What they keep of the real images is what one process computes, and is taken by all.
        assert scores(Group(), folder)["rows"] == one["rows"]
    assert on_ranks(2, lambda: scores(joined(), folder))[1]["rows"] == one["rows"]


def test_a_rank_without_images_helps_no_less(on_ranks) -> None:
    digits = Digits().reference()

    def features(group: Group, images: ImageSet) -> dict[str, torch.Tensor]:
        return extract(images, DIGITS_EXTRACTOR, group=group)

    for count in (1, 63, 64, 65, 150):
        images = TensorImages(digits[:count])
        alone = features(Group(), images)
        first = on_ranks(3, lambda images=images: features(joined(), images))[0]
        assert list(first) == list(alone)
        for layer, values in alone.items():
            assert values.dtype == first[layer].dtype == torch.float64
            assert torch.equal(values, first[layer]), (count, layer)


@pytest.mark.parametrize("kind", ["tensor", "pictures", "batch", "shards"])
def test_shares_make_up_all_batches(kind, tmp_path) -> None:
    digits = Digits().reference()[:11]
    as_batch = digits.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "a.npz", arr_0=as_batch)
    parts = []
    for number, part in enumerate(np.split(as_batch, [2, 7])):
        np.savez(tmp_path / f"{number}.npz", arr_0=part)
        parts.append(AdmImages(tmp_path / f"{number}.npz", None, "images"))
    files = [tmp_path / f"{number:02}.png" for number in range(11)]
    for file, image in zip(files, digits, strict=True):
        Image.fromarray(image[0].numpy()).save(file)
    images: ImageSet = {
        "tensor": TensorImages(digits),
        "pictures": PictureFiles(tmp_path, files, "images"),
        "batch": AdmImages(tmp_path / "a.npz", None, "images"),
        "shards": Shards(parts),
    }[kind]
    whole = list(images.batches(3))
    assert [len(batch) for batch in whole] == [3, 3, 3, 2]
    for ranks in (1, 2, 3, 5):
        shares = [list(images.share(3, rank, ranks)) for rank in range(ranks)]
        assert [[first for first, _ in share] for share in shares] == [
            list(range(0, 11, 3))[rank::ranks] for rank in range(ranks)
        ]
        for first, batch in chain(*shares):
            assert torch.equal(batch, whole[first // 3])


def test_collected_features_stand_in_the_order_of_their_images() -> None:
    found = CollectedFeatures(["a", "b"])
    rows = torch.arange(10.0).view(5, 2)
    for first, last in ((3, 5), (0, 2), (2, 3)):
        found.update(first, {"a": rows[first:last], "b": -rows[first:last, :1].double()})
    result = found.compute()
    assert torch.equal(result["a"], rows)
    assert torch.equal(result["b"], -rows[:, :1].double())
