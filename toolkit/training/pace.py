"""How long a step of training takes on this machine: tried out, for predictions of time and for nothing else."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.backbones.backbone import Backbone
from toolkit.backbones.taps import tap_widths
from toolkit.features.prefix import Activations
from toolkit.features.sample import sample_images
from toolkit.hardware import autocast, true_float32
from toolkit.heads.linear import LinearHead
from toolkit.plan import FreezeSpec
from toolkit.training.depthwise import quick_depthwise
from toolkit.training.network import TransferNetwork

TRIED_PIXELS = 4 * 224**2  # of a batch: on a CPU the time of a step grows with its images, and so many say enough
MOST_TRIED = 32
TRIES = 2  # after one that does not count


@true_float32()
def image_seconds(
    backbone: Backbone, spec: FreezeSpec, taps: Sequence[int], n_classes: int, device: torch.device, precision: str
) -> float:
    """Return the seconds a training image: forward and backward of the tail that a FreezeSpec says, as `fit` runs it.

    Tried on copies of the stages with images that stand for photographs: nothing is changed. precision: resolved.
    """
    with torch.inference_mode(False), torch.enable_grad():
        return _image_seconds(backbone, spec, taps, n_classes, device, precision)


def _image_seconds(
    backbone: Backbone, spec: FreezeSpec, taps: Sequence[int], n_classes: int, device: torch.device, precision: str
) -> float:
    own = replace(backbone, stages=tuple(copy.deepcopy(stage) for stage in backbone.stages))
    network = TransferNetwork(own, LinearHead(tap_widths(own, taps), n_classes), spec, taps=taps).to(device).train()
    n = max(4, min(MOST_TRIED, TRIED_PIXELS // own.preprocessing.crop_px**2)) if device.type == "cpu" else MOST_TRIED
    inputs = _inputs(own, spec.cut, taps, n, device)
    labels = torch.arange(n, device=device) % n_classes
    seconds = []
    folding = network.folded() if precision == "32-true" else nullcontext()
    with folding, quick_depthwise(network.stages[spec.cut :]):
        for _ in range(1 + TRIES):
            start = time.perf_counter()
            with autocast(precision, device):
                scores = network(inputs)
            torch.autograd.backward(F.cross_entropy(scores.float(), labels))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append((time.perf_counter() - start) / n)
            network.zero_grad()
    return min(seconds[1:])


def _inputs(backbone: Backbone, cut: int, taps: Sequence[int], n: int, device: torch.device) -> Tensor | Activations:
    """Return what a tail trains on, as a store would give it: pixels, or numbers in the shape of activations."""
    if cut == 0:
        return sample_images(n, backbone.preprocessing.crop_px).to(device)
    before = [tap for tap in taps if tap < cut]
    pooled = tuple(torch.zeros(n, width, device=device) for width in (tap_widths(backbone, before) if before else ()))
    shape = backbone.stage_shapes()[cut - 1]
    return Activations(torch.randn(n, *shape, generator=torch.Generator().manual_seed(0)).to(device), pooled)
