"""From configuration files to objects: find, check, build. The only user of ``instantiate``."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tinyfusion.errors import InputError
from tinyfusion.settings.schema import COMMANDS

MAX_NAME = 120
"""Longest run-folder name; longer ones are cut and end in a hash."""


def conf_folder() -> Path:
    """The shipped configuration, in an installed wheel or in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "base.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no configuration folder beside {package}")


def run_name(overrides: Sequence[str]) -> str:
    """Readable folder name from a run's overrides: ``scheme=1:2 seed=0`` -> ``scheme=1of2,seed=0``.

    Colons become ``of``; brackets, quotes and blanks go; other characters that shells or file
    systems mind become dashes. Names that lose information this way, or are cut, end in a hash of
    the overrides, so that different overrides never share a name.
    """
    cleaned, lossy = [], False
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        value = value.replace("\\", "").strip("'\"")
        text = f"{key.rpartition('/')[2]}={value}".replace(":", "of").replace("],[", "_")
        text = text.replace(",", "-")
        kept = "".join(c for c in text if c not in "[]{}'\" ")
        safe = "".join(c if c.isalnum() or c in "=._-+" else "-" for c in kept)
        lossy = lossy or "/" in text or len(kept) != len(text) or safe != kept
        cleaned.append(safe)
    name = ",".join(cleaned) or "default"
    if lossy or len(name) > MAX_NAME:
        digest = hashlib.blake2b("\0".join(overrides).encode(), digest_size=3).hexdigest()
        name = f"{name[:MAX_NAME]}-{digest}"
    return name


def register_resolvers() -> None:
    """Make ``${tinyfusion.run_name:...}`` available to the configuration files."""
    OmegaConf.register_new_resolver(
        "tinyfusion.run_name", lambda overrides: run_name(list(overrides)), replace=True
    )


def check(cfg: DictConfig) -> DictConfig:
    """Refuse unknown keys and types anywhere in a composed configuration.

    The top level is merged onto the command's schema; every node with a ``_target_`` is held
    against that callable's signature. Nothing is built.

    Args:
        cfg: composed configuration with a ``command`` key.

    Returns:
        The configuration with all interpolations resolved, as plain containers inside.

    Raises:
        InputError: one line naming the key and what would be valid.
    """
    command = cfg.get("command")
    if command not in COMMANDS:
        raise InputError(f"command={command!r} is not known; valid: {', '.join(COMMANDS)}")
    schema = OmegaConf.structured(COMMANDS[command])
    unknown = [key for key in cfg if key not in schema]
    if unknown:
        raise InputError(
            f"unknown key {unknown[0]!r} for 'tinyfusion {command}'; "
            f"valid: {', '.join(sorted(schema))}"
        )
    try:
        OmegaConf.resolve(cfg)
        merged = OmegaConf.merge(schema, cfg)
    except OmegaConfBaseException as error:
        raise InputError(one_line(error)) from None
    for path, node in _targets(merged, ""):
        _check_target(path, node)
    return merged


def _targets(node: Any, path: str) -> Iterator[tuple[str, DictConfig]]:
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield path, node
        for key in node:
            yield from _targets(node.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(node, ListConfig):
        for index, item in enumerate(node):
            yield from _targets(item, f"{path}[{index}]")


def _check_target(path: str, node: DictConfig) -> None:
    target = locate(node["_target_"], path)
    parameters = inspect.signature(target).parameters
    names = [n for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    given = [key for key in node if not str(key).startswith("_")]
    unknown = [key for key in given if key not in names]
    if unknown and not open_ended:
        raise InputError(
            f"unknown key '{path}.{unknown[0]}'; valid for {path}: {', '.join(sorted(names))}"
        )
    required = [
        n
        for n, p in parameters.items()
        if n in names and p.default is p.empty and p.kind is not p.POSITIONAL_ONLY
    ]
    missing = [name for name in required if name not in given]
    if missing and not node.get("_partial_", False):
        raise InputError(f"'{path}.{missing[0]}' must be given for {node['_target_']}")
    unset = [key for key in given if OmegaConf.is_missing(node, key)]
    if unset:
        raise InputError(f"'{path}.{unset[0]}' must be given, for example {path}.{unset[0]}=...")


def locate(target: str, path: str) -> Callable[..., Any]:
    """Import what a ``_target_`` names.

    Raises:
        InputError: there is no such class or function.
    """
    from hydra.utils import get_object

    try:
        return get_object(target)
    except Exception as error:
        raise InputError(f"{path}._target_={target!r} can't be imported: {error}") from None


def build(node: Any) -> Any:
    """Build the objects that a configuration node describes.

    Raises:
        InputError: what the constructors refuse, in their own words.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, InputError):
                raise cause from None
            cause = cause.__cause__
        raise


def one_line(error: BaseException) -> str:
    """A library's message on one line, without its banner of blank lines and hints."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    drop = ("full_key:", "object_type=", "reference_type=", "Set the environment variable")
    return "; ".join(line for line in lines if not line.startswith(drop)) or type(error).__name__
