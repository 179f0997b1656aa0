"""The latent store as training data: what is read, drawn, refused."""

from __future__ import annotations

import json
import pickle
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from tinyfusion.data.datamodule import Batch, TrainingData
from tinyfusion.data.latent_plan import StorePlan, file_name, listing_hash, npy_bytes
from tinyfusion.data.latent_writer import begin, finish, write_shard
from tinyfusion.data.latents import Latents
from tinyfusion.errors import InputError
from tinyfusion.notices import captured
from tinyfusion.seeding import Rows, StepNoise, generator

SCALE, CLASSES, SHARD = 0.5, 3, 4


def write_store(root: Path, count: int = 10, **changes: object) -> Path:
    """Image i has the mean i + channel / 10, its mirror -i; deviations are e ** (i / 20)."""
    settings = {
        "num_files": count,
        "listing": "",
        "classes": ["a", "b", "c"],
        "image_size": 8,
        "channels": 2,
        "size": 4,
        "scale": SCALE,
        "autoencoder": "vae",
        "weights": "0",
        "kind": "moments",
        "mirrors": True,
        "shard_size": SHARD,
    }
    plan = StorePlan(**{**settings, **changes})
    begin(root, plan)
    for shard in range(plan.num_shards):
        numbers = list(plan.files_of(shard))
        index_B111 = np.array(numbers)[:, None, None, None]
        mean = index_B111 + np.arange(2)[:, None, None] / 10 + np.zeros((4, 4))
        latents = {}
        for view, sign in zip(plan.views, (1, -1), strict=False):
            parts = [sign * mean, index_B111 / 10 + np.zeros((2, 4, 4))]
            parts = parts if plan.kind == "moments" else parts[:1]
            latents[view] = np.concatenate(parts, 1).astype(np.float16)
        labels = [number % CLASSES for number in numbers]
        write_shard(root, shard, latents, labels, [f"{number}.png" for number in numbers], [])
    finish(root, plan)
    return root


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_store(tmp_path / "store")


def numbers_of(latents: Tensor) -> list[int]:
    """Which images finished, undrawn latents are of; mirrors are negative."""
    return (latents[:, 0, 0, 0] / SCALE).round().int().tolist()


def test_a_store_says_what_it_holds(store: Path) -> None:
    source = Latents(store, held_out=3)
    assert (len(source), source.num_classes, source.channels, source.size) == (7, 3, 2, 4)
    assert (source.scale, source.autoencoder, source.pixels) == (SCALE, "vae", False)
    with pytest.raises(InputError, match="no images to compare"):
        source.reference()


def test_every_image_once_with_its_label_in_any_order(store: Path) -> None:
    source = Latents(store, held_out=3)
    train, labels = source.plain(torch.tensor([6, 0, 3, 1, 2, 5, 4]))
    held_out, held_out_labels = source.held_out()
    numbers = numbers_of(train) + numbers_of(held_out)
    assert sorted(numbers) == list(range(10))
    assert labels.cat([labels, held_out_labels]).labels.tolist() == [n % CLASSES for n in numbers]
    assert train.dtype == torch.float32 and labels.labels.dtype == torch.int64
    # Plain latents are the scaled means.
    expected = torch.tensor([[n, n + 0.1] for n in numbers]) * SCALE
    found = torch.cat([train, held_out])[:, :, 2, 3]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert numbers_of(Latents(store, held_out=3).held_out()[0]) == numbers_of(held_out)


