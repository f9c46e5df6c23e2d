"""A run that loses what it began with is stopped, instead of trained to its end."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from toolkit.errors import ToolkitError
from toolkit.training.mixing import State, load_state, trained_state

FIRST_IMAGES = 64  # that say what the start was worth; warm-up keeps the steps between them small
WINDOW_IMAGES = 128  # over which the accuracy of the moment is averaged
KEPT = 0.5  # of the skill of the start; a run that recovers does not lose so much
LEAST_SKILL = 0.2  # of a start that has something to lose


class CollapsedError(ToolkitError):
    """Training lost what its starting weights knew: the rate was too high."""


class CollapseGuard(Callback):
    """Raises CollapsedError where training loses half of what the start could do.

    What it can do is its skill on training batches, (accuracy − 1/C) / (1 − 1/C): 0 for guessing among C classes, 1
    for perfection. The last WINDOW_IMAGES (or the few more that make whole batches) are held against the FIRST_IMAGES.
    Those may have been easier, clean views that the head was made of; so where the skill seems lost, the starting
    weights are asked about the next FIRST_IMAGES as well, and only what they still know is lost. A start with less than
    LEAST_SKILL has nothing to lose.

    start: of `trained_state`; None to ask nobody.
    """

    def __init__(self, n_classes: int, start: State | None = None) -> None:
        self.guessing = 1 / n_classes
        self.start = start
        self._first: list[tuple[float, float]] = []
        self._last: deque[tuple[float, float]] = deque()
        self._asked: list[tuple[float, float, float]] = []  # hits of the start, hits now, size

    def state_dict(self) -> dict[str, Any]:
        """Return the hits and sizes of the first and the last batches, and of those that the start was asked about."""
        return {
            "first": [list(pair) for pair in self._first],
            "last": [list(pair) for pair in self._last],
            "asked": [list(three) for three in self._asked],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._first = [(hits, size) for hits, size in state_dict["first"]]
        self._last = deque(((hits, size) for hits, size in state_dict["last"]))
        self._asked = [(then, now, size) for then, now, size in state_dict["asked"]]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at a batch's loss and hits."""
        pair = (float(outputs["hits"]), float(outputs["size"]))
        if _images(self._first) < FIRST_IMAGES:
            self._first.append(pair)
            return
        self._last.append(pair)
        while _images(self._last) - self._last[0][1] >= WINDOW_IMAGES:
            self._last.popleft()
        if _images(self._last) < WINDOW_IMAGES:
            return
        start, now = self._skill(self._first), self._skill(self._last)
        if not (start > LEAST_SKILL and now < KEPT * start):
            self._asked.clear()
            return
        if self.start is not None:
            self._asked.append(self._ask(pl_module, batch, self.start))
            if sum(size for *_, size in self._asked) < FIRST_IMAGES:
                return
            self._first = [(then, size) for then, _, size in self._asked]  # what the start is worth on such batches
            start, now = self._skill(self._first), self._skill((hits, size) for _, hits, size in self._asked)
            self._asked.clear()
            if not (start > LEAST_SKILL and now < KEPT * start):
                return
        fell = f"from {self._accuracy(start):.2f} to {self._accuracy(now):.2f}"
        raise CollapsedError(f"the training accuracy fell {fell} by step {trainer.global_step}")

    @staticmethod
    def _ask(module: LightningModule, batch: Any, start: State) -> tuple[float, float, float]:
        """Return how many images of a batch the starting weights are right about, those of now, and how many it has."""
        network: Any = module.network
        inputs, labels = batch
        latest = trained_state(network)
        mode = network.training
        hits = []
        with torch.no_grad():
            for state in (start, latest):
                load_state(network.eval(), state)
                hits.append(float((network(inputs).argmax(dim=1) == labels).sum()))
        network.train(mode)
        return hits[0], hits[1], float(len(labels))

    def _skill(self, batches: Iterable[tuple[float, float]]) -> float:
        hits, sizes = (sum(column) for column in zip(*batches, strict=True))
        return float((hits / max(sizes, 1.0) - self.guessing) / max(1e-9, 1 - self.guessing))

    def _accuracy(self, skill: float) -> float:
        return self.guessing + skill * (1 - self.guessing)


def _images(batches: Iterable[tuple[float, float]]) -> float:
    return sum(size for _, size in batches)
