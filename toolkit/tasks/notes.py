"""`toolkit notes`: the claims of the notes, each tried out by a small experiment with numbers and a picture."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import ArtifactError, SettingError, unknown_name
from toolkit.settings import checked

if TYPE_CHECKING:
    from toolkit.experiments.finding import Finding

DEFAULT_FOLDER = Path("runs") / "notes"


@dataclass(frozen=True)
class NotesReport:
    """What one experiment found, and where its picture is; or, without one, the experiments that there are."""

    experiments: dict[str, str]
    finding: Finding | None = None
    picture: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        if self.finding is None:
            return {"experiments": self.experiments}
        return {**self.finding.to_dict(), "picture": str(self.picture)}

    def __str__(self) -> str:
        if self.finding is None:
            width = max(map(len, self.experiments))
            return "\n".join(f"{name.ljust(width)}  {line}" for name, line in self.experiments.items())
        return f"{self.finding}\nPicture: {self.picture}"


def notes(name: str | None = None, *, out: str | None = None, overwrite: bool = False, seed: int = 0) -> NotesReport:
    """Try out a claim of the notes: numbers, a picture, and whether the run bears it out. Without a name, list them.

    Takes seconds, and no data but what is at hand. Raises ToolkitError.

    Args:
        name: the experiment; without one they are listed
        out: where to write the picture; runs/notes/NAME.png by default, which is drawn anew each time
        overwrite: replace the file that is there
        seed: one seed, one result
    """
    from toolkit.experiments.catalog import EXPERIMENTS

    lines = {key: line for key, (_, line) in EXPERIMENTS.items()}
    if name is None:
        for key, given in (("out", out is not None), ("overwrite", overwrite)):
            if given:
                raise SettingError(f"{key} is not used without the name of an experiment; give one, or remove it")
        return NotesReport(lines)
    if name not in EXPERIMENTS:
        raise unknown_name("experiment", name, EXPERIMENTS)
    seed = checked("seed", seed)
    picture = DEFAULT_FOLDER / f"{name}.png" if out is None else Path(out).expanduser()
    if picture.suffix.lower() != ".png":
        raise SettingError(f"out: a file name that ends in .png expected, got {str(picture)!r}")
    if picture.is_dir():
        raise SettingError(f"out: a file name expected, {str(picture)!r} is a folder")
    if out is not None and not overwrite and os.path.lexists(picture):
        raise ArtifactError(f"{picture} is there already; choose another --out, or replace it by --overwrite")
    from importlib import import_module

    finding: Finding = import_module(EXPERIMENTS[name][0]).run(seed)
    _publish(finding, picture)
    return NotesReport(lines, finding, picture)


def _publish(finding: Finding, picture: Path) -> None:
    """Draw the picture and write it whole."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from toolkit.storage import publish_bytes

    figure = Figure(figsize=(11, 5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(finding.title)
    finding.draw(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    publish_bytes(picture, buffer.getvalue())
