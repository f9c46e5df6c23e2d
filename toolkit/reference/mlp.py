"""The multilayer perceptron: fully connected layers with an activation between them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from toolkit.reference.activations import ACTIVATIONS, Maxout
from toolkit.reference.batchnorm import BatchNorm
from toolkit.reference.dropout import InvertedDropout
from toolkit.reference.linear import Linear


class MLP(nn.Module):
    """A net (…, sizes[0]) → (…, sizes[-1]) of fully connected layers; the sizes between are those of the hidden layers.

    A hidden layer is linear → batchnorm → activation → dropout, the last layer linear alone: its outputs are scores.
    `layers` is flat, so its state dict (`layers.0.weight` …) fits an nn.Sequential of torch.nn's layers in this order;
    without batchnorm, or with keep_prob 1, those modules are not there.

    activation: a name of ACTIVATIONS, or "maxout" (two linear maps a unit, in place of linear and activation).
    init: a name of INITIALIZERS, for every linear layer, drawn from `generator` in order. batchnorm: takes (N, D) only.
    keep_prob: the chance that a hidden unit stays, 1 − p_drop.
    Raises ValueError for fewer than two sizes, sizes < 1, an unknown name, maxout with batchnorm (the notes'
    normalisation stands between the two) and a keep_prob outside 0 < … ≤ 1.
    Source: notes: Neural Network, Architectures; its 3-layer network is

    >>> net = MLP((3, 4, 4, 1), activation="sigmoid")
    >>> net(torch.randn(10, 3)).shape, sum(p.numel() for p in net.parameters())
    (torch.Size([10, 1]), 41)
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        activation: str = "relu",
        init: str = "he",
        batchnorm: bool = False,
        keep_prob: float = 1.0,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_settings(sizes, activation, batchnorm, keep_prob)
        layers: list[nn.Module] = []
        *hidden, (last_in, last_out) = pairwise(sizes)
        for n_in, n_out in hidden:
            if activation == "maxout":
                layers.append(Maxout(n_in, n_out, init=init, generator=generator, dtype=dtype))
            else:
                layers.append(Linear(n_in, n_out, init=init, generator=generator, dtype=dtype))
                if batchnorm:
                    layers.append(BatchNorm(n_out, dtype=dtype))
                layers.append(ACTIVATIONS[activation]())
            if keep_prob < 1:
                layers.append(InvertedDropout(keep_prob))
        layers.append(Linear(last_in, last_out, init=init, generator=generator, dtype=dtype))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores (…, sizes[-1]) of x (…, sizes[0])."""
        scores: Tensor = self.layers(x)
        return scores


def _check_settings(sizes: Sequence[int], activation: str, batchnorm: bool, keep_prob: float) -> None:
    if len(sizes) < 2:
        raise ValueError(f"expected at least two sizes, input and output, got {tuple(sizes)}")
    if activation not in ACTIVATIONS and activation != "maxout":
        raise ValueError(f"expected activation to be one of {', '.join(ACTIVATIONS)}, maxout, got {activation!r}")
    if activation == "maxout" and batchnorm:
        raise ValueError("expected batchnorm=False with activation='maxout', got batchnorm=True")
    if not 0 < keep_prob <= 1:
        raise ValueError(f"expected 0 < keep_prob ≤ 1, got {keep_prob}")
