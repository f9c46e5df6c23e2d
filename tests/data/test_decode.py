"""Hostile and unusual files: the right RGB pixels, or UnreadableImage, and nothing else."""

from __future__ import annotations

import io
import os
import struct
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from tests.photos import photo
from toolkit.data.decode import (
    DECODING_POLICY,
    IMAGE_SUFFIXES,
    RASTER_FORMATS,
    UnreadableImage,
    decode,
    looks_like_image,
    probe_image,
    read_image,
)
from toolkit.storage import digest

CAP = 1_000_000
PHOTO = photo(1, 0)


def encoded(image: Image.Image, format_name: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_name, **options)
    return stream.getvalue()


def pixels(content: bytes) -> np.ndarray:
    image = decode(content, CAP)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


Chunk = tuple[bytes, bytes]


def png(width: int, height: int, depth: int, colour_type: int, rows: list[bytes], *chunks: Chunk) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, body) for kind, body in parts)


# ---------------------------------------------------------------- formats and modes

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


# ---------------------------------------------------------------- reduced

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


# ---------------------------------------------------------------- refused

JPEG = encoded(PHOTO, "JPEG")
PNG = encoded(PHOTO, "PNG")
BMP = encoded(PHOTO, "BMP")
REFUSED = {
    "empty": (b"", "empty"),
    "html": (b"<!DOCTYPE html><html>404</html>", "DOCTYPE"),
    "text": (b"BMW is a car, not a bitmap", ""),
    "zeros": (bytes(4096), "not an image"),
    "one byte": (b"\xff", "not an image"),
    "jpeg start": (b"\xff\xd8\xff", ""),
    "png signature": (PNG[:8], ""),
    "zip": (b"PK\3\4" + bytes(60), "not an image"),
    "pdf": (b"%PDF-1.4\n%\xe2\xe3", "not an image"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    "psd": (b"8BPS\0\1" + bytes(40), "Photoshop"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
    "jxl": (b"\xff\x0a" + bytes(30), "JPEG XL"),
    "cr2": (b"II*\0\x10\0\0\0CR\2\0" + bytes(30), "raw"),
    "tga": (encoded(PHOTO, "TGA"), "not an image"),
    "ico": (encoded(PHOTO, "ICO"), "not an image"),
    "truncated avif": (encoded(PHOTO, "AVIF")[:200], ""),
    "truncated webp": (encoded(PHOTO, "WEBP")[:200], ""),
    "truncated gif": (encoded(PHOTO, "GIF")[:900], ""),
    "truncated bmp": (encoded(PHOTO, "BMP")[:900], "truncated"),
    "truncated tiff": (encoded(PHOTO, "TIFF")[:300], ""),
    "truncated ppm": (encoded(PHOTO, "PPM")[:300], "truncated"),
    "png without pixels": (png(0, 0, 8, 2, []), ""),
    "png of zero height": (png(4, 0, 8, 2, []), ""),
    "png bomb": (png(60000, 60000, 8, 2, []), "60000 × 60000"),
    "png widest": (png(2**31 - 1, 2**31 - 1, 8, 2, []), "max_pixels=1000000"),
    "png text bomb": (png(1, 1, 8, 0, [b"\0"], (b"zTXt", b"a\0\0" + zlib.compress(bytes(50 << 20)))), "large"),
    "png profile bomb": (png(1, 1, 8, 2, [b"\0\0\0"], (b"iCCP", b"a\0\0" + zlib.compress(bytes(50 << 20)))), "large"),
    "png bad checksum": (PNG[:30] + bytes([PNG[30] ^ 1]) + PNG[31:], ""),
    "ppm bomb": (b"P6 99999 99999 255\n" + bytes(9), "99999 × 99999"),
    "ppm nonsense": (b"P6 -1 4 255\n", ""),
    "gif bomb": (b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\2", "65535 × 65535"),
    "bmp bomb": (b"BM" + struct.pack("<IIIIiiHHIIIIII", 99, 0, 54, 40, 50000, 50000, 1, 24, 0, 0, 0, 0, 0, 0), "50000"),
    "over the cap by one row": (encoded(Image.new("1", (1000, 1001)), "PNG"), "1000 × 1001"),
    "thumbnail tiff": (encoded(PHOTO, "TIFF", tiffinfo={254: 1}), "thumbnail"),
    "dng": (encoded(PHOTO, "TIFF", tiffinfo={50706: b"\1\4\0\0"}), "raw"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_reason_fast_and_without_warnings(case):
    content, hint = REFUSED[case]
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UnreadableImage) as caught:
            decode(content, CAP)
    assert hint in str(caught.value)
    assert str(caught.value) and "\n" not in str(caught.value) and "0x7" not in str(caught.value)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.8, 0.97])
@pytest.mark.parametrize("content", [JPEG, PNG, encoded(PHOTO, "JPEG", progressive=True)], ids=["jpeg", "png", "prog"])
def test_truncated_files_are_refused(content, share):
    with pytest.raises(UnreadableImage):
        decode(content[: int(len(content) * share)], CAP)


def test_the_cap_is_ours_and_exact(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow's own limit must not count
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(PNG, 48 * 40).size == (48, 40)
        with pytest.raises(UnreadableImage, match="48 × 40"):
            decode(PNG, 48 * 40 - 1)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize(
    "error", [MemoryError(), OverflowError("x"), RecursionError("a\nb"), struct.error("s"), OSError(5, "I/O")]
)
def test_any_exception_while_decoding_becomes_a_reason(monkeypatch, error):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    monkeypatch.setattr(Image.Image, "load", fail)
    with pytest.raises(UnreadableImage) as caught:
        decode(BMP, CAP)
    assert "\n" not in str(caught.value) and str(caught.value)


# ---------------------------------------------------------------- files


def refusal(path: Path) -> str:
    with pytest.raises(UnreadableImage) as first:
        read_image(path, CAP)
    with pytest.raises(UnreadableImage) as second:
        probe_image(path, CAP)
    assert str(first.value) == str(second.value) and str(path) not in str(first.value)
    return str(first.value)


def test_things_that_are_no_files(tmp_path):
    assert "No such file" in refusal(tmp_path / "vanished.jpg")
    (tmp_path / "folder.jpg").mkdir()
    assert "not a regular file" in refusal(tmp_path / "folder.jpg")
    (tmp_path / "empty.jpg").touch()
    assert "empty" in refusal(tmp_path / "empty.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    assert refusal(tmp_path / "loop.jpg")
    assert refusal(Path("nul\0.jpg"))
    with open(tmp_path / "huge.jpg", "wb") as file:
        file.truncate(1 << 31)
    assert "bytes is more" in refusal(tmp_path / "huge.jpg")


def test_a_fifo_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "pipe")
    done = []
    thread = threading.Thread(
        target=lambda: done.append((refusal(tmp_path / "pipe.jpg"), looks_like_image(tmp_path / "pipe"))), daemon=True
    )
    thread.start()
    thread.join(5)
    assert done == [("not a regular file", False)]


def test_no_permission_is_a_reason(tmp_path, monkeypatch):
    file = tmp_path / "a.jpg"
    file.write_bytes(JPEG)

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr("builtins.open", denied)
    monkeypatch.setattr(Path, "read_bytes", denied)
    assert refusal(file) == "Permission denied"


def test_the_probe_reads_headers_only(tmp_path):
    file = tmp_path / "cut.jpg"
    file.write_bytes(JPEG[: len(JPEG) * 3 // 4])
    probe_image(file, CAP)
    file.write_bytes(REFUSED["png bomb"][0])
    with pytest.raises(UnreadableImage, match="60000 × 60000"):
        probe_image(file, CAP)


def test_what_looks_like_an_image(tmp_path):
    for name, content in {"a.JPG": b"", "b.heic": b"", "c": JPEG, "d.bin": PNG, "e": encoded(PHOTO, "BMP")}.items():
        (tmp_path / name).write_bytes(content)
        assert looks_like_image(tmp_path / name), name
    for name in ("AVIF", "WEBP", "GIF", "TIFF", "JPEG2000"):
        (tmp_path / "plain").write_bytes(encoded(PHOTO, name))
        assert looks_like_image(tmp_path / "plain"), name
    for name, content in {"t.txt": b"BMW is a car, you know", "n.csv": b"path,label", "z": b""}.items():
        (tmp_path / name).write_bytes(content)
        assert not looks_like_image(tmp_path / name), name
    assert not looks_like_image(tmp_path / "missing")


def test_threads_give_the_same_pixels():
    contents = [encoded(photo(kind, 0), name) for kind in range(3) for name in RASTER_FORMATS]
    alone = [decode(content, CAP).tobytes() for content in contents]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda content: decode(content, CAP).tobytes(), contents * 3))
    assert together == alone * 3


def test_the_policy_is_plain_and_names_the_formats():
    assert DECODING_POLICY["formats"] == list(RASTER_FORMATS) and isinstance(DECODING_POLICY["version"], int)
    assert {".jpg", ".png", ".heic", ".dng"} <= IMAGE_SUFFIXES


# ---------------------------------------------------------------- fuzz

VALID = [encoded(PHOTO.resize((9, 7)), name) for name in RASTER_FORMATS]


def holds(content: bytes) -> None:
    """Whatever the bytes, an RGB image within the cap or UnreadableImage."""
    try:
        image = decode(content, 10_000)
    except UnreadableImage as reason:
        assert str(reason) and "\n" not in str(reason)
    else:
        assert image.mode == "RGB" and 1 <= image.width * image.height <= 10_000


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about damaged metadata
@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", *(content[:12] for content in VALID)]))
def test_random_bytes(content, start):
    holds(start + content)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_flipped_bits_and_truncations_of_valid_files(data):
    content = bytearray(data.draw(st.sampled_from(VALID)))
    for _ in range(data.draw(st.integers(0, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    holds(bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content))
