"""Files of every format and mode: the right RGB pixels."""

from __future__ import annotations

import struct
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from tests.data.encoded import CAP, PHOTO, encoded, pixels, png, white_is_zero
from tests.photos import photo
from toolkit.data.decode import DECODING_POLICY, IMAGE_SUFFIXES, RASTER_FORMATS, decode, read_image
from toolkit.storage import digest

LOSSLESS = [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("PPM", {}), ("WEBP", {"lossless": True}), ("JPEG2000", {})]


@pytest.mark.parametrize(("name", "options"), LOSSLESS)
def test_lossless_formats_give_the_exact_pixels(name, options):
    assert np.array_equal(pixels(encoded(PHOTO, name, **options)), np.asarray(PHOTO))


@pytest.mark.parametrize("name", ["JPEG", "AVIF", "WEBP", "MPO"])
def test_lossy_formats_give_nearly_the_pixels(name):
    difference = np.abs(pixels(encoded(PHOTO, name, quality=95)) - np.asarray(PHOTO))
    assert difference.mean() < 6


MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "TIFF": ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I;16B", "I", "F"),
    "GIF": ("1", "L", "P", "RGB", "RGBA", "LA"),
    "JPEG": ("1", "L", "RGB", "CMYK", "YCbCr"),
    "WEBP": ("L", "P", "RGB", "RGBA", "CMYK"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "PPM": ("1", "L", "RGB", "I", "F"),
    "AVIF": ("L", "RGB", "RGBA"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA", "I;16"),
}


@pytest.mark.parametrize(("name", "mode"), [(name, mode) for name, modes in MODES.items() for mode in modes])
def test_black_and_white_halves_survive_every_mode_and_format(name, mode):
    halves = np.zeros((16, 32), np.uint8)
    halves[:, 16:] = 255
    image = Image.fromarray(halves)
    if mode in ("I;16", "I;16B", "I"):
        wide = halves.astype({"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]) * 257
        image = Image.fromarray(wide)
    elif mode == "LAB":
        image = Image.merge("LAB", [image, Image.new("L", image.size, 128), Image.new("L", image.size, 128)])
    elif mode == "PA":
        image = image.convert("P").convert("PA")
    elif mode == "CMYK":
        image = image.convert("RGB").convert("CMYK")
    elif mode == "YCbCr":
        image = image.convert("RGB").convert("YCbCr")
    else:
        image = image.convert(mode)
    result = pixels(encoded(image, name))
    assert result.shape == (16, 32, 3)
    assert result[:, :14].max() <= 8
    assert result[:, 18:].min() >= 247


def test_colours_of_cmyk_jpeg_are_not_inverted():
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (40, 40, 40)]
    for colour in colours:
        content = encoded(Image.new("RGB", (16, 16), colour).convert("CMYK"), "JPEG", quality=100)
        assert np.abs(pixels(content) - colour).max() <= 4, colour


def test_colours_of_ycck_jpeg_are_right():
    ink = (200, 30, 90, 60)  # C M Y K
    y, cb, cr = Image.new("RGB", (1, 1), ink[:3]).convert("YCbCr").getpixel((0, 0))
    stored = Image.new("CMYK", (16, 16), (255 - y, 255 - cb, 255 - cr, ink[3]))  # Pillow inverts when it saves
    content = encoded(stored, "JPEG", quality=100, subsampling=0)
    marker = content.index(b"Adobe")
    content = content[: marker + 11] + b"\x02" + content[marker + 12 :]  # the transform byte: 2 is YCCK
    expected = Image.new("CMYK", (1, 1), ink).convert("RGB").getpixel((0, 0))
    assert np.abs(pixels(content) - expected).max() <= 4


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 128, 129, 257, 32768, 65407, 65535, 30000]], np.uint16)
    expected = np.rint(values / 257).astype(int)[0]
    contents = [encoded(Image.fromarray(values), name) for name in ("PNG", "TIFF", "PPM")]
    contents.append(encoded(Image.fromarray(values.astype(">u2")), "TIFF"))
    for content in contents:
        assert np.array_equal(pixels(content)[0, :, 0], expected)


@pytest.mark.parametrize(
    ("kind", "white"), [("u1", 255), ("<u2", 65535), ("<f4", 65535), ("<f4", 255), ("<f4", 1), ("<f4", 1e6)]
)
def test_grey_whose_0_is_white_is_no_negative_at_any_depth(kind, white):
    values = (np.array([[0, 0.2, 0.4, 1]]) * white).astype(kind)
    assert pixels(encoded(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 51, 102, 255]
    assert pixels(white_is_zero(Image.fromarray(values)))[0, :, 0].tolist() == [255, 204, 153, 0]


def test_sixteen_bit_rgb_png_keeps_the_high_bytes():
    row = struct.pack(">6H", 0x1234, 0xFFFF, 0x00FF, 0x8000, 0x7FFF, 0x0100)
    assert pixels(png(2, 1, 16, 2, [row])).tolist() == [[[0x12, 0xFF, 0x00], [0x80, 0x7F, 0x01]]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 7.0, 255.0], [0, 7, 255]),
        ([0.0, 25700.0, 65535.0], [0, 100, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([np.nan, 0.0, 1.0], [0, 0, 255]),
        ([-np.inf, 2.0, np.inf], [2, 2, 2]),
        ([1e20, 1e20, 1e20], [0, 0, 0]),
        ([-3e38, 0.0, 3e38], [0, 128, 255]),
        ([np.nan, np.nan, np.nan], [0, 0, 0]),
    ],
)
def test_float_images_are_scaled_by_their_range(values, expected):
    content = encoded(Image.fromarray(np.array([values], np.float32)), "TIFF")
    assert pixels(content)[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 1, 200], [0, 1, 200]), ([0, 514, 65535], [0, 2, 255]), ([-(2**31), 0, 2**31 - 1], [0, 128, 255])],
)
def test_integer_images_are_scaled_by_their_range(values, expected):
    content = encoded(Image.fromarray(np.array([values], np.int32)), "TIFF")
    assert pixels(content)[0, :, 0].tolist() == expected


