"""Real pictures that come with a dependency: tiles of scikit-learn's two photographs, and its scans of digits."""

from __future__ import annotations

import functools
import io
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_digits, load_sample_images
from torch import nn

from toolkit.backbones.backbone import Backbone
from toolkit.backbones.catalog import as_backbone
from toolkit.data.decode import read_image
from toolkit.data.preprocessing import Preprocessing

SIDE_PX, PER_CLASS = 70, 12  # as many tiles of the flower show petals; the others are a green blur, and look alike
SMALL = Preprocessing(73, 64)


def tiles(photograph: int) -> list[Image.Image]:
    """Return tiles of one of the two photographs that do not overlap, the richest in contrast first."""
    whole = load_sample_images().images[photograph]
    height, width = whole.shape[:2]
    places = [(y, x) for y in range(0, height - SIDE_PX, SIDE_PX) for x in range(0, width - SIDE_PX, SIDE_PX)]
    cut = [whole[y : y + SIDE_PX, x : x + SIDE_PX] for y, x in places]
    return [Image.fromarray(tile) for tile in sorted(cut, key=lambda tile: -tile.std())]


@functools.cache
def _scans() -> np.ndarray:
    return np.round(255 - load_digits().images * (255 / 16)).astype(np.uint8)


def scan(number: int, side_px: int = SIDE_PX) -> Image.Image:
    """Return a scanned digit, enlarged, dark on white."""
    grey = Image.fromarray(_scans()[number])
    return grey.resize((side_px, side_px), Image.Resampling.BICUBIC).convert("RGB")


def drawing(number: int, side_px: int = SIDE_PX) -> Image.Image:
    """Return a scanned digit in the middle of a white sheet, as stamps and clip art lie on theirs."""
    sheet = Image.new("RGB", (side_px, side_px), "white")
    sheet.paste(scan(number, side_px // 3), (side_px // 3, side_px // 3))
    return sheet


def sound_folder(root: Path) -> Path:
    """Write three classes of twelve pictures each, root/CLASS/CLASS-NN.png, and return root."""
    kinds = {"digit": [scan(number) for number in range(PER_CLASS)], "flower": tiles(1), "temple": tiles(0)}
    for name, images in kinds.items():
        (root / name).mkdir(parents=True)
        for number, image in enumerate(images[:PER_CLASS]):
            image.save(root / name / f"{name}-{number:02}.png")
    return root


def by_digit(folder: Path, n_classes: int = 5, per_class: int = 30) -> Path:
    """Put scans of five digits, thirty of each, in the place of a folder: enough of them to doubt labels."""
    shutil.rmtree(folder)
    bunch = load_digits()
    for digit in range(n_classes):
        (folder / f"digit-{digit}").mkdir(parents=True)
        for number in np.flatnonzero(bunch.target == digit)[:per_class].tolist():
            scan(number).save(folder / f"digit-{digit}" / f"{number:04d}.png")
    return folder


def classes_of(folder: Path) -> list[Path]:
    """Return the class folders in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.is_dir())


def images_of(folder: Path) -> list[Path]:
    """Return the files of one class in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.is_file())


def pixels(file: Path) -> Image.Image:
    """Return a file as upright RGB."""
    return read_image(file)[1]


def spare(folder: Path, label: int = 1, number: int = -1) -> tuple[Image.Image, Path]:
    """Take a picture out of a class: its pixels, and a free place for it or for another one (a name without suffix)."""
    file = images_of(classes_of(folder)[label])[number]
    image = pixels(file)
    file.unlink()
    return image, file.with_name(f"planted-{file.stem}")


def split_by_hand(folder: Path) -> Path:
    """Turn DIR/CLASS into DIR/train/CLASS and DIR/val/CLASS: every fourth picture is for validation."""
    for place in classes_of(folder):
        for split in ("train", "val"):
            (folder / split / place.name).mkdir(parents=True)
        for number, file in enumerate(images_of(place)):
            file.rename(folder / ("val" if number % 4 == 3 else "train") / place.name / file.name)
        place.rmdir()
    return folder


def encoded(image: Image.Image, quality: int) -> Image.Image:
    """Return what is left of an image after JPEG."""
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return Image.open(content).convert("RGB")


def halved(image: Image.Image) -> Image.Image:
    """Return the image at half its size."""
    return image.resize((max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.BICUBIC)


def cropped(image: Image.Image, share: float = 0.05) -> Image.Image:
    """Return the image without a margin: 5 % of each side's length in all, more of it at the left and the top."""
    left, top = round(image.width * share * 0.6), round(image.height * share * 0.6)
    width, height = round(image.width * (1 - share)), round(image.height * (1 - share))
    return image.crop((left, top, left + width, top + height))


def mirrored(image: Image.Image) -> Image.Image:
    """Return the image with left and right exchanged."""
    return ImageOps.mirror(image)


def brightened(image: Image.Image) -> Image.Image:
    """Return the image with values 15 % higher."""
    return ImageEnhance.Brightness(image).enhance(1.15)


def dated(image: Image.Image) -> Image.Image:
    """Return the image with a bright bar in a corner, as cameras print the date."""
    copy = image.copy()
    copy.paste(
        (255, 170, 40), (image.width * 6 // 10, image.height * 9 // 10, image.width * 19 // 20, image.height * 19 // 20)
    )
    return copy


def random_backbone(preprocessing: Preprocessing = SMALL, bias: float = 0.0) -> Backbone:
    """Return two convolutions with random weights (He), pooled to 2 × 2 positions: 384 features, quick and not blind.

    bias: of the last convolution; a large negative one silences all of its ReLUs.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = nn.Conv2d(3, 48, 7, stride=4, padding=3), nn.Conv2d(48, 96, 3, stride=2, padding=1)
        for layer in (first, second):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.constant_(second.bias, bias)
    pooled = nn.Sequential(second, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return as_backbone([nn.Sequential(first, nn.ReLU()), pooled], preprocessing=preprocessing)
