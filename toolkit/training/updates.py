"""How far a step moves the weights, held against their size."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

SAMPLES = 5  # steps of an epoch that are measured
ENDLESS = 500  # batches that count as an epoch where nobody knows how long one is


class UpdateRatios:
    """‖Δw‖ / ‖w‖ of the weights of each part, in a few steps of an epoch.

    notes: Babysitting the learning process: about 1e-3 is healthy for a network that learns from nothing; a pretrained
    stage should move less.
    """

    def __init__(self, found: Mapping[str, list[float]] | None = None) -> None:
        self._found = {name: list(values) for name, values in (found or {}).items()}

    @contextmanager
    def watching(self, groups: list[dict[str, Any]], trainer: Trainer) -> Iterator[None]:
        """Measure the step in the block, if it is one of the epoch's samples."""
        n_batches = min(trainer.num_training_batches, ENDLESS)
        every = max(1, int(n_batches) // trainer.accumulate_grad_batches // SAMPLES)
        if trainer.global_step % every:
            yield
            return
        watched = [group for group in groups if group.get("kind") == "weights"]
        before = [torch._foreach_mul([p.detach() for p in group["params"]], 1.0) for group in watched]
        yield
        for group, old in zip(watched, before, strict=True):
            moved = torch._foreach_sub([p.detach() for p in group["params"]], old)
            sizes = [torch.stack(torch._foreach_norm(list(some))).norm() for some in (moved, old)]
            ratio = float(sizes[0] / sizes[1].clamp_min(1e-30))
            self._found.setdefault(group["name"], []).append(ratio)

    def take(self) -> dict[str, float]:
        """Return the median of each part since the last call, and begin anew."""
        medians = {f"update_{name.replace(' ', '_')}": statistics.median(v) for name, v in self._found.items()}
        self._found = {}
        return medians

    def state_dict(self) -> dict[str, list[float]]:
        """Return what was measured since the last `take`."""
        return {name: list(values) for name, values in self._found.items()}


class GradientNorms:
    """The norm of the whole gradient at each step of an epoch, before it is clipped.

    Of an epoch the median is told: its largest is that of an odd batch, which the clip takes care of, and the median
    says how much of the steps the clip shortens.
    """

    def __init__(self, found: Iterable[float] | None = None) -> None:
        self._found = list(found or ())

    def note(self, norm: float) -> None:
        """Add a step's; one that is no number, which mixed precision skips, does not count."""
        if math.isfinite(norm):
            self._found.append(norm)

    def take(self) -> dict[str, float]:
        """Return the median since the last call, and begin anew."""
        median = {"gradient_norm": statistics.median(self._found)} if self._found else {}
        self._found = []
        return median

    def state_dict(self) -> list[float]:
        """Return what was noted since the last `take`."""
        return list(self._found)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> float:
    """Return the L2 norm of all gradients together; inf or nan where one is."""
    gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
