"""Files of all formats, made in memory, and what the decoder makes of them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from tests.photos import photo
from toolkit.data.decode import decode

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


def white_is_zero(image: Image.Image) -> bytes:
    """Return a TIFF that holds the values of a grey image, and says that 0 is white."""
    content = encoded(image, "TIFF")
    says = {one: struct.pack("<HHIHH", 262, 3, 1, one, 0) for one in (0, 1)}  # 262: photometric interpretation
    assert content.count(says[1]) == 1
    return content.replace(says[1], says[0])


Chunk = tuple[bytes, bytes]


def png(width: int, height: int, depth: int, colour_type: int, rows: list[bytes], *chunks: Chunk) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, body) for kind, body in parts)
