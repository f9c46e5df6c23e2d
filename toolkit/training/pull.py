"""Weight decay towards the weights that training began with, L2-SP.

Li et al. 2018, "Explicit inductive bias for transfer learning with convolutional networks".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Pull:
    """Pulls the weights of a network, after each step of an optimizer, towards what they were when this was made."""

    def __init__(self, network: nn.Module, weight_decay: float) -> None:
        self.weight_decay = weight_decay
        self._starts: dict[nn.Parameter, Tensor] = {
            parameter: parameter.detach().clone() for parameter in network.parameters() if parameter.requires_grad
        }

    def follow(self) -> None:
        """Go to where the parameters are now, and into their number format."""
        self._starts = {parameter: start.to(parameter) for parameter, start in self._starts.items()}

    def after_step(self, groups: list[dict[str, Any]]) -> None:
        """Move the weights of an optimizer's groups back by a share of rate times decay."""
        with torch.no_grad():
            for group in groups:
                if group["kind"] == "weights" and group["lr"]:
                    starts = [self._starts[parameter] for parameter in group["params"]]
                    torch._foreach_lerp_(group["params"], starts, min(1.0, group["lr"] * self.weight_decay))
