"""The Manifest: every file of a data set, what it is used for, and what became of the rest."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

UNASSIGNED, TRAIN, VAL, TEST = -1, 0, 1, 2
SPLIT_NAMES = ("train", "val", "test")
UNLABELLED = -1


@dataclass(frozen=True)
class Quarantined:
    """An image file that cannot be used, and why."""

    path: str
    reason: str


@dataclass(frozen=True, eq=False)
class Manifest:
    """The images of a data set in columns, one row an image, in the order of their paths.

    root: the folder that `paths` are relative to.
    classes: class names in the order of their labels; one map for all splits.
    paths: N file paths, POSIX style, relative to `root` (a CSV may name absolute ones).
    labels: int64 (N,), index into `classes`; UNLABELLED (−1) where there is none.
    splits: int8 (N,), TRAIN, VAL, TEST, or UNASSIGNED where the folder does not say.
    quarantined: image files that could not be used. n_skipped: hidden files and files that are no images.
    remarks: sentences for the person (a class with a single image, say).
    sizes: int32 (N, 2), widths and heights by the files' headers; (0, 2) where nobody looked (see `with_sizes`).
    empty: class folders without any usable image, which make no class.
    """

    root: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    splits: NDArray[np.int8]
    quarantined: tuple[Quarantined, ...] = ()
    n_skipped: int = 0
    remarks: tuple[str, ...] = field(default=())
    sizes: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 2), np.int32))
    empty: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.sizes) not in (0, len(self.paths)):
            raise ValueError(f"sizes of {len(self.paths)} images or none expected, got {len(self.sizes)}")

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def n_scanned(self) -> int:
        """Number of files met: used + quarantined + skipped."""
        return len(self) + len(self.quarantined) + self.n_skipped

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of all images; None where they differ, or nobody looked."""
        if not len(self.sizes) or (self.sizes != self.sizes[0]).any():
            return None
        width, height = self.sizes[0].tolist()
        return width, height

    def file(self, index: int) -> Path:
        """Return the path of image `index` on disk."""
        return self.root / self.paths[index]

    def rows(self, split: int) -> NDArray[np.int64]:
        """Return the int64 row numbers of a split, in path order."""
        return np.flatnonzero(self.splits == split)

    def class_counts(self, split: int) -> NDArray[np.int64]:
        """Return int64 (C,): images of each class in a split."""
        labels = self.labels[self.splits == split]
        return np.bincount(labels[labels >= 0], minlength=len(self.classes))

    def without(self, failures: Iterable[tuple[int, str]]) -> Manifest:
        """Return a Manifest with the given rows quarantined: (row, reason) pairs."""
        reasons = dict(failures)
        if not reasons:
            return self
        kept = np.array([row not in reasons for row in range(len(self))], dtype=bool)
        moved = tuple(Quarantined(self.paths[row], reasons[row]) for row in sorted(reasons))
        return replace(
            self,
            paths=tuple(path for path, keep in zip(self.paths, kept, strict=True) if keep),
            labels=self.labels[kept],
            splits=self.splits[kept],
            sizes=self.sizes[kept] if len(self.sizes) else self.sizes,
            quarantined=tuple(sorted(self.quarantined + moved, key=lambda item: item.path)),
        )

    def fingerprint(self) -> str:
        """Return a digest of paths, labels, splits and classes: equal for equal training input."""
        columns = hashlib.blake2b(digest_size=16)
        columns.update("\0".join(self.classes).encode() + b"\1" + "\0".join(self.paths).encode())
        columns.update(self.labels.tobytes() + self.splits.tobytes())
        return columns.hexdigest()

    def __str__(self) -> str:
        sizes = ", ".join(
            f"{name} {int((self.splits == split).sum())}"
            for split, name in enumerate(SPLIT_NAMES)
            if (self.splits == split).any()
        )
        return (
            f"{len(self)} images of {len(self.classes)} classes ({sizes or 'not split yet'}); "
            f"{len(self.quarantined)} quarantined, {self.n_skipped} other files skipped"
        )


def common_root(paths: Sequence[str]) -> tuple[Path, tuple[str, ...]]:
    """Return the folder that holds all files of absolute paths, and the files' names in it as a Manifest has them.

    So their digests are shared with whoever else reads that folder. Raises ValueError for files on several drives.
    """
    root = Path(os.path.commonpath({os.path.dirname(path) for path in paths}))
    return root, tuple(Path(path).relative_to(root).as_posix() for path in paths)


def spelling_twins(classes: Iterable[str]) -> list[str]:
    """Return a remark for classes that a person would take for one: `cat` and `Cat`, or é written in two ways."""
    first: dict[str, str] = {}
    remarks = []
    for name in sorted(classes):
        twin = first.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if twin != name:
            remarks.append(f"classes {twin!r} and {name!r} differ in spelling only; they are kept apart")
    return remarks
