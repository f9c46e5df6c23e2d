"""Letters for pictures: DejaVu, which matplotlib brings and which has most alphabets; others that the machine has."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

LATIN_UP_TO = 0x2FF  # nobody has to look whether these are there
# Tried in this order for what DejaVu lacks: Chinese, Japanese and Korean, as systems bring them.
MORE_FONTS = (
    "Noto Sans CJK KR",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "NanumGothic",
    "Malgun Gothic",
    "Apple SD Gothic Neo",
    "Hiragino Sans",
    "Microsoft YaHei",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
)


@cache
def dejavu(size: int) -> Font:
    """Return the letters of DejaVu Sans; Pillow's own where matplotlib is not found. It need not be imported."""
    found = importlib.util.find_spec("matplotlib")
    folder = "" if found is None or found.origin is None else str(Path(found.origin).parent)
    try:
        return ImageFont.truetype(folder + "/mpl-data/fonts/ttf/DejaVuSans.ttf", size)
    except OSError:
        return ImageFont.load_default(size=size)


def letters_for(text: str, size: int) -> Font:
    """Return letters that have all of a text, as far as the machine has any."""
    more = fonts_for(text)
    return ImageFont.truetype(more[0][1], size) if more else dejavu(size)


def fonts_for(text: str) -> list[tuple[str, str]]:
    """Return names and files of the machine's fonts for letters that DejaVu lacks: mostly none is needed."""
    letters = {ord(letter) for letter in text if ord(letter) > LATIN_UP_TO}
    if not letters:
        return []
    from matplotlib.font_manager import fontManager, get_font

    if letters <= get_font(fontManager.findfont("DejaVu Sans")).get_charmap().keys():
        return []
    files = {entry.name: str(entry.fname) for entry in reversed(fontManager.ttflist)}
    return [(name, files[name]) for name in MORE_FONTS if name in files]


def width_px(text: str, size: int) -> float:
    """Return how wide a text is."""
    return float(letters_for(text, size).getlength(text))


def fitted(text: str, most_px: int, size: int) -> str:
    """Return the text, shortened from its end until it is no wider than that."""
    if width_px(text, size) <= most_px:
        return text
    while text and width_px(text + "…", size) > most_px:
        text = text[:-1]
    return text + "…"
