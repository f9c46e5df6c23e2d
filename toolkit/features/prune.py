"""What a cache folder holds, and making it smaller: the longest unused first."""

from __future__ import annotations

import re
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from toolkit.features import contents
from toolkit.features.place import ABOUT, LOCK, MEASURED, USED
from toolkit.features.shard import SUFFIX
from toolkit.storage import TEMPORARY_PREFIX, as_size, read_json

DAY_S = 86_400.0

# What the store names its folders and, with a suffix, its files. The cache may lie in a folder of a person's own, who
# has a `models` or `contents` there as well: what has another name is neither counted nor removed.
KEY = r"[0-9a-f]{24}"


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
        size = "" if self.image_size_px is None else f" at {self.image_size_px} px"
        what = self.backbone + size + (f", {self.dtype}" if self.dtype else "")
        return f"{as_size(self.bytes):>9}  unused for {_age(self.unused_s):>8}  {what} ({self.n_shards} shards)"


def kept_in(folder: Path) -> list[Kept]:
    """Return what a cache folder holds, the longest unused first; folders that are not the store's are left out."""
    models = folder / "models"
    found = [_kept(place) for place in models.iterdir() if _is_place(place)] if models.is_dir() else []
    return sorted(found, key=lambda kept: (-kept.unused_s, kept.folder.name))


def digests_in(folder: Path) -> int:
    """Return how many bytes the digests of files take."""
    return sum(_look(path)[1] for path in _digests(folder))


def prune(folder: Path, limit_bytes: int) -> tuple[int, list[Kept]]:
    """Remove the shards that were used longest ago until at most `limit_bytes` are left.

    The digests of files, which are soon taken again, go where the limit cannot be met otherwise.
    Returns how many bytes went, and the backbones that another process computes with this minute: theirs stay. A
    process that has shards open keeps reading them.
    """
    digests = digests_in(folder)
    too_much = sum(one.bytes for one in kept_in(folder)) + digests - limit_bytes
    gone = _remove_digests(folder) if digests > limit_bytes else 0
    busy: list[Kept] = []
    for one in kept_in(folder):
        if too_much <= gone:
            break
        try:
            with FileLock(one.folder / LOCK).acquire(timeout=0):
                gone += _remove_oldest(one.folder, too_much - gone)
        except Timeout:
            busy.append(one)
    if gone < too_much:
        gone += _remove_digests(folder)
    return gone, busy


def _digests(folder: Path) -> list[Path]:
    """Return the files of digests, unfinished ones included."""
    return _own(folder / "contents", SUFFIX)


def _remove_digests(folder: Path) -> int:
    gone = 0
    if not _digests(folder):
        return gone
    with suppress(Timeout), FileLock(folder / "contents" / contents.LOCK).acquire(timeout=contents.LOCK_WAIT_S):
        for path in _digests(folder):
            gone += _look(path)[1]
            path.unlink(missing_ok=True)
    return gone


def _remove_oldest(place: Path, at_least: int) -> int:
    """Remove what a killed process left, then the longest unused, until `at_least` bytes or all are gone."""
    gone = 0
    files = [(not path.name.startswith(TEMPORARY_PREFIX), *_look(path), path) for path in _files(place)]
    for finished, _, size, path in sorted(files):
        if finished and gone >= at_least:
            break
        path.unlink(missing_ok=True)
        gone += size
    return gone


def _files(place: Path) -> list[Path]:
    """Return the shards of a backbone, unfinished ones included, and what was measured by it."""
    folders = [folder for folder in place.glob("*/") if not folder.is_symlink()]
    return [path for one in folders for path in _own(one, ".json" if one.name == MEASURED else SUFFIX)]


def _is_place(folder: Path) -> bool:
    """Return whether a folder holds a backbone's numbers; a link to another place does not."""
    return re.fullmatch(KEY, folder.name) is not None and not folder.is_symlink() and (folder / LOCK).is_file()


def _own(folder: Path, suffix: str) -> list[Path]:
    """Return the files that the store can have written into a folder, unfinished ones included; links are none."""
    name = re.compile(KEY + re.escape(suffix))
    found = [path for path in folder.glob("*") if path.name.startswith(TEMPORARY_PREFIX) or name.fullmatch(path.name)]
    return [path for path in found if _is_regular(path)]


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:  # it has gone this moment
        return False


def _look(path: Path) -> tuple[int, int]:
    """Return when a file was used, and its size; zeros for one that has gone this moment."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


def _kept(place: Path) -> Kept:
    try:
        about = read_json(place / ABOUT)
        size = about["preprocessing"]["crop_px"]
        named = {key: str(about.get(key, "")) for key in ("backbone", "weights", "dtype")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):  # damaged, or from a kill
        size, named = None, {"backbone": "unknown", "weights": "", "dtype": ""}
    files = _files(place)
    used_ns = max(_look(path)[0] for path in (place / USED, *files))  # a pass that was cut short marked no use yet
    unused = max(0.0, time.time() - used_ns / 1e9) if used_ns else float("inf")
    return Kept(
        place,
        named["backbone"],
        named["weights"],
        size,
        named["dtype"].removeprefix("torch."),
        sum(path.parent.name != MEASURED for path in files),
        sum(_look(path)[1] for path in files),
        unused,
    )


def _age(seconds: float) -> str:
    if seconds == float("inf"):
        return "ever"
    if seconds >= DAY_S:
        return f"{seconds / DAY_S:.0f} days"
    return f"{seconds / 3600:.0f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"
