"""Images that stand for photographs where a network has to be tried out before any photograph is read."""

from __future__ import annotations

import torch
from torch import Tensor

CONTRAST = 64  # standard deviation of a channel; photographs have 50 to 70


def sample_images(n: int, size_px: int, seed: int = 0) -> Tensor:
    """Return uint8 (n, 3, S, S): random images whose amplitudes fall with frequency as those of photographs do.

    White noise would not do: it drives networks where no photograph does. Source: Field 1987, "Relations between the
    statistics of natural images and the response properties of cortical cells" (amplitudes fall as 1/f).
    """
    generator = torch.Generator().manual_seed(seed)
    vertical, horizontal = torch.fft.fftfreq(size_px)[:, None], torch.fft.rfftfreq(size_px)[None]
    frequency = (vertical.square() + horizontal.square()).sqrt()
    frequency[0, 0] = 1.0
    waves = torch.randn(n, 3, *frequency.shape, 2, generator=generator)
    amplitudes = torch.view_as_complex(waves) / frequency
    amplitudes[..., 0, 0] = 0  # the mean is set below
    images = torch.fft.irfft2(amplitudes, s=(size_px, size_px))
    spread = images.std(dim=(2, 3), correction=0, keepdim=True).clamp_min(1e-6)
    pixels: Tensor = (images / spread * CONTRAST + 128).clamp(0, 255).to(torch.uint8)
    return pixels
