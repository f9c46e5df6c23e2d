"""Run folders as a run leaves them at its beginning and at its end."""

from __future__ import annotations

from pathlib import Path

from toolkit.artifacts.run_folder import RunFolder


def config(seed: int) -> dict[str, object]:
    """Return what tells a run's config from another program's."""
    return {"data": "photos", "out": "run", "strategy": "auto", "seed": seed}


def created(path: Path, config: dict[str, object], *, overwrite: bool) -> RunFolder:
    """Return a folder in which a run has begun, and has stopped."""
    folder = RunFolder(path)
    with folder.claimed(overwrite=overwrite):
        folder.begin(config)
    return folder


def finished(path: Path, config: dict[str, object]) -> RunFolder:
    """Return the folder of a run that has come to its end."""
    folder = created(path, config, overwrite=False)
    for name in ("quarantine.csv", "metrics.json"):
        (folder.path / name).write_text("{}")
    folder.drop_checkpoints()
    return folder


def names(folder: Path) -> list[str]:
    """Return what is in a folder, by paths."""
    return sorted(str(entry.relative_to(folder)) for entry in folder.rglob("*"))
