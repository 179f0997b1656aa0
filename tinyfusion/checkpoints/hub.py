"""Publishing a model folder."""

from __future__ import annotations

from pathlib import Path

from tinyfusion.checkpoints.card import CARD_MARK, model_card
from tinyfusion.checkpoints.construct import to_backbone
from tinyfusion.checkpoints.layout import CARD_FILE, CONFIG_FILE, PIPELINE_FILE
from tinyfusion.checkpoints.lineage import lineage
from tinyfusion.checkpoints.read import read_checkpoint
from tinyfusion.errors import InputError, first_line
from tinyfusion.files import write_text


def push_to_hub(
    folder: Path | str, repo_id: str, private: bool = False, token: str | None = None
) -> str:
    """Upload a model folder to the Hugging Face hub after checking that it loads.

    A folder without ``README.md`` gets a model card. One that ``tinyfusion convert`` wrote is
    uploaded with what was added to it; only the name it is loaded by becomes ``repo_id``.

    Args:
        folder: a folder written by :func:`~tinyfusion.checkpoints.save_model` or
            :func:`~tinyfusion.checkpoints.save_diffusers`.
        repo_id: ``owner/name``; made if it does not exist.
        private: whether a new repository is private.
        token: access token; by default the one stored by ``hf auth login``.

    Returns:
        Address of the repository.

    Raises:
        InputError: the folder does not load, or the hub refuses or can't be reached.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in (CONFIG_FILE, PIPELINE_FILE)):
        raise InputError(
            f"{folder}: not a model folder, it has no {CONFIG_FILE} (nor {PIPELINE_FILE})"
        )
    _write_card(folder, repo_id)

    import huggingface_hub

    api = huggingface_hub.HfApi(token=token)
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        # Dotfiles are left-overs of interrupted writes.
        api.upload_folder(folder_path=folder, repo_id=repo_id, ignore_patterns=[".*", "**/.*"])
    # The hub client passes on errors of its HTTP library, which differs between its versions.
    except Exception as error:
        raise InputError(
            f"could not push {folder} to the hub as {repo_id!r}: {first_line(error)}"
        ) from None
    return str(address)


def _write_card(folder: Path, repo_id: str) -> None:
    """Check that ``folder`` loads, and write a card if it has none."""
    checkpoint = read_checkpoint(folder)
    net = to_backbone(checkpoint, release=True)
    card = folder / CARD_FILE
    if not card.is_file():
        layout = "diffusers" if (folder / PIPELINE_FILE).is_file() else "ours"
        has_vae = (folder / "vae" / CONFIG_FILE).is_file()
        write_text(card, model_card(net, lineage(checkpoint), layout, repo_id, has_vae))
        return
    text = card.read_text(encoding="utf-8")
    if CARD_MARK in text:
        write_text(card, text.replace(f'("{folder.name}"', f'("{repo_id}"'))
