"""The confusion matrix as a picture: its numbers, their order, and that all is legible and inside."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from toolkit.reporting.confusion import class_order, draw_confusion
from toolkit.reporting.figure import DPI, png


def cells(figure: Figure) -> dict[tuple[int, int], int]:
    """Return the counts that are written, by row and column."""
    return {(round(t.get_position()[1]), round(t.get_position()[0])): int(t.get_text()) for t in figure.axes[0].texts}


def shown(figure: Figure) -> list[Text]:
    """Return every text of a drawn figure that has letters and is on."""
    return [t for t in figure.findobj(Text) if isinstance(t, Text) and t.get_text() and t.get_visible()]


def test_every_count_but_zero_stands_in_its_cell() -> None:
    counts = np.array([[7, 1, 0], [0, 5, 2], [3, 0, 120]])
    figure = draw_confusion(counts, ["a", "b", "c"], "138 validation images")
    assert cells(figure) == {(0, 0): 7, (0, 1): 1, (1, 1): 5, (1, 2): 2, (2, 0): 3, (2, 2): 120}
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), counts / counts.sum(1, keepdims=True))
    assert [t.get_text() for t in axes.get_xticklabels()] == ["a", "b", "c"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    assert "138 validation images" in figure.get_suptitle()
    caption = figure.texts[-1].get_text().replace("\n", " ")
    assert caption == "Most often: c taken for a, 3; b taken for c, 2; a taken for b, 1."


def test_a_class_without_images_is_grey_and_named() -> None:
    figure = draw_confusion(np.array([[4, 0], [0, 0]]), ["cat", "dog"], "4 validation images")
    assert np.ma.getmaskarray(figure.axes[0].images[0].get_array())[1].all()
    caption = figure.texts[-1].get_text().replace("\n", " ")
    assert caption == "Nothing was taken for something else. Grey: there was no image of dog."


def test_few_classes_go_by_name_and_numbers_as_numbers() -> None:
    assert class_order(np.zeros((4, 4), np.int64), ["10", "9", "class 10", "Class 2"]) == [1, 0, 3, 2]


def test_of_many_classes_the_confused_ones_stand_side_by_side() -> None:
    n = 30
    counts = np.eye(n, dtype=np.int64) * 5
    counts[0, 20] = counts[20, 11] = 4
    names = [f"class {k}" for k in range(n)]
    order = class_order(counts, names)
    assert sorted(order) == list(range(n)) and order[:3] == [0, 20, 11]
    figure = draw_confusion(counts, names, "images")
    assert cells(figure)[0, 1] == 4 and cells(figure)[1, 2] == 4


@pytest.mark.parametrize("n", [2, 12, 100, 400])
def test_it_is_legible_at_any_number_of_classes(n: int) -> None:
    generator = np.random.default_rng(0)
    counts = np.eye(n, dtype=np.int64) * 12 + (generator.random((n, n)) < 3 / n)
    figure = draw_confusion(counts, [f"a class {k}" for k in range(n)], "images")
    figure.canvas.draw()
    side = figure.bbox
    for text in shown(figure):
        box = text.get_window_extent()
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= side.x1 + 1 and box.y1 <= side.y1 + 1, text.get_text()
        assert text.get_fontsize() * DPI / 72 >= 6, "pixels"
    assert max(figure.get_size_inches()) * DPI < 2200
    cell_px = figure.axes[0].get_window_extent().width / n
    for text in figure.axes[0].texts:
        assert text.get_window_extent().width <= cell_px and text.get_window_extent().height <= 1.6 * cell_px
    assert bool(cells(figure)) == (n <= 100)
    labels: Any = [t.get_window_extent() for t in figure.axes[0].get_yticklabels()]
    for above, below in pairwise(labels):
        assert above.y0 >= below.y0 + 0.6 * above.height, "names do not overlap"


def test_names_are_shown_as_they_are() -> None:
    names = ["$_{", "$x^2$", "a\\$b", "line\nbreak", "\udcff", "고양이", "x" * 300]
    figure = draw_confusion(np.eye(7, dtype=np.int64), names, "7 images")
    assert png(figure)[:4] == b"\x89PNG"
    texts = {t.get_text() for t in figure.axes[0].get_yticklabels()}
    assert texts == {"$_{", "$x^2$", "a\\$b", "line?break", "?", "고양이", "x" * 12 + "…" + "x" * 11}
    assert not any(t.get_parse_math() for t in figure.findobj(Text) if isinstance(t, Text))


def test_the_same_figure_gives_the_same_bytes() -> None:
    def one() -> bytes:
        return png(draw_confusion(np.eye(3, dtype=np.int64), ["a", "b", "c"], "3 images"))

    assert one() == one()
