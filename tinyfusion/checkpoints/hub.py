"""Publishing a model folder."""

from __future__ import annotations

from pathlib import Path

from tinyfusion.checkpoints.construct import load
from tinyfusion.checkpoints.layout import CONFIG_FILE
from tinyfusion.errors import InputError


def push_to_hub(
    folder: Path | str, repo_id: str, private: bool = False, token: str | None = None
) -> str:
    """Upload a model folder to the Hugging Face hub after checking that it loads.

    Args:
        folder: a folder written by :func:`~tinyfusion.checkpoints.save_model`.
        repo_id: ``owner/name``; made if it does not exist.
        private: whether a new repository is private.
        token: access token; by default the one stored by ``hf auth login``.

    Returns:
        Address of the repository.

    Raises:
        InputError: the folder does not load, or the hub refuses or can't be reached.
    """
    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(f"{folder}: not a model folder, it has no {CONFIG_FILE}")
    load(folder)

    import huggingface_hub

    api = huggingface_hub.HfApi(token=token)
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        # Dotfiles are left-overs of interrupted writes.
        api.upload_folder(folder_path=folder, repo_id=repo_id, ignore_patterns=[".*", "**/.*"])
    # The hub client passes on errors of its HTTP library, which differs between its versions.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"could not push {folder} to the hub as {repo_id!r}: {reason}") from None
    return str(address)
