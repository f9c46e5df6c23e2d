"""Curves, rates and reliability: what is drawn are the numbers that were given."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.reporting.plans import PLAN
from toolkit.plan import Recipe
from toolkit.reporting.curves import draw_curves
from toolkit.reporting.figure import png
from toolkit.reporting.rates import draw_rates, rate_lines, scheduled_line
from toolkit.reporting.reliability import Surety, draw_reliability
from toolkit.scores import score

ROWS: list[dict[str, float | None]] = [
    {"epoch": 0.0, "step": 0.0, "val_loss": 0.9, "val_accuracy": 0.5},
    {"epoch": 1.0, "step": 4.0, "train_loss": 1.2, "train_accuracy": 0.4, "val_loss": 0.7, "val_accuracy": 0.6},
    {"epoch": 2.0, "step": 8.0, "train_loss": math.nan, "train_accuracy": 0.8, "val_loss": None, "val_accuracy": 0.75},
    {"epoch": 3.0, "step": 12.0, "train_loss": 0.4, "train_accuracy": 0.9, "val_loss": 0.8, "val_accuracy": 0.7},
]


def lines(figure: Figure, place: int) -> dict[str, tuple[list[float], list[float]]]:
    """Return the lines of an axes by the first word of their names."""
    return {
        str(line.get_label()).split(",")[0]: (list(line.get_xdata()), list(line.get_ydata()))  # type: ignore[arg-type]
        for line in figure.axes[place].lines
    }


def test_curves_are_the_history_s_numbers_with_gaps() -> None:
    figure = draw_curves(ROWS, "It learns. More epochs may help.", title="partial on a net")
    loss, accuracy = lines(figure, 0), lines(figure, 1)
    np.testing.assert_equal(loss["training"], ([0, 1, 2, 3], [math.nan, 1.2, math.nan, 0.4]))
    np.testing.assert_equal(loss["validation"], ([0, 1, 2, 3], [0.9, 0.7, math.nan, 0.8]))
    np.testing.assert_equal(accuracy["training"], ([0, 1, 2, 3], [math.nan, 0.4, 0.8, 0.9]))
    np.testing.assert_equal(accuracy["validation"], ([0, 1, 2, 3], [0.5, 0.6, 0.75, 0.7]))
    assert "validation, lowest 0.7 in epoch 1" in [line.get_label() for line in figure.axes[0].lines]
    assert "validation, highest 0.75 in epoch 2" in [line.get_label() for line in figure.axes[1].lines]
    assert figure.texts[-1].get_text() == "It learns. More epochs may help."
    assert figure.get_suptitle() == "partial on a net"
    assert png(figure) == png(draw_curves(ROWS, "It learns. More epochs may help.", title="partial on a net"))


@pytest.mark.parametrize("rows", [[], [{"epoch": 1.0}], [{"epoch": 1.0, "train_loss": math.inf}]])
def test_a_history_without_numbers_is_an_empty_picture(rows: list[dict[str, float | None]]) -> None:
    figure = draw_curves(rows, "")
    assert not figure.axes[0].lines and png(figure)[:4] == b"\x89PNG"


def test_without_validation_there_is_one_line_and_wide_losses_go_by_factors() -> None:
    rows = [{"epoch": float(k), "train_loss": 10.0 ** (2 - k), "train_accuracy": 0.5} for k in range(4)]
    figure = draw_curves(rows, "")
    assert list(lines(figure, 0)) == ["training"] and figure.axes[0].get_yscale() == "log"
    assert draw_curves(ROWS, "").axes[0].get_yscale() == "linear"
    assert png(figure)[:4] == b"\x89PNG"


def test_a_long_diagnosis_is_wrapped_below_the_axes() -> None:
    figure = draw_curves(ROWS, "words " * 60)
    figure.canvas.draw()
    box = figure.texts[-1].get_window_extent()
    assert box.x1 <= figure.bbox.x1 and box.y0 >= 0
    assert box.y1 < figure.axes[0].xaxis.label.get_window_extent().y0


def test_rates_are_the_schedule_s_and_groups_that_learn_alike_are_one_line() -> None:
    found = rate_lines(PLAN, [{**row, "lr_head": None} for row in ROWS])
    assert [line.name for line in found] == ["head", "stage 4", "stages 2 to 3"]
    assert found[0].steps == tuple(range(12))
    # 4 epochs of 4 steps were planned, 10 % of 16 steps warm up: 1/3, 2/3, then half a cosine
    expected = [1 / 3, 2 / 3, *(0.5 * (1 + math.cos(math.pi * (step - 2) / 14)) for step in range(2, 12))]
    np.testing.assert_allclose(found[0].rates, [0.01 * factor for factor in expected])
    for line, multiplier in zip(found, (1, 0.1, 0.01), strict=True):
        np.testing.assert_allclose(line.rates, [multiplier * rate for rate in found[0].rates])
    axes = draw_rates(found, ROWS).axes[0]
    np.testing.assert_allclose([line.get_ydata() for line in axes.lines], [line.rates for line in found])


def test_stages_that_begin_later_have_no_rate_before() -> None:
    recipe = replace(PLAN.recipe or Recipe(), unfreeze=1)
    top = rate_lines(replace(PLAN, recipe=recipe), ROWS)[1]
    assert top.name == "stage 4" and top.rates[:4] == (0, 0, 0, 0) and top.rates[4] > 0
    figure = draw_rates([top], ROWS)
    assert np.isnan(figure.axes[0].lines[0].get_ydata()[:4]).all()  # type: ignore[index]
    assert png(figure)[:4] == b"\x89PNG"


def test_a_training_that_began_again_is_drawn_at_the_rates_that_were_noted() -> None:
    before = rate_lines(PLAN, ROWS)
    noted = [{**ROWS[1], "lr_head": before[0].rates[4] / 10}, {**ROWS[3], "lr_head": None}]
    after = rate_lines(PLAN, noted)
    np.testing.assert_allclose(after[0].rates, [rate / 10 for rate in before[0].rates])
    points = draw_rates(after, noted).axes[0].lines[-1]
    np.testing.assert_allclose(points.get_xydata(), [(4, after[0].rates[4])])


def test_no_epoch_no_rates() -> None:
    assert rate_lines(PLAN, []) == rate_lines(PLAN, ROWS[:1]) == []
    assert scheduled_line("x", lambda step, total: 1.0, [], 5) == []


def test_a_baseline_s_rates_are_its_schedule_over_all_planned_steps() -> None:
    (line,) = scheduled_line("all weights", lambda step, total: step / total, ROWS, 5)
    np.testing.assert_allclose(line.rates, np.arange(12) / 20)


def test_reliability_has_the_bins_of_the_calibration_error() -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    chances = torch.rand(200, 3, generator=generator).mul(3).softmax(dim=1)
    labels = torch.randint(3, (200,), generator=generator)
    confidence = chances.max(dim=1).values.double().numpy()
    right = (chances.argmax(dim=1) == labels).numpy()
    figure = draw_reliability([Surety("200 validation images", confidence, right)])
    above, below = figure.axes
    assert above.get_title() == f"200 validation images: calibration error {score(chances, labels).ece:.3f}"
    heights = {round(bar.get_x() * 15): bar.get_height() for bar in above.patches}  # type: ignore[attr-defined]
    counts = {round(bar.get_x() * 15): bar.get_height() for bar in below.patches}  # type: ignore[attr-defined]
    bins = np.ceil(confidence * 15).astype(int) - 1
    assert counts == {k: int((bins == k).sum()) for k in np.unique(bins).tolist()}
    assert sorted(int(text.get_text()) for text in below.texts) == sorted(counts.values())
    assert heights == pytest.approx({k: right[bins == k].mean() for k in counts})
    assert (above.get_ylabel(), below.get_ylabel()) == ("share that is right", "images")
