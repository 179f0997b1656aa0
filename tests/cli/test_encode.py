"""`tinyfusion encode`: killed, divided, short of room, and trained on."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import tinyfusion
from tinyfusion.backbones.dit import DiT
from tinyfusion.checkpoints import save_model
from tinyfusion.data.latents import Latents
from tinyfusion.training.recovery import Recovery

COUNT, SHARD = 12, 4

# Runs the command once undisturbed, which imports everything, then, for another store, in forks:
# each is killed at a later rename than the one before, until one gets through.
KILLED = """
import os, signal, sys
from tinyfusion import files
from tinyfusion.cli import main

whole, killed, *rest = sys.argv[1:]
assert main(["encode", f"store={whole}", *rest]) == 0
for last in range(3, 40):  # the first two are of the run's folder
    child = os.fork()
    if not child:
        calls, replace = 0, os.replace
        def killing(source, target):
            global calls
            calls += 1
            if calls == last:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)
        files.os.replace = killing
        os._exit(main(["encode", f"store={killed}", *rest]))
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status):
        print("KILLS", last - 3, "STATUS", os.WEXITSTATUS(status))
        break
"""


@pytest.fixture
def images(tmp_path: Path, write_images) -> Path:
    return write_images(tmp_path / "images", COUNT, "ab", (18, 16))


@pytest.fixture
def arguments(images: Path, tiny_autoencoder: Path, root: Path) -> Callable[..., list[str]]:
    """Command line of `encode` into a store."""

    def line(store: Path, *more: str) -> list[str]:
        return [
            "encode",
            f"data.root={images}",
            "data.size=16",
            "autoencoder=kl",
            f"autoencoder.path={tiny_autoencoder}",
            "autoencoder.batch_size=3",
            f"store={store}",
            f"shard_size={SHARD}",
            f"output_root={root}",
            "trainer.threads=1",
            *more,
        ]

    return line


@pytest.fixture
def encode(arguments, tf):
    """Run `encode` in this process."""
    return lambda store, *more: tf(*arguments(store, *more), small=False, exact=True)


def contents(store: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in store.iterdir()}


def test_what_it_prints_and_writes(encode, tmp_path, only_run) -> None:
    result = encode(tmp_path / "store")
    assert result.status == 0, result
    assert "12 images of 2 classes" in result.out and "latents of 4x8x8" in result.out
    assert "12.00 KiB for the images and 12.00 KiB for their mirrors" in result.out
    assert "12 of 12 images (100.0 %)" in result.out and "images/s" in result.out
    names = {f"shard-{n:05d}{end}" for n in range(3) for end in (".json", ".images.npy")}
    names |= {f"shard-{n:05d}.mirrors.npy" for n in range(3)}
    assert set(contents(tmp_path / "store")) == names | {"plan.json", "index.json", "labels.npy"}
    assert (only_run("encode") / "finished.json").is_file()
    source = Latents(tmp_path / "store", verify=True)
    assert (len(source), source.num_classes, source.channels, source.size) == (12, 2, 4, 8)


def test_the_same_command_on_a_finished_store_changes_nothing(encode, tmp_path) -> None:
    encode(tmp_path / "store")
    before = contents(tmp_path / "store")
    again = encode(tmp_path / "store")
    assert again.status == 0 and "images/s" not in again.out
    assert contents(tmp_path / "store") == before


@pytest.mark.slow
def test_killed_anywhere_and_started_again_it_writes_the_same(arguments, tmp_path) -> None:
    stores = tmp_path / "whole", tmp_path / "killed"
    rest = [text for text in arguments("")[1:] if not text.startswith("store=")]
    path = str(Path(tinyfusion.__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, stores), *rest],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    _, kills, _, status = run.stdout.split()[-4:]
    assert status == "0" and int(kills) >= 6, run.stdout
    assert contents(stores[1]) == contents(stores[0])


def test_parts_make_up_the_whole(encode, tmp_path) -> None:
    encode(tmp_path / "whole")
    second = encode(tmp_path / "parts", "parts=2", "part=1")
    assert second.status == 0 and "part 1 of 2 is done" in second.out
    assert "2 of 3 shards" in second.out
    assert not (tmp_path / "parts" / "index.json").exists()
    assert encode(tmp_path / "parts", "parts=2", "part=0").status == 0
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


@pytest.fixture
def started(arguments, tmp_path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Start `encode` in a process of its own."""
    path = str(Path(tinyfusion.__file__).parents[1])
    running: list[subprocess.Popen] = []

    def start(store: Path, *more: str, by: tuple[str, ...] = ()) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, *by, "-m", "tinyfusion.cli", *arguments(store, *more)],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("by", ["workers", "torchrun"])
