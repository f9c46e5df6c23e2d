"""The moving average of the weights that training goes through."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """Keeps the exponential moving average of parameters in them, and their latest values aside.

    Whoever looks at the parameters between steps sees the average: validation, checkpoints, what is saved in the end.
    `learn` puts the latest values in their place for forward and backward passes and a step, `rest` ends that. Where a
    step is made of several batches, `show` lets somebody look at the average between them. After step t the average
    moves by 1 − min(decay, (1 + t) / (10 + t)) towards the latest values, so that the first steps are soon forgotten
    (Polyak & Juditsky 1992; the rule is TensorFlow's).
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self._parameters = list(parameters)
        self._aside = [p.detach().clone() for p in self._parameters]  # the latest values, or while learning the average
        self._learns = False

    def learn(self) -> None:
        """Put the latest values into the parameters, if they are not there."""
        if not self._learns:
            self._exchange()

    def show(self) -> None:
        """Put the average into the parameters, if it is not there."""
        if self._learns:
            self._exchange()

    def rest(self) -> None:
        """Move the average towards the latest values, once a step was done, and put it into the parameters."""
        self.show()
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            torch._foreach_lerp_([p.data for p in self._parameters], self._aside, 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs beside the average, see `put_into`."""
        latest = [p.detach() for p in self._parameters] if self._learns else self._aside
        return {"steps": self.steps, "latest": latest}

    def put_into(self, state: dict[str, Any], module: nn.Module) -> None:
        """Put the average into the state dict of a module that the parameters belong to, wherever it is now."""
        values = self._aside if self._learns else [p.detach() for p in self._parameters]
        averages = dict(zip(self._parameters, values, strict=True))
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if name in state and parameter in averages:
                state[name] = averages[parameter]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`; the parameters hold their average already."""
        self.steps = state["steps"]
        for mine, given in zip(self._aside, state["latest"], strict=True):
            mine.copy_(given)

    def _exchange(self) -> None:
        values: list[Tensor] = [p.data for p in self._parameters]
        for parameter, other in zip(self._parameters, self._aside, strict=True):
            parameter.data = other
        self._aside = values
        self._learns = not self._learns
