"""The learning-rate range test: one factor on all rates rises step by step, and images held out say what it does."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor

from toolkit.features.prefix import Activations
from toolkit.hardware import autocast, true_float32
from toolkit.training.checkpoints import random_state, set_random_state
from toolkit.training.module import TransferModule

Labelled = tuple[Tensor | Activations, Tensor]

LOW, HIGH, STEPS = 1e-3, 1e2, 75


@dataclass(frozen=True)
class RangePoint:
    multiplier: float
    train_loss: float
    held_out_loss: float


@true_float32()
def range_test(
    module: TransferModule,
    batches: Callable[[], Iterable[Labelled]],
    held_out: Sequence[Labelled],
    *,
    precision: str = "32-true",
    clip: float | None = 1.0,
    optimizer: torch.optim.Optimizer | None = None,
    low: float = LOW,
    high: float = HIGH,
    steps: int = STEPS,
) -> list[RangePoint]:
    device = module.network.normalise.mean.device
    with _kept(module, optimizer) as optimizer:
        module.train()
        rates = [group["lr"] for group in optimizer.param_groups]
        stream = endless(batches)
        points = []
        for step in range(steps):
            multiplier = low * (high / low) ** (step / (steps - 1))
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * multiplier
            inputs, labels = next(stream)
            optimizer.zero_grad()
            with autocast(precision, device):
                loss = module.batch_loss(inputs, labels)
            loss.backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], clip)
            optimizer.step()
            points.append(RangePoint(multiplier, float(loss.detach()), held_out_loss(module, held_out, precision)))
            if not math.isfinite(points[-1].held_out_loss):
                break
    return points


def endless(batches):
    for number in range(10**9):
        some = batches(number)
        yield from some


def held_out_loss(module, held_out, precision):
    import torch.nn.functional as F
    mode = [(m, m.training) for m in module.modules()]
    module.eval()
    total, n = 0.0, 0
    with torch.no_grad():
        for inputs, labels in held_out:
            total += float(F.cross_entropy(module.network(inputs).float(), labels, reduction="sum"))
            n += len(labels)
    for m, t in mode:
        m.training = t
    return total / n


@contextmanager
def _kept(module, optimizer):
    yield optimizer or module.make_optimizer()
