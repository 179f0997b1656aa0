"""Reading a picture file as 8 bits per channel: one way for training, encoding and scoring.

What is certain is converted, and counted where it changes what is seen (`tinyfusion.notices`);
what is not, such as numbers without a known range, is refused. docs/images.md has the rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tinyfusion.errors import InputError
from tinyfusion.notices import tally

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Endings of picture files, in small letters; capitals are the same."""

Mode = Literal["L", "RGB"]
"""Grey or colour, 8 bits per channel."""

_GREY = ("1", "L", "LA")
_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr")
_SIXTEEN = ("I;16", "I;16B", "I;16L", "I;16N")
_SCALED = ("PNG", "PPM")
"""Formats whose 32-bit integers are numbers of 16 bits: Pillow has brought them to that range."""

_TURNED = "picture(s) turned upright by their EXIF orientation"
_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0


class UndecodableImageError(InputError):
    """The content of an image file can't be decoded, or is not of 8 bits and of no known range.

    Attributes:
        reason: why, without the name of the file.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class Head(NamedTuple):
    """What is known of a picture before its pixels are read.

    Attributes:
        size: width and height as it is seen, that is upright.
        grey: whether it is grey.
    """

    size: tuple[int, int]
    grey: bool


def look_at(file: str) -> Head:
    """Size and kind of a picture, from the head of its file.

    Raises:
        UndecodableImageError: no picture, or one that `read_picture` refuses for its mode.
        InputError: it can't be read.
    """
    with _opened(file) as image:
        size, grey = image.size, image.mode in _GREY or _largest(image) is not None
        _tally(image, file)
        if image.format == "TIFF" and _orientation(image) != 1:
            # Pillow turns these by itself; when it knows their upright size depends on its version.
            size = _decoded(image, file, "L").size
        elif _orientation(image) in _SIDEWAYS:
            size = size[::-1]
        return Head(size, grey)


def read_picture(file: str, mode: Mode) -> Image.Image:
    """A picture, upright, in 8 bits per channel.

    Grey numbers of 16 bits are scaled by 255/65535 and rounded. Transparency is dropped and
    the colours are taken as they are stored, as in ADM. Of several frames the first one is taken.

    Args:
        file: the picture.
        mode: grey or colour.

    Raises:
        UndecodableImageError: no picture, a broken one, or numbers of unknown range.
        InputError: it can't be read.
    """
    with _opened(file) as image:
        return _decoded(image, file, mode)


@contextmanager
def _opened(file: str) -> Iterator[Image.Image]:
    """An open picture of a known mode; what goes wrong with it names its file."""
    try:
        # Not by its name: Pillow maps some TIFF files, and scrambles those that it turns.
        with open(file, "rb") as content, Image.open(content) as image:
            if image.mode not in (*_GREY, *_COLOUR) and _largest(image) is None:
                valid = ", ".join((*_GREY, *_COLOUR, "I;16"))
                raise _refused(
                    file,
                    f"has pixels of Pillow's mode {image.mode!r}, of which it is not known what "
                    f"is black and what white; convert it to 8 bits per channel (valid: {valid})",
                )
            yield image
    except (InputError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise many kinds for a broken file
        # An error of the system, such as a missing file, says nothing about the content.
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"image file {file!r} can't be read: {error.strerror}") from error
        unknown = isinstance(error, UnidentifiedImageError)  # it describes the open file
        reason = "cannot identify image file" if unknown else str(error)
        message = f"image file {file!r} can't be decoded: {reason}"
        raise UndecodableImageError(message, reason) from error


def _refused(file: str, reason: str) -> UndecodableImageError:
    return UndecodableImageError(f"image file {file!r} {reason}", reason)


def _decoded(image: Image.Image, file: str, mode: Mode) -> Image.Image:
    _tally(image, file)
    largest, inverted, turned = _largest(image), _white_is_zero(image), _orientation(image) != 1
    deep = _is_deep_colour(image)  # to be seen only before the pixels are read
    image.load()
    # Of a PNG it may stand behind the pixels; a TIFF has been turned by Pillow by now.
    if _orientation(image) != 1:
        _count(_TURNED, file)
        turned = True
    if _is_transparent(image):
        _count("picture(s) with transparent parts, whose colours are taken as stored", file)
    image.info.pop("transparency", None)
    upright = ImageOps.exif_transpose(image) if turned else image
    if largest is not None:
        upright = _scaled(upright, file, largest, inverted)
    elif deep:
        _tally_dark(float(np.asarray(upright.convert("RGB")).max()), 255, file)
    return upright.convert(mode)


def _tally(image: Image.Image, file: str) -> None:
    """Count what the head of a file tells to be changed."""
    if _orientation(image) != 1:
        _count(_TURNED, file)
    if _largest(image) is not None or _is_deep_colour(image):
        _count("picture(s) of more than 8 bits per channel, scaled to 8", file)
    if getattr(image, "n_frames", 1) > 1:
        _count("picture(s) of several frames, of which the first is taken", file)


def _count(what: str, file: str, why: str = "") -> None:
    tally(what, detail=f"{file}{why}", item=file)


def _scaled(image: Image.Image, file: str, largest: int, inverted: bool) -> Image.Image:
    """Grey numbers 0..largest as 8 bits."""
    values = np.asarray(image).astype(np.float64)
    if inverted:
        values = largest - values
    top, pixels = values.max(), np.rint(values * (255 / largest)).astype(np.uint8)
    if top > 0 and not pixels.any():
        raise _refused(
            file,
            f"has no number above {top:.0f}, and would be black, as white is {largest} in Pillow's "
            f"mode {image.mode!r}; scale it, or convert it to 8 bits per channel",
        )
    if top > 0:
        _tally_dark(top, largest, file)
    return Image.fromarray(pixels)


def _tally_dark(top: float, largest: int, file: str) -> None:
    """Count a picture of more than 8 bits whose numbers 0..top are few of 0..largest."""
    if top < largest / 15:
        _count(
            "picture(s) of more than 8 bits use less than a fifteenth of their range and come out "
            "dark; numbers of 10 or 12 bits are to be scaled beforehand",
            file,
            f" has no number above {top:.0f} of {largest}",
        )


def _largest(image: Image.Image) -> int | None:
    """What is white in a grey picture of more than 8 bits; ``None`` for others and if unknown."""
    if image.mode in _SIXTEEN:
        return 4095 if "I;12" in _packing(image) else 65535
    return 65535 if image.mode == "I" and image.format in _SCALED else None


def _packing(image: Image.Image) -> tuple[object, ...]:
    """How the pixels are packed in the file, where Pillow tells; it does before they are read."""
    tiles = getattr(image, "tile", None)
    found = tiles[0][3] if tiles else ()
    return found if isinstance(found, tuple) else (found,)


def _is_deep_colour(image: Image.Image) -> bool:
    """Whether it is coloured with 16 bits per channel, of which Pillow takes the upper 8."""
    if image.format == "PPM":
        return any(isinstance(value, int) and value > 255 for value in _packing(image)[1:])
    return any(";16" in str(value) for value in _packing(image))


def _white_is_zero(image: Image.Image) -> bool:
    # Pillow inverts those of 8 bits by itself.
    return getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8, where 1 is upright."""
    if image.format == "PNG" and not any("exif" in k or "xmp" in k for k in image.info):
        return 1  # its own method would decode the picture to look behind it
    return image.getexif().get(_ORIENTATION, 1)


def _is_transparent(image: Image.Image) -> bool:
    """Whether any pixel is not opaque."""
    if image.getbands()[-1] in ("A", "a"):
        alpha = image.getchannel(image.getbands()[-1])
    elif "transparency" not in image.info:
        return False
    elif image.mode in (*_SIXTEEN, "I"):
        return bool((np.asarray(image) == image.info["transparency"]).any())
    else:
        alpha = image.convert("RGBA").getchannel("A")
    return bool(np.asarray(alpha).min() < 255)
