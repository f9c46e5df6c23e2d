"""Augmentation policies of torchvision, as pure functions of an image and a seed."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

from PIL import Image

# TrivialAugment (Müller & Hutter 2021): one operation, of any strength. RandAugment (Cubuk et al. 2020): two in a row,
# of strength 9 of 30. Both turn, shear and shift images, and change their colours, contrast and sharpness.
POLICIES = ("trivial", "rand")
_one_at_a_time = threading.Lock()


def changed_by(policy: str, image: Image.Image, seed: int) -> Image.Image:
    """Return an RGB image as the policy changes it with this seed, at its own size; random states stay as they are."""
    import torch

    with _one_at_a_time, torch.random.fork_rng(devices=[]):  # threads share the random state
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the accelerators as well
        changed: Image.Image = _policy(policy)(image)
    return changed


@cache
def _policy(name: str) -> Any:
    from torchvision.transforms import InterpolationMode, v2  # whoever asks for no policy does without its import

    bilinear = InterpolationMode.BILINEAR
    if name == "trivial":
        return v2.TrivialAugmentWide(interpolation=bilinear)
    return v2.RandAugment(interpolation=bilinear)
