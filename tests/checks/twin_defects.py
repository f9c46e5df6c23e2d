"""Pictures that occur twice, and labels that are wrong, each with a sound counterpart.

A twin is planted in the place of a picture that is taken out first; its sound counterpart puts that picture itself
there, changed in the same way. So the two folders differ in nothing but whether the picture is there already.
"""

from __future__ import annotations

import csv
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from PIL import Image

from tests.checks.pictures import (
    brightened,
    by_digit,
    classes_of,
    cropped,
    dated,
    drawing,
    encoded,
    halved,
    images_of,
    mirrored,
    pixels,
    spare,
    split_by_hand,
)
from tests.checks.planted import FAIL, WARN, DataDefect, Planted

Edit = Callable[[Image.Image], Image.Image]


def as_it_is(image: Image.Image) -> Image.Image:
    return image


def twin(folder: Path, edit: Edit, *, is_copy: bool, quality: int | None = None) -> Planted:
    """Put a changed copy of a class's third picture into the last one's place; or the last one, equally changed."""
    own, place = spare(folder)
    original = images_of(place.parent)[2]
    image = edit(pixels(original) if is_copy else own)
    file = place.with_suffix(".png" if quality is None else ".jpg")
    image.save(file, **({} if quality is None else {"quality": quality}))
    return Planted(folder, (file.name, original.name))


def five_copies(folder: Path, n: int = 5) -> Planted:
    place = classes_of(folder)[1]
    originals = images_of(place)[:n]
    names = []
    for number, file in enumerate(originals):
        names.append(f"planted-{number}{file.suffix}")
        shutil.copyfile(file, place / names[-1])
    return Planted(folder, (*names, *(file.name for file in originals)))


def five_of_a_kind(folder: Path) -> Planted:
    """Five drawings that differ: much white, one small thing in the middle."""
    for number in range(5):
        drawing(100 + number).save(classes_of(folder)[1] / f"planted-{number}.png")
    return Planted(folder)


def drawings(folder: Path, *, is_copy: bool) -> Planted:
    """Two drawings on white sheets, the second one from a JPEG: of one digit, or of two."""
    place = classes_of(folder)[0]
    drawing(101).save(place / "planted-0.png")
    drawing(101 if is_copy else 102).save(place / "planted-1.jpg", quality=75)
    return Planted(folder, ("planted-0.png", "planted-1.jpg"))


def under_two_labels(folder: Path, edit: Edit = as_it_is, *, is_other: bool = True) -> Planted:
    """Copy a picture into another class, or into its own; byte by byte if it is not edited."""
    own, other = classes_of(folder)[:2]
    file = images_of(own)[1]
    target = (other if is_other else own) / f"planted-{file.stem}"
    if edit is as_it_is:
        target = target.with_name(target.name + file.suffix)
        shutil.copyfile(file, target)
    else:
        target = target.with_name(target.name + ".png")
        edit(pixels(file)).save(target)
    return Planted(folder, (file.name, target.name))


def into_split(folder: Path, split: str, edit: Edit = as_it_is, source: str = "train") -> Planted:
    """Split by hand, and copy a picture of a split into another one, or into its own."""
    place = classes_of(split_by_hand(folder) / source)[1]
    file = images_of(place)[0]
    target = folder / split / place.name / f"planted-{file.stem}"
    target.parent.mkdir(parents=True, exist_ok=True)
    if edit is as_it_is:
        target = target.with_name(target.name + file.suffix)
        shutil.copyfile(file, target)
    else:
        target = target.with_name(target.name + ".png")
        edit(pixels(file)).save(target)
    return Planted(folder, (file.name, target.name))


def all_of_val_in_train(folder: Path) -> Planted:
    """Validate on pictures that are trained on: the split was made after the copies."""
    split_by_hand(folder)
    for place in classes_of(folder / "val"):
        for file in images_of(place):
            shutil.copyfile(file, folder / "train" / place.name / f"copy-{file.name}")
    return Planted(folder)


def flipped(folder: Path, share: float = 0.05, seed: int = 0) -> Planted:
    """Move 5 % of the pictures to a class that is not theirs."""
    places, draw = classes_of(folder), random.Random(seed)
    files = [file for place in places for file in images_of(place)]
    moved = draw.sample(files, max(2, round(share * len(files))))
    for file in moved:
        file.rename(draw.choice([place for place in places if place != file.parent]) / file.name)
    return Planted(folder, tuple(file.name for file in moved))


def swapped_in_val(folder: Path) -> Planted:
    first, second = classes_of(split_by_hand(folder) / "val")[:2]
    first.rename(first.with_name("for-a-moment"))
    second.rename(first)
    first.with_name("for-a-moment").rename(second)
    return Planted(folder)


