"""What the rows of a history are called: pure, each sentence with its numbers."""

from __future__ import annotations

from typing import Any

import pytest

from toolkit.training.diagnosis import GAP, diagnose, in_short, standard_error


def rows(train: list[float], val: list[float], train_loss: list[float], val_loss: list[float]) -> list[dict[str, Any]]:
    columns = zip(train, val, train_loss, val_loss, strict=True)
    return [
        {"epoch": float(n), "train_accuracy": a, "val_accuracy": b, "train_loss": c, "val_loss": d}
        for n, (a, b, c, d) in enumerate(columns, 1)
    ]


OVERFIT = rows([0.7, 0.9, 0.97, 0.99], [0.7, 0.78, 0.8, 0.79], [0.8, 0.3, 0.1, 0.05], [0.8, 0.65, 0.6, 0.75])
LEVEL = rows([0.7, 0.79, 0.8, 0.81], [0.71, 0.8, 0.81, 0.81], [0.8, 0.6, 0.55, 0.54], [0.8, 0.6, 0.56, 0.555])
FALLING = rows([0.3, 0.4, 0.5, 0.6], [0.3, 0.4, 0.5, 0.6], [2.0, 1.7, 1.4, 1.1], [2.0, 1.7, 1.4, 1.1])
FLAT = rows([0.6] * 8, [0.6] * 8, [1.0, 0.99, 0.99, 0.99, 0.99, 0.99, 0.99, 0.99], [1.0] * 8)


def test_a_gap_is_overfitting_and_names_what_to_raise() -> None:
    text = diagnose(OVERFIT, n_val=1000)
    assert text.startswith("Overfitting: at epoch 4 training accuracy is 0.990 and validation accuracy 0.790, a gap of")
    assert "a gap of 0.200" in text and "has risen by 25% since its lowest, 0.600 at epoch 3" in text
    assert "at epoch 3 training accuracy is 0.970 and" in diagnose(OVERFIT, n_val=1000, keeps_best=True)
    for key in ("weight_decay", "augment", "views", "mixup", "drop_path", "label_smoothing", "fewer stages"):
        assert key in text
    assert "capacity" not in text and "more epochs" not in text


def test_no_gap_is_room_for_capacity() -> None:
    text = diagnose(LEVEL, n_val=1000)
    assert text.startswith("No gap: ") and "training accuracy is 0.810 and validation accuracy 0.810" in text
    assert "room for capacity" in text and "partial or full" in text and "image_size" in text
    assert "Overfitting" not in text


def test_a_gap_below_zero_is_normal_where_images_are_augmented_or_blended() -> None:
    below = rows([0.5, 0.55, 0.6], [0.7, 0.75, 0.8], [1.0, 0.9, 0.8], [0.8, 0.7, 0.69])
    assert "(of augmented views)" in diagnose(below) and "(of blended images)" in diagnose(below, blended=True)
    assert "Overfitting" not in diagnose(below, blended=True)


def test_where_everything_is_right_there_is_little_left_to_win() -> None:
    done = rows([0.99, 1.0, 1.0], [0.99, 0.995, 1.0], [0.1, 0.05, 0.04], [0.1, 0.05, 0.049])
    assert "little left to win" in diagnose(done, n_val=359) and "capacity" not in diagnose(done, n_val=359)


def test_still_falling_wants_more_epochs_and_a_plateau_a_smaller_rate() -> None:
    falling = diagnose(FALLING, n_val=1000)
    assert "Still falling: validation loss 1.400 to 1.100 in the last 1 epoch; take more epochs." in falling
    assert "plateau" not in falling
    flat = diagnose(FLAT, n_val=1000)
    assert "A plateau since epoch 1 of 8: validation loss 1.000 there and 1.000 at the end" in flat
    assert "a smaller lr may go further" in flat and "more epochs" not in flat
    assert "Still" not in diagnose(FALLING[:2]) and "plateau" not in diagnose(FLAT[:2]), "two epochs have no course"


def test_too_few_images_tell_nothing() -> None:
    assert standard_error(0.8, 20) > 0.08 > 0.03 > standard_error(0.8, 200)
    some = rows([0.85] * 3, [0.8] * 3, [0.5] * 3, [0.6] * 3)
    assert diagnose(some, n_val=20).startswith("Too few validation images to tell much: of 20 the accuracy 0.800")
    glaring = rows([0.9, 1.0, 1.0], [0.4] * 3, [0.5, 0.1, 0.01], [1.5, 2.5, 4.3])
    assert diagnose(glaring, n_val=20).startswith("Overfitting: at epoch 3"), "a gap of six standard errors"
    assert 0 < standard_error(1.0, 10) < 0.1
    small = rows([0.88] * 3, [0.8] * 3, [0.5] * 3, [0.6] * 3)
    assert diagnose(small, n_val=80).startswith("A gap of 0.080 that may be chance")
    assert diagnose(small, n_val=8000).startswith("Overfitting")


def test_a_loss_that_rises_again_is_overfitting_even_without_a_gap() -> None:
    rising = rows([0.8, 0.8, 0.8], [0.8, 0.8, 0.8], [0.6, 0.5, 0.4], [0.6, 0.7, 0.9])
    text = diagnose(rising, n_val=1000)
    assert (
        text.startswith("Overfitting: the validation loss rose by 50% since its lowest, 0.600 at epoch 1; ")
        and "patience" in text
    )


