"""Dropout at test time: several passes with units dropped, whose disagreement says how sure a model is.

Gal and Ghahramani 2016, "Dropout as a Bayesian Approximation".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from toolkit.errors import SettingError
from toolkit.features.prefix import CHUNK

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
    layers: Sequence[nn.Module],
    scores_of: Callable[[int, int], Tensor],
    n_images: int,
    passes: int,
    device: torch.device,
) -> Tensor:
    """Return float32 (K, N, C) on the CPU, the scores of N images in K passes in which `layers` drop units.

    scores_of: (image number, n) → (n, C), the scores of n copies of it; at most CHUNK at a time. The masks begin anew
    with every image, so all images meet the same K thinned networks, and an image's scores do not depend on its
    company. The global random state stays as it is. Raises SettingError where there is no dropout.
    """
    if not layers:
        raise SettingError(
            "mc: nothing that was trained in this model has dropout; toolkit baseline … --dropout 0.5 makes one"
        )
    copies = [min(CHUNK, passes - done) for done in range(0, passes, CHUNK)]
    found = []
    with _kept(_drawn_from(device)) as generator, _dropping(layers), torch.inference_mode():
        for image in range(n_images):
            generator.manual_seed(SEED)
            found.append(torch.cat([scores_of(image, n).float().cpu() for n in copies]))
    return torch.stack(found, dim=1)


def _drawn_from(device: torch.device) -> torch.Generator:
    """Return the generator that masks are drawn from; torch.manual_seed would set those of all devices."""
    if device.type == "cuda":  # which is in use already, so that its generators are there
        return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    return torch.mps._get_default_mps_generator() if device.type == "mps" else torch.default_generator


@contextmanager
def _kept(generator: torch.Generator) -> Iterator[torch.Generator]:
    state = generator.get_state()
    try:
        yield generator
    finally:
        generator.set_state(state)


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
