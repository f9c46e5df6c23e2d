"""JPEG files that any decoder turns into the same picture, told by their bytes; all others are left to Pillow."""

from __future__ import annotations

import io
from typing import NamedTuple

from PIL import Image, JpegImagePlugin

from toolkit.data.decode import orientation_of
from toolkit.data.views import MAX_ASPECT_RATIO

END_OF_IMAGE = b"\xff\xd9"


class PlainJpeg(NamedTuple):
    """What is known of one: width and height of the upright image, and its EXIF orientation, 1..8."""

    size: tuple[int, int]
    orientation: int


def plain_jpeg(content: bytes, max_pixels: int, least_px: int) -> PlainJpeg | None:
    """Return what a file's header says if it is a plain JPEG, else None; nothing of the image is decoded.

    Plain: whole to its last byte, 8 bits a channel, grey or YCbCr with chroma at the same or half the resolution, of at
    most `max_pixels`, no narrow strip. Not among them are images so large that Pillow decodes them at a fraction of
    their size, both sides staying at least `least_px` long: that is faster than all of it on a GPU. What is damaged
    beyond the header may still be called plain.
    """
    if not (content.startswith(b"\xff\xd8\xff") and content.endswith(END_OF_IMAGE)):
        return None
    try:
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(content), "")
        if not _has_plain_channels(image):
            return None
        orientation = orientation_of(image)
    except Exception:  # whatever is wrong with it, whoever decodes it says so
        return None
    width, height = image.size
    short, long = min(width, height), max(width, height)
    if not 0 < width * height <= max_pixels or long > MAX_ASPECT_RATIO * short or short // 2 >= least_px:
        return None
    return PlainJpeg((height, width) if orientation >= 5 else (width, height), orientation)


def _has_plain_channels(image: Image.Image) -> bool:
    """Return whether the channels are grey, or YCbCr as JFIF has them, as far as a header tells."""
    if getattr(image, "bits", 0) != 8 or image.info.get("adobe_transform", 1) != 1:
        return False
    layers = [(number, across, down) for number, across, down, _ in getattr(image, "layer", ())]
    if image.mode == "L":
        return len(layers) == 1
    if image.mode != "RGB" or [number for number, _, _ in layers] != [1, 2, 3]:  # other numbers may mean R, G, B
        return False
    (_, across, down), *chroma = layers
    return across in (1, 2) and down in (1, 2) and all(layer[1:] == (1, 1) for layer in chroma)
