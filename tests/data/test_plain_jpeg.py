"""Which JPEGs any decoder turns into the same picture."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from toolkit.data.decode import decode
from toolkit.data.plain_jpeg import plain_jpeg

ORIENTATION = 0x0112


def picture(width: int = 60, height: int = 40, mode: str = "RGB") -> Image.Image:
    coarse = np.random.default_rng(width * height).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def jpeg(image: Image.Image | None = None, orientation: int | None = None, **settings: Any) -> bytes:
    file = io.BytesIO()
    if orientation is not None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        settings["exif"] = exif
    (image or picture()).save(file, "JPEG", quality=90, **settings)
    return file.getvalue()


def size_of(content: bytes, max_pixels: int = 10**6, least_px: int = 448) -> tuple[int, int] | None:
    found = plain_jpeg(content, max_pixels, least_px)
    return None if found is None else found.size


@pytest.mark.parametrize("settings", [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}])
def test_photographs_are_plain(settings: dict[str, Any]) -> None:
    assert size_of(jpeg(**settings)) == (60, 40)
    assert size_of(jpeg(picture(mode="L"), **settings)) == (60, 40)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_is_that_of_the_upright_image(orientation: int) -> None:
    content = jpeg(orientation=orientation)
    found = plain_jpeg(content, 10**6, 448)
    assert found is not None and found.orientation == orientation and found.size == decode(content).size


def test_what_a_decoder_may_take_otherwise_is_not_plain() -> None:
    png = io.BytesIO()
    picture().save(png, "PNG")
    assert size_of(png.getvalue()) is None
    assert size_of(jpeg(picture(mode="CMYK"))) is None
    assert size_of(jpeg(subsampling=0, keep_rgb=True)) is None  # RGB, not YCbCr
    assert size_of(b"") is size_of(b"\xff\xd8\xff") is size_of(b"\xff\xd8\xff\xff\xd9") is None


def test_a_file_that_is_not_whole_or_goes_on_is_not_plain() -> None:
    content = jpeg()
    assert size_of(content[:-2]) is size_of(content[: len(content) // 2]) is size_of(content + b"\0") is None


def test_size_and_shape_have_limits() -> None:
    content = jpeg()
    assert size_of(content, max_pixels=60 * 40) == (60, 40) and size_of(content, max_pixels=60 * 40 - 1) is None
    assert size_of(content, least_px=21) == (60, 40)
    assert size_of(content, least_px=20) is None  # Pillow decodes it at half its size
    assert size_of(jpeg(picture(320, 10))) == (320, 10) and size_of(jpeg(picture(330, 10))) is None


def test_files_that_pillow_decodes_at_a_fraction_are_just_those_that_are_left_to_it() -> None:
    for side in (39, 40, 41, 80, 81):
        content = jpeg(picture(side, side + 7))
        whole = decode(content, least_px=20).size == (side, side + 7)
        assert (size_of(content, least_px=20) is not None) == whole, side