def test_mirrors_are_taken_half_the_time_as_step_and_position_say(store: Path) -> None:
    source, noise = Latents(store, draw=False), StepNoise(0, "test")
    indices = torch.arange(10).repeat(40)

    def numbers(step: int, flip: bool = True) -> np.ndarray:
        rows = Rows(step, 0, 400)
        chosen = source if flip else Latents(store, flip=False, draw=False)
        stored, _ = chosen.fetch(indices, noise, rows)
        return np.array(numbers_of(chosen.finish(stored, noise, rows)))

    plain = numbers(0, flip=False)
    assert (plain >= 0).all() and (np.abs(numbers(0)) == plain).all()
    assert 140 < (numbers(0) < 0).sum() < 220  # image 0 has no sign
    assert (numbers(0) == numbers(0)).all() and (numbers(0) != numbers(1)).any()
    part = Rows(0, 100, 50)
    stored, _ = source.fetch(indices[100:150], noise, part)
    assert numbers_of(source.finish(stored, noise, part)) == numbers(0)[100:150].tolist()


def test_the_posterior_is_drawn_anew_at_every_step(store: Path) -> None:
    source, noise = Latents(store, flip=False), StepNoise(0, "test")
    indices = torch.arange(10)

    def drawn(step: int) -> Tensor:
        rows = Rows(step, 0, 10)
        stored, _ = source.fetch(indices, noise, rows)
        assert stored.shape == (10, 4, 4, 4) and stored.dtype == torch.float16
        return source.finish(stored, noise, rows)

    mean, _ = source.plain(indices)
    deviation = torch.exp(mean[:, :1] / SCALE / 20)
    draws = noise.normal("posterior", Rows(5, 0, 10), 2, 4, 4)
    expected = mean + SCALE * deviation * draws
    torch.testing.assert_close(drawn(5), expected, rtol=2e-3, atol=2e-3)
    many = torch.stack([drawn(step) for step in range(400)])
    assert (many.mean(0) - mean).abs().max() < 0.25
    torch.testing.assert_close(
        many.std(0).mean((1, 2, 3)), SCALE * deviation[:, 0, 0, 0], rtol=0.05, atol=0
    )


def test_means_only_or_no_draw_gives_the_mean(tmp_path: Path) -> None:
    means = Latents(write_store(tmp_path / "means", kind="mean"), flip=False)
    moments = Latents(write_store(tmp_path / "moments"), flip=False, draw=False)
    rows, noise = Rows(0, 0, 10), StepNoise(0, "test")
    for source in (means, moments):
        stored, _ = source.fetch(torch.arange(10), noise, rows)
        assert stored.shape[1] == 2  # nothing is loaded that is not used
        found = source.finish(stored, noise, rows)
        assert torch.equal(found, source.plain(torch.arange(10))[0])
    with pytest.raises(InputError, match=r"data\.draw=true: .*means only"):
        Latents(tmp_path / "means", draw=True)


class Recorder(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen: list[Batch] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen.append(batch)
        return self.weight * batch.images.mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trained_on(source: Latents, num_workers: int) -> list[Batch]:
    trainer = Trainer(
        accelerator="cpu", devices=1, max_steps=4, max_epochs=-1, logger=False,
        use_distributed_sampler=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    module = Recorder()
    data = TrainingData(source, 0, "test", 4, 8, num_workers=num_workers)
    trainer.fit(module, datamodule=data)
    return module.seen


@pytest.mark.parametrize("num_workers", [0, 1])
def test_training_gets_finished_latents(store: Path, num_workers: int) -> None:
    source = Latents(store)
    seen = trained_on(source, num_workers)
    assert [batch.step for batch in seen] == [0, 1, 2, 3]
    noise = StepNoise(0, "test")
    for batch in seen:
        assert batch.images.shape == (8, 2, 4, 4) and batch.images.dtype == torch.float32
    # Ten images in batches of eight: the first epoch ends in the second batch.
    order = torch.randperm(10, generator=generator(0, "order", 0))
    stored, labels = source.fetch(order[:8], noise, seen[0].rows)
    assert torch.equal(seen[0].conditioning.labels, labels.labels)
    assert torch.equal(seen[0].images, source.finish(stored, noise, seen[0].rows))


def test_a_fresh_process_maps_the_files_itself(store: Path) -> None:
    source = Latents(store)
    wanted, _ = source.plain(torch.arange(10))
    content = pickle.dumps(source)
    assert len(content) < 10_000
    assert torch.equal(pickle.loads(content).plain(torch.arange(10))[0], wanted)


def test_more_shards_than_files_may_be_open(tmp_path: Path) -> None:
    source = Latents(write_store(tmp_path / "store", count=80, shard_size=1))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 60
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, hard))
    try:
        noise, rows = StepNoise(0, "test"), Rows(0, 0, 80)
        source.fetch(torch.arange(80), noise, rows)
        latents, _ = source.plain(torch.arange(80))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert sorted(numbers_of(latents)) == list(range(80))


