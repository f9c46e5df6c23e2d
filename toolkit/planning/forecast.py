"""What a plan will take and reach: predictions for a person, on which no decision rests."""

from __future__ import annotations

import math

from toolkit.plan import TransferPlan
from toolkit.planning.probes import Probe

GAIN_ERROR = 0.02  # of accuracy: how far expected gains were off, on data sets left out (scripts/bench/regret)
TRIAL = 0.8  # of the training images, the rest judges
REFIT_UP_TO = 5_000  # training images; above, the trial is the training: what judged is left out for good
RATE_TEST_STEPS = 76  # of a range test, whose looks cost about as much again
# Steps of a rehearsal of a rate at most. Fewer tell less: in a quarter of its steps `full` on 1,000 garments loses what
# it wins back later, so that the smallest rate looked best; 100 of 125 found rates within a point
# (scripts/bench/range_test).
REHEARSALS, REHEARSED_STEPS = 4, 100


def seconds(
    plan: TransferPlan, extraction_s: float, image_s: float, *, judged: bool, finds_rate: bool = False
) -> float:
    """Return the seconds until a plan is carried out: extraction, trials, and the training.

    image_s: of training on one image, tried out on the machine. judged: whether a trial decides what is kept.
    finds_rate: whether a range test and rehearsals look for the rate first.
    """
    if plan.recipe is None or plan.epochs is None:
        return extraction_s
    images: float = plan.facts["n_train"] + plan.facts["n_val"] / 3  # what only validates goes forward alone
    n_images = trainings(plan, judged=judged) * plan.epochs * images
    if finds_rate:
        parts = max(1, min(3, round(1_500 / max(1, plan.facts["n_train"]))))
        rehearsed = min(REHEARSED_STEPS * plan.recipe.batch_size, plan.epochs * images)
        n_images += 1.5 * RATE_TEST_STEPS * plan.recipe.batch_size
        n_images += 0.0 if plan.strategy == "scratch" else REHEARSALS * parts * rehearsed
    return extraction_s + n_images * image_s


def trainings(plan: TransferPlan, *, judged: bool) -> float:
    """Return how many trainings on all images a plan comes to: one trial without a fifth, and the one that is kept."""
    if not judged:
        return 1.0
    return TRIAL if plan.facts["n_train"] > REFIT_UP_TO else 1.0 + TRIAL


def accuracy_range(head: Probe, gain: float, n_val: int) -> tuple[float, float]:
    """Return what 95 of 100 validation accuracies should lie between: about the head's own estimate and the gain that
    is expected, by the errors of both and of n_val images."""
    middle = min(1.0, max(0.0, head.accuracy + gain))
    error = math.sqrt(_variance(head.accuracy, head.n) + _variance(middle, n_val) + (GAIN_ERROR**2 if gain else 0.0))
    return max(0.0, middle - 1.96 * error), min(1.0, middle + 1.96 * error)


def _variance(share: float, n: int) -> float:
    """Return the variance of a share of n images, as if one more were right and one more wrong: few that are all right
    do not say that all ever will be."""
    smoothed = (share * n + 1) / (n + 2)
    return smoothed * (1 - smoothed) / (n + 2)
