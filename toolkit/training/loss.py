"""The loss of a batch, or of a part of it: cross-entropy, of a blend by both labels."""

from __future__ import annotations

from contextlib import nullcontext

import torch.nn.functional as F
from torch import Tensor

from toolkit.training.blend import Blend, taken
from toolkit.training.network import TransferNetwork


def loss_and_hits(
    network: TransferNetwork, whole: Blend, labels: Tensor, part: slice, *, smoothing: float, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the share that a part of a batch has in its mean loss, and hits; of a blend both labels are right, each
    as far as its image is in it.

    labels: int64 (N,), of the whole batch. smoothing: of labels. weights: float (C,) of the classes, or None. A part
    of one image is normalised by running statistics: it has no variance of its own.
    """
    inputs, own, kept = taken(whole.inputs, part), labels[part], whole.kept
    with network.fixed_statistics() if len(own) == 1 else nullcontext():
        scores = network(inputs)
    of = None if len(own) == len(labels) else labels
    loss, guesses = _cross_entropy(scores, own, of, smoothing, weights), scores.argmax(dim=1)
    hits = (guesses == own).sum()
    if kept < 1:
        partners = labels[whole.partners.to(labels.device)]
        theirs = _cross_entropy(scores, partners[part], None if of is None else partners, smoothing, weights)
        loss = kept * loss + (1 - kept) * theirs
        hits = kept * hits + (1 - kept) * (guesses == partners[part]).sum()
    return loss, hits


def _cross_entropy(
    scores: Tensor, labels: Tensor, of: Tensor | None, smoothing: float, weights: Tensor | None
) -> Tensor:
    """Return the mean loss, or what these images add to the mean over a whole batch with the labels `of`."""
    if of is None:
        return F.cross_entropy(scores.float(), labels, weight=weights, label_smoothing=smoothing)
    loss = F.cross_entropy(scores.float(), labels, weight=weights, label_smoothing=smoothing, reduction="sum")
    return loss / (len(of) if weights is None else weights[of].sum())
