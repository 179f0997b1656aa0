"""Tracking by Weights & Biases."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from tinyfusion.errors import InputError, first_line
from tinyfusion.tracking import artifacts
from tinyfusion.tracking.contract import Tracking
from tinyfusion.tracking.keys import goal

log = logging.getLogger(__name__)

INIT_TIMEOUT = 20.0
"""Seconds that W&B's server is given to answer before a job begins."""

WandbMode = Literal["online", "offline", "disabled", "shared"]
WANDB_MODES: tuple[WandbMode, ...] = get_args(WandbMode)


class _PhaseLogger(WandbLogger):
    """Curves named ``phase/metric`` over a step of their own, ``phase/step``.

    W&B shows each phase's in a section of its own, and the summary of a curve is its best value
    where one is better (`goal`).
    """

    LOGGER_JOIN_CHAR = "/"

    def __init__(self, run: Any, phase: str, folder: Path) -> None:
        super().__init__(experiment=run, prefix=phase, save_dir=str(folder))
        self._run, self._axis = run, f"{phase}/step"
        self._defined: set[str] = set()
        run.define_metric(self._axis, hidden=True)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """One row, at a step of the phase."""
        row: dict[str, Any] = {f"{self._prefix}/{name}": v for name, v in metrics.items()}
        row.pop(f"{self._prefix}/epoch", None)  # Lightning's, which is always 0 here
        for name in sorted(row.keys() - self._defined):
            self._run.define_metric(name, step_metric=self._axis, summary=goal(name))
            self._defined.add(name)
        self._run.log(row if step is None else {**row, self._axis: step})

    @rank_zero_only
    def log_image(
        self, key: str, images: list[Any], step: int | None = None, **kwargs: Any
    ) -> None:
        """Pictures, at a step of the phase."""
        import wandb

        pictures = [wandb.Image(image, **kwargs) for image in images]
        self.log_metrics({key: pictures}, step)  # type: ignore[dict-item]  # what W&B logs alike


class Wandb(Tracking):
    """One Weights & Biases run per job, its curves named by phase; a resumed job continues it.

    At its end the run says what it decided, and which models, decisions and samples it took and
    made (`tinyfusion.tracking.artifacts`).

    Args:
        project: W&B project.
        entity: W&B user or team.
        mode: one of `WANDB_MODES`; ``None`` is what ``WANDB_MODE`` says, else offline, with a
            message, where no account is set up.
        group: runs that W&B shows together, such as those of a sweep.
        job_type: kind of run within the group.
        tags: words to find the run by.
        notes: a longer description.
        upload_models: upload weights, too; else models are known by hash, size and path.
    """

    def __init__(
        self,
        project: str = "tinyfusion",
        entity: str | None = None,
        mode: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: list[str] | None = None,
        notes: str | None = None,
        upload_models: bool = False,
    ) -> None:
        self.project, self.entity, self.mode = project, entity, mode
        self.group, self.job_type = group, job_type
        self.tags, self.notes, self.upload_models = tags or [], notes, upload_models

    def start(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        """See `Tracking.start`.

        Raises:
            InputError: a name or a mode that W&B does not take, an account that it does not know,
                or no answer from its server.
        """
        super().start(folder, name, config)
        self._config = dict(config)
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
                config=self._config,
                group=self.group,
                job_type=self.job_type,
                tags=self.tags or None,
                notes=self.notes,
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
        return _PhaseLogger(self._run, phase, self.folder)

    def scores(self, values: Mapping[str, Any]) -> None:
        """Into the run's summary."""
        self._run.summary.update(dict(values))

    def image(self, key: str, path: Path) -> None:
        """The picture."""
        import wandb

        self._run.log({key: wandb.Image(str(path))})

    def finish(self) -> None:
        """Say what was decided, taken and made, and close the W&B run."""
        try:
            self._conclude()
        # The results are in the run's folder: what W&B refuses at the end is no failure of the run.
        except Exception as error:
            log.warning("W&B: artifacts are not logged: %s", first_line(error))
        self._run.finish()

    def abandon(self) -> None:
        """Close the W&B run, which took and made nothing."""
        self._run.finish()

    def _conclude(self) -> None:
        import wandb

        decided = artifacts.facts(self.folder, self._config)
        if decided:
            self._run.config.update({"decided": decided}, allow_val_change=True)
            self._run.summary.update({f"decided/{k}": v for k, v in decided.items()})
        for phase, rows in artifacts.gate_curves(self.folder):
            columns: list[str | int] = ["step", "unit", "probability"]
            self._run.log({f"{phase}/inclusion": wandb.Table(columns=columns, data=rows)})
        for artifact in artifacts.used(self._config):
            self._use(self._draft(artifact))
        for artifact in artifacts.made(self.folder, self._config):
            self._run.log_artifact(self._draft(artifact), aliases=["latest", *artifact.aliases])

    def _draft(self, artifact: artifacts.Artifact) -> Any:
        """An artifact as W&B has it: alike from alike content, and so the same in all runs."""
        import wandb

        made = wandb.Artifact(artifact.name, artifact.kind, metadata=dict(artifact.metadata))
        with made.new_file("content.json") as file:
            file.write(json.dumps({"sha256": artifact.sha256}))
        large = artifact.large if self.upload_models else ()
        for path in (*artifact.files, *large):
            made.add_file(str(path))
        return made

    def _use(self, draft: Any) -> None:
        """Declare an artifact an input of the run; what W&B knows already is not stored anew."""
        if self._run.offline:
            # The public method refuses to work offline, as it waits for the server's answer; this
            # is the record it would make, which 'wandb sync' hands in.
            self._run._log_artifact(draft, is_user_created=True, use_after_commit=True)
        else:
            self._run.use_artifact(draft)


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
