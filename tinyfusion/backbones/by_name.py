"""Backbones from outside this package, by the dotted name of their class.

Files name a class, but never cause its import: reading a model must not run code that the model
asks for. The class has to be there already, because a configuration or a script named it.
"""

from __future__ import annotations

import inspect
import pkgutil
from typing import Any

from tinyfusion.backbones.contract import Backbone
from tinyfusion.errors import InputError


def dotted_name(kind: type[Backbone]) -> str:
    """The name under which a class is stored: its module's and its own, such as ``my.vit.ViT``.

    Raises:
        InputError: another process could not import it by that name.
    """
    name = kind.__qualname__
    if kind.__module__ == "__main__":
        raise InputError(
            f"backbone class {name} is defined in the script or notebook that runs (__main__), "
            "where no other process finds it; move it to a module of its own and import it"
        )
    if "<locals>" in name:
        raise InputError(
            f"backbone class {kind.__module__}.{name} is defined inside a function, where no "
            "other process finds it; move it to the top of its module"
        )
    return f"{kind.__module__}.{name}"


def loaded_class(name: str) -> type[Backbone] | None:
    """The class of that dotted name if something imported it; imports nothing.

    Of classes that were defined several times, as in a reloaded module, the last.
    """
    found, left = None, [Backbone]
    while left:
        children = left.pop(0).__subclasses__()
        left += children
        for kind in children:
            if f"{kind.__module__}.{kind.__qualname__}" == name:
                found = kind
    return found


def imported_class(name: str) -> type[Backbone]:
    """Import the class that a *user* named; never to be called with what a file says.

    Args:
        name: dotted name.

    Raises:
        InputError: the class can't be imported, or is no subclass of `Backbone`.
    """
    try:
        found = pkgutil.resolve_name(name)
    except Exception as error:  # importing runs code of the user's, which may fail in any way
        raise InputError(
            f"backbone={name!r} can't be imported: {type(error).__name__}: {error}"
        ) from error
    return as_backbone_class(found, f"backbone={name!r}")


def as_backbone_class(found: Any, name: str) -> type[Backbone]:
    """``found``, if it is a class of backbones.

    Args:
        found: what a name stands for.
        name: what the user gave, for the message.

    Raises:
        InputError: ``found`` is no class, or no subclass of `Backbone`.
    """
    if not inspect.isclass(found) or not issubclass(found, Backbone):
        raise InputError(
            f"{name} is no backbone; valid: a class derived from tinyfusion.Backbone, such as "
            "tinyfusion.backbones.dit.DiT (docs/own_backbone.md)"
        )
    return found
