"""Views: torchvision's geometry to the bit, and augmentation that is a pure function of its seed."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.photos import photo
from toolkit.data.decode import decode
from toolkit.data.preprocessing import INTERPOLATIONS, Preprocessing
from toolkit.data.views import AUGMENTATIONS, MAX_ASPECT_RATIO, Augmentation, augmentation, clean_view, decoded_px, view
from toolkit.errors import SettingError

SMALL = Preprocessing(resize_px=36, crop_px=32, interpolation="bicubic")
SIZES = [
    (48, 40),
    (40, 48),
    (36, 36),
    (7, 5),
    (1, 1),
    (33, 200),
    (200, 33),
    (3, 90),
    (96, 3),
    (501, 375),
    (35, 37),
    (64, 65),
]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def torchvision_view(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    from torchvision.transforms import InterpolationMode, v2

    transform = v2.Compose(
        [
            v2.Resize(preprocessing.resize_px, InterpolationMode(preprocessing.interpolation), antialias=True),
            v2.CenterCrop(preprocessing.crop_px),
        ]
    )
    return np.asarray(transform(image)).transpose(2, 0, 1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("resize_px", "crop_px"), [(36, 32), (37, 32), (32, 32), (256, 224), (15, 1)])
def test_view_0_equals_torchvision_to_the_bit(size, interpolation, resize_px, crop_px):
    preprocessing = Preprocessing(resize_px, crop_px, interpolation)
    result = clean_view(noise(*size), preprocessing)
    assert (result.dtype, result.shape) == (np.uint8, (3, crop_px, crop_px)) and result.flags.c_contiguous
    assert np.array_equal(result, torchvision_view(noise(*size), preprocessing))


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (2, 5001)])
def test_extreme_strips_keep_their_middle_without_a_gigapixel(size, monkeypatch):
    resize, areas = Image.Image.resize, []

    def measured(self: Image.Image, size: tuple[int, int], *rest: object, **named: object) -> Image.Image:
        areas.append(size[0] * size[1])
        return resize(self, size, *rest, **named)

    monkeypatch.setattr(Image.Image, "resize", measured)
    strip = Image.new("RGB", size, "white")
    middle = (size[0] // 2, size[1] // 2)
    strip.paste("red", (middle[0] - 2, middle[1] - 2, middle[0] + 2, middle[1] + 2))
    result = clean_view(strip, Preprocessing(256, 224))
    assert result.shape == (3, 224, 224) and max(areas) <= 256 * 256 * MAX_ASPECT_RATIO
    assert result[:, 112, 112].tolist() == [255, 0, 0]


@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(0, 9),
    st.integers(0, 2**64),
    st.sampled_from(sorted(AUGMENTATIONS)),
)
@settings(max_examples=80, deadline=None)
def test_a_view_is_a_pure_function(width, height, number, seed, name):
    image = noise(width, height)
    before = image.tobytes()
    first = view(image, SMALL, augmentation(name), digest=b"d" * 16, number=number, seed=seed)
    again = view(noise(width, height), SMALL, augmentation(name), digest=b"d" * 16, number=number, seed=seed)
    assert (first.dtype, first.shape) == (np.uint8, (3, 32, 32)) and first.flags.c_contiguous
    assert np.array_equal(first, again) and image.tobytes() == before


def standard(image: Image.Image, *, digest: bytes = b"a", number: int = 1, seed: int = 0) -> np.ndarray:
    return view(image, SMALL, augmentation("standard"), digest=digest, number=number, seed=seed)


def test_digest_number_and_seed_each_change_the_view():
    image = photo(0, 0)
    base = standard(image)
    for other in (
        standard(image, digest=b"b"),
        standard(image, number=2),
        standard(image, seed=1),
        clean_view(image, SMALL),
    ):
        assert not np.array_equal(base, other)
    assert len({standard(image, number=number).tobytes() for number in range(1, 33)}) == 32


def test_view_0_and_no_augmentation_are_clean():
    image, clean = photo(0, 0), clean_view(photo(0, 0), SMALL)
    assert np.array_equal(standard(image, number=0), clean)
    assert np.array_equal(view(image, SMALL, augmentation("none"), digest=b"a", number=5, seed=3), clean)


def test_the_draws_are_the_same_in_every_version():
    """Golden of this very function: stored activations of a view must stay those of that view."""
    gradient = Image.fromarray(np.arange(48 * 40 * 3, dtype=np.uint32).reshape(40, 48, 3).astype(np.uint8))
    nearest = Preprocessing(36, 32, "nearest")
    result = view(gradient, nearest, augmentation("crop"), digest=bytes(range(16)), number=3, seed=7)
    assert hashlib.blake2b(result.tobytes(), digest_size=8).hexdigest() == "3f831204cb702176"


def test_the_crop_keeps_its_share_and_shape_and_the_flip_is_even():
    ramp = np.zeros((400, 600, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 250, 600)[None]
    ramp[..., 1] = np.linspace(0, 250, 400)[:, None]
    image = Image.fromarray(ramp)
    recipe = Augmentation("test", min_scale=0.35, max_aspect=4 / 3, flip=True, colour=0.0)
    flips, shares = [], []
    for number in range(1, 301):
        pixels = view(image, SMALL, recipe, digest=b"x", number=number, seed=0).astype(float)
        width = (pixels[0, 16, 31] - pixels[0, 16, 0]) / 250 * 600 * 32 / 31
        height = (pixels[1, 31, 16] - pixels[1, 0, 16]) / 250 * 400 * 32 / 31
        flips.append(width < 0)
        ratio = abs(width) / height
        largest = min(600, 400 * ratio) * min(400, 600 / ratio)
        shares.append(abs(width) * height / largest)
        assert 0.7 < ratio < 1.42
    assert 0.4 < np.mean(flips) < 0.6
    assert 0.3 < min(shares) < 0.42 and 0.93 < max(shares) < 1.05


def test_crop_does_not_flip_or_colour():
    ramp = Image.fromarray(np.tile(np.linspace(0, 250, 60).astype(np.uint8)[None, :, None], (50, 1, 3)))
    for number in range(1, 50):
        pixels = view(ramp, SMALL, augmentation("crop"), digest=b"x", number=number, seed=0).astype(int)
        assert (pixels[0] == pixels[1]).all() and pixels[0, 9, 31] > pixels[0, 9, 0] + 100


def test_colour_stays_in_its_range_and_varies():
    grey = Image.new("RGB", (40, 40), (100, 100, 100))
    values = [int(standard(grey, number=number)[0, 0, 0]) for number in range(1, 200)]
    assert 79 <= min(values) < 84 and 116 < max(values) <= 121
    colourful = Image.new("RGB", (40, 40), (150, 100, 100))
    gaps = [int(np.ptp(standard(colourful, number=number)[:, 0, 0])) for number in range(1, 200)]
    assert min(gaps) < 42 < 58 < max(gaps)


def test_views_of_a_decoded_file_are_read_only_safe():
    stream = io.BytesIO()
    photo(0, 0).save(stream, "PNG")
    result = clean_view(Image.open(stream).convert("RGB"), SMALL)
    result[...] = 0  # the array is the caller's own
    assert result.sum() == 0


def test_refused():
    with pytest.raises(SettingError, match="standard"):
        augmentation("standart")
    with pytest.raises(ValueError, match="view number"):
        standard(photo(0, 0), number=-1)
    for mode in ("L", "RGBA"):
        with pytest.raises(ValueError, match="RGB"):
            clean_view(Image.new(mode, (9, 9)), SMALL)
        with pytest.raises(ValueError, match="RGB"):
            standard(Image.new(mode, (9, 9)))


@pytest.mark.parametrize(
    ("scale", "aspect", "colour"), [(0, 1, 0), (1.1, 1, 0), (1, 0.9, 0), (1, float("inf"), 0), (1, 1, 1)]
)
def test_augmentations_out_of_range(scale, aspect, colour):
    with pytest.raises(SettingError, match="min_scale"):
        Augmentation("bad", scale, aspect, False, colour)


@pytest.mark.parametrize("name", ["trivial", "rand"])
def test_a_policy_changes_views_and_no_random_state(name):
    image = noise(40, 30)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    recipe = AUGMENTATIONS[name]
    key = {"digest": b"d" * 16, "seed": 0}
    found = [view(image, SMALL, recipe, number=number, **key) for number in range(12)]
    assert torch.equal(torch.get_rng_state(), before)
    without = replace(recipe, policy="")
    plain = [view(image, SMALL, without, number=number, **key) for number in range(12)]
    assert np.array_equal(found[0], plain[0])
    assert sum(not np.array_equal(one, other) for one, other in zip(found[1:], plain[1:], strict=True)) >= 8
    torch.manual_seed(77)
    assert all(np.array_equal(one, view(image, SMALL, recipe, number=n, **key)) for n, one in enumerate(found))


def test_an_unknown_policy_is_refused():
    with pytest.raises(SettingError, match=r"unknown policy 'tirvial'; did you mean one of: .*trivial"):
        replace(AUGMENTATIONS["none"], policy="tirvial")


# ---------------------------------------------------------------- reduced by the decoder


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_views_of_a_reduced_jpeg_are_those_of_the_whole_one_but_for_a_trace(name: str, number: int) -> None:
    large = photo(1, 0).resize((900, 700), Image.Resampling.BICUBIC)
    content = io.BytesIO()
    large.save(content, "JPEG", quality=95)
    whole, reduced = (decode(content.getvalue(), 10**6, least_px) for least_px in (None, decoded_px(SMALL)))
    assert reduced.size == (225, 175)
    made = [
        view(image, SMALL, replace(AUGMENTATIONS[name], policy=""), digest=b"x" * 16, number=number, seed=0).astype(int)
        for image in (whole, reduced)
    ]
    assert np.abs(made[0] - made[1]).mean() < 2


def test_what_is_decoded_is_twice_as_large_as_what_is_made_of_it() -> None:
    assert decoded_px(SMALL) == 96 and decoded_px(Preprocessing(64, 32)) == 128
