"""`toolkit cache`: what the cache of features holds, and making it smaller."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import SettingError

if TYPE_CHECKING:
    from toolkit.features.prune import Kept

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True)
class CacheReport:
    """The cache folder, what it holds, how much was removed, and what could not be, since it is in use.

    digests_bytes: what is remembered of the content of files.
    """

    folder: Path
    kept: tuple[Kept, ...]
    digests_bytes: int = 0
    removed_bytes: int = 0
    busy: tuple[Kept, ...] = ()

    @property
    def bytes(self) -> int:
        """All that the folder holds."""
        return sum(one.bytes for one in self.kept) + self.digests_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        columns = ("backbone", "weights", "image_size_px", "dtype", "n_shards", "bytes")
        return {
            "folder": str(self.folder),
            "bytes": self.bytes,
            "digests_bytes": self.digests_bytes,
            "removed_bytes": self.removed_bytes,
            "kept": [{key: getattr(one, key) for key in columns} for one in self.kept],
            "busy": [one.backbone for one in self.busy],
        }

    def __str__(self) -> str:
        from toolkit.storage import as_size

        lines = [str(one) for one in self.kept if one.bytes]
        if self.digests_bytes:
            lines.append(f"{as_size(self.digests_bytes):>9}  digests of files")
        lines = [*(lines or ["  nothing"]), f"{as_size(self.bytes):>9}  in {self.folder}"]
        if self.removed_bytes:
            lines.append(f"{as_size(self.removed_bytes):>9}  removed")
        lines += [f"in use, not removed: {one.backbone}" for one in self.busy]
        return "\n".join(lines)


def cache(*, limit: str | float | None = None, cache_dir: str | None = None) -> CacheReport:
    """Show what the cache of features holds; with a limit, remove the longest unused until it is met.

    Nothing is lost by that but time: what is missing is computed again. Raises ToolkitError.

    Args:
        limit: the size to prune to, such as 5GB, 500MB, a number of bytes, or 0 to empty the cache
        cache_dir: where features are kept; the platform's cache folder by default
    """
    limit_bytes = None if limit is None else _bytes(limit)
    from toolkit.features.prune import digests_in, kept_in, prune
    from toolkit.storage import cache_folder

    folder = cache_folder(cache_dir)
    gone, busy = (0, []) if limit_bytes is None else prune(folder, limit_bytes)
    return CacheReport(folder, tuple(kept_in(folder)), digests_in(folder), gone, tuple(busy))


def _bytes(limit: str | float) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)b?\s*", str(limit).lower())
    size = math.inf if match is None else float(match[1]) * UNITS[match[2]]
    if math.isinf(size):  # so many digits are not a size either
        raise SettingError(f"limit: a size such as 5GB, 500MB or 0 expected, got {limit!r}")
    return int(size)
