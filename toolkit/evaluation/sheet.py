"""A sheet of small pictures with captions, as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from toolkit.evaluation.lettering import fitted, letters_for, width_px

CELL_PX = 128
LINE_PX = 15
MARGIN_PX = 6
TITLE_PX = 24
LETTERS_PX, TITLE_LETTERS_PX = 11, 14


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
    heading = _wrapped(title, size[0] - 2 * MARGIN_PX)
    top = TITLE_PX * len(heading)
    sheet = Image.new("RGB", (size[0], size[1] + top), "white")
    pen = ImageDraw.Draw(sheet)
    for number, text in enumerate(heading):
        place = (MARGIN_PX, MARGIN_PX + number * TITLE_PX)
        pen.text(place, text, fill="black", font=letters_for(text, TITLE_LETTERS_PX))
    width = cells_a_caption * step[0] - MARGIN_PX
    for number, (caption, pixels) in enumerate(pictures):
        x, y = MARGIN_PX + number % columns * step[0], top + MARGIN_PX + number // columns * step[1]
        for line, text in enumerate(caption.split("\n")[:lines]):
            letters = letters_for(text, LETTERS_PX)
            pen.text((x, y + line * LINE_PX), fitted(text, width, LETTERS_PX), fill="black", font=letters)
        sheet.paste(_in_cell(pixels, cell_px), (x, y + caption_px))
    content = io.BytesIO()
    sheet.save(content, "png")
    return content.getvalue()


def _wrapped(text: str, most_px: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and width_px(longer, TITLE_LETTERS_PX) <= most_px:
            lines[-1] = longer
        else:
            lines.append(fitted(word, most_px, TITLE_LETTERS_PX))
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
