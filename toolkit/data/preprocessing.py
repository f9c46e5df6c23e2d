"""Preprocessing: how an image becomes the input that given weights were trained on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from toolkit.errors import SettingError

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop and normalise as the weights were trained.

    The shorter side is resized to `resize_px` with `interpolation` (antialiased), the middle
    `crop_px` × `crop_px` square is cut out, values are scaled to 0..1 and become (x − mean) / std by channel
    (R, G, B).
    """

    resize_px: int
    crop_px: int
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if not 1 <= self.crop_px <= self.resize_px:
            raise SettingError(f"preprocessing: 1 <= crop_px <= resize_px expected, got {self}")
        if self.interpolation not in INTERPOLATIONS:
            raise SettingError(f"preprocessing: interpolation is one of {INTERPOLATIONS}, got {self.interpolation!r}")

    def at_image_size(self, image_size_px: int) -> Preprocessing:
        """Return the same preprocessing for another input size, keeping the ratio of resize to crop."""
        ratio = self.resize_px / self.crop_px
        return Preprocessing(round(image_size_px * ratio), image_size_px, self.interpolation, self.mean, self.std)

    @property
    def decoding(self) -> Preprocessing:
        """Return what becomes of a file up to its pixels, whatever is done to their values later."""
        return replace(self, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """Rebuild from `to_dict`'s values."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
