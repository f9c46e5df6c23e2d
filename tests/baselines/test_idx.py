"""IDX files: what a folder made from them would give, and one line for whatever is none."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from tests.baselines.idx_files import idx_bytes, write_idx
from toolkit.baselines.idx import is_idx, read_idx
from toolkit.data.manifest import TEST, UNASSIGNED
from toolkit.errors import DataError

IMAGES = np.arange(12 * 25, dtype=np.int64).reshape(12, 5, 5) % 256
LABELS = np.array([3, 1, 3, 1, 10, 1, 3, 10, 10, 1, 3, 3])


@pytest.mark.parametrize("packed", [False, True])
def test_rows_are_in_the_order_of_their_paths(tmp_path: Path, packed: bool) -> None:
    write_idx(tmp_path, "train", IMAGES, LABELS, packed=packed)
    write_idx(tmp_path, "t10k", IMAGES[:3], LABELS[:3], packed=packed)
    assert is_idx(tmp_path)
    manifest, pixels = read_idx(tmp_path)
    assert (
        manifest.classes == ("1", "10", "3") and manifest.size == (5, 5) and len(manifest) == manifest.n_scanned == 15
    )
    assert list(manifest.paths) == sorted(manifest.paths)
    assert manifest.paths[0] == "test/1/00001" and manifest.paths[-1] == "train/3/00011"
    for row, path in enumerate(manifest.paths):
        split, name, number = path.split("/")
        assert manifest.splits[row] == (TEST if split == "test" else UNASSIGNED)
        assert manifest.classes[manifest.labels[row]] == name == str(LABELS[int(number)])
        assert (pixels[row] == IMAGES[int(number)]).all()


def test_a_test_split_is_not_needed(tmp_path: Path) -> None:
    manifest, pixels = read_idx(write_idx(tmp_path, "train", IMAGES, LABELS))
    assert len(manifest) == len(pixels) == 12 and (manifest.splits == UNASSIGNED).all()


def test_a_folder_of_photos_is_none(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    assert not is_idx(tmp_path) and not is_idx(tmp_path / "nothing")


def broken(tmp_path: Path, content: bytes, name: str = "train-images-idx3-ubyte") -> str:
    """Return what is said of a folder with one broken file."""
    write_idx(tmp_path, "train", IMAGES, LABELS)
    (tmp_path / name).write_bytes(content)
    if name.endswith(".gz"):
        (tmp_path / name.removesuffix(".gz")).unlink()
    with pytest.raises(DataError) as caught:
        read_idx(tmp_path)
    text = str(caught.value)
    assert "\n" not in text
    return text


GOOD = idx_bytes(IMAGES)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "not an IDX file"),
        (b"\x89PNG and so on, and more", "not an IDX file"),
        (bytes([0, 0, 13, 3]) + GOOD[4:], "not an IDX file of bytes with 3 axes"),
        (bytes([0, 0, 8, 2]) + GOOD[4:], "not an IDX file of bytes with 3 axes"),
        (GOOD[:-1], "but there are only 299"),
        (GOOD + b"x", "but there are more"),
        (GOOD[:4] + b"\xff" * 12 + GOOD[16:], "that is no data set"),
        (GOOD[:4] + bytes(12), "that is no data set"),
        (idx_bytes(IMAGES[:5]), "5 train images and 12 labels"),
        (idx_bytes(IMAGES[:, :4]), "only square ones"),
    ],
)
def test_what_is_no_idx_file_is_told(tmp_path: Path, content: bytes, text: str) -> None:
    assert text in broken(tmp_path, content)


PACKED = gzip.compress(GOOD, mtime=0)  # else each process that collects the tests has other bytes


@pytest.mark.parametrize(
    "content", [b"no gzip", PACKED[:-20], PACKED[:40] + bytes(60)], ids=["none", "cut off", "overwritten"]
)
def test_broken_packing_is_told(tmp_path: Path, content: bytes) -> None:
    assert "cannot be read" in broken(tmp_path, content, "train-images-idx3-ubyte.gz")


def test_missing_labels_one_class_and_strange_test_classes_are_told(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", IMAGES, LABELS)
    write_idx(tmp_path, "t10k", IMAGES[:1], np.array([7]))
    with pytest.raises(DataError, match="class '7' is not among those that are trained on: 1, 10, 3"):
        read_idx(tmp_path)
    write_idx(tmp_path, "t10k", IMAGES[:1, :3, :3], np.array([3]))
    with pytest.raises(DataError, match="train and test images differ in size"):
        read_idx(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="train-labels-idx1-ubyte is missing"):
        read_idx(tmp_path)
    with pytest.raises(DataError, match="images of 1 class"):
        read_idx(write_idx(tmp_path / "one", "train", IMAGES, LABELS * 0))
