"""The learning-rate schedule: linear warm-up, then a cosine to zero, counted in steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from toolkit.plan import Recipe


def warmup_cosine(step: int, *, total_steps: float, warmup_steps: int) -> float:
    """Return the factor on every group's rate at `step` (0-based).

    Rises from 1/(warmup_steps + 1) to 1 over the warm-up, then follows half a cosine that would reach 0 at
    `total_steps` (Loshchilov & Hutter 2017; warm-up: Goyal et al. 2017).
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def rate_factors(
    recipe: Recipe, depths: Sequence[int], total_steps: float, steps_an_epoch: float
) -> list[Callable[[int], float]]:
    """Return, for parameter groups of these depths, what multiplies their rate at each step.

    All follow one curve, so that their ratios stay; of steps without end it is 1. With `unfreeze`, a group of depth d
    has rate 0, which moves it by nothing, for its first d · unfreeze epochs.
    """
    warmup_steps = round(total_steps * recipe.warmup) if math.isfinite(total_steps) else 0
    curve = partial(warmup_cosine, total_steps=total_steps, warmup_steps=warmup_steps)

    def factor(step: int, begins: int) -> float:
        return curve(step) if step >= begins else 0.0

    waits = steps_an_epoch if recipe.unfreeze else 0
    return [partial(factor, begins=round(depth * recipe.unfreeze * waits)) for depth in depths]
