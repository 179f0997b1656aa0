"""One way of reading pictures: what is scaled, turned and refused, and that it is counted."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from tinyfusion.data.image_sets import pictures_in
from tinyfusion.data.imagefolder import ImageFolder
from tinyfusion.data.pictures import UndecodableImageError, look_at, read_picture
from tinyfusion.notices import captured

GREY = np.linspace(0, 255, 96).round().astype(np.uint8).reshape(8, 12)
DEEP = np.linspace(0, 65535, 96).round().astype(np.uint16).reshape(8, 12)
SCALED = np.rint(DEEP / 257).astype(np.uint8)
COLOUR = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)


def chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def deep_colour_png(file: Path, numbers: np.ndarray = DEEP) -> None:
    rows = np.stack([numbers] * 3, -1).astype(">u2")
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 12, 8, 16, 2, 0, 0, 0))
    ends = chunk(b"IDAT", data) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + head + ends)


def white_is_zero(file: Path) -> None:
    tags = ImageFileDirectory_v2()
    tags[262] = 0
    Image.fromarray(65535 - DEEP).save(file, tiffinfo=tags)


def orientation_behind_the_pixels(file: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(GREY).save(file)
    content = file.read_bytes()
    late = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    file.write_bytes(content[:-12] + late + content[-12:])


def turned(file: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(GREY).save(
        file, exif=exif, **({"quality": 100} if file.suffix == ".jpg" else {})
    )


def pgm(file: Path, white: int = 65535) -> None:
    numbers = np.rint(DEEP.astype(float) * white / 65535).astype(">u2")
    file.write_bytes(f"P5 12 8 {white}\n".encode() + numbers.tobytes())


def with_alpha(file: Path, alpha: int = 0, mode: str = "RGBA") -> None:
    picture = Image.fromarray(COLOUR if mode == "RGBA" else GREY).convert(mode)
    picture.putalpha(Image.fromarray(np.full((8, 12), alpha, np.uint8)))
    picture.save(file)


def palette(file: Path) -> None:
    Image.fromarray(GREY).convert("P").save(file, transparency=bytes([0] * 9))


def several_frames(file: Path) -> None:
    picture = Image.fromarray(GREY)
    picture.save(file, save_all=True, append_images=[picture.rotate(180)])


DEEPER, UPRIGHT = "more than 8 bits per channel, scaled", "turned upright by their EXIF"
TRANSPARENT, FRAMES = "transparent parts, whose colours are taken as stored", "several frames"
QUARTER = np.rot90(GREY, -1)

READ: dict[str, tuple[str, Callable[[Path], None], np.ndarray, str | None]] = {
    "8 bits": ("a.png", lambda f: Image.fromarray(GREY).save(f), GREY, None),
    "1 bit": ("a.png", lambda f: Image.fromarray(GREY > 99).save(f), (GREY > 99) * 255, None),
    "16-bit PNG": ("a.png", lambda f: Image.fromarray(DEEP).save(f), SCALED, DEEPER),
    "16-bit TIFF": ("a.TIF", lambda f: Image.fromarray(DEEP).save(f, "TIFF"), SCALED, DEEPER),
    "big-endian": ("a.tif", lambda f: Image.fromarray(DEEP.astype(">u2")).save(f), SCALED, DEEPER),
    "white is zero": ("a.tif", white_is_zero, SCALED, DEEPER),
    "16-bit PGM": ("a.pgm", pgm, SCALED, DEEPER),
    "12-bit PGM": ("a.pgm", lambda f: pgm(f, 4095), SCALED, DEEPER),
    "16-bit colour": ("a.png", deep_colour_png, (DEEP >> 8).astype(np.uint8), DEEPER),
    "turned JPEG": ("a.jpg", turned, QUARTER, UPRIGHT),
    "turned PNG": ("a.png", turned, QUARTER, UPRIGHT),
    "turned TIFF": ("a.tif", turned, QUARTER, UPRIGHT),
    "turned at its end": ("a.png", orientation_behind_the_pixels, QUARTER, UPRIGHT),
    "opaque": ("a.png", lambda f: with_alpha(f, 255, "LA"), GREY, None),
    "transparent": ("a.png", lambda f: with_alpha(f, 9, "LA"), GREY, TRANSPARENT),
    "palette": ("a.png", palette, GREY, TRANSPARENT),
    "frames": ("a.tif", several_frames, GREY, FRAMES),
    "CMYK": ("a.tif", lambda f: Image.fromarray(GREY).convert("CMYK").save(f), GREY, None),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", READ)
def test_what_is_certain_is_read_and_counted(tmp_path: Path, name: str) -> None:
    file, write, wanted, said = READ[name]
    (tmp_path / "class").mkdir()
    write(path := tmp_path / "class" / file)
    with captured() as events:
        found = np.asarray(read_picture(str(path), "L"))
        head = look_at(str(path))
    assert np.abs(found.astype(int) - wanted.astype(int)).max() <= 1 and found.shape == wanted.shape
    assert {event.item for event in events} == ({str(path)} if said else set())
    assert all(said is not None and said in event.kind for event in events)
    if name != "turned at its end":  # known when the pixels are read
        assert head.size == wanted.shape[::-1]
        # The same in training and scoring.
        images = pictures_in(tmp_path, None, "images").tensor()
        assert np.array_equal(images[0, 0], found) or name == "CMYK"
        square = ImageFolder(tmp_path, size=8, channels=1).reference()
        assert square.shape == (1, 1, 8, 8)


def test_colours_under_transparency_are_kept(tmp_path: Path) -> None:
    with_alpha(tmp_path / "a.png")
    assert np.array_equal(np.asarray(read_picture(str(tmp_path / "a.png"), "RGB")), COLOUR)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (DEEP.astype(np.int32), "Pillow's mode 'I', of which it is not known"),
        (GREY.astype(np.float32) / 255, "Pillow's mode 'F', of which it is not known"),
        (DEEP // 600, r"has no number above 109, and would be black, as white is 65535"),
    ],
)
def test_numbers_of_unknown_range_are_refused_alike(tmp_path: Path, numbers, message) -> None:
    for number in range(2):
        (tmp_path / "class").mkdir(exist_ok=True)
        Image.fromarray(numbers).save(tmp_path / "class" / f"{number}.tif")
    with pytest.raises(UndecodableImageError, match=message):
        read_picture(str(tmp_path / "class" / "0.tif"), "RGB")
    with pytest.raises(UndecodableImageError, match=message):
        ImageFolder(tmp_path, size=8).reference()
    with pytest.raises(Exception, match=rf"^images: image file .*{message}"):
        pictures_in(tmp_path, None, "images").tensor()


def test_numbers_that_come_out_dark_are_counted(tmp_path: Path) -> None:
    Image.fromarray(DEEP // 16).save(tmp_path / "a.png")
    with captured() as events:
        read_picture(str(tmp_path / "a.png"), "L")
    assert (
        "come out dark" in events[-1].kind and "no number above 4095 of 65535" in events[-1].detail
    )
    deep_colour_png(tmp_path / "b.png", DEEP // 256)  # 8 bits in 16: black, where colour is cut
    with captured() as events:
        read_picture(str(tmp_path / "b.png"), "RGB")
    assert "come out dark" in events[-1].kind


def test_what_is_wrong_is_said_before_the_start_with_a_count(tmp_path: Path) -> None:
    (tmp_path / "class").mkdir()
    for number in range(5):
        Image.fromarray(GREY).save(tmp_path / "class" / f"{number}.png")
    for number in (2, 4):
        (tmp_path / "class" / f"{number}.png").write_bytes(b"")
    with pytest.raises(UndecodableImageError, match=r"2\.png' can't.*\(one of 2 such files\)"):
        ImageFolder(tmp_path, size=8)


def test_enlarged_images_are_counted(tmp_path: Path) -> None:
    (tmp_path / "class").mkdir()
    Image.fromarray(GREY).save(tmp_path / "class" / "a.png")
    source = ImageFolder(tmp_path, size=16)
    with captured() as events:
        source.reference()
    assert [event.kind for event in events] == [
        "picture(s) smaller than data.size=16, enlarged to it"
    ]
