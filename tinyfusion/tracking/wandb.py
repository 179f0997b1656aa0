"""Tracking by Weights & Biases."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from lightning.pytorch.loggers import Logger, WandbLogger

from tinyfusion.errors import InputError, first_line
from tinyfusion.tracking.contract import Tracking

log = logging.getLogger(__name__)

INIT_TIMEOUT = 20.0
"""Seconds that W&B's server is given to answer before a job begins."""

WandbMode = Literal["online", "offline", "disabled", "shared"]
WANDB_MODES: tuple[WandbMode, ...] = get_args(WandbMode)


class _PhaseLogger(WandbLogger):
    """Curves named ``phase/metric``, so that W&B shows each phase's in a section of its own."""

    LOGGER_JOIN_CHAR = "/"


class Wandb(Tracking):
    """One Weights & Biases run per job, its curves named by phase; a resumed job continues it.

    Args:
        project: W&B project.
        entity: W&B user or team.
        mode: one of `WANDB_MODES`; ``None`` is what ``WANDB_MODE`` says, else offline, with a
            message, where no account is set up.
    """

    def __init__(
        self, project: str = "tinyfusion", entity: str | None = None, mode: str | None = None
    ) -> None:
        self.project, self.entity, self.mode = project, entity, mode

    def start(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        """See `Tracking.start`.

        Raises:
            InputError: a name or a mode that W&B does not take, an account that it does not know,
                or no answer from its server.
        """
        super().start(folder, name, config)
        mode = self._checked_mode()
        for key, value, wrong in (
            ("project", self.project, "/\\#?%:"),
            ("entity", self.entity, "/\\#?%: "),
        ):
            if value is not None and (not value or set(value) & set(wrong)):
                raise InputError(f"{key}={value!r}: must not be empty or hold any of {wrong!r}")
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        if mode is None and not _has_account():
            mode = "offline"
            log.info(
                "no Weights & Biases account found: logging offline to %s; "
                "upload later with 'wandb sync'",
                folder / "wandb",
            )
        identity = hashlib.blake2b(str(folder.absolute()).encode(), digest_size=8).hexdigest()
        try:
            self._run = wandb.init(
                project=self.project,
                entity=self.entity,
                name=name,
                dir=str(folder),
                config=dict(config),
                id=identity,
                # Offline there is nothing to resume: the parts are joined when they are uploaded.
                resume=None if mode == "offline" else "allow",
                mode=mode,
                reinit="finish_previous",
                # Else W&B takes over stdout, and progress bars with it.
                settings=wandb.Settings(console="off", init_timeout=INIT_TIMEOUT),
            )
        except wandb.errors.CommError as error:  # also of keys that are not right
            wandb.teardown()  # its process writes into the folder
            raise InputError(
                f"W&B can't be reached, or does not take the account: {first_line(error)}; without "
                "them: logger.wandb.mode=offline or WANDB_MODE=offline, and 'wandb sync' later"
            ) from error
        except (wandb.Error, ValueError):
            wandb.teardown()
            raise
        self._run.define_metric("*", step_metric="trainer/global_step", step_sync=True)

    def _checked_mode(self) -> WandbMode | None:
        """The mode that is asked for, if any.

        Raises:
            InputError: one that is not known.
        """
        key = "mode" if self.mode else "WANDB_MODE"
        said = self.mode or os.environ.get("WANDB_MODE") or None
        mode = {"dryrun": "offline", "run": "online"}.get(said or "", said)  # W&B's former names
        if mode is not None and mode not in WANDB_MODES:
            raise InputError(f"{key}={said} is not known; valid: {', '.join(WANDB_MODES)}")
        return mode

    def logger(self, phase: str) -> Logger:
        """Curves of one phase, prefixed by its name."""
        return _PhaseLogger(experiment=self._run, prefix=phase, save_dir=str(self.folder))

    def scores(self, values: Mapping[str, Any]) -> None:
        """Into the run's summary."""
        self._run.summary.update(dict(values))

    def image(self, key: str, path: Path) -> None:
        """The picture."""
        import wandb

        self._run.log({key: wandb.Image(str(path))})

    def finish(self) -> None:
        """Close the W&B run."""
        self._run.finish()


def _has_account() -> bool:
    """Whether an API key is known, without asking the network."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    import netrc

    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
