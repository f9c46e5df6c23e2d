"""The challenges of image recognition as seeded changes of pixels: viewpoint, light, colour, pose, occlusion, clutter.

Every change is a function of (pixels, draws, strength, others): uint8 (N, 3, S, S), numbers in [−1, 1] that belong to
each image, how much, and for every image another one of the set; it returns uint8 (N, 3, S, S).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

DRAWS = 32  # numbers an image
KNOTS = 4  # of the grid whose displacement bends an image, each way
EDGE = 0.15  # of the radii, over which a pasted object fades into its new background


class Change(NamedTuple):
    """A change at one strength. stands_for: the challenge in the words of the lecture. text: the strength in words."""

    name: str
    stands_for: str
    text: str
    strength: float
    apply: Callable[[Tensor, Tensor, float, Tensor], Tensor]

    def __call__(self, pixels: Tensor, draws: Tensor, others: Tensor) -> Tensor:
        """Return the changed pixels."""
        return self.apply(pixels, draws, self.strength, others)


def rotated(pixels: Tensor, draws: Tensor, strength: float, others: Tensor) -> Tensor:
    """Turn by `strength` degrees, one way or the other; what comes in at the corners is mirrored."""
    angle = _sign(draws[:, 0]) * math.radians(strength)
    rows = torch.stack([torch.cos(angle), -torch.sin(angle), torch.sin(angle), torch.cos(angle)], dim=1)
    return _sampled(pixels, _grid(pixels) @ rows.view(-1, 1, 2, 2).transpose(2, 3))


def tilted(pixels: Tensor, draws: Tensor, strength: float, others: Tensor) -> Tensor:
    """See the image from the side: what is far, in a direction that is drawn, is smaller by `strength`.

    The projection of a plane that is tilted about its middle.
    """
    angle = draws[:, 0] * math.pi
    away = torch.stack([torch.cos(angle), torch.sin(angle)], dim=1)
    grid = _grid(pixels)
    depth = 1 - strength * torch.einsum("nhwc,nc->nhw", grid.expand(len(pixels), -1, -1, -1), away)
    return _sampled(pixels, grid / depth[..., None])


def lit(pixels: Tensor, draws: Tensor, strength: float, others: Tensor) -> Tensor:
    """Multiply the brightness by 1 + strength, or divide it by that."""
    factor = (1 + strength) ** _sign(draws[:, 0])
    return _to_bytes(pixels.float() * factor.view(-1, 1, 1, 1))


def recoloured(pixels: Tensor, draws: Tensor, strength: float, others: Tensor) -> Tensor:
    """Turn the hue by `strength` degrees, one way or the other, and raise or lower the saturation by half; keep luma.

    In the YIQ space of NTSC, where hue is an angle.
    """
    to_yiq = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    angle, factor = _sign(draws[:, 0]) * math.radians(strength), 1.5 ** _sign(draws[:, 1])
    turn = torch.zeros(len(pixels), 3, 3)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = factor * torch.cos(angle)
    turn[:, 2, 1] = factor * torch.sin(angle)
    turn[:, 1, 2] = -turn[:, 2, 1]
    matrix = torch.linalg.inv(to_yiq) @ turn @ to_yiq
    return _to_bytes(torch.einsum("nij,njhw->nihw", matrix, pixels.float()))


def bent(pixels: Tensor, draws: Tensor, strength: float, others: Tensor) -> Tensor:
    """Bend elastically: a smooth field of displacements of up to `strength` of the side."""
    field = draws[:, : 2 * KNOTS * KNOTS].view(-1, 2, KNOTS, KNOTS) * 2 * strength  # the side is 2 long
    smooth = F.interpolate(field, size=pixels.shape[2:], mode="bicubic", align_corners=True)
    return _sampled(pixels, _grid(pixels) + smooth.permute(0, 2, 3, 1))


def occluded(pixels: Tensor, draws: Tensor, strength: float, others: Tensor) -> Tensor:
    """Cover a square of `strength` of the area, somewhere wholly inside, with the image's mean colour."""
    side = math.sqrt(strength)
    middle = (1 - side) * draws[:, :2].view(-1, 1, 1, 2)
    inside = ((_grid(pixels) - middle).abs() <= side).all(dim=3)
    mean = pixels.float().mean((2, 3), keepdim=True)
    return torch.where(inside[:, None], _to_bytes(mean), pixels)


def pasted(pixels: Tensor, draws: Tensor, strength: float, others: Tensor) -> Tensor:
    """Keep an ellipse in the middle, of radius 1 − strength of half the side; around it is another class's image.

    A stand-in for cutting out the object, which is taken to be in the middle.
    """
    radius = _grid(pixels).norm(dim=3)[:, None] / (1 - strength)
    own = ((1 + EDGE / 2 - radius) / EDGE).clamp(0, 1)
    return _to_bytes(pixels.float() * own + others.float() * (1 - own))


def _sign(draws: Tensor) -> Tensor:
    return torch.where(draws < 0, -1.0, 1.0)


def _grid(pixels: Tensor) -> Tensor:
    """Return the places of pixels, (1, S, S, 2), x and y from −1 to 1."""
    height, width = pixels.shape[2:]
    ys, xs = ((2 * torch.arange(n) + 1) / n - 1 for n in (height, width))
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    return torch.stack([x, y], dim=2)[None]


def _sampled(pixels: Tensor, places: Tensor) -> Tensor:
    """Return the image's values at places (N, S, S, 2), in between by bilinear interpolation, mirrored outside."""
    places = places.expand(len(pixels), -1, -1, -1)
    return _to_bytes(F.grid_sample(pixels.float(), places, padding_mode="reflection", align_corners=False))


def _to_bytes(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


CHANGES = tuple(
    Change(name, stands_for, text.format(strength=strength), strength / scale, apply)
    for name, stands_for, text, scale, strengths, apply in (
        ("rotation", "viewpoint", "{strength}°", 1, (10, 30), rotated),
        ("perspective", "viewpoint", "{strength} %", 100, (15, 40), tilted),
        ("brightness", "light", "{strength} times, up or down", 1, (1.3, 2.0), lambda p, d, s, o: lit(p, d, s - 1, o)),
        ("colour", "light", "hue by {strength}°", 1, (15, 60), recoloured),
        ("elastic", "pose", "{strength} % of the side", 100, (4, 12), bent),
        ("occlusion", "occlusion", "{strength} % of the area", 100, (10, 30), occluded),
        ("background", "clutter", "outer {strength} % replaced", 100, (10, 40), pasted),
    )
    for strength in strengths
)
