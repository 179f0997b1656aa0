"""What is published with a model. Nothing here reaches the network."""

from pathlib import Path

import huggingface_hub
import pytest

from tinyfusion.checkpoints import push_to_hub, save_diffusers, save_model
from tinyfusion.checkpoints.export import save_ours
from tinyfusion.errors import InputError
from tinyfusion.surgery import prune


class Hub:
    """Stands for the hub: keeps the text of the card that it is sent."""

    def __init__(self, token=None):
        pass

    def create_repo(self, repo_id, private, exist_ok):
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, folder_path, repo_id, ignore_patterns):
        Hub.card = (Path(folder_path) / "README.md").read_text()


@pytest.fixture(autouse=True)
def _hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)


def test_folder_without_a_card_gets_one(net, tmp_path):
    push_to_hub(save_model(prune(net, [1, 2]), tmp_path / "recovered"), "me/tiny")
    assert 'tinyfusion.load("me/tiny")' in Hub.card
    assert "- **Kept blocks**: 1, 2" in Hub.card


def test_edited_card_is_kept_and_loads_from_the_hub(net, tmp_path):
    folder = save_diffusers(net, tmp_path / "export")
    card = folder / "README.md"
    edited = card.read_text().replace("tags:", "license: mit\ntags:", 1) + "\nMy notes.\n"
    card.write_text(edited)
    push_to_hub(folder, "me/tiny")
    assert 'DiTPipeline.from_pretrained("me/tiny", vae=vae)' in Hub.card
    assert '"export"' not in Hub.card
    assert "license: mit\n" in Hub.card and "My notes." in Hub.card


def test_card_of_others_is_left_alone(net, tmp_path):
    folder = save_ours(net, tmp_path / "ours")
    (folder / "README.md").write_text('mine, ("ours")')
    push_to_hub(folder, "me/tiny")
    assert Hub.card == 'mine, ("ours")'


def test_damaged_export_is_not_sent(net, tmp_path):
    folder = save_diffusers(net, tmp_path / "export")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(InputError, match="it is truncated"):
        push_to_hub(folder, "me/tiny")