def test_two_processes_make_up_the_whole(encode, started, tmp_path, by) -> None:
    encode(tmp_path / "whole")
    if by == "workers":
        process = started(tmp_path / "two", "workers=2")
    else:
        torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
        process = started(tmp_path / "two", f"hydra.run.dir={tmp_path / 'run'}", by=torchrun)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.count("12 of 12 images") == 1
    assert contents(tmp_path / "two") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_what_a_worker_refuses_is_one_line(started, images, tmp_path, root) -> None:
    (images / "b" / "11.png").write_text("not a picture")
    process = started(tmp_path / "two", "workers=2")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and "b/11.png' can't be decoded" in err
    assert len(err.splitlines()) == 1, err


@pytest.mark.slow
def test_a_dead_worker_ends_the_command_though_others_are_busy(
    encode, started, images, tmp_path
) -> None:
    for number in range(COUNT, 1500):  # half a minute and more for each worker
        (images / "a" / f"{number}.png").symlink_to(images / "a" / "00.png")
    store = tmp_path / "store"
    process = started(store, "workers=2", "mirrors=false", "data.size=64")
    deadline = time.monotonic() + 60
    while not (store / "shard-00001.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (second,) = (c for c in children if b"\0RANK=1\0" in Path(f"/proc/{c}/environ").read_bytes())
    os.kill(int(second), signal.SIGKILL)
    killed = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - killed < 10
    assert process.returncode == 1
    # What it has enlarged it said itself.
    lines = [line for line in err.splitlines() if not line.startswith("rank 1: note: ")]
    assert "rank 1 of 2 ended by SIGKILL" in err and len(lines) == 1, err
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_workers_are_those_that_were_started(encode, tmp_path, monkeypatch) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    result = encode(tmp_path / "store", "workers=3", f"hydra.run.dir={tmp_path / 'run'}")
    assert result.status == 2 and "workers=3: 3 process(es), but 2 were started" in result.err


def test_a_part_that_another_process_works_on_is_left_to_it(encode, tmp_path) -> None:
    store = tmp_path / "store"
    encode(store, "parts=2", "part=1")
    with open(store / ".part-0-of-2.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        result = encode(store, "parts=2", "part=0")
    assert result.status == 2 and "another process is encoding part=0 parts=2" in result.err
    assert encode(store, "parts=2", "part=0").status == 0


def test_an_undecodable_image_is_named_or_left_out_and_listed(
    encode, images, tmp_path, root
) -> None:
    (images / "a" / "00.png").write_text("not a picture")  # the first of its class
    result = encode(tmp_path / "store")
    assert result.status == 2 and "a/00.png' can't be decoded" in result.err
    result = encode(tmp_path / "store", "skip_undecodable=true")
    assert result.status == 0
    assert "left out 1 image(s)" in result.out and "a/00.png: cannot identify" in result.out
    index = json.loads((tmp_path / "store" / "index.json").read_text())
    assert index["count"] == 11 and [s["file"] for s in index["skipped"]] == ["a/00.png"]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes, as when the disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line_and_leaves_no_torn_file(encode, tmp_path, only_run) -> None:
    encode(tmp_path / "whole")
    store = tmp_path / "store"
    encode(store, "parts=3", "part=0")
    shard = (store / "shard-00000.images.npy").stat().st_size
    with largest_file(shard - 1):
        result = encode(store)
    assert result.status == 2
    (line,) = result.err.splitlines()
    assert "can't be written: File too large; 4 of 12 images are stored (1 of 3 shards)" in line
    assert "start the same command again" in line
    assert not [file for file in store.iterdir() if file.name.startswith(".shard")]
    assert not (store / "shard-00001.json").exists()
    assert encode(store).status == 0
    assert contents(store) == contents(tmp_path / "whole")


def test_resume_by_run_folder(encode, tf, tmp_path, root) -> None:
    with largest_file(2000):
        assert encode(tmp_path / "store").status == 2
    (folder,) = (root / "encode").iterdir()
    result = tf("encode", f"resume={folder}", small=False, exact=True)
    assert result.status == 0, result
    assert len(Latents(tmp_path / "store", verify=True)) == COUNT


def test_too_little_room_is_said_before_the_start(encode, tmp_path, monkeypatch, root) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 0, 20_000))
    result = encode(tmp_path / "store")
    assert result.status == 2 and not root.exists()
    assert "24.70 KiB are still to be written, but only 19.53 KiB are free" in result.err
    assert not list((tmp_path / "store").glob("shard*"))
    # What is there already needs no more room.
    monkeypatch.undo()
    encode(tmp_path / "store", "parts=2", "part=0")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 0, 20_000))
    assert encode(tmp_path / "store").status == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["store=null"], "store= must be given"),
        (["autoencoder.path=/no/such"], "autoencoder.path='/no/such' does not exist"),
        (["autoencoder.batch_size=0"], "autoencoder.batch_size=0 must be at least 1"),
        (["data.size=15"], "data.size=15 must be a multiple of 2"),
        (["data.root=/no/such"], "data.root='/no/such': no such folder"),
        (["part=1"], "part=1 parts=1: valid are part=0 to parts - 1"),
        (["workers=0"], "workers=0 must be at least 1"),
        (["shard_size=0"], "shard_size=0 must be at least 1"),
        (["trainer.accelerator=tpu"], "trainer.accelerator=tpu: valid are cpu, gpu and auto"),
        (["moments=maybe"], "moments"),
        (["sampler=ddim_50"], "unknown key 'sampler' for 'tinyfusion encode'"),
    ],
)
def test_wrong_input_is_refused_before_work(encode, tmp_path, root, overrides, message) -> None:
    result = encode(tmp_path / "store", *overrides)
    assert result.status == 2 and message in result.err, result
    assert len(result.err.splitlines()) == 1
    assert not root.exists() and not (tmp_path / "store").exists()


