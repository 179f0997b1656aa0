"""Why a weights file can't be read, and the way out."""

from __future__ import annotations

import json
import pickle
import re
import shlex
import zipfile
from pathlib import Path

from tinyfusion.checkpoints.pickles import TORCH_MAGIC, Scan, scan
from tinyfusion.errors import InputError, first_line

_STARTS = {
    b"\x1f\x8b": "is compressed by gzip: unpack it",
    b"BZh": "is compressed by bzip2: unpack it",
    b"\xfd7zXZ": "is compressed by xz: unpack it",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd: unpack it",
    b"7z\xbc\xaf": "is a 7z archive: unpack it",
    b"Rar!": "is a RAR archive: unpack it",
    b"\x93NUMPY": "is an array of numpy (.npy)",
    b"\x89HDF": "is a file of HDF5, such as Keras writes",
    b"\x89PNG": "is a picture (PNG)",
    b"\xff\xd8\xff": "is a picture (JPEG)",
    b"GGUF": "is a file of llama.cpp (GGUF)",
    b"%PDF": "is a PDF",
}
_POINTER = b"version https://git-lfs.github.com/spec"
_LOAD = "torch.load({source}, map_location='cpu', weights_only=False)"


def unreadable(path: Path, kind: str, error: BaseException) -> InputError:
    """The error that says why a file can't be read as weights.

    Args:
        path: the file.
        kind: what it was read as, such as ``"PyTorch"``.
        error: what reading it raised.
    """
    cause = _cause(path, error)
    lead = "" if cause.startswith("refused") else f"not a readable {kind} file: it "
    return InputError(f"{path}: {lead}{cause}")


def _cause(path: Path, error: BaseException) -> str:
    size = path.stat().st_size
    with open(path, "rb") as handle:
        start = handle.read(4096)
    if size and b"PK\x03\x04".startswith(start[:4]):
        return _of_zip(path, size, error)
    found = _other_kind(start, size)
    if found:
        return found
    if start[8:9] == b"{":
        return _of_safetensors(path, size, start, error)
    if start.startswith((b"\x80", b"L%d" % TORCH_MAGIC)):  # the second of protocols 0 and 1
        return _of_pickle(path, scan(path), error)
    return (
        f"begins with {start[:4]!r}, as no weights file does; valid: one of PyTorch or safetensors"
    )


def way_out(path: Path, taken: str) -> str:
    """A command that reads a file without protection and saves what is wanted of it.

    Args:
        path: the file.
        taken: the weights of ``c``, as Python.
    """
    target = path.with_name(f"{path.stem}-weights.pt")
    load = _LOAD.format(source=repr(str(path)))
    code = f"import torch; c = {load}; torch.save({taken}, {str(target)!r})"
    # In double quotes as long as nothing in it means something to a shell.
    quoted = shlex.quote(code) if re.search(r'["$`\\\\!]', code) else f'"{code}"'
    return f"python -c {quoted}"


def _other_kind(start: bytes, size: int) -> str | None:
    """What a file is that never was weights."""
    if not size:
        return "is empty (0 bytes): nothing was written to it; fetch or save it again"
    if start.startswith(_POINTER):
        match = re.search(rb"size (\d+)", start)
        bytes_ = f" of {int(match[1]):,} bytes" if match else ""
        return f"is a pointer of git-lfs, not the file{bytes_} itself; get it by 'git lfs pull'"
    for begin, what in _STARTS.items():
        if start.startswith(begin):
            return f"{what}; valid: a file of PyTorch or safetensors"
    if start[257:262] == b"ustar":
        return "is a tar archive: unpack it"
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        title = re.search(rb"<title>([^<]{1,80})", start, re.IGNORECASE)
        named = f" ({title[1].decode(errors='replace').strip()})" if title else ""
        return (
            f"is a web page{named}, not weights: the download gave a page instead of the file; "
            "fetch it again"
        )
    if text.startswith((b"{", b"[")):
        return (
            f"is text (JSON?), not weights: it begins with {start[:40].decode(errors='replace')!r}"
        )
    printable = start[:512].decode("utf-8", errors="replace")
    if all(c.isprintable() or c.isspace() for c in printable) and "\ufffd" not in printable:
        return f"is text, not weights: it begins with {printable[:40]!r}"
    return None


def _of_zip(path: Path, size: int, error: BaseException) -> str:
    if not zipfile.is_zipfile(path):
        return (
            f"is truncated: it ends after {size:,} bytes without the directory that a file of "
            "PyTorch ends with; fetch or save it again"
        )
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        return (
            "is a TorchScript program, not a state dict; save that of its network: "
            + f"torch.save(torch.jit.load({str(path)!r}).state_dict(), ...)"
        )
    if not any(name.endswith("/data.pkl") for name in names):
        listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        return f"is a zip archive, but not of PyTorch: it holds {listed or 'nothing'}"
    found = scan(path)
    if found is not None:
        return _of_pickle(path, found, error)
    return f"is damaged: {first_line(error)}; fetch or save it again"


def _of_pickle(path: Path, found: Scan | None, error: BaseException) -> str:
    if found is None:
        return "is truncated or damaged: its pickle does not end; fetch or save it again"
    # A protected loader knows the instructions of protocols 2 and 3.
    names = ", ".join(found.foreign[:3]) + (", ..." if len(found.foreign) > 3 else "")
    if found.is_torch and not found.protocol:
        return (
            "was saved with pickle_protocol=0, which torch itself can't read; save the weights "
            "again where they come from, by torch's default (2)"
        )
    if found.is_torch and found.protocol not in (2, 3):
        harm = (
            f"which runs what the file names ({names}), so only if you trust where it is from"
            if names
            else "which runs what a file names; this one names nothing but what torch needs"
        )
        return (
            f"was saved with pickle_protocol={found.protocol}, which can't be read without running "
            f"the pickle; save it again by torch's default (2): {way_out(path, 'c')} ({harm})"
        )
    if not found.is_torch:
        if found.protocol > 2:
            names = f" ({names})" if names else ""
            return (
                f"refused, because it is a plain pickle, which may run code{names}; valid: a "
                "file that torch.save wrote"
            )
        names = names or "what only pickle reads"
    if not names:
        # torch's own text on pickles advises to load them without protection: not repeated.
        protected = isinstance(error, pickle.UnpicklingError)
        reason = "its pickle can't be read" if protected else first_line(error)
        return f"is truncated or damaged: {reason}; fetch or save it again"
    taken = "c.state_dict()" if found.is_object else "c['ema']"
    which = "" if found.is_object else ", with the key of your weights for 'ema'"
    return (
        f"refused, because the file asks to run {names}; valid: a file that holds only tensors, "
        f"numbers, text and an argparse.Namespace; save the weights alone: {way_out(path, taken)} "
        f"(this runs what the file names, so only if you trust where it is from{which})"
    )


def _of_safetensors(path: Path, size: int, start: bytes, error: BaseException) -> str:
    length = int.from_bytes(start[:8], "little")
    expected = 8 + length
    with open(path, "rb") as handle:
        handle.seek(8)
        header = handle.read(length)
    try:
        content = json.loads(header)
        ends = [e["data_offsets"][1] for k, e in content.items() if k != "__metadata__"]
        expected += max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        pass
    if size < expected:
        there = f"{size:,} of at least {expected:,} bytes are there"
        return f"is truncated: {there}; fetch or save it again"
    return f"is damaged: {first_line(error)}; fetch or save it again"
