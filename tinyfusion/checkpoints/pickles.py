"""What a pickle names, found without unpickling, and what stands for harmless objects in it.

Training files hold more than tensors: scalars of numpy, paths, dates, configurations. None of
their classes is called here: each is replaced by something that does nothing, so that the tensors
beside them can be read without running code. Any other name is left to the protected loader of
torch, which refuses the file.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

import numpy as np

_HARMLESS = re.compile(
    r"numpy\.(dtype|ndarray|dtypes\.\w+|(_core|core)\.multiarray\._reconstruct|bool_?|u?int\d*|"
    r"float\d*|str_?)|pathlib\.\w+|pathlib\._local\.\w+|datetime\.\w+|omegaconf\.[\w.]+|typing\.\w+|"
    r"builtins\.(dict|list|tuple|int|float|str|bool|bytes|frozenset|range|slice|object)|"
    r"types\.SimpleNamespace|decimal\.Decimal|fractions\.Fraction|uuid\.UUID|"
    r"copyreg\._reconstructor"
)
"""Names of what is put aside unread; one list for all files."""
_OWN_OF_TORCH = re.compile(
    r"torch\.(\w+Storage|_utils\._rebuild_\w+|_tensor\._rebuild_\w+|Size|device|Tensor|\w*int\d*|"
    r"b?float\d*|bool|nn\.parameter\.Parameter|serialization\._get_layout|storage\.\w+)|"
    r"collections\.(OrderedDict|Counter)|_codecs\.encode|argparse\.Namespace|"
    r"builtins\.(set|bytearray|complex)"
)
"""Names that files of torch need and that torch's protected loader allows."""
TORCH_MAGIC = 0x1950A86A20F9469CFC6C
"""What files from before torch 1.6 begin with."""


_BEFORE = ("PROTO", "FRAME", "MEMOIZE", "BINUNICODE", "SHORT_BINUNICODE")
"""Instructions that come before the first that says what kind of thing a pickle is."""


@dataclass(frozen=True)
class Scan:
    """What a file's pickle says before anything is made of it.

    Attributes:
        protocol: pickle protocol.
        names: dotted names of the classes and functions that it asks for, in order.
        is_torch: torch.save wrote it.
        is_object: it is one object of the first of these classes, not a mapping of values.
    """

    protocol: int
    names: tuple[str, ...]
    is_torch: bool
    is_object: bool

    @property
    def foreign(self) -> tuple[str, ...]:
        """Names of neither torch nor anything harmless."""
        return tuple(n for n in self.names if not _OWN_OF_TORCH.fullmatch(n) and not is_harmless(n))


def is_harmless(name: str) -> bool:
    """Whether objects of a name are put aside instead of refusing their file."""
    return name in _READ or bool(_HARMLESS.fullmatch(name))


def scan(path: Path) -> Scan | None:
    """Look through the pickle of a file that torch.save or pickle wrote.

    Returns:
        What it says; ``None`` if it is damaged, or no pickle.
    """
    is_torch, pickle = True, b""
    # What is damaged can fail in any way.
    with suppress(Exception):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                inner = [name for name in archive.namelist() if name.endswith("/data.pkl")]
                pickle = archive.read(inner[0])
            return _scanned(BytesIO(pickle), is_torch)
        with open(path, "rb") as handle:
            genops = pickletools.genops(handle)
            first = [value for code, value, _ in genops if code.name in ("LONG", "LONG1")]
            is_torch = first == [TORCH_MAGIC]
            if is_torch:  # then the protocol and facts about the machine, before the content
                for _ in range(2):
                    list(pickletools.genops(handle))
            else:
                handle.seek(0)
            return _scanned(handle, is_torch)
    return None


def _scanned(handle: IO[bytes], is_torch: bool) -> Scan:
    protocol, names, is_object = 0, dict[str, None](), None
    strings: list[Any] = []
    memo: dict[int, Any] = {}
    value: Any
    for code, value, _ in pickletools.genops(handle):
        # The first two protocols are only known by their instructions.
        protocol = max(protocol, value if code.name == "PROTO" else code.proto)
        if code.name == "GLOBAL":
            names[_present(*value.split(" ", 1))] = None
            strings.append(None)
        elif code.name == "STACK_GLOBAL":
            names[f"{strings[-2]}.{strings[-1]}"] = None
        elif code.name == "MEMOIZE":
            memo[len(memo)] = strings[-1] if strings else None
        elif code.name in ("BINPUT", "LONG_BINPUT"):
            memo[value] = strings[-1] if strings else None
        elif code.name in ("BINGET", "LONG_BINGET"):
            strings.append(memo.get(value))
        else:
            strings.append(value)
        if is_object is None and code.name not in _BEFORE:
            is_object = next(iter(names), "collections.OrderedDict") != "collections.OrderedDict"
    return Scan(protocol, tuple(names), is_torch, bool(is_object))


def _present(module: str, name: str) -> str:
    """A name as Python 3 has it; protocols up to 2 write that of Python 2."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


class Unread:
    """Stands for an object that was not made; ``name`` is that of its class."""

    name = ""

    def __new__(cls, *_: Any, **__: Any) -> Unread:
        """Take whatever the file passes."""
        return super().__new__(cls)

    def __init__(self, *given: Any, **_: Any) -> None:
        self.given = given

    def __setstate__(self, state: Any) -> None:
        """Forget it."""

    def __str__(self) -> str:
        return f"{self.name}, not read"


def is_array(value: Any) -> bool:
    """Whether a value stands for an array of numpy that was put aside."""
    return isinstance(value, Unread) and value.name.endswith("multiarray._reconstruct")


def stand_ins(names: Iterable[str]) -> Iterator[tuple[Any, str]]:
    """What to make of harmless names instead of what they name, for ``safe_globals``.

    Args:
        names: dotted names that a file asks for.
    """
    for name in names:
        if name in _READ:
            yield _READ[name], name
        elif is_harmless(name):
            yield type("Unread", (Unread,), {"name": name}), name


def _scalar(dtype: Any, data: Any = b"") -> Any:
    """A number or text of numpy as one of Python."""
    code = str(getattr(dtype, "given", ("",))[0])
    if re.fullmatch(r"[<>=|]?[biufU]\d{1,3}", code) and isinstance(data, bytes):
        kind = np.dtype(code)
        if len(data) == kind.itemsize:
            return np.frombuffer(data, kind)[0].item()
    return Unread()


def _posix(*parts: Any) -> str:
    return str(PurePosixPath(*map(str, parts)))


def _windows(*parts: Any) -> str:
    return str(PureWindowsPath(*map(str, parts)))


def _mapping(*_: Any) -> dict[Any, Any]:
    return {}


_READ: dict[str, Any] = {
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.multiarray.scalar": _scalar,
    "collections.defaultdict": _mapping,
}
"""Names of what is read after all, as a plain value, and how."""
for _module in ("pathlib", "pathlib._local"):
    for _kind in ("PosixPath", "PurePosixPath", "Path", "PurePath"):
        _READ[f"{_module}.{_kind}"] = _posix
    for _kind in ("WindowsPath", "PureWindowsPath"):
        _READ[f"{_module}.{_kind}"] = _windows
