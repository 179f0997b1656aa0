"""Whether a value is of the annotated type; if not, one line says its key and what is valid."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeGuard, Union, get_args, get_origin, get_type_hints

from omegaconf import BooleanNode, DictConfig, FloatNode, IntegerNode, ListConfig
from omegaconf.errors import OmegaConfBaseException

from tinyfusion.errors import InputError
from tinyfusion.settings.compose import keys_of

_PLAIN: dict[Any, tuple[str, str]] = {
    bool: ("true or false", "true or false"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    Path: ("text", "texts"),
}
_NODES: dict[Any, Any] = {bool: BooleanNode, int: IntegerNode, float: FloatNode}


def hints_of(target: Callable[..., Any]) -> dict[str, Any]:
    """Annotations of a callable's arguments; none where they can't be read."""
    # The fields of a dataclass may be annotated in modules of its bases.
    of_fields = inspect.isclass(target) and is_dataclass(target)
    try:
        if of_fields or not inspect.isclass(target):
            return get_type_hints(target)
        return get_type_hints(target.__init__)
    except Exception:  # an annotation may name what is only imported for type checkers
        return {}


def check_type(path: str, value: Any, hint: Any, converted: bool = False) -> None:
    """Refuse what can't be of the annotated type; unusual annotations are passed over.

    Args:
        path: dotted key of the value.
        value: what the configuration says.
        hint: the annotation.
        converted: the value will be converted, as ``"3"`` to a number; so it is where the
            configuration has a schema.

    Raises:
        InputError: it is of another type.
    """
    options = _options(hint)
    wanted = [option for option in options if option is not type(None)]
    if value is None:
        if Any in options or len(wanted) < len(options):
            return
        raise InputError(f"{path}=null: a value must be given: {_valid(wanted)}")
    for option in wanted:
        if _has_fields(option) and converted and isinstance(value, DictConfig):
            return _check_fields(path, value, option)
    if not any(_fits(value, option, converted) for option in wanted):
        # 1e3 is a float in YAML, whatever it is meant to count.
        whole = int in wanted and isinstance(value, float) and value.is_integer()
        hint_of = f", such as {int(value)}" if whole else ""
        raise InputError(f"{path}={value!r} must be {_valid(wanted)}{hint_of}")


def check_fields(cfg: DictConfig, schema: type[Any]) -> None:
    """Check the values of a configuration against a dataclass, to which they will be converted.

    Raises:
        InputError: a value of another type.
    """
    _check_fields("", cfg, schema)


def _check_fields(path: str, cfg: DictConfig, schema: type[Any]) -> None:
    hints = hints_of(schema)
    for key in keys_of(cfg):
        if key not in hints:
            raise InputError(
                f"unknown key '{path}.{key}'; valid for {path}: {', '.join(sorted(hints))}"
            )
        check_type(f"{path}.{key}" if path else key, cfg[key], hints[key], converted=True)


def _has_fields(option: Any) -> TypeGuard[type[Any]]:
    return inspect.isclass(option) and is_dataclass(option)


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(value: Any, option: Any, converted: bool) -> bool:
    """Whether a value is of one type, or can't be said not to be."""
    # An object of its own is checked as such; what it is when it is built is not known here.
    if option is Any or (isinstance(value, DictConfig) and "_target_" in value):
        return True
    origin = get_origin(option) or option
    if option in _PLAIN:
        if isinstance(value, DictConfig | ListConfig):
            return False
        return _converts(value, option) if converted else _is(value, option)
    if origin in (list, tuple, Sequence):
        if not isinstance(value, ListConfig):
            return False
        inner = [kind for kind in get_args(option) if kind is not ...]
        same = origin is not tuple or ... in get_args(option)
        kinds = inner[:1] * len(value) if same else inner
        return len(kinds) != len(value) or all(
            any(_fits(part, kind, converted) for kind in _options(each))
            for part, each in zip(value, kinds, strict=True)
        )
    if origin in (dict, Mapping):
        return isinstance(value, DictConfig)
    # Any class but those that text and numbers are made into.
    return not inspect.isclass(option) or option.__module__ in ("builtins", "pathlib")


def _is(value: Any, plain: Any) -> bool:
    if isinstance(value, bool):
        return plain is bool
    if plain is Path:
        return isinstance(value, str)
    return isinstance(value, int | float if plain is float else plain)


def _converts(value: Any, plain: Any) -> bool:
    if plain not in _NODES or (plain is bool and value not in (0, 1) and not _is(value, str)):
        return plain not in _NODES
    try:
        _NODES[plain](value)
    except OmegaConfBaseException:
        return False
    return True


def _valid(wanted: Sequence[Any]) -> str:
    found: dict[str, None] = {}  # in order, each once
    for option in wanted:
        origin = get_origin(option) or option
        if option in _PLAIN:
            found[_PLAIN[option][0]] = None
        elif origin in (list, tuple, Sequence):
            inner = [kind for kind in get_args(option) if kind is not ...]
            plain = [kind for each in inner[:1] for kind in _options(each) if kind in _PLAIN]
            one = plain[0] if len(set(inner)) == 1 and plain else None
            of = f" of {_PLAIN[one][1]}" if one else ""
            example = "[a,b]" if one in (str, Path) else "[0,1]"
            found[f"a list{of}, such as {example}"] = None
        elif origin in (dict, Mapping):
            found["a dictionary, such as {a:1}"] = None
        elif _has_fields(option):
            keys = ", ".join(hints_of(option))
            found[f"a configuration with a _target_, or with keys of its own ({keys})"] = None
        else:
            found["a configuration with a _target_"] = None
    return " or ".join(found)
