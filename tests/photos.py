"""Small generated photographs: smooth scenes with a shape, a little noise, and a colour by class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def photo(kind: int, number: int, size: tuple[int, int] = (48, 40), seed: int = 0) -> Image.Image:
    """Return image `number` of class `kind` (RGB, `size` is width × height); equal arguments, equal pixels."""
    generator = np.random.default_rng((seed, kind, number))
    width, height = size
    hue = (kind * 77 + 20) % 256
    image = Image.new("HSV", size, (hue, 60, int(generator.integers(150, 230)))).convert("RGB")
    draw = ImageDraw.Draw(image)
    x, y = generator.uniform(0.1, 0.4, 2) * size
    box = (x, y, x + width * generator.uniform(0.3, 0.5), y + height * generator.uniform(0.3, 0.5))
    colour = tuple(int(value) for value in np.array(Image.new("HSV", (1, 1), (hue, 220, 200)).convert("RGB"))[0, 0])
    (draw.ellipse, draw.rectangle, draw.rounded_rectangle)[kind % 3](box, fill=colour)
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(1)), dtype=np.float64)
    return Image.fromarray(np.clip(pixels + generator.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8))


def make_photos(
    root: Path, counts: Mapping[str, int], *, size: tuple[int, int] = (48, 40), seed: int = 0, suffix: str = ".jpg"
) -> Path:
    """Write `counts[CLASS]` photographs to root/CLASS/NNN.jpg and return `root`.

    The look of a class follows its name, so that `root/train` and `root/val` made by two calls with different
    seeds show the same classes.
    """
    for name, count in counts.items():
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        kind = sum(name.encode())
        for number in range(count):
            photo(kind, number, size, seed).save(folder / f"{number:03}{suffix}", quality=92)
    return root