def test_only_folders_are_encoded(tf, root, tmp_path, tiny_autoencoder) -> None:
    line = ["data=digits", f"store={tmp_path / 'store'}", f"output_root={root}"]
    coder = ["autoencoder=kl", f"autoencoder.path={tiny_autoencoder}"]
    result = tf("encode", *line, *coder, small=False, exact=True)
    assert result.status == 2 and "give data=imagefolder" in result.err
    result = tf("encode", *line, "autoencoder=none", small=False, exact=True)
    assert result.status == 2 and "autoencoder= must be given" in result.err


def test_train_prune_and_recover_on_a_store(encode, tf, tmp_path, only_run) -> None:
    encode(tmp_path / "store")
    data = (
        "data=latents",
        f"data.root={tmp_path / 'store'}",
        "data.held_out=3",
        "process=ddpm_latents",
        "evaluation=none",
    )
    net = ("input_size=8", "in_channels=4", "num_classes=2", "depth=4", "hidden_size=16")
    result = tf(
        "pretrain", *data, *(f"backbone.{value}" for value in net),
        "training.pretrain.steps=3", "training.pretrain.batch_size=4", small=False,
    )  # fmt: skip
    assert result.status == 0, result.err
    model = only_run("pretrain") / "model"
    steps = [
        f"training.{phase}.{key}"
        for phase in ("mask_learning", "recovery")
        for key in ("steps=3", "batch_size=4")
    ]
    result = tf("run", *data, f"checkpoint={model}", *steps, small=False)
    assert result.status == 0, result.err
    assert (only_run("run") / "recovered" / "model.safetensors").is_file()


