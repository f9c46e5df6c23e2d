"""Pixels of any mode that Pillow gives → 8-bit RGB on white."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

WHITE_IS_ZERO = 0  # a TIFF's photometric interpretation


def to_rgb(image: Image.Image, *, png_depth: int = 8) -> Image.Image:
    """Return a loaded image of any mode as RGB; what is transparent becomes white, nothing is clipped.

    png_depth: bits a channel in the header of a PNG. 16-bit grey is divided by 257. 32-bit integers and floats
    are scaled from the least of 0..1 (floats only), 0..255 and 0..65535 that holds all values, else from
    their own range; NaN counts as the lowest. Where a TIFF says that 0 is white, black and
    white change places. CMYK follows Pillow's plain formula; ICC profiles are ignored.
    """
    key = image.info.get("transparency")
    if image.mode in ("1", "L", "RGB") or image.mode.startswith("I;16"):
        return _flat_to_rgb(image, key if isinstance(key, (int, tuple)) else None, png_depth)
    if image.mode in ("I", "F"):
        return _squeeze(image).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _flat_to_rgb(image: Image.Image, key: int | tuple[int, ...] | None, depth: int) -> Image.Image:
    """Convert grey or RGB, painting white the pixels of the colour that `key` declares transparent.

    depth: bits a channel in the file. Pillow gives the key in the file's units but pixels in 8 bits, hence
    the scaling (for 16-bit RGB, of which Pillow keeps the high bytes, the key is as coarse as they are).
    """
    wide = image.mode.startswith("I;16")
    grey_or_rgb = _squeeze(image) if wide else image.convert("RGB" if image.mode == "RGB" else "L")
    grey_or_rgb.info.pop("transparency", None)  # Pillow would apply it in its own way
    if key is None:
        return grey_or_rgb.convert("RGB")
    if image.mode == "L" and depth < 8:
        key = int(np.max(key)) * 255 // (2**depth - 1)
    elif image.mode == "RGB" and depth == 16:
        key = tuple(value >> 8 for value in np.atleast_1d(key).tolist())
    matches = np.asarray(image if wide else grey_or_rgb) == np.asarray(key)
    if image.mode == "RGB":
        matches = matches.all(axis=2)
    rgb = grey_or_rgb.convert("RGB")
    rgb.paste((255, 255, 255), mask=Image.fromarray(matches.astype(np.uint8) * 255))
    return rgb


def _squeeze(image: Image.Image) -> Image.Image:
    """Scale a grey image of more than 8 bits to mode L, never clipping."""
    # 16 bits are exact in single precision, which halves the memory
    dtype = np.float32 if image.mode.startswith("I;16") else np.float64
    values: NDArray[np.floating[Any]] = np.asarray(image).astype(dtype)
    finite = np.isfinite(values)
    if not finite.all():
        known = values[finite] if finite.any() else np.zeros(1)
        np.nan_to_num(values, copy=False, nan=known.min(), posinf=known.max(), neginf=known.min())
    low, high = _value_range(image, float(values.min()), float(values.max()))
    values -= low
    values *= 255 / (high - low)
    if getattr(image, "tag_v2", {}).get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO:
        np.subtract(255, values, out=values)  # Pillow does this to 8 bits and fewer alone
    return Image.fromarray(np.rint(values).astype(np.uint8))


def _value_range(image: Image.Image, smallest: float, largest: float) -> tuple[float, float]:
    """Return the values that become black and white."""
    if getattr(image, "tag_v2", {}).get(TiffImagePlugin.BITSPERSAMPLE) == (12,):
        return 0.0, 4095.0
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return 0.0, 65535.0
    for white in (1.0, 255.0, 65535.0):
        if smallest >= 0 and largest <= white and (white > 1 or image.mode == "F"):
            return 0.0, white
    return smallest, largest if largest > smallest else math.inf  # one value alone becomes black
