"""Learner: a network and how it would learn, as the checks of models take it; they leave it as it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOSSES = ("cross_entropy", "hinge")


@dataclass
class Learner:
    """A network, inputs (N, …) → scores (N, C), and how it would learn.

    loss: cross_entropy, or hinge (the notes' multiclass SVM, margin 1, summed over the wrong classes). lr: of Adam,
    with which it is tried on a few images. frozen: beginnings of names of parameters that must not learn. penalty: the
    regularisation term at λ = 1, a scalar; by default the sum of the squares of all weights that learn. groups: gives
    the parameter groups of a network, where they have rates of their own.
    Raises ValueError for an unknown loss.
    """

    network: nn.Module
    n_classes: int
    loss: str = "cross_entropy"
    lr: float = 1e-2
    frozen: tuple[str, ...] = ()
    penalty: Callable[[nn.Module], Tensor] | None = None
    groups: Callable[[Any], list[dict[str, Any]]] | None = None

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss: {' or '.join(LOSSES)} expected, got {self.loss!r}")

    @property
    def first_loss(self) -> float:
        """What the loss is while all scores are about equal: ln C, or C − 1."""
        return math.log(self.n_classes) if self.loss == "cross_entropy" else float(self.n_classes - 1)

    def data_loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of scores (N, C) for labels int64 (N,)."""
        if self.loss == "hinge":
            return F.multi_margin_loss(scores, labels) * scores.shape[1]
        return F.cross_entropy(scores, labels)

    def penalty_of(self, network: nn.Module) -> Tensor:
        """Return the regularisation term of a network at λ = 1."""
        if self.penalty is not None:
            return self.penalty(network)
        weights = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
        return torch.stack([weight.square().sum() for weight in weights]).sum() if weights else torch.zeros(())

    def is_frozen(self, name: str) -> bool:
        """Return whether a parameter or buffer of that name must stay as it is."""
        return name.startswith(self.frozen)

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer | None:
        """Return Adam over what learns of a network; None where nothing does."""
        learning = [p for p in network.parameters() if p.requires_grad]
        if not learning:
            return None
        return torch.optim.Adam(learning if self.groups is None else self.groups(network), lr=self.lr)

    @contextmanager
    def tried(self) -> Iterator[nn.Module]:
        """Yield the network in training mode, on which anything may be tried; afterwards it is what it was.

        Weights, buffers, gradients, modes and random state are restored. (A copy would not do: what a forward closes
        over stays the original's.)
        """
        network = self.network
        tensors = [*network.parameters(), *network.buffers()]
        values = [(tensor, tensor.detach().clone()) for tensor in tensors]
        places = [(module, dict(module._buffers)) for module in network.modules()]  # a module may put others there
        gradients = [(p, p.grad) for p in network.parameters()]
        modes = [(module, module.training) for module in network.modules()]
        devices = sorted({tensor.device.index or 0 for tensor in tensors if tensor.device.type == "cuda"})
        try:
            with torch.random.fork_rng(devices=devices), torch.enable_grad():
                torch.manual_seed(0)  # of dropout: what is found does not depend on what ran before
                network.train()
                for parameter in network.parameters():
                    parameter.grad = None
                yield network
        finally:
            for module, buffers in places:
                module._buffers.update(buffers)
            with torch.no_grad():
                for tensor, value in values:
                    if not torch.equal(tensor, value):  # what did not change keeps its version, too
                        tensor.copy_(value)
            for parameter, gradient in gradients:
                parameter.grad = gradient
            for module, training in modes:
                module.training = training


def first_of(inputs: Any, n: int) -> Any:
    """Return the first n of a batch's inputs: a tensor, or a tuple of tensors."""
    if isinstance(inputs, Tensor):
        return inputs[:n]
    parts = [None if part is None else first_of(part, n) for part in inputs]
    return type(inputs)(*parts) if hasattr(inputs, "_fields") else tuple(parts)


def tensors_of(inputs: Any) -> list[Tensor]:
    """Return the tensors of a batch's inputs: itself, or those of a tuple."""
    if isinstance(inputs, Tensor):
        return [inputs]
    return [tensor for part in inputs if part is not None for tensor in tensors_of(part)]
