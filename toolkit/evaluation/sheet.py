"""A sheet of small pictures with captions, as PNG."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

CELL_PX = 128
LINE_PX = 15
MARGIN_PX = 6
TITLE_PX = 24

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def sheet_png(
    pictures: Sequence[tuple[str, Tensor]],
    columns: int,
    *,
    title: str = "",
    cell_px: int = CELL_PX,
    lines: int = 2,
    cells_a_caption: int = 1,
) -> bytes:
    """Return a PNG of pictures uint8 (3, H, W), each under its caption, row by row.

    lines: of text that captions have room for, the title above apart. cells_a_caption: how many cells the caption of
    the first of them may go over; the others' are empty. What is longer ends in …. A picture is as large as fits its
    cell; one that is smaller is enlarged pixel by pixel.
    """
    rows = -(-len(pictures) // columns)
    caption_px = lines * LINE_PX
    step = (cell_px + MARGIN_PX, cell_px + caption_px + MARGIN_PX)
    size = columns * step[0] + MARGIN_PX, rows * step[1] + MARGIN_PX
    top = 0 if not title else TITLE_PX * len(wrapped := _wrapped(title, size[0] - 2 * MARGIN_PX, font(14)))
    sheet = Image.new("RGB", (size[0], size[1] + top), "white")
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(wrapped if title else []):
        pen.text((MARGIN_PX, MARGIN_PX + number * TITLE_PX), line, fill="black", font=font(14))
    width = cells_a_caption * step[0] - MARGIN_PX
    for number, (caption, pixels) in enumerate(pictures):
        x, y = MARGIN_PX + number % columns * step[0], top + MARGIN_PX + number // columns * step[1]
        for line, text in enumerate(caption.split("\n")[:lines]):
            pen.text((x, y + line * LINE_PX), fitted(text, width, font(11)), fill="black", font=font(11))
        sheet.paste(_in_cell(pixels, cell_px), (x, y + caption_px))
    content = io.BytesIO()
    sheet.save(content, "png")
    return content.getvalue()


@cache
def font(size: int) -> Font:
    """Return the letters of matplotlib, DejaVu, which has most alphabets; Pillow's own where it is not found."""
    found = importlib.util.find_spec("matplotlib")
    folder = None if found is None or found.origin is None else Path(found.origin).parent
    try:
        return ImageFont.truetype(str(folder) + "/mpl-data/fonts/ttf/DejaVuSans.ttf", size)
    except OSError:
        return ImageFont.load_default(size=size)


def fitted(text: str, width_px: int, letters: Font) -> str:
    """Return the text, shortened from its end until it is no wider than that."""
    if letters.getlength(text) <= width_px:
        return text
    while text and letters.getlength(text + "…") > width_px:
        text = text[:-1]
    return text + "…"


def _wrapped(text: str, width_px: int, letters: Font) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and letters.getlength(longer) <= width_px:
            lines[-1] = longer
        else:
            lines.append(fitted(word, width_px, letters))
    return lines


def _in_cell(pixels: Tensor, cell_px: int) -> Image.Image:
    """Return a picture on a white square; small ones keep their pixels as squares."""
    height, width = pixels.shape[1:]
    picture = Image.fromarray(pixels.permute(1, 2, 0).to(torch.uint8).contiguous().numpy())
    scale = cell_px / max(height, width)
    how = Image.Resampling.NEAREST if scale > 2 else Image.Resampling.BILINEAR
    shown = picture.resize((max(1, round(width * scale)), max(1, round(height * scale))), how)
    cell = Image.new("RGB", (cell_px, cell_px), "white")
    cell.paste(shown, ((cell_px - shown.width) // 2, (cell_px - shown.height) // 2))
    return cell
