"""From configuration files to objects: find and build. The only user of ``instantiate``."""

from __future__ import annotations

import hashlib
import inspect
import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tinyfusion.errors import InputError, first_line
from tinyfusion.quiet import at_least
from tinyfusion.ranks import shared_stamp
from tinyfusion.settings.overrides import split, text_of
from tinyfusion.settings.processes import agree_on_processes
from tinyfusion.training.recipes import published

MAX_NAME = 120
"""Most bytes of a run-folder's name; longer ones are cut and end in a hash."""

_LONG_FRACTION = re.compile(r"-?\d+\.\d{5,}(e-?\d+)?")


def run_name(overrides: Sequence[str], left_out: Collection[str] = ()) -> str:
    """Readable folder name from a run's overrides: ``scheme=1:2 seed=0`` -> ``scheme=1of2,seed=0``.

    Colons become ``of``; brackets, quotes and blanks go; a path is named by its last part, and a
    long fraction by four digits; other characters that shells or file systems mind become dashes.
    Names that lose information this way, or are cut, end in a hash of the overrides, so that
    different overrides never share a name. ``output_root``, which says where the sweep's folder
    itself goes, is left out.

    Args:
        overrides: overrides of the run.
        left_out: keys of what all runs of the sweep share, and are not named by.
    """
    shared = {"output_root", *left_out}
    overrides = [text for text in overrides if split(text)[0].lstrip("+~") not in shared]
    cleaned, lossy = [], False
    for override in overrides:
        key, value = split(override.lstrip("+~"))
        last = text_of(value or "").rstrip("/").rpartition("/")[2]
        short = f"{float(last):.4g}" if _LONG_FRACTION.fullmatch(last) else last
        text = f"{key.rpartition('/')[2]}={short}".replace(":", "of").replace("],[", "_")
        text = text.replace(",", "-")
        kept = "".join(c for c in text if c not in "[]{}'\" ")
        safe = "".join(c if c.isalnum() or c in "=._-+" else "-" for c in kept)
        lossy = lossy or "/" in override or short != last or safe != text
        cleaned.append(safe)
    name = ",".join(cleaned) or "default"
    if lossy or len(name.encode()) > MAX_NAME:
        digest = hashlib.blake2b("\0".join(overrides).encode(), digest_size=3).hexdigest()
        name = f"{name.encode()[:MAX_NAME].decode(errors='ignore')}-{digest}"
    return name


def _published(name: str) -> Any:
    """See `tinyfusion.training.recipes.published`."""
    value = published(name)
    return OmegaConf.create(value) if isinstance(value, list) else value


def _stamp(stamp: str, *, _root_: DictConfig) -> str:
    """See `tinyfusion.ranks.shared_stamp`; processes too many are not asked for a folder."""
    agree_on_processes(_root_)
    return shared_stamp(stamp)


def group_name() -> str | None:
    """What the runs of a study or a sweep are called together in trackers.

    ``STUDY-SCALE``, or the name of the sweep's folder; ``None`` in a run by itself, or before Hydra
    has begun.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if not HydraConfig.initialized():
        return None
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        return None
    return hydra.callbacks.get("tinyfusion", {}).get("group") or Path(hydra.sweep.dir).name


_ARGUMENT = re.compile(r"[a-z_]+=")
"""How a refusal begins that names an argument."""

# Registered on import, because launchers that start the runs of a sweep in other processes
# resolve a run's folder before they call anything of ours.
OmegaConf.register_new_resolver(
    "tinyfusion.run_name",
    lambda overrides, left_out=(): run_name(list(overrides), list(left_out)),
    replace=True,
)
OmegaConf.register_new_resolver("tinyfusion.sweep", lambda _="": group_name(), replace=True)
OmegaConf.register_new_resolver("tinyfusion.stamp", _stamp, replace=True)
OmegaConf.register_new_resolver("tinyfusion.recipe", _published, replace=True)


def locate(target: str, path: str) -> Callable[..., Any]:
    """Import what a ``_target_`` names.

    Args:
        target: dotted name of a class or function.
        path: key of the configuration node, for the message.

    Raises:
        InputError: there is no such class or function.
    """
    from hydra.utils import get_object

    try:
        # Which logs what it raises as well.
        with at_least(logging.CRITICAL, "hydra.utils"):
            found = get_object(target)
    except Exception as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else repr(error)
        if error.__cause__ is not None:  # such as a mistake in a module of the user's
            cause = error.__cause__
            reason += f" ({type(cause).__name__}: {first_line(cause)})"
        raise InputError(f"{path}._target_={target!r} can't be imported: {reason}") from None
    if not callable(found):
        raise InputError(
            f"{path}._target_={target!r} is a {type(found).__name__}; valid: the dotted name of a "
            "class or function, such as my_module.MyClass"
        )
    return found


def parameters_of(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Parameters of a class or function; none where Python can't tell, as of some built-in ones."""
    try:
        return inspect.signature(target).parameters
    except ValueError:
        return {}


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
                raise _led(cause, node, str(error)) from None
            cause = cause.__cause__
        raise


def _led(error: InputError, node: Any, report: str) -> InputError:
    """A refusal that names the node's key, as constructors that don't know it can't.

    Args:
        error: what a constructor refused.
        node: what was built.
        report: Hydra's, whose last line names the part whose constructor it was.
    """
    message = str(error)
    key = node._get_full_key("") if isinstance(node, DictConfig) else ""
    if not key or key in message:
        return error
    part = report.rpartition("full_key: ")[2].strip()
    if part.startswith(key) and _ARGUMENT.match(message):
        return InputError(f"{part}.{message}")
    return InputError(f"{key}: {message}")


def plain(node: Any) -> dict[str, Any]:
    """A configuration node with keys as plain data, its interpolations resolved."""
    content = OmegaConf.to_container(node, resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def keys_of(node: DictConfig) -> list[str]:
    """Keys of a configuration node, which are text."""
    return [str(key) for key in node]
