"""Pictures laid over each other: what counts as the same one, and what does not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.checks.pictures import brightened, cropped, drawing, encoded, halved, mirrored, tiles
from toolkit.checks import candidates, copies
from toolkit.checks.alignment import SIDE_PX, Aligned, _cut, align
from toolkit.checks.candidates import (
    HASH_PX,
    NEIGHBOURS,
    Candidates,
    feature_pairs,
    hash_pairs,
    perceptual_hashes,
    unique_pairs,
)
from toolkit.checks.copies import Twin, exact_twins, near_twins, with_copies


def squeezed(image: Image.Image) -> Tensor:
    small = image.convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def grey(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L").resize((HASH_PX, HASH_PX), Image.Resampling.BOX), np.float32)


def pictures() -> list[Image.Image]:
    return [*tiles(0)[:12], *tiles(1)[:12]]


CHANGES = {
    "re-encoded": lambda image: encoded(image, 60),
    "halved": halved,
    "cropped": cropped,
    "mirrored": mirrored,
    "brightened": brightened,
    "cropped and mirrored": lambda image: mirrored(cropped(image)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_the_same_picture_either_way_round(change: str) -> None:
    before = torch.stack([squeezed(image) for image in pictures()])
    after = torch.stack([squeezed(CHANGES[change](image)) for image in pictures()])
    for first, second in ((before, after), (after, before)):
        found = align(first, second)
        assert int(found.is_copy().sum()) >= len(before) - 1, found
        assert bool(found.mirrored[found.is_copy()].all()) == ("mirrored" in change)


def copies_among(images: list[Image.Image]) -> float:
    some = torch.stack([squeezed(image) for image in images])
    pairs = torch.combinations(torch.arange(len(some)))
    return float(align(some[pairs[:, 0]], some[pairs[:, 1]]).is_copy().float().mean())


def test_different_pictures_are_not() -> None:
    assert copies_among(pictures()) == 0


def test_of_small_drawings_on_white_hardly_any_pass_for_others() -> None:
    assert copies_among([drawing(number) for number in range(40)]) < 0.02


def test_pictures_of_one_colour_are_like_nothing() -> None:
    flat = torch.full((2, 3, SIDE_PX, SIDE_PX), 128, dtype=torch.uint8)
    assert not align(flat, flat).is_copy().any()


def test_a_window_of_all_is_the_picture_itself() -> None:
    picture = torch.rand(2, 3, SIDE_PX, SIDE_PX)
    whole = torch.tensor([[1.0, 1.0, 0.0, 0.0]]).expand(2, 4)
    torch.testing.assert_close(_cut(picture, whole, SIDE_PX), picture)


def test_a_window_is_what_torch_cuts_out() -> None:
    picture, window = torch.rand(1, 3, SIDE_PX, SIDE_PX), torch.tensor([[0.8, 0.6, 0.1, -0.2]])
    affine = torch.tensor([[[0.8, 0.0, 0.1], [0.0, 0.6, -0.2]]])
    grid = torch.nn.functional.affine_grid(affine, [1, 3, 32, 32], align_corners=False)
    wanted = torch.nn.functional.grid_sample(picture, grid, align_corners=False, padding_mode="border")
    torch.testing.assert_close(_cut(picture, window, 32), wanted, atol=1e-5, rtol=1e-4)


def test_hashes_find_copies_and_mirror_images() -> None:
    originals = pictures()[:6]
    images = [*originals, *(encoded(image, 60) for image in originals), *(mirrored(image) for image in originals)]
    pairs = {tuple(pair) for pair in hash_pairs(*perceptual_hashes(np.stack([*map(grey, images)]))).pairs.tolist()}
    assert {(row, row + 6) for row in range(6)} <= pairs
    assert {(row, row + 12) for row in range(6)} <= pairs


def test_a_picture_of_one_colour_has_no_hash() -> None:
    hashes, turned = perceptual_hashes(np.full((3, HASH_PX, HASH_PX), 200, np.float32))
    assert not hashes.any() and not len(hash_pairs(hashes, turned))


def test_neighbours_by_features_are_the_near_ones_and_few() -> None:
    random = np.random.default_rng(0)
    centres = random.standard_normal((10, 32)).astype(np.float32)
    features = np.concatenate([centres, centres + 0.01 * random.standard_normal(centres.shape).astype(np.float32)])
    assert {(row, row + 10) for row in range(10)} == {
        tuple(pair) for pair in feature_pairs(features, (16, 16)).pairs.tolist()
    }
    alike = np.concatenate([np.ones((40, 4), np.float32), -np.ones((40, 4), np.float32)])
    assert len(feature_pairs(alike, (4,))) <= NEIGHBOURS * 80


def test_the_most_alike_come_first_and_each_pair_once() -> None:
    random = np.random.default_rng(0)
    crowd = (np.ones(32) + 0.3 * random.standard_normal((60, 32))).astype(np.float32)
    others = random.standard_normal((60, 32)).astype(np.float32) - 1
    copies = crowd[:5] + 1e-3 * random.standard_normal((5, 32)).astype(np.float32)
    found = feature_pairs(np.concatenate([crowd, others, copies]), (16, 16)).pairs.tolist()
    assert sorted(found[:5]) == [[row, row + 120] for row in range(5)]
    assert len(found) > 10 and len({tuple(pair) for pair in found}) == len(found)
    pairs = Candidates.of(np.array([[0, 1], [2, 3], [1, 0]]), np.array([0.1, 0.5, 0.9], np.float32)).pairs
    assert pairs.tolist() == [[0, 1], [2, 3]], "by the largest likeness of a pair that is there twice"


def test_many_images_are_compared_in_fewer_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    features = random.standard_normal((3_000, 512)).astype(np.float32)
    features[2_000:2_040] = features[:40] + 0.1 * random.standard_normal((40, 512)).astype(np.float32)
    plain = feature_pairs(features, (256, 256))
    monkeypatch.setattr(candidates, "PROJECTED_ABOVE", 1_000)
    wanted = [[row, row + 2_000] for row in range(40)]
    assert sorted(feature_pairs(features, (256, 256)).pairs.tolist()) == sorted(plain.pairs.tolist()) == wanted
    assert "comparing images" in capsys.readouterr().err


def test_equal_contents_are_twins_of_the_first() -> None:
    digests = np.array([[1] * 16, [2] * 16, [1] * 16, [1] * 16], np.uint8)
    twins = exact_twins(digests, range(4))
    assert [(twin.first, twin.second, twin.exact) for twin in twins] == [(0, 2, True), (0, 3, True)]
    assert unique_pairs([np.array([[2, 1], [0, 1], [1, 0]])]).tolist() == [[0, 1], [1, 2]]
    assert unique_pairs([]).shape == (0, 2)


def test_what_a_copy_of_a_copy_leaks_is_told_too() -> None:
    exact = [Twin(0, 1, True, "the same file"), Twin(0, 2, True, "the same file")]
    near = [Twin(0, 5, False, "saved again", 0.98)]
    kinds = ["val", "train", "train", "", "", "val"]
    found = with_copies(near, exact, kinds)
    assert [(twin.first, twin.second) for twin in found] == [(0, 5), (1, 5)]
    assert with_copies(near, [], kinds) == near


def test_near_twins_say_what_was_done() -> None:
    image = tiles(0)[0]
    some = torch.stack([squeezed(one) for one in (image, mirrored(image), cropped(image), tiles(1)[0])])
    alike = Candidates(np.array([[0, 3], [0, 1], [0, 2]]))
    twins = near_twins([alike], lambda rows: some[torch.from_numpy(rows)])
    assert [(twin.first, twin.second) for twin in twins] == [(0, 1), (0, 2)]
    assert "mirrored" in twins[0].how and "cropped" in twins[1].how
    assert near_twins([], lambda rows: some[torch.from_numpy(rows)]) == []


def fake_alignment(differences: dict[tuple[int, int], float]) -> Callable[[Tensor, Tensor], Aligned]:
    """Return an `align` for pictures that are row numbers: each pair differs as told, and is alike in all else."""

    def of(first: Tensor, second: Tensor) -> Aligned:
        found = [differences[a, b] for a, b in zip(first.tolist(), second.tolist(), strict=True)]
        n = len(found)
        return Aligned(torch.full((n,), 0.99), torch.tensor(found), torch.zeros(n, dtype=torch.bool), torch.ones(n))

    return of


def test_a_copy_stands_out_among_what_is_alike(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Among garments that all look alike one that differs little is another garment; three copies are three copies."""
    differences = {(0, 1): 0.14, (0, 2): 0.16, (1, 2): 0.18, (3, 4): 0.05, (3, 5): 0.06, (4, 5): 0.05, (3, 6): 0.16}
    monkeypatch.setattr(copies, "align", fake_alignment(differences))
    alike = Candidates(np.array(list(differences)))

    def found() -> list[tuple[int, int]]:
        return [(twin.first, twin.second) for twin in near_twins([alike], torch.from_numpy)]

    assert found() == [(3, 4), (3, 5), (4, 5)]
    assert not capsys.readouterr().err
    differences |= {(4, 5): 0.3}  # two copies of one picture, cut in two ways, that are no copies of each other
    assert found() == [(3, 4), (3, 5)]
    monkeypatch.setattr(copies, "MOST_PAIRS", 1)
    assert found() == [], "the most alike pair is no copy, by those that are less alike and are looked at for it"
    assert "7 pairs of images are much alike; the 1 most alike ones are looked at" in capsys.readouterr().err
