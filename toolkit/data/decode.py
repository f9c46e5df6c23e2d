"""The one place where a file becomes pixels: upright 8-bit RGB on white, or a reason why not."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import IO, Any

# Importing a plugin registers its format. Only these are loaded, so nothing else can be tried on a file.
from PIL import (  # noqa: F401
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from toolkit.data.colour import to_rgb
from toolkit.storage import digest

DEFAULT_MAX_PIXELS = 50_000_000
TOO_LARGE = "is more than max_pixels="  # in the reasons of images that are refused for their size

# TGA is left out although it is common: it has no signature, so noise and text can pass for it.
RASTER_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF", "JPEG2000")

# fmt: off
IMAGE_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp",
    ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k",
    # Claimed to be images but never decoded: met, they are quarantined rather than silently passed over.
    ".heic", ".heif", ".jxl", ".psd", ".svg", ".ico", ".tga",
    ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".dng",
))
# fmt: on

DECODING_POLICY: dict[str, Any] = {
    "version": 3,
    "formats": list(RASTER_FORMATS),
    "format_from": "content",
    "frame": "first",
    "orientation": "exif",
    "transparency": "composited on white",
    "grey_16_bit": "value / 257, rounded",
    "grey_32_bit_and_float": "least of 0..1 (floats only), 0..255, 0..65535 that holds all values, else min..max",
    "grey_whose_0_is_white": "mirrored, of all depths",
    "icc_profile": "ignored",
    "jpeg": "at 1/2, 1/4 or 1/8 of its size where both sides stay at least as long as is asked for",
}

# Of models that are loaded all the same. Version 2 made negatives of TIFFs of 16 bits or floats whose 0 is white, and
# decoded all else as now: to refuse its models would cost everyone theirs for images that next to nobody has.
EARLIER_POLICIES: tuple[dict[str, Any], ...] = (
    {key: value for key, value in DECODING_POLICY.items() if key != "grey_whose_0_is_white"} | {"version": 2},
)

_FILE_BYTES_PER_PIXEL = 16  # an uncompressed file of four 32-bit channels
_FILE_BYTES_ALWAYS = 64 << 20

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImage(Exception):
    """An image that cannot be used; its text is the reason in one line, without the path."""


class TooLargeImage(UnreadableImage):
    """An image that `max_pixels` rules out."""


def decode(content: bytes, max_pixels: int = DEFAULT_MAX_PIXELS, least_px: int | None = None) -> Image.Image:
    """Return the first frame of an image file's bytes as a loaded RGB image, following DECODING_POLICY.

    least_px: what both sides must keep of a JPEG that is decoded at a fraction of its size, which is several times as
    fast for photos of many megapixels; None for all of it. Images of other formats come whole.

    Raises UnreadableImage for whatever is not a whole image of at most `max_pixels` pixels. Thread safe.
    """
    try:
        image = _open(io.BytesIO(content), max_pixels)
        reduced = (
            None if least_px is None else image.draft(None, (least_px, least_px))
        )  # None: colours stay as they are
        image.load()
        rgb = to_rgb(image, png_depth=content[24] if image.format == "PNG" else 8)
        if reduced is not None:  # a last column or row made of fewer pixels than the others would stretch the image
            _, (left, top, right, bottom) = reduced
            rgb = rgb.crop((left, top, int(right), int(bottom)))
        return _turned(rgb, image)
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow raises nearly every kind of exception on damaged files
        raise UnreadableImage(_one_line(error)) from error


def as_rgb(image: Image.Image) -> Image.Image:
    """Return an image that is open already as `decode` gives its file; the image itself stays as it is.

    Raises OSError or ValueError where Pillow cannot load or convert it.
    """
    image.load()
    return _turned(to_rgb(image), image)


def read_image(
    path: str | os.PathLike[str], max_pixels: int = DEFAULT_MAX_PIXELS, least_px: int | None = None
) -> tuple[bytes, Image.Image]:
    """Return the 16-byte digest of a file's content and its RGB image, see `decode`; raises UnreadableImage."""
    content = read_content(path, max_pixels)
    return digest(content), decode(content, max_pixels, least_px)


def read_content(path: str | os.PathLike[str], max_pixels: int = DEFAULT_MAX_PIXELS) -> bytes:
    """Return a file's bytes; raises UnreadableImage where they cannot be had, or are too many for an image."""
    try:
        _check_file(path, max_pixels)
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise UnreadableImage(_one_line(error)) from error


