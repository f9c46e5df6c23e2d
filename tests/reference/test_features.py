"""Hand-made features: known pictures by hand, slow loops over pixels, and better than pixels for neighbours."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from toolkit.reference import features
from toolkit.reference.features import colour_histogram, hand_made_features, oriented_gradients
from toolkit.reference.neighbors import NearestNeighbors


def images_of(n, channels, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8, generator=generator)


def hog_by_hand(image: np.ndarray, cell_px: int, bins: int, block_cells: int) -> list[float]:
    """Return HOG of one image uint8 (C, H, W), pixel by pixel, from the docstring."""
    channels, height, width = image.shape
    pixels = image.astype(float)
    rows, columns = height // cell_px, width // cell_px
    cells = np.zeros((rows, columns, bins))
    for i in range(rows * cell_px):
        for j in range(columns * cell_px):
            gradients = [
                (
                    pixels[c, min(i + 1, height - 1), j] - pixels[c, max(i - 1, 0), j],
                    pixels[c, i, min(j + 1, width - 1)] - pixels[c, i, max(j - 1, 0)],
                )
                for c in range(channels)
            ]
            down, across = max(gradients, key=lambda one: one[0] ** 2 + one[1] ** 2)
            place = math.degrees(math.atan2(down, across)) % 180 / (180 / bins)
            share = place - math.floor(place)
            cell = cells[i // cell_px, j // cell_px]
            cell[math.floor(place) % bins] += (1 - share) * math.hypot(down, across)
            cell[(math.floor(place) + 1) % bins] += share * math.hypot(down, across)
    found = []
    for i in range(rows - block_cells + 1):
        for j in range(columns - block_cells + 1):
            block = cells[i : i + block_cells, j : j + block_cells].transpose(2, 0, 1).flatten()
            block = np.minimum(block / (np.linalg.norm(block) or 1), 0.2)
            found.extend(block / (np.linalg.norm(block) or 1))
    return found


@given(
    n=st.integers(1, 2),
    channels=st.sampled_from([1, 3]),
    height=st.integers(6, 13),
    width=st.integers(6, 13),
    cell_px=st.integers(1, 3),
    bins=st.integers(1, 9),
    block_cells=st.integers(1, 2),
)
@settings(max_examples=40, deadline=None)
def test_gradients_are_those_of_a_slow_loop(n, channels, height, width, cell_px, bins, block_cells):
    images = images_of(n, channels, height, width, seed=height * width)
    found = oriented_gradients(images, cell_px, bins, block_cells)
    for one, image in zip(found, images, strict=True):
        assert one.numpy() == pytest.approx(np.array(hog_by_hand(image.numpy(), cell_px, bins, block_cells)), abs=1e-5)


def test_the_direction_of_a_slope_is_its_bin():
    """Of 0, 45, 90 and 135°; neither brightness nor contrast counts."""
    i, j = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    for expected, slope in enumerate((j, i + j, i, i - j + 15)):
        image = (4 * slope).to(torch.uint8).expand(1, 1, 16, 16)
        found = oriented_gradients(image, cell_px=8, bins=4)
        assert int(found.reshape(4, 4).sum(1).argmax()) == expected  # one block: bins, then cells
        assert torch.allclose(oriented_gradients(2 * image, cell_px=8, bins=4), found, atol=1e-6)
        assert torch.allclose(oriented_gradients(image + 100, cell_px=8, bins=4), found, atol=1e-6)


def test_the_smallest_images_that_fit():
    assert oriented_gradients(images_of(2, 1, 16, 16)).shape == (2, 36)
    assert oriented_gradients(images_of(2, 1, 1, 1), cell_px=1, bins=1, block_cells=1).tolist() == [[0.0], [0.0]]
    assert colour_histogram(images_of(2, 3, 1, 1), bins=1, space="rgb").tolist() == [[1.0] * 3] * 2
    assert colour_histogram(images_of(2, 3, 1, 1)).shape == (2, 8)


def test_a_flat_image_has_no_edges_and_no_hue():
    flat = torch.full((2, 3, 16, 16), 77, dtype=torch.uint8)
    assert hand_made_features(flat).abs().max() == 0
    assert colour_histogram(flat, bins=4, space="rgb").tolist() == [[0, 1, 0, 0] * 3] * 2


@given(pixels=st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=12), bins=st.integers(1, 12))
@settings(max_examples=80, deadline=None)
def test_hues_are_those_of_the_standard_library(pixels, bins):
    image = torch.tensor(pixels, dtype=torch.uint8).T.reshape(1, 3, 1, -1)
    expected = np.zeros(bins)
    for pixel in pixels:
        hue, saturation, _ = colorsys.rgb_to_hsv(*(value / 255 for value in pixel))
        if abs(hue * bins - round(hue * bins)) < 1e-4 and round(hue * bins) > 0:  # on a border either side is right
            return
        expected[int(hue * bins) % bins] += saturation / len(pixels)
    assert colour_histogram(image, bins)[0].numpy() == pytest.approx(expected, abs=1e-5)


@given(channels=st.sampled_from([1, 3]), bins=st.integers(1, 256), n=st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_channel_histograms_are_numpys(channels, bins, n):
    images = images_of(n, channels, 5, 7, seed=bins)
    found = colour_histogram(images, bins, "rgb").reshape(n, channels, bins)
    for i in range(n):
        for c in range(channels):
            counts = np.bincount(images[i, c].flatten().long().numpy() * bins // 256, minlength=bins)
            assert found[i, c].numpy() == pytest.approx(counts / 35, abs=1e-6)


def test_an_image_has_the_same_features_in_any_batch(monkeypatch):
    images = images_of(9, 3, 20, 24)
    whole = hand_made_features(images)
    assert whole.dtype == torch.float32 and whole.shape == (9, 1 * 2 * 36 + 8)
    assert torch.equal(hand_made_features(images[4:5]), whole[4:5])
    monkeypatch.setattr(features, "BLOCK_PIXELS", 1000)
    assert torch.equal(hand_made_features(images), whole)
    assert hand_made_features(images[:0]).shape == (0, 80)


@pytest.mark.parametrize(("channels", "space"), [(1, "rgb"), (3, "hue")], ids=["grey", "colour"])
def test_hand_made_features_are_both_side_by_side(channels, space):
    images = images_of(3, channels, 24, 16)
    parts = [oriented_gradients(images, 8), colour_histogram(images, space=space)]
    assert torch.equal(hand_made_features(images), torch.cat(parts, dim=1))


def test_one_image_may_be_larger_than_a_block(monkeypatch):
    images = images_of(3, 3, 20, 24)
    whole = hand_made_features(images)
    monkeypatch.setattr(features, "BLOCK_PIXELS", 100)
    assert torch.equal(hand_made_features(images), whole)


def test_under_another_light_gradients_serve_neighbours_better_than_pixels():
    digits, labels = load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(0)
    gain, offset = (torch.rand(len(digits), 1, 1, 1, generator=generator) for _ in range(2))
    pixels = torch.from_numpy(digits).reshape(-1, 1, 8, 8).repeat_interleave(2, 2).repeat_interleave(2, 3)
    images = (pixels * (2 + 5 * gain) + 120 * offset).to(torch.uint8)
    truth = torch.from_numpy(labels)
    accuracy = {}
    for name, rows in (("pixels", images.flatten(1)), ("hog", oriented_gradients(images, cell_px=4))):
        model = NearestNeighbors(3, "l2").fit(rows[:1200], truth[:1200])
        accuracy[name] = (model.predict(rows[1200:]) == truth[1200:]).double().mean().item()
    assert accuracy["hog"] > accuracy["pixels"] + 0.05


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: oriented_gradients(torch.zeros(1, 3, 16, 16)), "uint8 .* got torch.float32"),
        (lambda: oriented_gradients(images_of(1, 2, 16, 16)), r"\(1, 2, 16, 16\)"),
        (lambda: oriented_gradients(images_of(1, 3, 15, 16)), "at least 16 × 16"),
        (lambda: oriented_gradients(images_of(1, 3, 16, 16), cell_px=0), "cell_px ≥ 1, got 0"),
        (lambda: oriented_gradients(images_of(1, 3, 16, 15)), "at least 16 × 16"),
        (lambda: oriented_gradients(images_of(1, 3, 16, 16), bins=0), "bins ≥ 1, got 0"),
        (lambda: oriented_gradients(images_of(1, 3, 16, 16), block_cells=0), "block_cells ≥ 1, got 0"),
        (lambda: oriented_gradients(images_of(1, 3, 16, 16)[0]), r"of shape \(3, 16, 16\)"),
        (lambda: colour_histogram(images_of(1, 3, 0, 2)), r"of shape \(1, 3, 0, 2\)"),
        (lambda: colour_histogram(images_of(1, 3, 2, 0)), r"of shape \(1, 3, 2, 0\)"),
        (lambda: hand_made_features(torch.zeros(1, 3, 16, 16)), "uint8 .* got torch.float32"),
        (lambda: hand_made_features(torch.zeros(16, dtype=torch.uint8)), r"of shape \(16,\)"),
        (lambda: colour_histogram(images_of(1, 3, 2, 2), bins=0), "bins ≤ 256, got 0"),
        (lambda: colour_histogram(images_of(1, 3, 2, 2), bins=257), "bins ≤ 256, got 257"),
        (lambda: colour_histogram(images_of(1, 3, 2, 2), space="lab"), "'hue' or 'rgb', got 'lab'"),
        (lambda: colour_histogram(images_of(1, 1, 2, 2)), "got grey"),
    ],
)
def test_what_does_not_fit_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
