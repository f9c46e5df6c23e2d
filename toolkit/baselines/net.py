"""The net of a baseline, from our own layers or torch's: equal names, equal first weights, equal training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import SettingError, unknown_name
from toolkit.reference.batchnorm import BatchNorm
from toolkit.reference.mlp import MLP

TORCH_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "identity": nn.Identity,
}
LAYERS = ("torch", "reference")
PIECES = 2  # linear maps of a maxout unit
BATCH_NORMS = (nn.BatchNorm1d, BatchNorm)
LEAST_SPREAD = 1e-6  # numbers that hardly vary over the training images are not blown up


@dataclass(frozen=True)
class NetSpec:
    """A fully connected net: its sizes from input to scores, and what is between them.

    hidden: sizes of the hidden layers; none for a linear classifier. activation, init: names of toolkit.reference.
    dropout: the share of hidden units that is dropped.
    """

    n_inputs: int
    n_classes: int
    hidden: tuple[int, ...] = ()
    activation: str = "relu"
    init: str = "he"
    batchnorm: bool = False
    dropout: float = 0.0
    layers: str = "torch"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "hidden": list(self.hidden)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NetSpec:
        """Rebuild from `to_dict`'s values."""
        return cls(**{**values, "hidden": tuple(values["hidden"])})


class TorchMaxout(nn.Module):
    """toolkit.reference's Maxout from torch's layers."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, PIECES * out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Return the larger of each unit's linear maps."""
        maps: Tensor = self.linear(x)
        return maps.reshape(*maps.shape[:-1], PIECES, -1).amax(-2)


class TorchNet(nn.Module):
    """toolkit.reference's MLP from torch's layers, with the same names."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        *hidden, (last_in, last_out) = pairwise(_sizes(spec))
        for n_in, n_out in hidden:
            if spec.activation == "maxout":
                layers.append(TorchMaxout(n_in, n_out))
            else:
                norm = [nn.BatchNorm1d(n_out)] if spec.batchnorm else []
                layers += [nn.Linear(n_in, n_out), *norm, TORCH_ACTIVATIONS[spec.activation]()]
            if spec.dropout:
                layers.append(nn.Dropout(spec.dropout))
        self.layers = nn.Sequential(*layers, nn.Linear(last_in, last_out))

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores (N, C)."""
        scores: Tensor = self.layers(x)
        return scores


def build_net(spec: NetSpec, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return the net; its first weights are drawn by toolkit.reference, in float64, whatever layers it is made of.

    Raises SettingError for what toolkit.reference refuses.
    """
    if spec.layers not in LAYERS:
        raise unknown_name("layers", spec.layers, LAYERS)
    try:
        ours = MLP(
            _sizes(spec),
            activation=spec.activation,
            init=spec.init,
            batchnorm=spec.batchnorm,
            keep_prob=1 - spec.dropout,
            generator=torch.Generator().manual_seed(seed),
            dtype=torch.float64,
        )
    except ValueError as error:
        raise SettingError(f"net: {error}") from error
    if spec.layers == "reference":
        return ours.to(dtype)
    with torch.random.fork_rng(devices=[]):  # torch's layers draw weights of their own, which are not kept
        net = TorchNet(spec).double()
    net.load_state_dict(ours.state_dict())
    return net.to(dtype)


def _sizes(spec: NetSpec) -> Sequence[int]:
    return (spec.n_inputs, *spec.hidden, spec.n_classes)


class CentredNet(nn.Module):
    """Rows (N, D), uint8 or float → scores (N, C): (x − mean) / scale by the training images, then the net.

    mean, scale: (D,); numbers that hardly vary over the training images are centred only.
    """

    mean: Tensor
    factor: Tensor

    def __init__(
        self,
        spec: NetSpec,
        mean: Tensor | None = None,
        scale: Tensor | None = None,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.net = build_net(spec, seed=seed, dtype=dtype)
        ones = torch.ones(spec.n_inputs, dtype=torch.float64)
        scale = ones if scale is None else torch.where(scale > LEAST_SPREAD, scale, ones)
        self.register_buffer("mean", (torch.zeros(spec.n_inputs) if mean is None else mean).to(dtype))
        self.register_buffer("factor", (1 / scale).to(dtype))

    def forward(self, rows: Tensor) -> Tensor:
        """Return the scores."""
        # In place: every tensor of this size that is made anew costs ten times the arithmetic in page faults.
        copied = rows.dtype != self.mean.dtype
        centred = rows.to(self.mean.dtype).sub_(self.mean) if copied else rows - self.mean
        scores: Tensor = self.net(centred.mul_(self.factor))
        return scores