def listed(folder: Path, shift: int) -> Planted:
    """Write a CSV whose label column is this many rows late (a header that was counted as a row, say)."""
    rows = [(file.relative_to(folder), place.name) for place in classes_of(folder) for file in images_of(place)]
    random.Random(0).shuffle(rows)
    labels = [label for _, label in rows]
    labels = labels[-shift:] + labels[:-shift] if shift else labels
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [("path", "label"), *((path, label) for (path, _), label in zip(rows, labels, strict=True))]
        )
    return Planted(folder / "labels.csv")


def _twin(name: str, wrong: str, edit: Edit, quality: int | None = None, least_px: int = 8) -> DataDefect:
    return DataDefect(
        name,
        wrong,
        "near_duplicates",
        WARN,
        lambda folder: twin(folder, edit, is_copy=True, quality=quality),
        lambda folder: twin(folder, edit, is_copy=False, quality=quality),
        needs_weights=True,
        least_px=least_px,
    )


encoded_60 = partial(encoded, quality=60)

TWIN_DEFECTS = [
    DataDefect("copies", "five files are there twice", "exact_duplicates", WARN, five_copies, five_of_a_kind),
    _twin("twin_jpeg60", "a picture is there twice, once re-encoded at quality 60", as_it_is, 60),
    _twin("twin_half", "a picture is there twice, once at half its size", halved, 90, 24),
    _twin("twin_crop", "a picture is there twice, once without a margin of 5 %", cropped, 90, 24),
    _twin("twin_mirror", "a picture is there twice, once mirrored", mirrored, 90),
    _twin("twin_bright", "a picture is there twice, once brightened by 15 %", brightened, 90),
    _twin("twin_dated", "a picture is there twice, once with the date printed on it", dated, 90, 24),
    DataDefect(
        "twin_drawing",
        "a drawing on a white sheet is there twice, once as JPEG",
        "near_duplicates",
        WARN,
        partial(drawings, is_copy=True),
        partial(drawings, is_copy=False),
        needs_weights=True,
    ),
    # One such picture of many is a blemish, hence warn; who calls it fail is not wrong, and passes as well.
    DataDefect(
        "two_labels",
        "the same bytes under two labels",
        "conflicting_labels",
        WARN,
        under_two_labels,
        partial(under_two_labels, is_other=False),
    ),
    DataDefect(
        "two_labels_jpeg60",
        "a re-encoded copy under another label",
        "conflicting_labels",
        WARN,
        partial(under_two_labels, edit=encoded_60),
        partial(under_two_labels, edit=encoded_60, is_other=False),
        needs_weights=True,
    ),
    DataDefect(
        "leak",
        "a training picture was copied into val",
        "leaks",
        FAIL,
        partial(into_split, split="val"),
        partial(into_split, split="train"),
    ),
    DataDefect(
        "leak_into_test",
        "a training picture was copied into test",
        "leaks",
        FAIL,
        partial(into_split, split="test"),
        partial(into_split, split="val", source="val"),
    ),
    DataDefect(
        "leak_jpeg60",
        "a re-encoded training picture is in val",
        "leaks",
        WARN,
        partial(into_split, split="val", edit=encoded_60),
        partial(into_split, split="train", edit=encoded_60),
        needs_weights=True,
    ),
    DataDefect(
        "leak_mirrored",
        "a mirrored training picture is in val",
        "leaks",
        WARN,
        partial(into_split, split="val", edit=mirrored),
        partial(into_split, split="train", edit=mirrored),
        needs_weights=True,
    ),
    DataDefect(
        "val_in_train",
        "all validation pictures are trained on",
        "leaks",
        FAIL,
        all_of_val_in_train,
        lambda folder: Planted(split_by_hand(folder)),
    ),
    DataDefect(
        "flipped",
        "5 % of the labels are wrong",
        "label_errors",
        WARN,
        lambda folder: flipped(by_digit(folder)),
        lambda folder: Planted(by_digit(folder)),
        needs_weights=True,
    ),
    DataDefect(
        "swapped_in_val",
        "two classes changed places in val alone",
        "label_errors",
        WARN,
        swapped_in_val,
        lambda folder: Planted(split_by_hand(folder)),
        needs_weights=True,
    ),
    # Labels that are wrong nearly everywhere make training pointless; yet nothing but the out-of-fold accuracy (chance)
    # tells them from a hard problem, so warn is what can be asked for.
    DataDefect(
        "shifted_list",
        "the labels of a CSV are one row late",
        "label_errors",
        WARN,
        partial(listed, shift=1),
        partial(listed, shift=0),
        needs_weights=True,
    ),
]
