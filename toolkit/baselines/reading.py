"""Reading: uint8 images → the row of numbers that a baseline takes; a part of the model, so files are read alike."""

from __future__ import annotations

from torch import Tensor, nn

from toolkit.reference.features import hand_made_features

LUMA = (19595, 38470, 7471)  # of R, G, B in 1/65536, as Pillow's mode "L" has them (ITU-R 601); their sum is 65536


def to_grey(pixels: Tensor) -> Tensor:
    """Return uint8 (N, 1, H, W) of uint8 (N, 3, H, W): the brightness; of grey pixels, exactly their value."""
    red, green, blue = pixels.int().unbind(1)
    weighted = red * LUMA[0] + green * LUMA[1] + blue * LUMA[2] + 0x8000
    return (weighted >> 16).to(pixels.dtype)[:, None]


class Reading(nn.Module):
    """Images uint8 (N, 3 or 1, S, S) → rows (N, D): the pixels themselves, uint8, or features made by hand, float32.

    channels: 1 turns colours into their brightness, 3 gives a grey image three equal channels. Rows pass unchanged.
    Cells of the histograms of gradients are a quarter of the side wide, at most 8 pixels.
    """

    def __init__(self, on: str, channels: int, side_px: int) -> None:
        super().__init__()
        self.on = on
        self.channels = channels
        self.side_px = side_px

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (N, D)."""
        if inputs.ndim == 2:
            return inputs
        if inputs.shape[1] != self.channels:
            inputs = to_grey(inputs) if self.channels == 1 else inputs.expand(-1, 3, -1, -1)
        if self.on == "hog":
            cell_px = min(8, max(1, self.side_px // 4))
            return hand_made_features(inputs.cpu(), cell_px).to(inputs.device)
        return inputs.flatten(1)
