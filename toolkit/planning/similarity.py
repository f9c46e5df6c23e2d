"""How near a set of images is to what a network was trained on, by the statistics of its own activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.backbones.backbone import Backbone
from toolkit.backbones.normalise import Normalise

SAMPLE = 64  # images: with 16 as many sets stand in the same order, and some values are 0.1 lower
BATCH = 8
SPREAD = 10.0  # of the scale, see `Similarity`
LEAST_VARIANCE = 1e-12
NORMS, PHOTOGRAPHS = "batch norms", "photographs"


@dataclass(frozen=True)
class Similarity:
    """How near a set of images is to the images of a network's training.

    value: in (0, 1]; exp(−10 · D), D being the Bhattacharyya distance between two normal distributions, that of a
    channel's activations on the user's images and that on the network's own, averaged over channels, then layers. (The
    factor spreads the scale: D itself goes from 0.02 for photographs to 0.3 for noise.) measured_by: where the
    network's own come from: "batch norms" the running means and variances that its BatchNorm layers kept of their
    training data; "photographs" where there are none (transformers, ConvNeXt): what the outputs of its stages but the
    last are on parts of two photographs that come with scikit-learn. n: images asked.

    It says how alike images look, not what they show: photographs of things that ImageNet does not have count as near,
    and each channel is judged for itself. The ImageNet classifier is not needed. It costs one pass over 64 images.
    Sources: Bhattacharyya 1943; statistics of normalisation as a picture of a domain: Li et al. 2016, "Revisiting Batch
    Normalization For Practical Domain Adaptation".
    """

    value: float
    measured_by: str
    n: int

    def __str__(self) -> str:
        return f"{self.value:.2f}: {self.in_words()} (by {self.measured_by}, {self.n} images)"

    def in_words(self) -> str:
        """Return what the value is like."""
        return in_words(self.value)


def in_words(value: float) -> str:
    """Return what a similarity is like.

    EfficientNet-Lite0 at 224 px: flower photographs 0.82, small pictures on white 0.79, flowers in grey 0.58 and of
    32 px 0.40, Fashion-MNIST 0.26, digits 0.06, noise 0.02.
    """
    steps = ((0.7, "much like"), (0.45, "somewhat like"), (0.15, "little like"))
    words = next((words for least, words in steps if value >= least), "nothing like")
    return f"{words} what the network was trained on"


def similarity_of(backbone: Backbone, pixels: Tensor, device: torch.device) -> Similarity | None:
    """Return the Similarity of uint8 images (n, 3, S, S) to what a backbone knows; None without images, or where its
    activations are no numbers.

    The backbone's weights, statistics and modes are left as they were.
    """
    if not len(pixels):
        return None
    norms = [m for stage in backbone.stages for m in stage.modules() if _has_statistics(m)]
    seen: Sequence[tuple[Tensor, Tensor] | None]
    if norms:
        own = [_statistics(norm) for norm in norms]
        seen = _inputs_of(norms, [mean for mean, _ in own], backbone, pixels, device)
    else:
        own = _outputs_of_stages(backbone, _photographs(backbone.preprocessing.crop_px), device)
        seen = _outputs_of_stages(backbone, pixels, device)
    known = [(one, other) for one, other in zip(seen, own, strict=True) if one is not None]
    distances = [_distance(one, other) for one, other in known]
    mean = float(np.mean(distances)) if distances else math.nan
    if not math.isfinite(mean):
        return None
    return Similarity(math.exp(-SPREAD * mean), NORMS if norms else PHOTOGRAPHS, len(pixels))


class _Sums:
    """Sums of activations by channel, from which their means and variances follow."""

    def __init__(self, channels_last: bool, shift: Tensor | None = None) -> None:
        self.channels_last = channels_last
        self.shift = shift  # by channel: squares of what is far from zero would lose the variance
        self.n, self.sums, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, activation: Tensor) -> None:
        """Add a batch: (N, C, …), or (N, …, C) where channels come last."""
        rows = activation.detach().float()
        others = tuple(range(rows.ndim - 1)) if self.channels_last else (0, *range(2, rows.ndim))
        channels = rows.shape[-1 if self.channels_last else 1]
        if self.shift is not None:
            rows = rows - self.shift.to(rows).view(1, -1, *(1,) * (rows.ndim - 2))
        self.n += rows.numel() // channels
        self.sums = self.sums + rows.sum(others).double().cpu()
        self.squares = self.squares + rows.square().sum(others).double().cpu()

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return the means and variances, float64 (C,) each."""
        mean = self.sums / self.n
        variance = self.squares / self.n - mean.square()
        return mean if self.shift is None else mean + self.shift, variance


