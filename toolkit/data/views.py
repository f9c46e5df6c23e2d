"""Views: an RGB image → the square uint8 array that a backbone gets, clean or augmented by a seed."""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from toolkit.data.policies import POLICIES, changed_by
from toolkit.data.preprocessing import Preprocessing
from toolkit.errors import SettingError, unknown_name

# Resizing the shorter side of a 1 × 20000 strip to 224 would make a gigapixel. Beyond this ratio of sides only
# the middle of the long side is resized; up to it, view 0 equals torchvision's Resize and CenterCrop to the bit.
MAX_ASPECT_RATIO = 32

# A source is this much larger than the crop: the smallest crop of "standard" (0.59 of a side) is then hardly enlarged.
SOURCE_SCALE = 1.5

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Augmentation:
    """How views other than view 0 differ from it.

    min_scale: the least share of the area of the largest fitting box that a random crop keeps, in (0, 1].
    max_aspect: the largest stretch of a crop, either way, >= 1. flip: mirror every second view.
    colour: brightness, contrast and saturation are each multiplied by 1 ± colour, in [0, 1). policy: of `POLICIES`,
    what is done to the crop in the end; "" for nothing.
    """

    name: str
    min_scale: float
    max_aspect: float
    flip: bool
    colour: float
    policy: str = ""

    def __post_init__(self) -> None:
        if self.policy and self.policy not in POLICIES:
            raise unknown_name("policy", self.policy, POLICIES)
        if not (0 < self.min_scale <= 1 and 1 <= self.max_aspect < math.inf and 0 <= self.colour < 1):
            raise SettingError(f"0 < min_scale <= 1, max_aspect >= 1 and 0 <= colour < 1 expected, got {self}")

    @property
    def is_clean(self) -> bool:
        """Whether every view equals view 0."""
        return not (self.flip or self.colour or self.policy) and self.min_scale == self.max_aspect == 1


AUGMENTATIONS = {
    "none": Augmentation("none", min_scale=1.0, max_aspect=1.0, flip=False, colour=0.0),
    "crop": Augmentation("crop", min_scale=0.6, max_aspect=1.2, flip=False, colour=0.0),
    "light": Augmentation("light", min_scale=0.6, max_aspect=1.2, flip=True, colour=0.0),
    "standard": Augmentation("standard", min_scale=0.35, max_aspect=4 / 3, flip=True, colour=0.2),
    "trivial": Augmentation("trivial", min_scale=0.35, max_aspect=4 / 3, flip=True, colour=0.0, policy="trivial"),
    "rand": Augmentation("rand", min_scale=0.35, max_aspect=4 / 3, flip=True, colour=0.0, policy="rand"),
}


def augmentation(name: str) -> Augmentation:
    """Return the augmentation of that name; raises SettingError with the nearest names for an unknown one."""
    if name not in AUGMENTATIONS:
        raise unknown_name("augmentation", name, AUGMENTATIONS)
    return AUGMENTATIONS[name]


