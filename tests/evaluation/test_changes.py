"""Changes: what they do to pixels, told by patterns of which the result is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.evaluation.nets import noise
from tests.photos import photo
from toolkit.evaluation.changes import (
    CHANGES,
    DRAWS,
    Change,
    bent,
    lit,
    occluded,
    pasted,
    recoloured,
    rotated,
    tilted,
)

SIDE = 48
SEVEN = {change.name for change in CHANGES}
every = pytest.mark.parametrize("change", CHANGES, ids=lambda change: f"{change.name}-{change.strength:g}")


def draws(n: int, *first: float, seed: int = 0) -> Tensor:
    """Return draws of n images, the first of each as given."""
    found = torch.rand(n, DRAWS, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    for place, value in enumerate(first):
        found[:, place] = value
    return found


def pictures(n: int = 6) -> Tensor:
    """Return smooth photographs uint8 (n, 3, SIDE, SIDE)."""
    images = [np.asarray(photo(number % 3, number, (SIDE, SIDE))) for number in range(n)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def apart(one: Tensor, other: Tensor) -> Tensor:
    return (one.int() - other.int()).abs()


def test_there_are_seven_at_two_strengths_each() -> None:
    assert len(SEVEN) == 7 and len(CHANGES) == 14
    stood_for = {change.stands_for for change in CHANGES}
    assert stood_for == {"viewpoint", "light", "colour", "pose", "occlusion", "clutter"} - {"colour"}


@every
def test_shape_and_dtype_stay_and_the_input_too(change: Change) -> None:
    pixels, others = pictures(), noise(6, SIDE)
    copied = pixels.clone()
    found = change(pixels, draws(6), others)
    assert found.shape == pixels.shape and found.dtype == torch.uint8
    assert torch.equal(pixels, copied) and not torch.equal(found, pixels)
    assert torch.equal(change(pixels, draws(6), others), found)


@every
def test_an_image_is_changed_the_same_in_any_company(change: Change) -> None:
    pixels, others, drawn = pictures(), noise(6, SIDE), draws(6)
    together = change(pixels, drawn, others)
    assert torch.equal(change(pixels.flip(0), drawn.flip(0), others.flip(0)).flip(0), together)
    for row in range(6):
        alone = change(pixels[row : row + 1], drawn[row : row + 1], others[row : row + 1])
        assert torch.equal(alone[0], together[row])


@every
def test_other_draws_change_it_in_another_way(change: Change) -> None:
    if change.name == "background":  # which is another image, and nothing that is drawn
        assert not torch.equal(change(pictures(), draws(6), noise(6, SIDE)), change(pictures(), draws(6), pictures()))
        return
    found = [
        change(pictures(), draws(6, sign, sign, seed=seed), noise(6, SIDE)) for seed, sign in ((1, -0.5), (2, 0.5))
    ]
    assert all(not torch.equal(one, other) for one, other in zip(*found, strict=True))


@every
def test_one_colour_stays_one_colour_where_places_alone_change(change: Change) -> None:
    if change.stands_for in ("light", "clutter"):
        return
    plain = torch.full((4, 3, SIDE, SIDE), 90, dtype=torch.uint8)
    assert torch.equal(change(plain, draws(4), noise(4, SIDE)), plain)


@pytest.mark.parametrize("apply", [rotated, tilted, lit, bent], ids=lambda apply: apply.__name__)
def test_no_strength_no_change(apply: Callable[..., Tensor]) -> None:
    assert apart(apply(pictures(), draws(6), 0.0, noise(6, SIDE)), pictures()).max() <= 1


def test_a_hue_that_is_not_turned_keeps_brightness_and_direction() -> None:
    pixels = (pictures().int() // 4 + 96).to(torch.uint8)  # nothing is clipped
    found = recoloured(pixels, draws(6, 0.5, 0.5), 0.0, pixels).float()
    luma = torch.tensor([0.299, 0.587, 0.114])
    grey, old = (torch.einsum("c,nchw->nhw", luma, own)[:, None] for own in (found, pixels.float()))
    assert (grey - old).abs().max() < 1
    assert ((found - grey) - 1.5 * (pixels.float() - old)).abs().max() < 2


@pytest.mark.parametrize(("way", "sign"), [("left", 1.0), ("right", -1.0)])
@pytest.mark.parametrize("degrees", [10.0, 30.0])
def test_a_rotation_is_pillows(degrees: float, way: str, sign: float) -> None:
    pixels = pictures(3)
    found = [rotated(pixels, draws(3, value), degrees, pixels) for value in (-0.5, 0.5)]
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    inside = torch.from_numpy(np.hypot(x, y) < SIDE / 2 - 2)  # what comes in at the corners is another matter
    near = []
    for row in range(3):
        image = Image.fromarray(pixels[row].permute(1, 2, 0).numpy())
        turned = np.asarray(image.rotate(sign * degrees, Image.Resampling.BILINEAR))
        expected = torch.from_numpy(turned.copy()).permute(2, 0, 1)
        near.append([apart(own[row], expected)[:, inside].float().mean() < 1 for own in found])
    assert [sum(column) for column in zip(*near, strict=True)] in ([3, 0], [0, 3])


def test_four_quarter_turns_are_exact() -> None:
    pixels = noise(2, SIDE)
    quarter = rotated(pixels, draws(2, 0.5), 90.0, pixels)
    assert torch.equal(quarter, pixels.rot90(1, (2, 3))) or torch.equal(quarter, pixels.rot90(-1, (2, 3)))


@pytest.mark.parametrize("direction", [0.0, 0.5, -0.5])  # of half a turn: right, down, up
def test_what_is_far_is_smaller_and_what_is_near_larger(direction: float) -> None:
    strength, axis = 0.4, 3 if direction == 0 else 2
    stripes = torch.zeros(1, 3, 200, 200, dtype=torch.uint8)
    lengthwise = (slice(None),) * (5 - axis)
    stripes[(*lengthwise[: 5 - axis], slice(80, 120))] = 255  # a band 40 wide, all along the direction
    if axis == 2:
        stripes = torch.zeros_like(stripes)
        stripes[:, :, :, 80:120] = 255
    found = tilted(stripes, draws(1, direction), strength, stripes)[0, 0].float() / 255
    widths = found.sum(0 if axis == 3 else 1)
    if direction < 0:
        widths = widths.flip(0)
    assert widths[100].item() == pytest.approx(40, abs=1)
    assert widths[199].item() == pytest.approx(40 * (1 - strength), abs=1)
    assert widths[0].item() == pytest.approx(40 * (1 + strength), abs=1)


def test_brightness_goes_up_or_down_and_is_clipped() -> None:
    pixels = torch.tensor([0, 10, 100, 200, 255], dtype=torch.uint8).view(1, 1, 1, 5).expand(2, 3, 5, 5)
    brighter, darker = lit(pixels, torch.tensor([[0.5], [-0.5]]), 1.0, pixels)
    assert brighter[0, 0].tolist() == [0, 20, 200, 255, 255]
    assert darker[0, 0].tolist() == [0, 5, 50, 100, 128]


@pytest.mark.parametrize("strength", [15.0, 60.0, 180.0])
def test_grey_has_no_hue(strength: float) -> None:
    grey = noise(4, SIDE)[:, :1].expand(-1, 3, -1, -1)
    assert apart(recoloured(grey, draws(4), strength, grey), grey).max() <= 1


def test_half_a_turn_of_the_hue_gives_the_complement() -> None:
    red = torch.tensor([150, 100, 100], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    found = recoloured(red, draws(1, 0.5, 0.5), 180.0, red)[0, :, 0, 0].tolist()
    luma = 0.299 * 150 + 0.701 * 100
    assert found == pytest.approx([luma - 1.5 * (own - luma) for own in (150, 100, 100)], abs=1.5)


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_a_square_of_the_stated_share_is_covered(share: float) -> None:
    pixels = torch.zeros(50, 3, 100, 100, dtype=torch.uint8)
    pixels[:, :, :, ::2] = 201  # nothing is of the mean colour itself
    found = occluded(pixels, draws(50), share, pixels)
    covered = (found != pixels).any(1)
    for mask in covered:
        assert float(mask.float().mean()) == pytest.approx(share, abs=2 * math.sqrt(share) / 100 + 1e-4)
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert abs(len(rows) - len(columns)) <= 1
    assert set(found[0, :, covered[0]].unique().tolist()) <= {100, 101}
    places = covered.flatten(1).int().argmax(1)
    assert len(places.unique()) > 20  # not always at the same place


def test_the_middle_is_kept_and_the_rest_is_the_other_image() -> None:
    pixels, others = noise(2, 100), noise(2, 100, seed=1)
    found = pasted(pixels, draws(2), 0.4, others)
    y, x = (torch.stack(torch.meshgrid(torch.arange(100), torch.arange(100), indexing="ij")) - 49.5) / 50
    radius = (x.square() + y.square()).sqrt()
    kept, replaced = radius < 0.6 * 0.9, radius > 0.6 * 1.1
    assert torch.equal(found[:, :, kept], pixels[:, :, kept])
    assert torch.equal(found[:, :, replaced], others[:, :, replaced])


@pytest.mark.parametrize("strength", [0.04, 0.12])
def test_nothing_is_bent_further_than_is_said(strength: float) -> None:
    ramp = torch.arange(200, dtype=torch.uint8).view(1, 1, 1, 200).expand(20, 3, 200, 200)
    found = bent(ramp, draws(20), strength, ramp)
    moved = apart(found, ramp)[:, :, :, 50:150]  # a grey level a pixel; nothing is mirrored there
    assert moved.amax((1, 2, 3)).min() > 0.2 * strength * 200
    assert moved.max() <= 1.3 * strength * 200  # a bicubic curve rises a little above its knots


def test_bending_is_smooth() -> None:
    ramp = torch.arange(200, dtype=torch.uint8).view(1, 1, 1, 200).expand(20, 3, 200, 200)
    found = bent(ramp, draws(20), 0.04, ramp)[:, 0, :, 50:150].int()
    assert found.diff(dim=1).abs().max() <= 2
