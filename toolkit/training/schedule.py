"""The learning-rate schedule: linear warm-up, then a cosine to zero, counted in steps."""

from __future__ import annotations

import math


def warmup_cosine(step: int, *, total_steps: int, warmup_steps: int) -> float:
    """Return the factor on every group's rate at `step` (0-based).

    Rises from 1/(warmup_steps + 1) to 1 over the warm-up, then follows half a cosine that would reach 0 at
    `total_steps` (Loshchilov & Hutter 2017; warm-up: Goyal et al. 2017).
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
