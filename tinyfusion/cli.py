"""``tinyfusion COMMAND [overrides]``: Hydra underneath, one-line errors, resume without Hydra.

Nothing heavy is imported before it is known that there is work to do, so ``--help`` is quick.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tinyfusion.errors import InputError
from tinyfusion.settings.schema import SUMMARIES
from tinyfusion.version import __version__

USAGE = """\
usage: tinyfusion COMMAND [key=value ...] [-m]

commands:
{commands}

Keys choose and change parts of the configuration, for example
  tinyfusion run scheme=2:4 delta=full seed=1
  tinyfusion run -m scheme=1:2,2:4,7:14 delta=lora,full,frozen     (a sweep, one folder per run)
  tinyfusion run resume=outputs/run/FOLDER                         (go on where it was killed)
  tinyfusion run --cfg job                                         (print the configuration)

'tinyfusion COMMAND --help' lists a command's keys and choices; 'tinyfusion --version'.
"""


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        return _main(arguments)
    except InputError as error:
        print(f"tinyfusion: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tinyfusion: interrupted; go on with resume=FOLDER", file=sys.stderr)
        return 130


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, SUMMARIES))
        commands = "\n".join(f"  {name:<{width}}  {text}" for name, text in SUMMARIES.items())
        print(USAGE.format(commands=commands), end="")
        return 0
    if arguments[0] in ("-V", "--version", "version"):
        print(f"tinyfusion {__version__}")
        return 0
    command, *overrides = arguments
    if command not in SUMMARIES:
        raise InputError(f"unknown command {command!r}; valid: {', '.join(SUMMARIES)}")
    if any(flag in ("-h", "--help") for flag in overrides):
        print(_command_help(command), end="")
        return 0
    resume = [text for text in overrides if text.startswith("resume=")]
    if resume and resume[-1] not in ("resume=", "resume=null"):
        others = [text for text in overrides if not text.startswith("resume=")]
        if others:
            raise InputError(
                f"resume= takes the configuration stored in the folder; remove {others[0]!r}"
            )
        from tinyfusion.stages.job import resume_folder

        resume_folder(command, Path(resume[-1].removeprefix("resume=")))
        return 0
    return _run_hydra(command, overrides)


def _run_hydra(command: str, overrides: list[str]) -> int:
    # Hydra prints its own report and exits unless asked for the plain exception.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    import hydra
    from hydra.errors import HydraException
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    from tinyfusion.settings.compose import conf_folder, one_line, register_resolvers

    register_resolvers()
    folder = conf_folder()

    @hydra.main(version_base="1.3", config_path=str(folder), config_name=command)
    def job(cfg: DictConfig) -> None:
        from tinyfusion.stages.job import start

        start(cfg)

    before = sys.argv
    sys.argv = [f"tinyfusion {command}", *overrides]
    try:
        job()
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(one_line(error)) from None
    finally:
        sys.argv = before
    return 0


def _command_help(command: str) -> str:
    """Keys and choices of a command, read from its configuration file's text."""
    from tinyfusion.settings.schema import COMMANDS

    package = Path(__file__).resolve().parent
    folder = next(
        f for f in (package / "conf", package.parent / "conf") if (f / "base.yaml").is_file()
    )
    keys = COMMANDS[command].__dataclass_fields__
    lines = [f"tinyfusion {command}: {SUMMARIES[command]}", "", "groups (key=choice):"]
    for group in sorted(folder.iterdir()):
        if group.is_dir() and (group.name in keys or group.name == "experiment"):
            names = sorted(
                str(file.relative_to(group).with_suffix("")) for file in group.rglob("*.yaml")
            )
            lines.append(f"  {group.name:<12} {', '.join(n for n in names if n != 'base')}")
    plain = [key for key in keys if not (folder / key).is_dir() and key != "command"]
    lines += ["", "values (key=value):", f"  {', '.join(plain)}", "", "defaults:"]
    text = (folder / f"{command}.yaml").read_text(encoding="utf-8")
    lines += [f"  {line}" for line in text.splitlines() if line and not line.startswith("#")]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
