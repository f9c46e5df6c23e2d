"""Hostile and unusual files: UnreadableImage with a reason, fast, and nothing else."""

from __future__ import annotations

import os
import struct
import threading
import time
import warnings
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from tests.data.encoded import CAP, PHOTO, encoded, png
from toolkit.data.decode import RASTER_FORMATS, UnreadableImage, decode, looks_like_image, probe_image, read_image

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
