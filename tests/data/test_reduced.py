"""JPEGs that are decoded at a part of their size: as long as both sides stay long enough, upright, not stretched."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.data.encoded import CAP, encoded
from tests.photos import photo
from toolkit.data.decode import UnreadableImage, decode

LARGE = photo(1, 0).resize((640, 400), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("least_px", "size"),
    [
        (None, (640, 400)),
        (10**6, (640, 400)),
        (201, (640, 400)),
        (200, (320, 200)),
        (101, (320, 200)),
        (100, (160, 100)),
        (50, (80, 50)),
        (1, (80, 50)),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_is_reduced_while_both_sides_stay_long_enough(mode: str, least_px: int | None, size: tuple[int, int]):
    image = decode(encoded(LARGE.convert(mode), "JPEG", quality=95), CAP, least_px)
    assert (image.mode, image.size) == ("RGB", size)
    whole = decode(encoded(LARGE.convert(mode), "JPEG", quality=95), CAP).resize(size, Image.Resampling.BOX)
    assert np.abs(np.asarray(image).astype(int) - np.asarray(whole)).mean() < 2


def test_a_reduced_jpeg_is_not_stretched():
    large = LARGE.resize((643, 401), Image.Resampling.BICUBIC)
    image = decode(encoded(large, "JPEG", quality=95), CAP, 100)
    assert image.size == (160, 100)
    expected = large.resize((160, 100), Image.Resampling.BOX, box=(0, 0, 640, 400))
    assert np.abs(np.asarray(image).astype(int) - np.asarray(expected)).mean() < 1.5


@pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF", "AVIF", "BMP", "GIF"])
def test_other_formats_come_whole(name: str):
    assert decode(encoded(LARGE, name), CAP, 10).size == LARGE.size


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_jpeg_is_upright(orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(LARGE, "JPEG", exif=exif, quality=95)
    image, whole = decode(content, CAP, 100), decode(content, CAP)
    assert image.size == (whole.width // 4, whole.height // 4)
    difference = np.asarray(image).astype(int) - np.asarray(whole.resize(image.size, Image.Resampling.BOX))
    assert np.abs(difference).mean() < 2


def test_what_is_cut_off_is_missed_at_any_size():
    content = encoded(LARGE, "JPEG")
    for least_px in (None, 200, 50):
        with pytest.raises(UnreadableImage, match="truncated"):
            decode(content[: len(content) * 3 // 4], CAP, least_px)


def test_the_limit_on_pixels_is_that_of_the_whole_image():
    with pytest.raises(UnreadableImage, match="more than max_pixels=1000"):
        decode(encoded(LARGE, "JPEG"), 1000, 1)
