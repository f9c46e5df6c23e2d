"""From a folder or CSV to a Manifest in which every file is accounted for: used, quarantined or skipped.

Only headers are read here; what fails when it is decoded later leaves through `Manifest.without`. Links are
followed, to files and to folders; a folder is entered once within one class, so loops end.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from toolkit.data.decode import DEFAULT_MAX_PIXELS, UnreadableImage, probe_image
from toolkit.data.listing import SPLIT_WORDS, read_listing
from toolkit.data.manifest import (
    SPLIT_NAMES,
    TEST,
    TRAIN,
    UNASSIGNED,
    UNLABELLED,
    VAL,
    Manifest,
    Quarantined,
    spelling_twins,
)
from toolkit.data.walk import files_below, files_in, folders_in
from toolkit.errors import DataError

LARGEST_SIDE = 2**31 - 1  # what a Manifest's sizes can hold; a header may claim more
_LAYOUTS = "DIR/train/CLASS/… with val and test, DIR/CLASS/…, or a CSV of path,label[,split]"


def scan(
    source: str | os.PathLike[str],
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    classes: tuple[str, ...] | None = None,
    untrained: bool = False,
) -> Manifest:
    """Return the Manifest of a labelled data set; classes are sorted by name, rows by path.

    `DIR/train/CLASS/**` with `val` (`valid`, `validation`, in any case) and maybe `test`: the folder says the
    splits. Without val images, train images are UNASSIGNED. `test` is flat (labels −1) if images lie directly
    in it and none of its folders is named as a class. Images in other folders of DIR are quarantined.
    `DIR/CLASS/**`: all UNASSIGNED. This is the layout wherever `train/` is absent or holds no folders.
    A CSV, UTF-8, with a header: paths are absolute or relative to its folder. An empty split means train if any
    row says val, else UNASSIGNED; an empty label is for test rows only. Exact repeats count once.
    classes: a model's classes, to score it on other data; then any one of them is enough, in any split.
    untrained: whether a class that val or test has and train has not is taken as well, for whoever reports it.

    Raises DataError if this makes no data set: no images or fewer than 2 classes, a class that val or test has
    and train has not, a malformed CSV.
    """
    path = Path(source).expanduser().absolute()
    if path.is_dir():
        found = _Found(path, max_pixels)
        _scan_folder(found)
    elif path.is_file() and path.suffix.lower() == ".csv":
        found = _Found(path.parent, max_pixels)
        _scan_listing(found, path)
    else:
        problem = "is neither a folder nor a .csv file" if path.exists() else "does not exist"
        raise DataError(f"{path} {problem}; expected {_LAYOUTS}")
    return found.labelled_manifest(path, classes, untrained=untrained)


def scan_flat(source: str | os.PathLike[str], *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Manifest:
    """Return the Manifest of all images below a folder, without classes: labels −1, splits UNASSIGNED.

    It may be empty if all images are quarantined. Raises DataError if there is no folder or no image file.
    """
    path = Path(source).expanduser().absolute()
    if not path.is_dir():
        raise DataError(f"{path} {'is no folder' if path.exists() else 'does not exist'}; expected a folder of images")
    found = _Found(path, max_pixels)
    found.add_folder("", None, UNASSIGNED)
    if not found.rows and not found.quarantined:
        raise DataError(f"{path}: no image file in it or below; expected a folder of images")
    return found.manifest(())


def with_sizes(manifest: Manifest, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Manifest:
    """Return a Manifest with the sizes of its images, by their headers where nobody looked; 0 for unreadable ones."""
    if len(manifest.sizes):
        return manifest
    sizes = array("i")
    for row in range(len(manifest)):
        try:
            sizes.extend(_size(manifest.file(row), max_pixels))
        except UnreadableImage:
            sizes.extend((0, 0))
    return replace(manifest, sizes=np.array(sizes, dtype=np.int32).reshape(-1, 2))


def _size(path: Path, max_pixels: int) -> list[int]:
    """Return width and height as a Manifest can hold them; raises UnreadableImage."""
    return [min(side, LARGEST_SIDE) for side in probe_image(path, max_pixels)]


@dataclass
class _Found:
    """What a scan has met so far. rows: (path, class name or None, split). sizes: width and height, row after row."""

    root: Path
    max_pixels: int
    rows: list[tuple[str, str | None, int]] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    n_skipped: int = 0
    remarks: list[str] = field(default_factory=list)
    sizes: array[int] = field(default_factory=lambda: array("i"))
    empty: list[str] = field(default_factory=list)

    def add_image(self, path: str, name: str | None, split: int) -> None:
        """Add a file that claims to be an image, as a row or as quarantined."""
        try:
            path.encode("utf-8")
            size = _size(self.root / path, self.max_pixels)
        except UnicodeEncodeError:  # such a name could not be written to any result file
            self.quarantine(path, "the name of the file or of its folder is not valid UTF-8; rename it")
        except UnreadableImage as reason:
            self.quarantine(path, str(reason))
        else:
            self.rows.append((path, name, split))
            self.sizes.extend(size)

    def quarantine(self, path: str, reason: str) -> None:
        """Record a file that is not used; bytes of its name that are no UTF-8 are shown as escapes."""
        self.quarantined.append(Quarantined(path.encode("utf-8", "backslashreplace").decode(), reason))

    def add_folder(self, folder: str, name: str | None, split: int) -> None:
        """Add all images below a folder."""
        for path, is_image in files_below(self.root, folder):
            if is_image:
                self.add_image(path, name, split)
            else:
                self.n_skipped += 1

    def add_classes(self, parent: str, folders: list[str], split: int) -> None:
        """Add the class folders of one parent, which is "" or ends in a slash."""
        for folder in folders:
            before = len(self.rows)
            self.add_folder(parent + folder, folder, split)
            if len(self.rows) == before:
                self.empty.append(parent + folder)
                self.remarks.append(f"class folder {parent + folder!r} holds no usable image and is left out")

    def refuse(self, paths: Iterator[tuple[str, bool]], reason: str) -> None:
        """Quarantine those paths that are images and skip the others."""
        for path, is_image in paths:
            if is_image:
                self.quarantine(path, reason)
            else:
                self.n_skipped += 1

    def labelled_manifest(self, source: Path, classes: tuple[str, ...] | None, *, untrained: bool) -> Manifest:
        """Return the Manifest with the given classes, or with those of the training rows; raises DataError."""
        if classes is not None:
            return self._manifest_for(source, classes)
        trained = {name for _, name, split in self.rows if name is not None and split in (TRAIN, UNASSIGNED)}
        strange = sorted({(name, split) for _, name, split in self.rows if name is not None and name not in trained})
        if strange and not untrained:
            name, split = strange[0]
            others = f" (and {len(strange) - 1} more)" if len(strange) > 1 else ""
            raise DataError(
                f"{source}: class {name!r} has images in {SPLIT_NAMES[split]} but no usable one in train{others}; "
                "add some to train or take it out"
            )
        self._check_some_left(source)
        if len(trained) < 2:
            what = f"only one class, {next(iter(trained))!r}," if trained else "no class"
            raise DataError(f"{source}: {what} with usable training images; at least 2 are needed, in {_LAYOUTS}")
        self.remarks += spelling_twins(trained)
        return self.manifest(tuple(sorted(trained.union(name for name, _ in strange))))

    def _manifest_for(self, source: Path, classes: tuple[str, ...]) -> Manifest:
        """Return the Manifest in a model's classes; raises DataError if none fits or another one occurs."""
        self._check_some_left(source)
        strange = sorted({name for _, name, _ in self.rows if name is not None} - set(classes))
        if strange:
            raise DataError(
                f"{source}: class {strange[0]!r} is unknown to the model, which has: {', '.join(classes[:10])}"
                + (", …" if len(classes) > 10 else "")
            )
        if not any(name is not None for _, name, _ in self.rows):
            raise DataError(f"{source}: no labelled images; expected {_LAYOUTS}")
        return self.manifest(classes)

    def _check_some_left(self, source: Path) -> None:
        if not self.rows and self.quarantined:
            first = self.quarantined[0]
            raise DataError(
                f"{source}: none of {len(self.quarantined)} image files can be used; the first: "
                f"{first.path!r}: {first.reason}; expected {_LAYOUTS}"
            )

    def manifest(self, classes: tuple[str, ...]) -> Manifest:
        """Return what was found, sorted by path."""
        order = sorted(range(len(self.rows)), key=lambda row: self.rows[row][0])
        rows = [self.rows[row] for row in order]
        label_of = {name: label for label, name in enumerate(classes)}
        return Manifest(
            root=self.root,
            classes=classes,
            paths=tuple(path for path, _, _ in rows),
            labels=np.array([UNLABELLED if name is None else label_of[name] for _, name, _ in rows], dtype=np.int64),
            splits=np.array([split for _, _, split in rows], dtype=np.int8),
            quarantined=tuple(sorted(self.quarantined, key=lambda item: item.path)),
            n_skipped=self.n_skipped,
            remarks=tuple(self.remarks),
            sizes=np.array(self.sizes, dtype=np.int32).reshape(-1, 2)[order],
            empty=tuple(self.empty),
        )


