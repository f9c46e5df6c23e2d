"""What a cache folder holds, and making it smaller: the longest unused first."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from toolkit.features.shard import SUFFIX
from toolkit.features.store import ABOUT, LOCK, USED
from toolkit.storage import read_json

DAY_S = 86_400.0


@dataclass(frozen=True)
class Kept:
    """The stored numbers of one backbone at one size and precision.

    n_shards, bytes: files and their size. unused_s: seconds since the last use.
    """

    folder: Path
    backbone: str
    weights: str
    image_size_px: int | None
    dtype: str
    n_shards: int
    bytes: int
    unused_s: float

    def __str__(self) -> str:
        what = f"{self.backbone} at {self.image_size_px} px" + (f", {self.dtype}" if self.dtype else "")
        return f"{as_size(self.bytes):>9}  unused for {_age(self.unused_s):>8}  {what} ({self.n_shards} shards)"


def kept_in(folder: Path) -> list[Kept]:
    """Return what a cache folder holds, the longest unused first; folders that are not the store's are left out."""
    models = folder / "models"
    found = [_kept(place) for place in models.iterdir() if (place / LOCK).exists()] if models.is_dir() else []
    return sorted(found, key=lambda kept: (-kept.unused_s, kept.folder.name))


def prune(folder: Path, limit_bytes: int) -> tuple[int, list[Kept]]:
    """Remove the shards that were used longest ago until at most `limit_bytes` are left.

    Returns how many bytes went, and the backbones that another process computes with this minute: theirs stay. A
    process that has shards open keeps reading them.
    """
    too_much = sum(one.bytes for one in kept_in(folder)) - limit_bytes
    gone = 0
    busy: list[Kept] = []
    for one in kept_in(folder):
        if too_much <= gone:
            break
        try:
            with FileLock(one.folder / LOCK).acquire(timeout=0):
                gone += _remove_oldest(one.folder, too_much - gone)
        except Timeout:
            busy.append(one)
    return gone, busy


def _remove_oldest(place: Path, at_least: int) -> int:
    """Remove shards, the longest unused first, until `at_least` bytes are gone or nothing is left."""
    gone = 0
    shards = [(path.stat().st_mtime_ns, path) for path in place.glob(f"*/*{SUFFIX}")]
    for _, path in sorted(shards):
        if gone >= at_least:
            break
        gone += path.stat().st_size
        path.unlink()
    return gone


def as_size(n_bytes: int) -> str:
    """Return a size for a person: 12 kB, 3.4 MB, 5.6 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes / 1e3:.0f} kB"


def _kept(place: Path) -> Kept:
    try:
        about = read_json(place / ABOUT)
        unused = max(0.0, time.time() - (place / USED).stat().st_mtime)
        size = about["preprocessing"]["crop_px"]
        named = {key: str(about.get(key, "")) for key in ("backbone", "weights", "dtype")}
    except (OSError, ValueError, KeyError, TypeError):  # unreadable: nobody can use it
        unused, size, named = float("inf"), None, {"backbone": "unknown", "weights": "", "dtype": ""}
    shards = [path.stat().st_size for path in place.glob(f"*/*{SUFFIX}")]
    return Kept(
        place,
        named["backbone"],
        named["weights"],
        size,
        named["dtype"].removeprefix("torch."),
        len(shards),
        sum(shards),
        unused,
    )


def _age(seconds: float) -> str:
    if seconds == float("inf"):
        return "ever"
    if seconds >= DAY_S:
        return f"{seconds / DAY_S:.0f} days"
    return f"{seconds / 3600:.0f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"