def test_shards_may_be_empty_or_short(tmp_path: Path) -> None:
    """As when images can't be decoded."""
    plan = StorePlan(
        num_files=6, listing="", classes=["a"], image_size=8, channels=1, size=2, scale=1.0,
        autoencoder="vae", weights="0", kind="mean", mirrors=False, shard_size=2,
    )  # fmt: skip
    begin(tmp_path, plan)
    for shard, kept in enumerate(([0], [], [4, 5])):
        latents = np.full((len(kept), 1, 2, 2), 0, np.float16)
        latents += np.array(kept, np.float16).reshape(-1, 1, 1, 1)
        files = [str(number) for number in kept]
        write_shard(tmp_path, shard, {"images": latents}, [0] * len(kept), files, [])
    assert finish(tmp_path, plan)["count"] == 3
    source = Latents(tmp_path, flip=False)
    assert sorted(source.plain(torch.arange(3))[0][:, 0, 0, 0].tolist()) == [0, 4, 5]


# -- damage ------------------------------------------------------------------------------------


def flip_byte(file: Path, place: int = -5) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("view", ["images", "mirrors"])
def test_a_flipped_byte_is_found_by_verifying(store: Path, view: str) -> None:
    Latents(store, verify=True)
    flip_byte(store / file_name(1, view))
    with pytest.raises(
        InputError, match=rf"shard-00001\.{view}\.npy' is damaged.* delete shard-00"
    ):
        Latents(store, verify=True)
    Latents(store)  # sizes are right
    if view == "mirrors":
        Latents(store, flip=False, verify=True)


def test_a_damaged_header_is_found_when_it_is_read(store: Path) -> None:
    flip_byte(store / file_name(0, "images"), 30)
    with pytest.raises(InputError, match=r"shard-00000\.images\.npy' is damaged"):
        Latents(store).plain(torch.arange(10))


