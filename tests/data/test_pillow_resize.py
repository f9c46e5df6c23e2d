"""Pillow's resizing, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from toolkit.data.pillow_resize import BITS, fixed_weights, resized

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def by_pillow(pixels: NDArray[np.uint8], size: tuple[int, int], interpolation: str) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(pixels).resize(size, FILTERS[interpolation])).transpose(2, 0, 1)


def images(seed: int, width: int, height: int) -> NDArray[np.uint8]:
    """Return pixels that are all black or all white at every other seed, so that values are cut."""
    generator = np.random.default_rng(seed)
    if seed % 2:
        return (generator.integers(0, 2, (height, width, 3)) * 255).astype(np.uint8)
    return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)


@settings(deadline=None, max_examples=80)
@given(
    st.integers(0, 99),
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.tuples(st.integers(1, 200), st.integers(1, 200)),
    st.sampled_from(sorted(FILTERS)),
)
def test_every_size(seed: int, old: tuple[int, int], new: tuple[int, int], interpolation: str) -> None:
    assume(old[0] <= 6 * new[0] and old[1] <= 6 * new[1])
    pixels = images(seed, *old)
    found = resized(torch.from_numpy(pixels).permute(2, 0, 1), new, (0, 0, *new), interpolation)
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), by_pillow(pixels, new, interpolation))


@pytest.mark.parametrize("old", [(500, 333), (333, 500), (96, 301), (1343, 700)])
def test_a_box_is_cut_out(old: tuple[int, int]) -> None:
    pixels, new, box = images(1, *old), (256, 256), (16, 3, 240, 227)
    found = resized(torch.from_numpy(pixels).permute(2, 0, 1), new, box, "bicubic")
    assert np.array_equal(found.numpy(), by_pillow(pixels, new, "bicubic")[:, 3:227, 16:240])


def test_what_float32_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="from 900 to 100 is more than can be held exactly"):
        fixed_weights(900, 100, "bicubic")
    weights = fixed_weights(800, 107, "bicubic")
    assert (weights != 0).sum(axis=1).max() <= 32 and np.abs(weights.sum(axis=1) - (1 << BITS)).max() <= 16


@pytest.mark.parametrize("side", [32, 96, 224, 384])
def test_all_that_is_left_to_a_gpu_can_be_held(side: int) -> None:
    """Pillow decodes larger ones at a fraction of their size, which is not left to a GPU."""
    from toolkit.data.preprocessing import Preprocessing
    from toolkit.data.views import decoded_px

    for resize in (side, round(side / 0.875)):
        largest = 2 * decoded_px(Preprocessing(resize, side, "bicubic")) - 1
        assert fixed_weights(largest, resize, "bicubic").shape == (resize, largest)
