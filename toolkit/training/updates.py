"""How far a step moves the weights, held against their size."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer

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