# ---------------------------------------------------------------- transparency


@pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_composited_on_white(name):
    rgba = np.zeros((4, 12, 4), np.uint8)
    rgba[:, :4] = (200, 100, 50, 255)
    rgba[:, 4:8] = (200, 100, 50, 0)
    rgba[:, 8:] = (0, 0, 0, 128)
    result = pixels(encoded(Image.fromarray(rgba), name, **({"lossless": True} if name == "WEBP" else {})))
    assert result[0, 0].tolist() == [200, 100, 50]
    assert result[0, 4].tolist() == [255, 255, 255]
    assert result[0, 8].tolist() == [127, 127, 127]


def test_grey_with_alpha_is_composited_on_white():
    image = Image.merge("LA", [Image.new("L", (2, 1), 10), Image.fromarray(np.array([[0, 255]], np.uint8))])
    assert pixels(encoded(image, "PNG"))[0].tolist() == [[255] * 3, [10] * 3]


@pytest.mark.parametrize("name", ["PNG", "GIF"])
def test_a_transparent_palette_index_is_white(name):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    assert pixels(encoded(image, name, transparency=1))[0].tolist() == [[255, 0, 0], [255, 255, 255], [0, 0, 255]]


def test_palette_alpha_bytes_are_composited_without_a_warning():
    palette = (b"PLTE", bytes([255, 0, 0, 0, 0, 0, 0, 0, 255]))
    content = png(3, 1, 8, 3, [bytes([0, 1, 2])], palette, (b"tRNS", bytes([255, 128, 0])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels(content)[0].tolist() == [[255, 0, 0], [127, 127, 127], [255, 255, 255]]


@pytest.mark.parametrize(
    ("depth", "colour_type", "row", "key", "expected"),
    [
        (8, 0, bytes([7, 8, 9]), struct.pack(">H", 8), [7, 255, 9]),
        (1, 0, bytes([0b01000000]), struct.pack(">H", 0), [255, 255, 255]),
        (1, 0, bytes([0b01000000]), struct.pack(">H", 1), [0, 255, 0]),
        (2, 0, bytes([0b00011000]), struct.pack(">H", 1), [0, 255, 170]),
        (4, 0, bytes([0x12, 0x30]), struct.pack(">H", 2), [17, 255, 51]),
        (16, 0, struct.pack(">3H", 256, 257, 514), struct.pack(">H", 257), [1, 255, 2]),
        (8, 2, bytes([7, 7, 7, 8, 8, 8, 9, 9, 9]), struct.pack(">3H", 8, 8, 8), [7, 255, 9]),
        (8, 2, bytes([7, 7, 7, 8, 8, 8, 9, 9, 9]), struct.pack(">3H", 8, 8, 9), [7, 8, 9]),
        (16, 2, bytes([7, 0] * 3 + [8, 0] * 3 + [9, 0] * 3), bytes([8, 0] * 3), [7, 255, 9]),
    ],
)
def test_the_colour_key_of_a_png_is_white(depth, colour_type, row, key, expected):
    assert pixels(png(3, 1, depth, colour_type, [row], (b"tRNS", key)))[0].tolist() == [[grey] * 3 for grey in expected]


# ---------------------------------------------------------------- orientation, frames


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_gives_the_upright_image(name, orientation):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = (250, 10, 10)
    upright[8:, 16:] = (10, 10, 250)
    undo = [None, np.fliplr, lambda a: np.rot90(a, 2), np.flipud, lambda a: a.swapaxes(0, 1), np.rot90]
    undo += [lambda a: np.rot90(a, 2).swapaxes(0, 1), lambda a: np.rot90(a, 3)]
    stored = upright if orientation == 1 else np.ascontiguousarray(undo[orientation - 1](upright))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if name != "TIFF" else {}
    result = pixels(encoded(Image.fromarray(stored), name, exif=exif, **options))
    assert result.shape == upright.shape
    assert np.abs(result[2:6, 2:14] - upright[2:6, 2:14]).max() < 20
    assert np.abs(result[10:14, 18:30] - upright[10:14, 18:30]).max() < 20


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_cost_the_image():
    content = encoded(PHOTO, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert pixels(content).shape == (40, 48, 3)


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_the_first_frame_of_an_animation_is_used(name):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((250, 0, 0), (0, 0, 250))]
    result = pixels(encoded(frames[0], name, save_all=True, append_images=frames[1:]))
    assert np.abs(result - (250, 0, 0)).max() < 8


def test_content_decides_not_the_name(tmp_path):
    file = tmp_path / "really_a_gif.jpg"
    file.write_bytes(encoded(Image.new("P", (5, 4)), "GIF"))
    content_digest, image = read_image(file, CAP)
    assert content_digest == digest(file.read_bytes()) and len(content_digest) == 16
    assert (image.mode, image.size) == ("RGB", (5, 4))


def test_threads_give_the_same_pixels():
    contents = [encoded(photo(kind, 0), name) for kind in range(3) for name in RASTER_FORMATS]
    alone = [decode(content, CAP).tobytes() for content in contents]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda content: decode(content, CAP).tobytes(), contents * 3))
    assert together == alone * 3


def test_the_policy_is_plain_and_names_the_formats():
    assert DECODING_POLICY["formats"] == list(RASTER_FORMATS) and isinstance(DECODING_POLICY["version"], int)
    assert {".jpg", ".png", ".heic", ".dng"} <= IMAGE_SUFFIXES