def _scan_folder(found: _Found) -> None:
    folders = folders_in(found.root)
    split_folders = [name for name in folders if name.lower() in SPLIT_WORDS]
    train = [name for name in folders if name.lower() == "train" and folders_in(found.root / name)]
    if train:
        _scan_splits(found, split_folders)
        others = [name for name in folders if name not in split_folders]
        for name in others:
            found.refuse(files_below(found.root, name), "not in train, val or test")
        found.refuse(files_in(found.root, ""), "not in train, val or test")
        return
    if split_folders and split_folders == folders:
        raise DataError(f"{found.root}: {', '.join(folders)}: no train/ with class folders; expected {_LAYOUTS}")
    for name in split_folders:
        found.remarks.append(f"folder {name!r} is taken for a class, as there is no train/ with class folders in it")
    found.add_classes("", folders, UNASSIGNED)
    found.refuse(files_in(found.root, ""), "not in a class folder")


def _scan_splits(found: _Found, split_folders: list[str]) -> None:
    """Scan train/, val/ and test/."""
    parent_of: dict[int, str] = {}
    for name in split_folders:
        split = SPLIT_WORDS[name.lower()]
        if split in parent_of:
            raise DataError(f"{found.root}: both {parent_of[split]}/ and {name}/ are there; keep one of them")
        parent_of[split] = name
    train_classes = folders_in(found.root / parent_of[TRAIN])
    for split, parent in sorted(parent_of.items()):
        folders = folders_in(found.root / parent)
        has_images = any(is_image for _, is_image in files_in(found.root, parent))
        if split == TEST and has_images and not set(folders) & set(train_classes):
            found.add_folder(parent, None, TEST)
            continue
        if not folders and has_images:
            raise DataError(f"{found.root / parent}: images but no class folders; sort them into {parent}/CLASS/")
        found.add_classes(f"{parent}/", folders, split)
        found.refuse(files_in(found.root, parent), "not in a class folder")
    _leave_val_to_be_split(found)


def _leave_val_to_be_split(found: _Found) -> None:
    """Make train rows UNASSIGNED where there is no val row, so that val is split off them."""
    if not any(split == VAL for _, _, split in found.rows):
        found.rows = [(path, name, UNASSIGNED if split == TRAIN else split) for path, name, split in found.rows]


def _scan_listing(found: _Found, file: Path) -> None:
    listed: dict[str, tuple[str, str | None, int, int]] = {}
    repeats = 0
    for line, path, name, split in read_listing(file):
        place = os.path.normpath(found.root / path)
        if place not in listed:
            listed[place] = (path, name, split, line)
        elif listed[place][1:3] == (name, split):
            repeats += 1
        else:
            raise DataError(f"{file}: lines {listed[place][3]} and {line} disagree about {path!r}; keep one of them")
    if repeats:
        found.remarks.append(f"{repeats} rows of {file.name} repeat an earlier row and are ignored")
    has_val = any(split == VAL for _, _, split, _ in listed.values())
    for path, name, split, _ in listed.values():
        found.add_image(path, name, TRAIN if split == UNASSIGNED and has_val else split)
    _leave_val_to_be_split(found)
