"""Dropout at test time: several passes with units dropped, whose disagreement says how sure a model is.

Gal and Ghahramani 2016, "Dropout as a Bayesian Approximation".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from toolkit.errors import SettingError

DROPOUTS: tuple[type[nn.Module], ...] = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
SEED = 0


def dropout_layers(module: nn.Module) -> list[nn.Module]:
    """Return the layers below a module that drop units in training: torch's, or with a `keep_prob` below 1."""
    return [layer for layer in module.modules() if _share(layer) > 0]


def _share(layer: nn.Module) -> float:
    share: float = getattr(layer, "p", 0.0) if isinstance(layer, DROPOUTS) else 1 - getattr(layer, "keep_prob", 1.0)
    return share


def sampled_logits(
    layers: Sequence[nn.Module], scores_of: Callable[[int], Tensor], n_images: int, device: torch.device
) -> Tensor:
    """Return float32 (K, N, C) on the CPU, the scores of N images in K passes in which `layers` drop units.

    scores_of: image number → (K, C), the scores of K copies of it. The masks begin anew with every image, so all
    images meet the same K thinned networks, and an image's scores do not depend on its company. The global random
    state stays as it is. Raises SettingError where there is no dropout.
    """
    if not layers:
        raise SettingError(
            "mc: nothing that was trained in this model has dropout; toolkit baseline … --dropout 0.5 makes one"
        )
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), _dropping(layers), torch.inference_mode():
        found = []
        for image in range(n_images):
            torch.manual_seed(SEED)
            found.append(scores_of(image).float().cpu())
    return torch.stack(found, dim=1)


@contextmanager
def _dropping(layers: Sequence[nn.Module]) -> Iterator[None]:
    modes = [layer.training for layer in layers]
    try:
        for layer in layers:
            layer.training = True
        yield
    finally:
        for layer, mode in zip(layers, modes, strict=True):
            layer.training = mode
