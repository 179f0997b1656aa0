"""Names, paths and hub ids. Nothing here reaches the network."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from tinyfusion.checkpoints import load, push_to_hub, resolve, save_model
from tinyfusion.errors import InputError


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Relative names must not meet files of the repository."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def packaged(net, tmp_path, monkeypatch):
    monkeypatch.setattr("tinyfusion.checkpoints.locate.ASSETS", tmp_path / "assets")
    return save_model(net, tmp_path / "assets" / "digits_teacher")


@pytest.fixture
def no_network(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("the hub must not be asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)


def test_packaged_name(packaged, no_network):
    assert resolve("digits") == packaged
    assert load("digits").depth == 4


def test_a_packaged_model_that_is_not_installed(packaged, no_network):
    with pytest.raises(InputError, match=r"'mar_digits' is a packaged .*mar_digits_teacher is"):
        resolve("mar_digits")


def test_existing_path_wins_over_packaged_name(packaged, net, tmp_path):
    net.keep_blocks([0])
    save_model(net, tmp_path / "digits")
    assert resolve("digits") == Path("digits")
    assert load("digits").depth == 1


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "net.pt").touch()
    assert resolve("~/net.pt") == tmp_path / "net.pt"


@pytest.mark.parametrize(
    "name", ["digit", "models/net.pt", "/nowhere/model", "outputs/recoverd", "a/b/c", "./a/b", ""]
)
def test_unknown_names_list_what_is_valid(name, tmp_path, no_network):
    (tmp_path / "outputs").mkdir()
    with pytest.raises(InputError) as caught:
        load(name)
    assert str(caught.value) == (
        f"checkpoint {name!r} does not exist; valid: a file or folder, a packaged model "
        "(digits, sit_digits, mar_digits), or a hub id of the form owner/name"
    )


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub whose repositories are folders under tmp_path/hub; records what is downloaded."""
    fetched = {}

    def model_info(self, repo_id, timeout):
        files = [file for file in (tmp_path / "hub" / repo_id).rglob("*") if file.is_file()]
        names = [file.relative_to(tmp_path / "hub" / repo_id).as_posix() for file in files]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

    def download(repo_id, allow_patterns):
        fetched[repo_id] = allow_patterns
        for name in allow_patterns:
            target = tmp_path / "cache" / repo_id / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tmp_path / "hub" / repo_id / name, target)
        return str(tmp_path / "cache" / repo_id)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return fetched


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_hub_id_is_downloaded(net, tmp_path, hub):
    folder = save_model(net, tmp_path / "hub/someone/tinydit-d14")
    make(folder, "README.md", "samples/grid.safetensors")
    assert load("someone/tinydit-d14").depth == 4
    assert hub == {"someone/tinydit-d14": ["config.json", "model.safetensors"]}


STEM = "diffusion_pytorch_model"


@pytest.mark.parametrize(
    ("weights", "taken"),
    [
        ([f"{STEM}.bin"], [f"{STEM}.bin"]),
        ([f"{STEM}.bin", f"{STEM}.safetensors"], [f"{STEM}.safetensors"]),
        ([f"{STEM}.safetensors", f"{STEM}.fp16.safetensors"], [f"{STEM}.safetensors"]),
        ([f"{STEM}.fp16.safetensors"], [f"{STEM}.fp16.safetensors"]),
        (
            [f"{STEM}-0000{i}-of-00002.safetensors" for i in (1, 2)]
            + [f"{STEM}.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)],
            [f"{STEM}-0000{i}-of-00002.safetensors" for i in (1, 2)],
        ),
    ],
)
def test_of_a_pipeline_only_the_denoiser_is_downloaded(tmp_path, hub, weights, taken):
    make(
        tmp_path / "hub/someone/pipe",
        *("model_index.json", "transformer/config.json", f"vae/{STEM}.safetensors"),
        *("vae/config.json", "scheduler/scheduler_config.json", "README.md", "notes.bin"),
        *(f"transformer/{name}" for name in weights),
    )
    assert resolve("someone/pipe") == tmp_path / "cache/someone/pipe"
    wanted = {"model_index.json", "transformer/config.json", *(f"transformer/{n}" for n in taken)}
    assert set(hub["someone/pipe"]) == wanted


def test_repository_without_weights_is_refused_before_anything_is_downloaded(tmp_path, hub):
    make(tmp_path / "hub/someone/texts", "README.md", "config.json")
    with pytest.raises(InputError, match="'someone/texts' holds no weights in a supported layout"):
        resolve("someone/texts")
    assert not hub


@pytest.fixture
def unreachable(monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no route to host\nmore")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    return fail


def test_unreachable_hub_is_one_line(monkeypatch, unreachable):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(InputError) as caught:
        load("someone/tinydit-d14")
    assert str(caught.value) == (
        "checkpoint 'someone/tinydit-d14' is no local path and could not be fetched from the hub: "
        "no route to host"
    )


def test_what_was_fetched_earlier_needs_no_network(net, tmp_path, monkeypatch, unreachable):
    folder = save_model(net, tmp_path / "cache")

    def cached(repo_id, local_files_only):
        assert local_files_only
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    assert load("someone/tinydit-d14").depth == 4


class FakeHub:
    """Records what would be sent."""

    def __init__(self, calls: list, token: str | None) -> None:
        self.calls = calls
        calls.append(("token", token))

    def create_repo(self, repo_id, private, exist_ok):
        self.calls.append(("create", repo_id, private, exist_ok))
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, folder_path, repo_id, ignore_patterns):
        self.calls.append(("upload", Path(folder_path), repo_id))


@pytest.fixture
def hub_calls(monkeypatch):
    calls = []
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token=None: FakeHub(calls, token))
    return calls


def test_push_creates_and_uploads(net, tmp_path, hub_calls):
    folder = save_model(net, tmp_path / "model")
    assert push_to_hub(folder, "me/model", private=True, token="secret") == (
        "https://hub.example/me/model"
    )
    assert hub_calls == [
        ("token", "secret"),
        ("create", "me/model", True, True),
        ("upload", folder, "me/model"),
    ]


def test_push_refuses_a_folder_that_does_not_load(net, tmp_path, hub_calls):
    folder = save_model(net, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(InputError, match="SHA-256"):
        push_to_hub(folder, "me/model")
    with pytest.raises(InputError, match=r"not a model folder, it has no config.json"):
        push_to_hub(tmp_path / "absent", "me/model")
    assert hub_calls == []


def test_push_failure_is_one_line(net, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("403 Forbidden\nbody")

    monkeypatch.setattr(FakeHub, "create_repo", fail)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token=None: FakeHub([], token))
    folder = save_model(net, tmp_path / "model")
    with pytest.raises(InputError, match=r"could not push .* as 'me/model': 403 Forbidden$"):
        push_to_hub(folder, "me/model")
