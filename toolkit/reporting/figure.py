"""A matplotlib figure that needs no display and no global state, and its bytes; names that people gave, as they are."""

from __future__ import annotations

import io
import textwrap
import unicodedata
import warnings

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from toolkit.evaluation.lettering import fonts_for

DPI = 110
TRAINING, VALIDATION = "#1f77b4", "#d95f02"  # told apart by people who do not see red and green
LINE_IN = 0.19  # height of a line of small text
CAPTION_LETTERS_PER_IN = 13.0


def blank(width_in: float, height_in: float) -> Figure:
    """Return an empty white figure of this size, at 110 pixels an inch."""
    figure = Figure(figsize=(width_in, height_in), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    """Return a figure as PNG, the same bytes for the same figure.

    No text in it is read as a formula: a class may be called `$_{`. A letter that no font has is drawn as a box.
    """
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    more = [name for name, _ in fonts_for("".join(text.get_text() for text in texts))]
    for text in texts:
        text.set_parse_math(False)
        if more:
            text.set_fontfamily(["DejaVu Sans", *more])
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that no font has
        figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def plain(name: str, most: int = 24) -> str:
    """Return a name in one line of at most so many letters, the middle left out: names often differ at the end. What
    cannot be shown, a line break say, is a ?."""
    shown = "".join("?" if unicodedata.category(letter) in ("Cc", "Cs") else letter for letter in name)
    return shown if len(shown) <= most else f"{shown[: most // 2]}…{shown[len(shown) - (most - 1 - most // 2) :]}"


def caption_lines(caption: str, width_in: float) -> list[str]:
    """Return a caption as lines that fit under a figure of this width."""
    return textwrap.wrap(caption, round(width_in * CAPTION_LETTERS_PER_IN))


def write_caption(figure: Figure, lines: list[str]) -> None:
    """Write lines at the bottom of a figure, from the left."""
    width, height = figure.get_size_inches()
    figure.text(0.15 / width, 0.1 / height, "\n".join(lines), fontsize=9, va="bottom", ha="left", linespacing=1.35)
