"""``python -m tinyfusion``: the command line, such as for ``torchrun ... -m tinyfusion run``."""

from tinyfusion.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
