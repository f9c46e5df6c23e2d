"""A sheet of small pictures with captions, as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

CELL_PX = 128
CAPTION_PX = 30
MARGIN_PX = 6


def sheet_png(pictures: Sequence[tuple[str, Tensor]], columns: int) -> bytes:
    """Return a PNG of pictures uint8 (3, S, S), each under its caption of up to two lines, row by row."""
    rows = -(-len(pictures) // columns)
    step = (CELL_PX + MARGIN_PX, CELL_PX + CAPTION_PX + MARGIN_PX)
    sheet = Image.new("RGB", (columns * step[0] + MARGIN_PX, rows * step[1] + MARGIN_PX), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for number, (caption, pixels) in enumerate(pictures):
        left, top = (MARGIN_PX + step[i] * part for i, part in enumerate((number % columns, number // columns)))
        pen.multiline_text((left, top), caption, fill="black", font=font, spacing=2)
        picture = Image.fromarray(pixels.permute(1, 2, 0).to(torch.uint8).numpy())
        sheet.paste(picture.resize((CELL_PX, CELL_PX), Image.Resampling.BILINEAR), (left, top + CAPTION_PX))
    content = io.BytesIO()
    sheet.save(content, "png")
    return content.getvalue()
