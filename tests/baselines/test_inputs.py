"""Inputs: pixels as the files have them, grey told from colour, statistics of the training rows alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.photos import make_photos, photo
from toolkit.baselines import inputs as module
from toolkit.baselines.inputs import Inputs, hand_made, pixel_request, side_of, statistics, stored_pixels
from toolkit.baselines.reading import Reading, to_grey
from toolkit.data.scan import scan
from toolkit.features.store import FeatureStore
from toolkit.reference.features import hand_made_features


def test_grey_is_pillows_and_leaves_grey_as_it_is() -> None:
    image = photo(1, 2)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    assert torch.equal(to_grey(pixels)[0, 0], torch.from_numpy(np.array(image.convert("L"))))
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_grey(every.expand(1, 3, 16, 16)), every)


@pytest.mark.parametrize(
    ("size", "given", "side"),
    [
        ((28, 28), None, 28),
        ((64, 64), None, 64),
        ((65, 65), None, 32),
        ((28, 30), None, 32),
        (None, None, 32),
        ((28, 28), 40, 40),
        (None, 8, 8),
    ],
)
def test_small_square_images_of_one_size_keep_it(size: tuple[int, int] | None, given: int | None, side: int) -> None:
    assert side_of(size, given) == side


def folder_of(root: Path, arrays: list[np.ndarray]) -> Path:
    for number, array in enumerate(arrays):
        place = root / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(place / f"{number:03}.png")
    return root


def read(root: Path, cache: Path, side: int, train: list[int] | None = None) -> Inputs:
    manifest = scan(root)
    stored = FeatureStore(cache).fetch(pixel_request(side), manifest)
    rows = np.arange(len(manifest)) if train is None else np.array(train)
    return stored_pixels(stored, rows, cache)


def test_pixels_are_those_of_the_files_one_channel_where_all_are_grey(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", 3)
    arrays = [np.random.default_rng(n).integers(0, 256, (7, 7), np.uint8) for n in range(8)]
    root = folder_of(tmp_path / "grey", arrays)
    assert scan(root).size == (7, 7)
    inputs = read(root, tmp_path / "cache", 7)
    assert inputs.values.shape == (8, 1, 7, 7) and str(inputs) == "8 × 1 × 7 × 7 pixels"
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    assert all((inputs.values[row, 0].numpy() == arrays[number]).all() for row, number in enumerate(order))
    assert torch.equal(inputs.take(np.array([5, 1])), inputs.values[[5, 1]])


def test_one_coloured_training_image_makes_all_coloured(tmp_path: Path) -> None:
    arrays = [np.full((6, 6), 9 * n, np.uint8) for n in range(5)]
    coloured = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
    root = folder_of(tmp_path / "one", [*arrays, coloured])
    assert read(root, tmp_path / "cache", 6).values.shape[1] == 3
    grey = read(root, tmp_path / "cache", 6, train=[0, 1, 2, 3])
    assert grey.values.shape[1] == 1  # the coloured one does not train: it is seen as the grey ones are
    assert (grey.values[5, 0].numpy() == np.asarray(Image.fromarray(coloured).convert("L"))).all()


def test_sizes_that_differ_are_no_common_size(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos", {"cat": 2, "dog": 1})
    assert scan(tmp_path / "photos").size == (48, 40)
    photo(1, 5, (20, 20)).save(tmp_path / "photos" / "dog" / "small.png")
    assert scan(tmp_path / "photos").size is None


def test_statistics_are_those_of_the_given_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 3)
    values = torch.from_numpy(np.random.default_rng(0).normal(5, 2, (10, 4)).astype(np.float32))
    rows = np.array([1, 2, 3, 4, 5, 6, 9])
    mean, std = statistics(Inputs(values), rows)
    assert torch.allclose(mean, values[rows].double().mean(0)) and mean.dtype == torch.float64
    assert torch.allclose(std, values[rows].double().std(0, correction=0))
    pixels = torch.arange(48, dtype=torch.uint8).reshape(3, 1, 4, 4)
    mean, scale = statistics(Inputs(pixels), np.array([0, 2]))
    assert torch.equal(mean, pixels[[0, 2]].flatten(1).double().mean(0)) and (scale == 255).all()


def test_hand_made_features_are_the_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 2)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 1, 28, 28), np.uint8))
    made = hand_made(Inputs(pixels), Reading("hog", 1, 28), tmp_path)
    assert torch.equal(made.values, hand_made_features(pixels, 7))
    assert str(made) == "5 × 332 features"


def test_a_reading_takes_colour_for_grey_and_grey_for_colour() -> None:
    colour = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), np.uint8))
    grey = to_grey(colour)
    assert torch.equal(Reading("pixels", 1, 8)(colour), grey.flatten(1))
    assert torch.equal(Reading("pixels", 3, 8)(grey), grey.expand(-1, 3, -1, -1).flatten(1))
    assert torch.equal(Reading("hog", 1, 8)(colour), Reading("hog", 1, 8)(grey))
    rows = torch.zeros(2, 5)
    assert Reading("hog", 1, 8)(rows) is rows
