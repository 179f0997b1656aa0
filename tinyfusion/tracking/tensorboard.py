"""Tracking by TensorBoard."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from tinyfusion.errors import InputError
from tinyfusion.tracking.contract import Tracking, pixels


class TensorBoard(Tracking):
    """TensorBoard event files beside the run's other files."""

    def start(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        """See `Tracking.start`.

        Raises:
            InputError: TensorBoard is not installed.
        """
        super().start(folder, name, config)
        self._config = dict(config)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError(
                "logger=tensorboard needs the package tensorboard: pip install tensorboard"
            ) from None
        self._writer = SummaryWriter(str(folder / "tensorboard"))
        # TensorBoard renders indented text verbatim.
        text = json.dumps(dict(config), indent=2)
        self._writer.add_text("config", textwrap.indent(text, "    "))

    def logger(self, phase: str) -> Logger:
        """Event files of one phase."""
        return TensorBoardLogger(self.folder, name="tensorboard", version=phase)

    def scores(self, values: Mapping[str, Any]) -> None:
        """Scalars at step 0, and a row of the hparams tab: configuration and scores."""
        from torch.utils.tensorboard.summary import hparams

        numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float)}
        for key, value in numbers.items():
            self._writer.add_scalar(key, value)
        # Into this very file: `add_hparams` would begin another run for them.
        for part in hparams(_settings(self._config), numbers):
            assert self._writer.file_writer is not None  # made by the scalars
            self._writer.file_writer.add_summary(part)

    def image(self, key: str, path: Path) -> None:
        """The picture."""
        self._writer.add_image(key, pixels(path), dataformats="HWC")

    def finish(self) -> None:
        """Flush."""
        self._writer.close()


def _settings(config: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """The plain values of a configuration by their keys, such as ``pruner.delta.rank``."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        inner = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping):
            found |= _settings(value, inner)
        elif isinstance(value, bool | int | float | str):
            found[inner] = value
        elif value is not None:  # the tab has no lists
            found[inner] = json.dumps(value)
    return found
