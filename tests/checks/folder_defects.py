"""Defects of files and classes, each with a sound counterpart."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from tests.checks.pictures import (
    classes_of,
    images_of,
    scan,
    spare,
    split_by_hand,
)
from tests.checks.planted import FAIL, WARN, DataDefect, Planted


def untouched(folder: Path) -> Planted:
    return Planted(folder)


def with_file(folder: Path, name: str, content: bytes) -> Planted:
    """Add a file to the second class."""
    (classes_of(folder)[1] / name).write_bytes(content)
    return Planted(folder, (name,))


def truncated(folder: Path) -> Planted:
    image, place = spare(folder)
    file = place.with_suffix(".jpg")
    image.save(file, quality=95)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return Planted(folder, (file.name,))


def trailing_bytes(folder: Path) -> Planted:
    image, place = spare(folder)
    file = place.with_suffix(".jpg")
    image.save(file, quality=95)
    file.write_bytes(file.read_bytes() + b"\0" * 64)  # some cameras append a preview, or padding
    return Planted(folder)


def page_as_jpg(folder: Path) -> Planted:
    return with_file(folder, "planted.jpg", b"<!DOCTYPE html><html><title>404 Not Found</title></html>")


def png_as_jpg(folder: Path) -> Planted:
    image, place = spare(folder)
    image.save(place.with_suffix(".jpg"), format="PNG")
    return Planted(folder)


def empty_file(folder: Path) -> Planted:
    return with_file(folder, "planted.png", b"")


def hidden_file(folder: Path) -> Planted:
    with_file(folder, ".DS_Store", b"")
    return with_file(folder, "Thumbs.db", b"")


def vector_graphic(folder: Path) -> Planted:
    return with_file(folder, "planted.png", b'<svg xmlns="http://www.w3.org/2000/svg"><circle r="4"/></svg>')


def odd_modes(folder: Path) -> Planted:
    """Palette, CMYK, 16-bit grey, alpha: all are pictures, and none is in RGB."""
    for number, mode in enumerate(("P", "CMYK", "I;16", "LA")):
        image, place = spare(folder, number % 2, 0)
        if mode == "I;16":
            Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(place.with_suffix(".png"))
        else:
            image.convert(mode).save(place.with_suffix(".jpg" if mode == "CMYK" else ".png"))
    return Planted(folder)


def resized(folder: Path, side_px: int) -> Planted:
    names = []
    for label in range(3):
        image, place = spare(folder, label % len(classes_of(folder)))
        image.resize((side_px, side_px), Image.Resampling.BICUBIC).save(place.with_suffix(".png"))
        names.append(f"{place.name}.png")
    return Planted(folder, tuple(names))


def huge(folder: Path) -> Planted:
    """60 megapixels of one bit each: 10 kB on disk."""
    _, place = spare(folder)
    Image.new("1", (10_000, 6_000), 1).save(place.with_suffix(".png"))
    return Planted(folder, (f"{place.name}.png",))


def six_megapixels(folder: Path) -> Planted:
    image, place = spare(folder)
    image.resize((3000, 2000)).save(place.with_suffix(".jpg"))
    return Planted(folder)


def empty_class(folder: Path) -> Planted:
    (folder / "zebra").mkdir()
    return Planted(folder)


def broken_class(folder: Path) -> Planted:
    (folder / "zebra").mkdir()
    for number in range(5):
        (folder / "zebra" / f"{number}.jpg").write_bytes(b"moved")
    return Planted(folder)


def nested_class(folder: Path) -> Planted:
    """A class with nothing but sub-folders is full all the same."""
    place = classes_of(folder)[0]
    (place / "2024" / "summer").mkdir(parents=True)
    for file in images_of(place):
        file.rename(place / "2024" / "summer" / file.name)
    return Planted(folder)


def without(folder: Path, split: str, kept: int = 0) -> Planted:
    """Split by hand, and leave the first class so many pictures in one of the two splits."""
    split_by_hand(folder)
    for file in images_of(classes_of(folder / split)[0])[kept:]:
        file.unlink()
    return Planted(folder)


def other_spelling(folder: Path) -> Planted:
    split_by_hand(folder)
    place = classes_of(folder / "val")[0]
    place.rename(place.with_name(place.name + "s"))
    return Planted(folder)


def kept(folder: Path, n: int, label: int = 0) -> Planted:
    for file in images_of(classes_of(folder)[label])[n:]:
        file.unlink()
    return Planted(folder)


def shares(folder: Path, many: int, few: int) -> Planted:
    """Fill the first class up with scans, thin the second one out."""
    place = classes_of(folder)[0]
    for number in range(max(0, many - len(images_of(place)))):
        scan(200 + number, 32).save(place / f"scan-{number:03}.png")
    kept(folder, many)
    return kept(folder, few, label=1)


def lost_class(folder: Path) -> Planted:
    """The training part of a class was deleted, folder and all."""
    split_by_hand(folder)
    shutil.rmtree(classes_of(folder / "train")[0])
    return Planted(folder)


FOLDER_DEFECTS = [
    DataDefect("truncated", "a JPEG ends in the middle", "unreadable", WARN, truncated, trailing_bytes),
    DataDefect("page_as_jpg", "an error page was saved as a .jpg", "unreadable", WARN, page_as_jpg, png_as_jpg),
    DataDefect("empty_file", "an image file of zero bytes", "unreadable", WARN, empty_file, hidden_file),
    DataDefect("vector_graphic", "a vector graphic named .png", "unreadable", WARN, vector_graphic, odd_modes),
    DataDefect(
        "thumbnails",
        "three thumbnails of 8 px among photos",
        "tiny_images",
        WARN,
        lambda folder: resized(folder, 8),
        lambda folder: resized(folder, 60),
        least_px=32,
    ),
    # The scan refuses such a file, so that it may count as unreadable too; that it is huge must be said all the same.
    DataDefect("huge", "an image of 60 megapixels", "huge_images", WARN, huge, six_megapixels),
    # Sensible authors disagree here: without images nobody meant to train the class (warn), or it is missing (fail).
    DataDefect("empty_class", "a class folder without files", "empty_class", WARN, empty_class, nested_class),
    DataDefect("broken_class", "a class of files none of which opens", "empty_class", WARN, broken_class, untouched),
    DataDefect(
        "only_in_val",
        "a class has pictures for validation and none for training",
        "missing_class",
        FAIL,
        lambda folder: without(folder, "train"),
        lambda folder: without(folder, "val", kept=1),
    ),
    DataDefect(
        "only_in_train",
        "a class is trained and never validated",
        "missing_class",
        WARN,
        lambda folder: without(folder, "val"),
        lambda folder: without(folder, "val", kept=1),
    ),
    DataDefect(
        "other_spelling",
        "a class is spelled differently in val, so that train lacks it",
        "missing_class",
        FAIL,
        other_spelling,
        lambda folder: Planted(split_by_hand(folder)),
    ),
    DataDefect(
        "lost_class",
        "the training folder of a class is gone",
        "missing_class",
        FAIL,
        lost_class,
        lambda folder: Planted(split_by_hand(folder)),
    ),
    # How many are few is a matter of taste between 5 and 20; 2 are, and the tests' sound class has 12.
    DataDefect("two_images", "a class of 2 pictures", "few_images", WARN, lambda folder: kept(folder, 2), untouched),
    DataDefect("one_image", "a class of a single one", "few_images", WARN, lambda folder: kept(folder, 1), untouched),
    DataDefect(
        "fifty_to_one",
        "one class has 50 times the pictures of another",
        "imbalance",
        WARN,
        lambda folder: shares(folder, 100, 2),
        lambda folder: shares(folder, 24, 12),
    ),
]