def test_the_gap_is_that_of_the_weights_that_are_kept() -> None:
    """Right on all its own images at the end, and on 0.9 of others: no room for capacity, whatever was best before."""
    late = rows([0.9, 0.96, 1.0], [0.88, 0.9, 0.9], [0.4, 0.2, 0.05], [0.4, 0.36, 0.375])
    assert diagnose(late, n_val=1000).startswith("Overfitting: at epoch 3 training accuracy is 1.000")
    early = rows([0.9, 0.92, 1.0], [0.88, 0.9, 0.9], [0.4, 0.2, 0.05], [0.4, 0.36, 0.375])
    assert diagnose(early, n_val=1000, keeps_best=True).startswith("No gap: at epoch 2 training accuracy is 0.920")


def test_the_start_is_what_has_to_be_beaten() -> None:
    start = {"epoch": 0.0, "train_loss": None, "val_loss": 0.4, "val_accuracy": 0.9}
    assert "Nothing was won over the start: its validation loss is 0.400" in diagnose([start, *OVERFIT], n_val=1000)
    assert "Nothing was won" not in diagnose([{**start, "val_loss": 2.0}, *OVERFIT], n_val=1000)


def test_with_patience_the_start_may_be_what_is_kept() -> None:
    start = {"epoch": 0.0, "train_loss": None, "val_loss": 0.4, "val_accuracy": 0.9}
    text = diagnose([start, *OVERFIT], n_val=1000, keeps_best=True)
    assert text.startswith("Nothing was won over the start") and text.endswith(" Its weights are kept.")
    assert "Overfitting" not in text and "epoch 3" not in text


def test_patience_has_waited_for_the_rise_that_it_did_not_keep() -> None:
    some = rows([0.8, 0.81, 0.83, 0.84], [0.8, 0.8, 0.8, 0.8], [0.5, 0.45, 0.44, 0.43], [0.5, 0.4, 0.5, 0.6])
    assert "Overfitting" in diagnose(some, n_val=1000)
    assert "Overfitting" not in diagnose(some, n_val=1000, keeps_best=True)


def test_a_training_loss_that_rises_is_the_rate_and_not_overfitting() -> None:
    wild = rows([0.85, 0.5, 0.35], [0.85, 0.5, 0.35], [0.4, 1.4, 2.2], [0.4, 1.5, 2.3])
    text = diagnose(wild, n_val=1000)
    assert text.startswith("Diverging: the training loss rose from 0.400 at epoch 1 to 2.200; take a smaller lr.")
    assert "Overfitting" not in text and "weight_decay" not in text


def test_a_rise_of_next_to_nothing_is_none() -> None:
    tiny = rows([1.0] * 3, [1.0] * 3, [0.001] * 3, [8e-4, 9e-4, 1.1e-3])
    assert "Overfitting" not in diagnose(tiny, n_val=1000)


def test_where_nothing_moves_a_smaller_rate_is_no_advice() -> None:
    start = {"epoch": 0.0, "train_loss": None, "val_loss": 0.566, "val_accuracy": 0.8}
    still = rows([0.8] * 4, [0.8] * 4, [0.5] * 4, [0.566, 0.566, 0.565, 0.565])
    text = diagnose([start, *still], n_val=1000)
    assert "Hardly anything was learned: validation loss 0.566 at the start and 0.565" in text
    assert "a larger lr may" in text and "smaller lr" not in text


def test_images_of_a_trial_are_called_by_their_name() -> None:
    some = rows([0.85] * 3, [0.8] * 3, [0.5] * 3, [0.6] * 3)
    text = diagnose(some, n_val=20, judged_by="held-out")
    assert text.startswith("Too few held-out images to tell much: of 20") and "validation" not in text


def test_rows_with_holes() -> None:
    assert diagnose([]) == "" and diagnose([{"epoch": 0.0, "val_loss": 1.0}]) == ""
    bare = [{"epoch": 1.0, "train_loss": 1.0, "val_loss": None}, {"epoch": 2.0, "train_loss": 0.5}]
    assert diagnose(bare) == (
        "No validation images, so nothing tells learning from learning by heart: training loss 1.000 to 0.500 in 2 "
        "epochs."
    )
    assert diagnose([{**row, "val_loss": float("nan")} for row in OVERFIT]).startswith("No validation images")
    assert "nan" not in diagnose([*OVERFIT, {"epoch": 5.0, "train_loss": float("nan"), "val_loss": 0.9}])


@pytest.mark.parametrize("some", [OVERFIT, LEVEL, FALLING, FLAT])
def test_it_is_pure_and_without_line_breaks(some: list[dict[str, Any]]) -> None:
    before = [dict(row) for row in some]
    assert diagnose(some) == diagnose(some) and some == before
    assert "\n" not in diagnose(some) and diagnose(some).endswith(".")


def test_the_short_form() -> None:
    assert in_short(OVERFIT[2]) == "gap +0.170"
    assert in_short({**OVERFIT[2], "train_accuracy": 0.8 + GAP / 2}) == "gap +0.025"
    assert in_short({"epoch": 0, "val_accuracy": 0.3}) == ""