def probe_image(path: str | os.PathLike[str], max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[int, int]:
    """Return width and height by a file's header; raises UnreadableImage if its format or size already rule it out."""
    try:
        _check_file(path, max_pixels)
        with open(path, "rb") as file:
            return _open(file, max_pixels).size
    except UnreadableImage:
        raise
    except Exception as error:
        raise UnreadableImage(_one_line(error)) from error


def looks_like_image(path: str | os.PathLike[str]) -> bool:
    """Return whether a file claims to be an image, by its suffix or else by its first bytes."""
    if os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES:
        return True
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a FIFO would hang
            return False
        with open(path, "rb") as file:
            start = file.read(16)
    except (OSError, ValueError):
        return False
    signatures = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")
    is_bmp = start[:2] == b"BM" and start[6:10] == b"\0\0\0\0"  # "BM" alone begins many a text
    is_webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    return start.startswith(signatures) or is_bmp or is_webp or _foreign_format(start) is not None or _is_avif(start)


def _check_file(path: str | os.PathLike[str], max_pixels: int) -> None:
    """Raise UnreadableImage unless `path` is a regular file of a sane size; OSError goes through."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableImage("not a regular file")
    if status.st_size == 0:
        raise UnreadableImage("the file is empty")
    if status.st_size > max_pixels * _FILE_BYTES_PER_PIXEL + _FILE_BYTES_ALWAYS:
        raise TooLargeImage(f"{status.st_size} bytes is more than an image of max_pixels={max_pixels} needs")


def _open(file: IO[bytes], max_pixels: int) -> Image.Image:
    """Read the header of an image of a known format and check its size.

    Image.open is not used: its own limit on pixels is a global that warns and raises before ours is asked.
    """
    start = file.read(16)
    if not start:
        raise UnreadableImage("the file is empty")
    foreign = _foreign_format(start)
    if foreign is not None:
        raise UnreadableImage(f"{foreign} files are not read; convert it to JPEG or PNG")
    failure: Exception | None = None
    for name in RASTER_FORMATS:
        factory, accept = Image.OPEN[name]
        if accept is None or accept(start) is not True:
            continue
        file.seek(0)
        try:
            image: Image.Image = factory(file, "")
        except Exception as error:  # another format may still claim the file
            failure = error
            continue
        _check_header(image, max_pixels)
        return image
    if failure is not None:
        raise UnreadableImage(_one_line(failure)) from failure
    raise UnreadableImage(f"not an image of a known format (it begins with {ascii(start)[1:]})")


def _check_header(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise UnreadableImage(f"the image has no pixels ({width} × {height})")
    if width * height > max_pixels:
        raise TooLargeImage(f"{width} × {height} pixels {TOO_LARGE}{max_pixels}")
    tags = getattr(image, "tag_v2", {})
    # Camera raw files are TIFFs whose first image is a thumbnail; 254 says "reduced", 50706 is DNGVersion.
    if image.format == "TIFF" and (50706 in tags or tags.get(254) == 1):
        raise UnreadableImage("a camera raw file or a mere thumbnail; export it as JPEG, PNG or plain TIFF")


def _foreign_format(start: bytes) -> str | None:
    """Return the name of an image format that is recognised but not read."""
    if start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"):
        return "HEIC"
    if start[:2] == b"\xff\x0a" or start[:12] == b"\0\0\0\x0cJXL \r\n\x87\n":
        return "JPEG XL"
    if start[8:10] == b"CR" and start[:2] == b"II":
        return "Canon raw (CR2)"
    return "Photoshop" if start[:4] == b"8BPS" else None


def _is_avif(start: bytes) -> bool:
    return start[4:8] == b"ftyp" and start[8:12] in (b"avif", b"avis", b"mif1", b"msf1")


def _turned(rgb: Image.Image, image: Image.Image) -> Image.Image:
    """Return the pixels of an image upright."""
    turn = _TURNS.get(orientation_of(image))
    return rgb if turn is None else rgb.transpose(turn)


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation, 1..8; an unreadable EXIF block counts as upright."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata must not cost a good image
        return 1
    return value if isinstance(value, int) else 1


def _one_line(error: Exception) -> str:
    """Return an exception as a reason: one line, no path."""
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(text.split())
