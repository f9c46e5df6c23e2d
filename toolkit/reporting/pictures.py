"""The pictures of a run folder: each is published whole, and one that cannot be drawn costs no more than itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from toolkit.progress import say
from toolkit.storage import publish_bytes

Drawing = Callable[[], bytes | None]


def publish_pictures(folder: Path, drawings: Mapping[str, Drawing]) -> None:
    """Draw each picture into its file; where there is nothing to draw, a file of an earlier drawing goes.

    Whatever goes wrong is a note on stderr; a signal that ends the program goes through.
    """
    for name, draw in drawings.items():
        try:
            content = draw()
            if content is None:
                (folder / name).unlink(missing_ok=True)
            else:
                publish_bytes(folder / name, content)
        except Exception as error:
            reason = " ".join(str(error).split()) or "no reason given"
            say(f"note: {name} could not be drawn ({type(error).__name__}: {reason})")
