"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import importlib.util
import multiprocessing
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tinyfusion import notices
from tinyfusion.backbones.mar import MAR

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what was imported: a twentieth of all time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let it see them again: extensions complain of what is left when Python ends."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Undo that shells let background jobs ignore Ctrl-C: what is tested obeys it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _nothing_noticed() -> None:
    """Let no test's notices be said by another's command, or be known to it already."""
    notices.forget()


@pytest.fixture(scope="session", autouse=True)
def _autograd_survives_forks() -> None:
    """Let autograd count its devices before fake tensors pretend that there is a GPU.

    For one it would start a thread, and processes that are forked later could not train.
    """
    torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(scope="session", autouse=True)
def _compositions_are_quick() -> None:
    """Let Hydra read each file once, and not compose a second time to learn its own mode.

    Some 1,500 configurations are composed by the tests; commands in processes of their own are
    composed by Hydra as it is.
    """
    from hydra._internal.hydra import Hydra
    from hydra._internal.sources_registry import SourcesRegistry
    from hydra.core.plugins import Plugins
    from hydra.types import RunMode

    def reading_once(read: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
        known: dict[tuple[str, str, int], bytes] = {}

        def load(source: Any, config_path: str) -> Any:
            file = Path(source.path, config_path).with_suffix(".yaml")
            key = (source.path, config_path, file.stat().st_mtime_ns if file.is_file() else 0)
            if key not in known:
                known[key] = pickle.dumps(read(source, config_path))
            return pickle.loads(known[key])  # ten times quicker than a deep copy

        return load

    def mode(_: Hydra, config_name: str | None, overrides: list[str]) -> RunMode | None:
        return RunMode.MULTIRUN if "hydra.mode=MULTIRUN" in overrides else None

    Plugins.instance()  # registers the sources
    for scheme in ("file", "pkg", "structured"):
        kind = SourcesRegistry.instance().resolve(scheme)
        kind.load_config = reading_once(kind.load_config)
    Hydra.get_mode = mode


@pytest.fixture
def on_ranks(tmp_path: Path) -> Callable[[int, Callable[[], Any]], list[Any]]:
    """``on_ranks(2, work)``: what ``work`` returns, called in so many processes that are ranks."""

    def run_all(count: int, work: Callable[[], Any]) -> list[Any]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]

        def as_rank(rank: int) -> None:
            torch.set_num_threads(1)
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
            torch.save(work(), tmp_path / f"rank{rank}.pt")

        # Forked processes can't use more of torch's threads than one.
        torch.set_num_threads(1)
        context = multiprocessing.get_context("fork")
        processes = [context.Process(target=as_rank, args=(rank,)) for rank in range(count)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
            process.kill()
        assert [process.exitcode for process in processes] == [0] * count
        files = [tmp_path / f"rank{rank}.pt" for rank in range(count)]
        return [torch.load(file, weights_only=False) for file in files]

    return run_all


@pytest.fixture(scope="session")
def two_streams() -> ModuleType:
    """The module ``tests/two_streams.py``, imported by that name, as model files name its class."""
    name = "two_streams"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture
def offline_run() -> Callable[[Path], Any]:
    """What the only offline W&B run below a folder holds; see ``wandb_file.py``."""
    file = Path(__file__).with_name("wandb_file.py")
    spec = importlib.util.spec_from_file_location("wandb_file", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def read(folder: Path) -> Any:
        import wandb

        wandb.teardown()  # else W&B's own process may still have to write the end of the file
        return module.OfflineRun(folder)

    return read


@pytest.fixture
def script() -> Callable[[str], ModuleType]:
    """``script("table7")``: the module ``scripts/table7.py``, loaded anew."""

    def load(name: str) -> ModuleType:
        file = Path(__file__).resolve().parents[1] / "scripts" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def write_images() -> Callable[..., Path]:
    """``write_images(folder, 11, "abc", (9, 12))``: so many random images, dealt out to classes."""

    def write(folder: Path, count: int, classes: str, size: tuple[int, int]) -> Path:
        draws = np.random.default_rng(0)
        for number in range(count):
            file = folder / classes[number % len(classes)] / f"{number:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draws.integers(0, 256, (*size, 3), np.uint8)).save(file)
        return folder

    return write


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    """Folder with numbers of the official implementations."""
    if not GOLDEN.is_dir():
        pytest.skip("golden reference data (../shared/golden) is not present")
    return GOLDEN


@pytest.fixture(scope="session")
def golden(golden_folder: Path) -> Callable[[str], dict[str, Tensor]]:
    """Loader of one golden file: ``golden("dit")["out"]``."""
    return lambda name: load_file(golden_folder / f"{name}.safetensors")


@pytest.fixture
def golden_mar(golden: Callable[[str], dict[str, Tensor]]) -> MAR:
    """The MAR whose numbers ``golden("mar")`` holds, in eval mode."""
    net = MAR(
        input_size=4,
        hidden_size=48,
        encoder_depth=4,
        decoder_depth=4,
        num_heads=4,
        in_channels=8,
        num_classes=10,
        buffer_size=8,
        head_depth=2,
        head_width=64,
    )
    net.load_state_dict({k[3:]: v for k, v in golden("mar").items() if k.startswith("sd.")})
    return net.eval()


@pytest.fixture(scope="session")
def tiny_autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small ``AutoencoderKL`` with random weights: 4 channels, factor 2."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    net = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    folder = tmp_path_factory.mktemp("autoencoder")
    net.save_pretrained(folder)
    return folder


@pytest.fixture
def work_as_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency tables count floating-point operations, which no load on the machine changes."""
    from torch.utils.flop_counter import FlopCounterMode

    def seconds(device: object, run: Callable[[], object], repeats: int) -> float:
        with FlopCounterMode(display=False) as counter:
            run()
        return 1e-9 * counter.get_total_flops()

    monkeypatch.setattr("tinyfusion.metrics.latency._seconds", seconds)