def spoil(store: Path, *numbers: int) -> None:
    """Let latents hold a value that is not finite."""
    for number in numbers:
        file = store / file_name(number // SHARD, "images")
        rows = np.load(file)
        rows[number % SHARD, 1, 2, 3] = (np.nan, -np.inf)[number % 2]
        np.save(file, rows)


def test_the_next_latent_stands_in_for_one_that_is_not_finite(store: Path) -> None:
    source = Latents(store, flip=False, held_out=3)
    good, _ = source.plain(torch.arange(7))
    order, held_out = source._train.tolist(), source._held_out.tolist()
    spoil(store, order[2], order[3], order[6], held_out[2])
    source = Latents(store, flip=False, held_out=3)
    with captured() as events:
        found, labels = source.plain(torch.arange(7))
        alone, _ = source.plain(torch.tensor([3, 3]))
    assert torch.equal(found, good[[0, 1, 4, 4, 4, 5, 0]])
    assert torch.equal(alone, good[[4, 4]])  # whatever else is in the batch
    assert labels.labels[2] == labels.labels[4]
    names = {f"latent {order[index]} of {store}" for index in (2, 3, 6)}
    assert {event.item for event in events} == names
    assert source.held_out()[0].isfinite().all()


def test_a_store_of_nothing_finite_is_refused(store: Path) -> None:
    spoil(store, *range(10))
    with pytest.raises(InputError, match=r"latent \d of .* and the 9 before it hold values that"):
        Latents(store, flip=False).plain(torch.arange(3))


def test_mirrors_can_be_deleted_but_not_used_then(store: Path, tmp_path: Path) -> None:
    for shard in (1, 2):
        (store / file_name(shard, "mirrors")).unlink()
    message = r"shard-00001\.mirrors\.npy' is missing; data\.flip=false does without"
    with pytest.raises(InputError, match=message):
        Latents(store)
    assert len(Latents(store, flip=False).plain(torch.arange(10))[0]) == 10
    without = write_store(tmp_path / "without", mirrors=False)
    with pytest.raises(InputError, match=r"holds no mirrored images; give data\.flip=false"):
        Latents(without)
    assert len(Latents(without, flip=False)) == 10


def change_index(store: Path, change: Callable[[dict], object]) -> None:
    index = json.loads((store / "index.json").read_text())
    change(index)
    (store / "index.json").write_text(json.dumps(index))


def set_labels(store: Path, labels: list[int]) -> None:
    import hashlib

    content = npy_bytes(np.array(labels, np.int32))
    (store / "labels.npy").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    change_index(store, lambda index: index.update(labels_sha256=digest))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: (s / "index.json").unlink(), "no index.json.*it is not finished"),
        (lambda s: (s / "index.json").write_text("{"), "not valid JSON"),
        (lambda s: (s / "index.json").write_text('{"format": "x"}'), "not of the format"),
        (lambda s: change_index(s, lambda i: i.update(version=2)), "version 2; .* reads 1"),
        (lambda s: change_index(s, lambda i: i.pop("scale")), "has no 'scale'"),
        (lambda s: change_index(s, lambda i: i.pop("shards")), "has no 'shards'"),
        (lambda s: (s / file_name(2, "images")).unlink(), r"shard-00002.images.npy' is missing$"),
        (
            lambda s: (s / file_name(0, "images")).write_bytes(b"1"),
            r"shard-00000.images.npy' has 1 bytes, 640 were written",
        ),
        (lambda s: (s / "labels.npy").unlink(), "labels.npy' is missing"),
        (lambda s: flip_byte(s / "labels.npy"), "labels.npy' is damaged.*delete index.json"),
        (lambda s: set_labels(s, [0] * 9), "has 9 labels for 10 latents"),
        (
            lambda s: set_labels(s, [0, 1, 2, 0, 3, 0, 0, 0, 0, 7]),
            r"labels.npy.*: label 3 at position 4 is no class; valid: 0\.\.2",
        ),
        (lambda s: set_labels(s, [-1, *[0] * 9]), "label -1 at position 0"),
    ],
)
def test_what_is_missing_or_wrong_is_named(
    store: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(store)
    with pytest.raises(InputError, match=message):
        Latents(store)


@pytest.mark.parametrize("held_out", [-1, 10])
def test_held_out_must_leave_something(store: Path, held_out: int) -> None:
    with pytest.raises(InputError, match=f"data.held_out={held_out}: must be between 0 and 9"):
        Latents(store, held_out=held_out)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.root='.*nothing': no index\.json"):
        Latents(tmp_path / "nothing")


def test_size_of_imagenet_as_documented() -> None:
    plan = StorePlan(
        num_files=1_281_167, listing="", classes=[], image_size=256, channels=4, size=32, scale=1,
        autoencoder="", weights="", kind="moments", mirrors=True, shard_size=1000,
    )  # fmt: skip
    assert plan.num_files * plan.row_bytes == 1_281_167 * 8 * 32 * 32 * 2 == 20_990_640_128
    assert plan.num_shards == 1282 and len(plan.files_of(1281)) == 167
    assert 42.0e9 < plan.bytes_of(plan.num_files) < 42.1e9


def test_listing_hash_depends_on_names_labels_and_order() -> None:
    listings = [(["a", "b"], [0, 1]), (["b", "a"], [0, 1]), (["a", "b"], [1, 0]), (["a"], [0])]
    assert len({listing_hash(*listing) for listing in listings}) == 4
