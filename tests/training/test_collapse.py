"""A collapse is noticed, a slow or noisy run is not taken for one, and a resume changes neither."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from toolkit.training.collapse import FIRST_IMAGES, KEPT, WINDOW_IMAGES, CollapsedError, CollapseGuard

SIZE = 8
FIRST, WINDOW = FIRST_IMAGES // SIZE, WINDOW_IMAGES // SIZE


def trainer(step):
    return SimpleNamespace(global_step=step)


def feed(guard, accuracies, loss=1.0, first=0):
    """Show the guard batches of 8 images, of which that share is right."""
    for number, accuracy in enumerate(accuracies, first):
        outputs = {"loss_sum": torch.tensor(loss), "hits": torch.tensor(accuracy * SIZE), "size": SIZE}
        guard.on_train_batch_end(trainer(number + 1), None, outputs, None, number)


def fell_at(guard, accuracies, first=0):
    """Return after which batch the guard stopped the run, None if it did not."""
    for number, accuracy in enumerate(accuracies, first):
        try:
            feed(guard, [accuracy], first=number)
        except CollapsedError:
            return number
    return None


def test_a_sudden_fall_is_noticed_within_a_window():
    good = [0.9] * (2 * WINDOW)
    at = fell_at(CollapseGuard(5), good + [0.2] * WINDOW)
    # batches of 0.9 become batches of guessing: the mean skill is below half when more than half of the window are
    assert at == len(good) + WINDOW // 2


def test_a_fall_within_the_first_steps_is_noticed_too():
    assert fell_at(CollapseGuard(5), [0.9] * FIRST + [0.2] * WINDOW) == FIRST + WINDOW - 1


def test_large_batches_fill_the_window_at_once():
    guard = CollapseGuard(5)
    for number, hits in enumerate((230, 60)):
        outputs = {"loss_sum": 1.0, "hits": hits, "size": 256}
        if number == 0:
            guard.on_train_batch_end(trainer(number), None, outputs, None, number)
    with pytest.raises(CollapsedError):
        guard.on_train_batch_end(trainer(2), None, outputs, None, 1)


def test_the_error_says_what_fell_and_when():
    with pytest.raises(CollapsedError, match=r"training accuracy fell from 0\.90 to 0\.10 by step 24$"):
        feed(CollapseGuard(5), [0.9] * FIRST + [0.1] * WINDOW)


@pytest.mark.parametrize(("now", "fell"), [(0.56, False), (0.54, True)])
def test_the_bound_is_a_share_of_the_skill_of_the_start(now, fell):
    assert KEPT == 0.5  # of 0.9 above 0.1 the middle is 0.55
    assert (fell_at(CollapseGuard(10), [1.0] * WINDOW + [now] * 3 * WINDOW) is not None) == fell


def test_a_start_no_better_than_guessing_has_nothing_to_lose():
    accuracies = [0.34] * WINDOW + [0.0] * WINDOW
    assert fell_at(CollapseGuard(5), accuracies) is None
    assert fell_at(CollapseGuard(20), accuracies) is not None, "of twenty classes it is seven times guessing"


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_fall_of_a_perfect_start_to_chance_is_noticed_with_few_classes_too(n_classes):
    assert fell_at(CollapseGuard(n_classes), [1.0] * WINDOW + [1 / n_classes] * WINDOW) is not None


def test_a_slow_decline_within_bounds_goes_on():
    decline = [0.9 - 0.3 * step / 300 for step in range(300)]
    assert fell_at(CollapseGuard(5), [0.9] * WINDOW + decline) is None


def test_a_few_bad_batches_are_no_collapse():
    assert fell_at(CollapseGuard(5), ([0.9] * 15 + [0.0] * 5) * 10) is None


def test_a_window_that_is_not_full_decides_nothing():
    assert fell_at(CollapseGuard(5), [0.9] * FIRST + [0.0] * (WINDOW - 1)) is None


def test_a_batch_counts_by_its_images():
    guard = CollapseGuard(5)
    feed(guard, [0.9] * WINDOW)
    for number in range(3 * WINDOW):  # every second batch is a single image, and wrong
        size = 1 if number % 2 else SIZE
        outputs = {"loss_sum": 1.0, "hits": 0 if size == 1 else 90, "size": size}
        guard.on_train_batch_end(trainer(number), None, outputs, None, number)


def test_batches_without_an_image_are_no_collapse():
    guard = CollapseGuard(5)
    for number in range(WINDOW):
        guard.on_train_batch_end(trainer(number), None, {"loss_sum": 0.0, "hits": 0, "size": 0}, None, number)
    assert fell_at(guard, [0.9] * WINDOW) is None


@pytest.mark.parametrize("stop", [7, WINDOW, WINDOW + 3])
def test_a_resume_in_mid_window_decides_the_same(stop):
    accuracies = [0.9] * 10 + [0.5] * 20 + [0.4] * 20 + [0.0] * WINDOW
    whole = fell_at(CollapseGuard(5), accuracies)
    before, after = CollapseGuard(5), CollapseGuard(5)
    feed(before, accuracies[:stop])
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert whole is not None and stop < whole
    assert fell_at(after, accuracies[stop:], first=stop) == whole
    assert fell_at(CollapseGuard(5), accuracies[stop:], first=stop) != whole, "the state matters"


class Known:
    """A module whose network is right about so large a share of a batch; two weights: which one is in it."""

    def __init__(self, start: float, now: float) -> None:
        self.network = nn.Linear(1, 1, bias=False)
        self.shares = {0.0: start, 1.0: now}
        nn.init.ones_(self.network.weight)
        self.network.forward = lambda inputs: self.scores(inputs)

    def scores(self, inputs):
        right = round(self.shares[float(self.network.weight.detach())] * len(inputs))
        labels = torch.arange(len(inputs)) % 5
        return nn.functional.one_hot(
            torch.where(torch.arange(len(inputs)) < right, labels, (labels + 1) % 5), 5
        ).float()


@pytest.mark.parametrize(("then", "now"), [(0.9, 0.2), (0.4, 0.4), (0.9, 0.9), (0.2, 0.2)])
def test_what_the_start_knows_no_better_is_not_lost(then, now):
    """Easy first batches, then hard ones: only where the starting weights are right about those is it a collapse."""
    module = Known(then, now)
    guard = CollapseGuard(5, {"weight": torch.zeros(1, 1)})
    batch = (torch.zeros(SIZE, 1), torch.arange(SIZE) % 5)
    found = None
    for number, accuracy in enumerate([1.0] * FIRST + [now] * 4 * WINDOW):
        outputs = {"loss_sum": torch.tensor(1.0), "hits": torch.tensor(accuracy * SIZE), "size": SIZE}
        try:
            guard.on_train_batch_end(trainer(number), module, outputs, batch, number)
        except CollapsedError:
            found = number
            break
        state = CollapseGuard(5, guard.start)
        state.load_state_dict(json.loads(json.dumps(guard.state_dict())))
        guard = state  # at each step as if it were resumed
    assert (found is not None) == (then > now)
    assert float(module.network.weight.detach()) == 1.0, "the latest weights are back"
    assert found is None or found == FIRST + WINDOW + FIRST_IMAGES // SIZE - 2
