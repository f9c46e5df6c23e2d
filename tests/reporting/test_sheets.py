"""The sheets of small pictures: filters, what excites channels, the worst mistakes."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from toolkit.evaluation.lettering import fitted, fonts_for, width_px
from toolkit.evaluation.sheet import sheet_png
from toolkit.reporting import mistakes as mistakes_module
from toolkit.reporting.excitation import Excited, draw_excitation, most_excited
from toolkit.reporting.filters import MOST, as_picture, draw_filters, first_filters, unit_templates
from toolkit.reporting.mistakes import draw_mistakes


def opened(content: bytes) -> np.ndarray:
    """Return the pixels of a PNG."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def flat(colour: tuple[int, int, int], size: int = 9) -> Tensor:
    return torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).expand(3, size, size)


def test_filters_are_those_of_the_first_convolution_on_colours() -> None:
    grouped, seeing = nn.Conv2d(3, 6, 3, groups=3), nn.Conv2d(3, 4, 5)
    net = nn.ModuleList(
        [nn.Sequential(nn.Conv2d(1, 3, 1), grouped), nn.Sequential(nn.ReLU(), seeing), nn.Conv2d(3, 9, 1)]
    )
    found = first_filters(net)
    assert found is not None and torch.equal(found, seeing.weight)
    assert first_filters(nn.ModuleList([nn.Linear(3, 4), nn.Conv2d(4, 4, 1)])) is None


def test_filters_of_real_families() -> None:
    from toolkit.backbones.catalog import build_backbone

    for name, shape in (("resnet18", (64, 3, 7, 7)), ("vit_b_32", (768, 3, 32, 32))):
        found = first_filters(nn.ModuleList(build_backbone(name, pretrained=False).stages))
        assert found is not None and found.shape == shape
        assert opened(draw_filters(found)).shape[1] == 8 * 78 + 6


def test_a_filter_is_shown_by_its_own_largest_weight_and_zero_is_grey() -> None:
    weights = torch.tensor([[[0.0, 2.0], [-4.0, 1.0]]]).expand(3, 2, 2)
    assert as_picture(weights)[0].tolist() == [[128, 191], [0, 159]]
    assert torch.equal(as_picture(weights * 1e-6), as_picture(weights))
    assert as_picture(torch.zeros(1, 3, 3)).unique().tolist() == [128]
    assert as_picture(torch.full((3, 2, 2), torch.nan)).unique().tolist() == [128]


def test_of_many_filters_the_largest_are_shown() -> None:
    few, many = torch.ones(MOST, 3, 3, 3), torch.cat([torch.ones(MOST, 3, 3, 3), torch.full((9, 3, 3, 3), 1e-3)])
    assert np.array_equal(opened(draw_filters(few))[40:], opened(draw_filters(many))[40:])


def test_templates_are_weights_as_pictures() -> None:
    weight = torch.arange(2 * 3 * 16.0).reshape(2, 48)
    found = unit_templates(weight, 3)
    assert found is not None and torch.equal(found.flatten(1), weight)
    assert unit_templates(torch.ones(2, 50), 3) is None


def test_the_channels_that_single_images_out_are_found() -> None:
    generator = np.random.default_rng(0)
    pooled = generator.normal(size=(60, 5)).astype(np.float32)
    pooled[[7, 3, 50, 20], 2] = [40, 30, 20, 10]
    pooled[:, 4] = 0.25
    first, *others = most_excited(6, pooled)
    assert first == Excited(6, 2, (7, 3, 50, 20))
    assert len(others) == 2 and all(one.channel != 4 for one in others)
    assert len({one.images[0] for one in (first, *others)}) == 3


def test_a_channel_that_one_odd_image_excites_is_not_taken_for_one_that_many_do() -> None:
    pooled = np.zeros((300, 2), np.float32)
    pooled[0, 0], pooled[100:110, 1] = 1000, 5
    assert most_excited(0, pooled)[0].channel == 1


def test_few_images_and_numbers_that_are_none() -> None:
    assert most_excited(0, np.empty((0, 3), np.float32)) == []
    assert most_excited(0, np.full((5, 3), np.nan, np.float32)) == []
    assert most_excited(0, np.ones((5, 3), np.float32)) == []
    assert most_excited(1, np.array([[1.0], [3.0]], np.float32)) == [Excited(1, 0, (1, 0))]


def test_a_row_of_the_sheet_is_a_stage() -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    found = [Excited(4, 1, (0, 1)), Excited(4, 3, (2,)), Excited(7, 0, (1, 1, 1, 1))]
    pixels = opened(draw_excitation(found, lambda k: flat(colours[k]), "what excites"))
    cells = {k: int((pixels == colour).all(2).sum()) / 80**2 for k, colour in enumerate(colours)}
    assert cells == {0: 1, 1: 5, 2: 1}
    assert (pixels[60:100, 6:86] == colours[0]).all(2).any() and (pixels[160:200, 6:86] == colours[1]).all(2).any()


def test_mistakes_say_what_it_is_and_what_it_was_taken_for(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def sheet(pictures: list[tuple[str, Tensor]], columns: int, *, title: str) -> bytes:
        told.extend([*(caption for caption, _ in pictures), f"{columns} {title}"])
        return sheet_png(pictures, columns, title=title)

    monkeypatch.setattr(mistakes_module, "sheet_png", sheet)
    rows = [
        {"path": f"p{k}", "label": "$_{", "prediction": "a\nb", "probability": f"{0.9 - k / 100:.6f}"}
        for k in range(30)
    ]
    content = draw_mistakes(rows, lambda path: flat((int(path[1:]), 0, 0)), "title")
    assert told[:2] == ["is $_{\n0.90 for a?b", "is $_{\n0.89 for a?b"] and told[-1] == "6 title" and len(told) == 25
    assert opened(content).shape == (4 * 164 + 6 + 24, 6 * 134 + 6, 3)


def test_captions_stay_within_their_cells_and_a_title_is_wrapped() -> None:
    for text in ("x" * 200, "가" * 60, "short"):
        assert width_px(fitted(text, 100, 11), 11) <= 100
    assert fitted("short", 100, 11) == "short" and fitted("x" * 200, 100, 11).endswith("…")
    narrow = opened(sheet_png([("", flat((9, 9, 9)))], 1, title="a title of many words that are wrapped", lines=0))
    assert narrow.shape[1] == 140 and narrow.shape[0] > 140 + 24
    assert (narrow[:, -3:] == 255).all()


def test_letters_that_dejavu_has_need_no_other_font() -> None:
    assert fonts_for("naïve Grüße ёлка ∑") == []