def _inputs_of(
    norms: Sequence[nn.Module], shifts: Sequence[Tensor], backbone: Backbone, pixels: Tensor, device: torch.device
) -> list[tuple[Tensor, Tensor] | None]:
    """Return mean and variance by channel of what goes into each norm; None for one that nothing goes into."""
    sums = [_Sums(channels_last=False, shift=shift) for shift in shifts]

    def noting(one: _Sums) -> Callable[..., None]:
        return lambda _, inputs, named: one.add([*inputs, *named.values()][0])

    hooks = [
        norm.register_forward_pre_hook(noting(one), with_kwargs=True) for norm, one in zip(norms, sums, strict=True)
    ]
    try:
        for _ in _passes(backbone, pixels, device):
            pass
    finally:
        for hook in hooks:
            hook.remove()
    return [one.moments() if one.n else None for one in sums]


def _outputs_of_stages(backbone: Backbone, pixels: Tensor, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Return mean and variance by channel of what each stage gives, but the last, which tells classes apart."""
    last = backbone.layout != "NCHW"
    sums = [_Sums(channels_last=last) for _ in backbone.stages[:-1]]
    for outputs in _passes(backbone, pixels, device):
        for one, output in zip(sums, outputs, strict=False):
            one.add(output)
    return [one.moments() for one in sums]


def _passes(backbone: Backbone, pixels: Tensor, device: torch.device) -> Iterator[list[Tensor]]:
    """Yield the outputs of all stages, batch by batch."""
    normalise = Normalise(backbone.preprocessing).to(device)
    with _evaluating(backbone, device), torch.no_grad():
        for start in range(0, len(pixels), BATCH):
            activation = normalise(pixels[start : start + BATCH].to(device))
            activation = activation.contiguous(memory_format=torch.channels_last)
            outputs = []
            for stage in backbone.stages:
                activation = stage(activation)
                outputs.append(activation)
            yield outputs


@contextmanager
def _evaluating(backbone: Backbone, device: torch.device) -> Iterator[None]:
    """Have the stages in eval mode on a device for a while."""
    modes = [(module, module.training) for stage in backbone.stages for module in stage.modules()]
    homes = [next((p.device for p in stage.parameters()), torch.device("cpu")) for stage in backbone.stages]
    for stage in backbone.stages:
        stage.to(device).eval()
    try:
        yield
    finally:
        for stage, home in zip(backbone.stages, homes, strict=True):
            stage.to(home)
        for module, training in modes:
            module.training = training


def _statistics(norm: nn.Module) -> tuple[Tensor, Tensor]:
    mean, variance = norm.running_mean, norm.running_var
    assert isinstance(mean, Tensor) and isinstance(variance, Tensor)
    return mean.double().cpu(), variance.double().cpu()


def _has_statistics(module: nn.Module) -> bool:
    return getattr(module, "running_mean", None) is not None and getattr(module, "running_var", None) is not None


def _distance(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """Return the mean over channels of the Bhattacharyya distance of normal distributions: (means, variances) each."""
    (mean, variance), (own_mean, own_variance) = one, other
    variance, own_variance = (some.clamp_min(LEAST_VARIANCE) for some in (variance, own_variance))
    both = variance + own_variance
    apart = (mean - own_mean).square() / (4 * both)
    return float((apart - 0.5 * torch.log(2 * (variance * own_variance).sqrt() / both)).mean())


def _photographs(size_px: int) -> Tensor:
    """Return uint8 (24, 3, S, S): parts of two photographs, a temple and a flower, that come with scikit-learn."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    parts = []
    for photograph in load_sample_images().images:
        image = Image.fromarray(photograph)
        side = round(min(image.size) * 0.5)
        for top in np.linspace(0, image.height - side, 3).round().tolist():
            for left in np.linspace(0, image.width - side, 4).round().tolist():
                part = image.crop((int(left), int(top), int(left) + side, int(top) + side))
                parts.append(np.asarray(part.resize((size_px, size_px), Image.Resampling.BICUBIC)))
    return torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2).contiguous()