def clean_view(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return view 0 of an RGB image: resize the shorter side, cut out the middle.

    Returns uint8 (3, S, S), C-contiguous, S = crop_px. Raises ValueError if the image is not RGB.
    """
    short, long = min(image.size), max(image.size)
    if long > MAX_ASPECT_RATIO * short:
        image = _middle(image, *(min(side, MAX_ASPECT_RATIO * short) for side in image.size))
        long = max(image.size)
    resized_long = int(preprocessing.resize_px * long / short)
    upright = image.width <= image.height
    size = (preprocessing.resize_px, resized_long) if upright else (resized_long, preprocessing.resize_px)
    # Not fused into one resize of a box: Pillow takes boxes in single precision, and pixels would differ.
    resized = image.resize(size, _RESAMPLING[preprocessing.interpolation])
    return _to_array(_middle(resized, preprocessing.crop_px, preprocessing.crop_px))


def view(
    image: Image.Image,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    *,
    digest: bytes,
    number: int,
    seed: int,
) -> NDArray[np.uint8]:
    """Return one view of an RGB image, a pure function of (content digest, view number, seed).

    digest: what identifies the image's content. number: 0 is the clean view, >= 1 are augmented ones.
    Returns uint8 (3, S, S), C-contiguous, S = crop_px. Raises ValueError for a negative number or another mode.
    """
    if number < 0:
        raise ValueError(f"a view number is >= 0, got {number}")
    if number == 0 or augmentation.is_clean:
        return clean_view(image, preprocessing)
    return _augmented(image, image.size, preprocessing, augmentation, _draws(digest, number, seed))


def source_px(preprocessing: Preprocessing) -> int:
    """Return R, the side of a source."""
    return round(preprocessing.crop_px * SOURCE_SCALE)


def decoded_px(preprocessing: Preprocessing) -> int:
    """Return what the sides of a decoded image have to be at least, so that its views show what the whole one's do.

    Twice what is made of it: a decoder's reduction then leaves nothing to see after the antialiased one to the view.
    """
    return 2 * max(source_px(preprocessing), preprocessing.resize_px)


def source_of(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return an RGB image squeezed into a square, uint8 (3, R, R): what all its views can be cut from later.

    Crops of the square, stretched back to the image's own ratio of sides, cost no decoding.
    """
    side = source_px(preprocessing)
    return _to_array(image.resize((side, side), _RESAMPLING[preprocessing.interpolation]))


def view_of_source(
    source: NDArray[np.uint8],
    size: tuple[int, int],
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    *,
    digest: bytes,
    number: int,
    seed: int,
) -> NDArray[np.uint8]:
    """Return one view of an image of which the source is left: `view` up to a second resampling.

    source: uint8 (3, R, R). size: width and height of the image it was made of.
    """
    image = Image.fromarray(np.ascontiguousarray(source.transpose(1, 2, 0)))
    if number and not augmentation.is_clean:
        return _augmented(image, size, preprocessing, augmentation, _draws(digest, number, seed))
    kept = min(size) * preprocessing.crop_px / preprocessing.resize_px
    width, height = size
    box = ((width - kept) / 2, (height - kept) / 2, (width + kept) / 2, (height + kept) / 2)
    return _to_array(_cut(image, size, box, preprocessing))


def _draws(digest: bytes, number: int, seed: int) -> list[float]:
    """Return nine numbers from [0, 1), always as many and in the same order."""
    key = hashlib.blake2b(digest + f"|view {number}|seed {seed}".encode(), digest_size=16).digest()
    # Of random.Random only random() is promised to stay the same in future Pythons.
    generator = random.Random(int.from_bytes(key, "big"))
    return [generator.random() for _ in range(9)]


def _augmented(
    image: Image.Image,
    size: tuple[int, int],
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    draws: list[float],
) -> NDArray[np.uint8]:
    """Return an augmented view of an image, or of a source of an image of that `size`."""
    scale, aspect, x, y, flip, *colours, last = draws
    result = _cut(image, size, _crop_box(size, augmentation, scale, aspect, x, y), preprocessing)
    if augmentation.flip and flip < 0.5:
        result = result.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if augmentation.colour:
        for enhance, draw in zip(
            (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), colours, strict=True
        ):
            result = enhance(result).enhance(1 + augmentation.colour * (2 * draw - 1))
    if augmentation.policy:
        result = changed_by(augmentation.policy, result, int(last * 2**53))
    return _to_array(result)


def _cut(
    image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float], preprocessing: Preprocessing
) -> Image.Image:
    """Return the part of an image in `box`, given in pixels of an image of `size`, at the size of the crop."""
    if image.size != size:
        across, down = image.width / size[0], image.height / size[1]
        box = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
    side = preprocessing.crop_px
    return image.resize((side, side), _RESAMPLING[preprocessing.interpolation], box=box)


def _crop_box(
    size: tuple[int, int], augmentation: Augmentation, scale: float, aspect: float, x: float, y: float
) -> tuple[int, int, int, int]:
    """Map draws from [0, 1) to a box (left, top, right, bottom) in whole pixels.

    The aspect ratio is drawn first, log-uniformly, and the area is a share of the largest box of that ratio
    that fits, so every draw fits and none is rejected (torchvision retries and then gives up).
    """
    width, height = size
    ratio = augmentation.max_aspect ** (2 * aspect - 1)
    shrink = math.sqrt(1 - scale * (1 - augmentation.min_scale))
    box_width = max(1, round(min(width, height * ratio) * shrink))
    box_height = max(1, round(min(height, width / ratio) * shrink))
    left = int(x * (width - box_width + 1))
    top = int(y * (height - box_height + 1))
    return left, top, left + box_width, top + box_height


def _middle(image: Image.Image, width: int, height: int) -> Image.Image:
    """Cut out the middle; where to, for an odd margin, is torchvision's rule (round half to even)."""
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _to_array(image: Image.Image) -> NDArray[np.uint8]:
    """Return RGB pixels as uint8 (3, H, W)."""
    if image.mode != "RGB":
        raise ValueError(f"an RGB image is expected, got mode {image.mode}")
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
