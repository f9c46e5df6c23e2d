"""Steps of training that are only tried out: taken without a Trainer, and everything put back afterwards."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from toolkit.features.prefix import Activations
from toolkit.hardware import autocast
from toolkit.training.checkpoints import random_state, set_random_state
from toolkit.training.module import TransferModule

Labelled = tuple[Tensor | Activations, Tensor]


def learn(
    module: TransferModule,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Labelled],
    precision: str,
    clip: float | None,
) -> float | None:
    """Take a step of `optimizer` on one or more labelled batches, and return their mean loss before it; None, and no
    step, where one is no number."""
    optimizer.zero_grad()
    total = 0.0
    for inputs, labels in batches:
        with autocast(precision, labels.device):
            loss = module.batch_loss(inputs, labels) / len(batches)
        if not bool(loss.isfinite()):
            return None
        torch.autograd.backward(loss)
        total += float(loss.detach())
    if clip is not None:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
    optimizer.step()
    return total


@contextmanager
def as_it_was(module: TransferModule, optimizer: torch.optim.Optimizer | None) -> Iterator[None]:
    """Put back at the end whatever a training changes."""
    network = module.network
    parts: list[nn.Module] = [*network.stages[network.spec.cut :], network.head]
    tensors = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
    values = [tensor.detach().clone() for tensor in tensors]
    gradients = [tensor.grad for tensor in tensors]
    for tensor in tensors:
        tensor.grad = None
    modes = [(part, part.training) for part in module.modules()]
    state = None if optimizer is None else copy.deepcopy(optimizer.state_dict())
    drawn = random_state()
    try:
        yield
    finally:
        set_random_state(drawn)
        with torch.no_grad():
            for tensor, value, gradient in zip(tensors, values, gradients, strict=True):
                tensor.copy_(value)
                tensor.grad = gradient
        for part, mode in modes:
            part.training = mode
        if optimizer is not None and state is not None:
            optimizer.load_state_dict(state)
