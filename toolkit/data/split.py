"""Split images into train and val: stratified, seeded, and hardly disturbed by files that come or go."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from toolkit.data.manifest import TEST, TRAIN, UNASSIGNED, VAL, Manifest
from toolkit.errors import DataError, SettingError

VAL_SHARE = 0.2  # of each class, unless another one is set


def assign_splits(manifest: Manifest, *, val: float = VAL_SHARE, seed: int = 0, untrained: bool = False) -> Manifest:
    """Return the Manifest with every UNASSIGNED row put into TRAIN or VAL; other rows stay as they are.

    Of the n UNASSIGNED images of a class, round(val · n) but at least 1 and at most n − 1 go to VAL: those
    whose keyed hash of (seed, path) is smallest. No random generator is involved, so a file that is added
    or removed moves at most one other. A class with a single image goes to TRAIN, with a remark.

    Raises SettingError for `val` outside (0, 1), DataError where a class that is to be predicted has no
    training image (unless `untrained` lets it pass, for whoever reports it), or fewer than 2 classes have any.
    """
    if isinstance(val, bool) or not 0 < val < 1:
        raise SettingError(f"val is a fraction between 0 and 1 (both excluded), got {val!r}")
    splits = manifest.splits.copy()
    remarks = list(manifest.remarks)
    splits[manifest.splits == UNASSIGNED] = TRAIN
    for label, name in enumerate(manifest.classes):
        rows = np.flatnonzero((manifest.splits == UNASSIGNED) & (manifest.labels == label))
        if len(rows) >= 2:
            splits[_lowest_ranked(manifest, rows, val, _key(seed))] = VAL
        elif len(rows) == 1 and not ((manifest.labels == label) & (manifest.splits == VAL)).any():
            remarks.append(f"class {name!r} has a single image: it is used for training and never validated")
        elif not (manifest.labels == label).any():
            remarks.append(f"class {name!r} has no usable image left: it can be predicted but was never seen")
    if val != VAL_SHARE and len(manifest) and not (manifest.splits == UNASSIGNED).any():
        remarks.append(f"val {val:g} is not used: the data have a split of their own")
    assigned = replace(manifest, splits=splits, remarks=tuple(dict.fromkeys(remarks)))
    _check_classes(assigned, untrained=untrained)
    return assigned


def train_on_all(manifest: Manifest) -> Manifest:
    """Return the Manifest with every UNASSIGNED row put into TRAIN: nothing is held out. Raises DataError as above."""
    assigned = replace(manifest, splits=np.where(manifest.splits == UNASSIGNED, TRAIN, manifest.splits).astype(np.int8))
    _check_classes(assigned)
    return assigned


def hold_out(manifest: Manifest, share: float, most: int, seed: int, part: int = 0) -> Manifest:
    """Return the Manifest with a part of TRAIN as VAL, to try something on, and the former VAL as TEST, out of the way.

    Of the n training images of a class, round(share · n) but at least 1 and at most n − 1 are held out; where they
    would be more than `most` or than that share of all, those that their hashes rank last stay. Another hash than that
    of `assign_splits` picks them. A class of one image keeps it. part: which of the parts, none of which has an image
    of another; a class that has too few gives less to the later ones, or nothing.
    """
    splits = np.where(manifest.splits == VAL, TEST, manifest.splits).astype(np.int8)
    train = manifest.splits == TRAIN
    n_train = int(train.sum())
    fits = min(most, max(1, round(share * n_train)))
    share = min(share, most / max(1, n_train))
    key = _key(seed, "held out")
    picked: list[int] = []
    for label in range(len(manifest.classes)):
        rows = np.flatnonzero(train & (manifest.labels == label))
        if len(rows) >= 2:
            picked += _lowest_ranked(manifest, rows, share, key, part).tolist()
    if len(picked) > fits:  # classes of a few images give one each, which is more than their share
        picked = sorted(picked, key=lambda row: _rank(manifest, row, key))[:fits]
    splits[picked] = VAL
    return replace(manifest, splits=splits)


def _key(seed: int, of: str = "") -> bytes:
    return hashlib.blake2b(f"{seed}{of}".encode(), digest_size=32).digest()


def _rank(manifest: Manifest, row: int, key: bytes) -> bytes:
    return hashlib.blake2b(manifest.paths[row].encode("utf-8", "surrogatepass"), digest_size=16, key=key).digest()


def _lowest_ranked(
    manifest: Manifest, rows: NDArray[np.int64], val: float, key: bytes, part: int = 0
) -> NDArray[np.int64]:
    """Return the rows of one class that go to VAL: the first of so many by rank, or the part-th after them."""
    count = min(max(1, round(val * len(rows))), len(rows) - 1)
    ranked = sorted(rows.tolist(), key=lambda row: _rank(manifest, row, key))
    return np.array(ranked[part * count : (part + 1) * count], dtype=np.int64)


def _check_classes(manifest: Manifest, *, untrained: bool = False) -> None:
    """Raise DataError unless at least 2 classes, and all that are validated or tested, have training images."""
    train = manifest.class_counts(TRAIN)
    strange = np.flatnonzero((train == 0) & (manifest.class_counts(VAL) + manifest.class_counts(TEST) > 0))
    if len(strange) and not untrained:
        names = ", ".join(repr(manifest.classes[label]) for label in strange[:5])
        raise DataError(
            f"{manifest.root}: no usable training image of class {names}, which has images in val or test; "
            "add some to train or remove the class"
        )
    if (train > 0).sum() < 2:
        trained = ", ".join(repr(manifest.classes[label]) for label in np.flatnonzero(train)) or "none"
        raise DataError(
            f"{manifest.root}: at least 2 classes with usable training images are needed, there is: {trained}"
        )
