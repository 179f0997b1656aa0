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
        """Scalars at step 0."""
        for key, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(key, value)

    def image(self, key: str, path: Path) -> None:
        """The picture."""
        self._writer.add_image(key, pixels(path), dataformats="HWC")

    def finish(self) -> None:
        """Flush."""
        self._writer.close()
