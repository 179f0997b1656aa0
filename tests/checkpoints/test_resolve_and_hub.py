"""Names, paths and hub ids. Nothing here reaches the network."""

from pathlib import Path

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


def test_packaged_name(packaged, no_network):
    assert resolve("digits") == packaged
    assert load("digits").depth == 4


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
        f"checkpoint {name!r} does not exist; valid: a file or folder, a packaged model (digits), "
        "or a hub id of the form owner/name"
    )


def test_hub_id_is_downloaded(net, tmp_path, monkeypatch):
    folder, asked = save_model(net, tmp_path / "cache"), []

    def download(repo_id, allow_patterns):
        asked.append((repo_id, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load("someone/tinydit-d14").depth == 4
    assert asked == [("someone/tinydit-d14", ["*.json", "*.safetensors"])]


def test_unreachable_hub_is_one_line(monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no route to host\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(InputError) as caught:
        load("someone/tinydit-d14")
    assert str(caught.value) == (
        "checkpoint 'someone/tinydit-d14' is no local path and could not be fetched from the hub: "
        "no route to host"
    )


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
