"""Pixels → the numbers that the weights were trained on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toolkit.data.preprocessing import Preprocessing


class Normalise(nn.Module):
    """uint8 (N, 3, H, W) → float (x / 255 − mean) / std by channel; float input is taken as normalised already."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the input of the first stage."""
        if pixels.dtype != torch.uint8:
            return pixels
        return pixels.to(self.mean.dtype).div_(255).sub_(self.mean).div_(self.std)
