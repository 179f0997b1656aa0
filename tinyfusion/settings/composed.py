"""The configuration of a command line as plain data, without running the command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyfusion.errors import InputError
from tinyfusion.notices import captured
from tinyfusion.settings.check import check
from tinyfusion.settings.compose import plain
from tinyfusion.settings.messages import explain
from tinyfusion.settings.overview import conf_folder


def composed(
    command: str, overrides: Sequence[str], folders: Sequence[Path] = ()
) -> dict[str, Any]:
    """The checked configuration of a command line, as `tinyfusion COMMAND` would have it.

    Args:
        command: the command.
        overrides: in Hydra's grammar.
        folders: further configuration folders (``--config-dir``).

    Raises:
        InputError: a wrong key or value.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from tinyfusion.settings.brought import with_brought_along

    searched = [f"hydra.searchpath=[{','.join(map(str, folders))}]"] if folders else []
    GlobalHydra.instance().clear()
    with captured(), initialize_config_dir(str(conf_folder()), version_base="1.3"):
        try:
            cfg = compose(command, overrides=[*searched, *overrides])
            cfg = with_brought_along(cfg, list(overrides), list(folders))
            return plain(check(cfg, list(overrides)))
        except (HydraException, OmegaConfBaseException) as error:
            raise InputError(explain(error, command, list(folders))) from None
