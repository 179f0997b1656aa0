"""The argument parser of the tools."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from tinyfusion.errors import InputError


class Parser(argparse.ArgumentParser):
    """Reports wrong arguments in one line, as the other commands do.

    Args:
        tool: name of the command.
        options: as for ``argparse.ArgumentParser``.
    """

    def __init__(self, tool: str, **options: Any) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(
            prog=f"tinyfusion {tool}", formatter_class=formatter, allow_abbrev=False, **options
        )

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            InputError: always.
        """
        raise InputError(f"{message}; see '{self.prog} --help'")