def test_a_published_experiment_in_miniature_interrupted_and_resumed(
    encode, tf, tmp_path, tiny_autoencoder, monkeypatch
) -> None:
    encode(tmp_path / "store")
    torch.manual_seed(0)
    net = DiT(8, 2, 4, hidden_size=16, depth=4, num_heads=2, num_classes=2)
    line = [
        "run",
        "experiment=imagenet/tinydit_d14",
        f"checkpoint={save_model(net, tmp_path / 'model')}",
        "backbone=dit",
        f"data.root={tmp_path / 'store'}",
        "data.held_out=3",
        f"autoencoder.path={tiny_autoencoder}",
        "evaluation=none",
        "trainer=cpu",
        "trainer.resume_every=2",
        *(f"training.mask_learning.{key}" for key in ("steps=5", "batch_size=4")),
        *(f"training.recovery.{key}" for key in ("steps=5", "batch_size=4")),
    ]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    result = tf(*line, f"hydra.run.dir={whole}", exact=True)
    assert (result.status, result.err) == (0, "")
    # Of each phase that it is not the recipe; of the averages that they hardly left their start.
    warned = [text.split("warning: ")[1] for text in result.out.splitlines() if "warning" in text]
    assert [text[:30] for text in warned] == [
        "differs from the recipe 'tinyf",
        "the average of the gates will ",
        "differs from the recipe 'tinyf",
        "the average of the student wil",
    ]

    with monkeypatch.context() as patched:

        def interrupted(module: Recovery) -> None:
            if module.global_step == 3:
                signal.raise_signal(signal.SIGINT)

        patched.setattr(Recovery, "after_step", interrupted)
        assert tf(*line, f"hydra.run.dir={broken}", exact=True).status == 130
    result = tf("run", f"resume={broken}", exact=True)
    assert result.status == 0 and "resumed from" in result.out
    for name in (
        "decision.json",
        "recovered/model.safetensors",
        "recovered_live/model.safetensors",
    ):
        # Posteriors, mirrors and order follow from the step alone.
        assert (whole / name).read_bytes() == (broken / name).read_bytes(), name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), "process.clip=true clamps to the range of pixels"),
        (("process=ddpm_latents", "checkpoint=digits"), "in_channels=1 but the data has 4"),
        (("process=ddpm_latents", "data.flip=maybe"), "data.flip='maybe'"),
        (("process=ddpm_latents", "data.verify=true"), "shard-00001.images.npy' is damaged"),
        (("process=ddpm_latents", "+data.scale=1"), "'data.scale'; valid for data: draw, flip"),
    ],
)
def test_what_does_not_fit_is_refused(encode, tf, tmp_path, overrides, message) -> None:
    encode(tmp_path / "store")
    shard = tmp_path / "store" / "shard-00001.images.npy"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    line = ("data=latents", f"data.root={tmp_path / 'store'}", "data.held_out=3")
    result = tf("run", *line, *overrides)
    assert result.status == 2 and message in result.err, result


def test_a_file_where_the_store_is_to_be_is_named(encode, tmp_path, root) -> None:
    (tmp_path / "store").write_text("precious")
    result = encode(tmp_path / "store")
    assert result.status == 2 and not root.exists()
    (line,) = result.err.splitlines()
    assert "store= can't be written" in line and f"{tmp_path}/store: File exists; a file" in line
    assert (tmp_path / "store").read_text() == "precious"


def test_more_workers_than_a_machine_can_bear_are_refused(encode, tmp_path, root) -> None:
    result = encode(tmp_path / "store", "workers=5000")
    assert result.status == 2 and "workers=5000: too many processes" in result.err
    assert not root.exists() and not (tmp_path / "store").exists()
