"""FrozenPrefix: pixels → activations at a cut and pooled features at taps, the same numbers wherever it is called."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from toolkit.backbones.backbone import Backbone
from toolkit.backbones.normalise import Normalise
from toolkit.errors import SettingError
from toolkit.features.fold import frozen_copies, plain_copies
from toolkit.features.fuse import can_fuse, fuse
from toolkit.features.sample import sample_images
from toolkit.hardware import true_float32

CHUNK = 16  # images in every forward pass, padded where there are fewer; larger ones are no faster on a CPU
CHUNK_ON_GPU = 32  # which a hundred kernels have to be started for, whatever their size; more may not fit into 4 GB

# Half precision is taken by itself only where it moves the pooled features by less than this (relative, on images
# with the spectrum of photographs). EfficientNet-Lite0 in bfloat16: 3e-2 on a CPU, 5e-2 on an H200; its depthwise
# convolutions sum up badly. A ResNet-50 of random weights: 4e-3.
HALF_PRECISION_ERROR = 1e-2
KNOWN_TO_MOVE = (("efficientnet_lite0", "embedded"),)  # names and weights: to look takes a tenth of a short run


class Activations(NamedTuple):
    """What a frozen prefix gives for N images, on the device that it ran on.

    at_cut: (N, …), the input of the first trainable stage, or None where no stage trains.
    pooled: float32 (N, D) for every tap, in stage order.
    """

    at_cut: Tensor | None
    pooled: tuple[Tensor, ...]


class FrozenPrefix:
    """Frozen stages as they run: copies, BatchNorm folded, channels last, in one precision.

    cut: the stage whose input is wanted, or None. taps: stages whose pooled outputs are wanted; no stage beyond the
    last of them and the cut is run. The forward always sees as many images, `chunk_of` the device (kernels are chosen
    by shape), so an image's numbers depend neither on its company nor on whether they are stored or computed anew.
    Images of another size than the backbone's own have copies of their own, those of the last such size being kept.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        cut: int | None,
        taps: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        self.cut = cut
        self.taps = tuple(sorted(taps))
        depth = max(cut or 0, *(tap + 1 for tap in self.taps), 0)
        if not 1 <= depth <= len(backbone):
            raise SettingError(f"cut and taps: 1 to {len(backbone)} frozen stages expected, got {depth}")
        self.dtype = dtype
        self.device = device or torch.device("cpu")
        self.pool = backbone.pool
        self.normalise = Normalise(backbone.preprocessing)
        self._originals = backbone.stages[:depth]
        self._size_px = (backbone.preprocessing.crop_px,) * 2
        self.stages = self._copies(self._size_px)
        self._others: tuple[tuple[int, int], nn.ModuleList] | None = None
        self.normalise.to(self.device)

    def _copies(self, size_px: tuple[int, int]) -> nn.ModuleList:
        """Return the stages for images of a size, on which it depends how they pad them."""
        one = next((p for stage in self._originals for p in stage.parameters()), torch.empty(0))
        pixels = sample_images(1, max(size_px))[:, :, : size_px[0], : size_px[1]]
        sample = copy.deepcopy(self.normalise).cpu()(pixels)
        stages, activations, seen = frozen_copies(self._originals, sample.to(one.device, one.dtype))
        if self.device.type == "cpu" and can_fuse(self.dtype):
            fuse(stages, activations, seen)
        placed: nn.ModuleList = stages.to(self.device, self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return placed

    def _stages_for(self, size_px: tuple[int, int]) -> nn.ModuleList:
        if size_px == self._size_px:
            return self.stages
        if self._others is None or self._others[0] != size_px:
            self._others = (size_px, self._copies(size_px))
        return self._others[1]

    def __call__(self, pixels: Tensor) -> Activations:
        """Return the Activations of uint8 (N, 3, S, S), or of float that is normalised already."""
        size = chunk_of(self.device)
        parts = [self._chunk(pixels[i : i + size], size) for i in range(0, max(1, len(pixels)), size)]
        if len(parts) == 1:
            return parts[0]
        cuts = [part.at_cut for part in parts if part.at_cut is not None]
        at_cut = torch.cat(cuts) if cuts else None
        return Activations(
            at_cut, tuple(torch.cat(tensors) for tensors in zip(*(p.pooled for p in parts), strict=True))
        )

    def _chunk(self, pixels: Tensor, size: int) -> Activations:
        n = len(pixels)
        whole = self.run(_padded(pixels, size))
        at_cut = None if whole.at_cut is None else whole.at_cut[:n]
        return Activations(at_cut, tuple(tensor[:n] for tensor in whole.pooled))

    def run(self, pixels: Tensor) -> Activations:
        """Return the Activations of one forward pass, whatever its size."""
        pooled: list[Tensor] = []
        at_cut = None
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False), true_float32():
            activation = self.normalise(pixels.to(self.device, non_blocking=True)).to(self.dtype)
            activation = activation.contiguous(memory_format=torch.channels_last)
            for index, stage in enumerate(self._stages_for((pixels.shape[2], pixels.shape[3]))):
                activation = stage(activation)
                if index in self.taps:
                    pooled.append(self.pool(activation.float()))
                if index + 1 == self.cut:
                    at_cut = activation
        return Activations(at_cut, tuple(pooled))


def chunk_of(device: torch.device) -> int:
    """Return how many images every forward pass of frozen stages has on a device."""
    return CHUNK_ON_GPU if device.type == "cuda" else CHUNK


def in_chunks(function: Callable[[Any], Tensor], inputs: Tensor | Activations, size: int = CHUNK) -> Tensor:
    """Apply `function` to images, or their Activations, in passes of exactly `size`; return its rows on the CPU."""
    total = len(inputs) if isinstance(inputs, Tensor) else len(_tensors(inputs)[0])
    results = []
    for start in range(0, max(1, total), size):
        n = max(0, min(size, total - start))
        part: Any
        if isinstance(inputs, Tensor):
            part = _padded(inputs[start : start + n], size)
        else:
            at_cut = None if inputs.at_cut is None else _padded(inputs.at_cut[start : start + n], size)
            part = Activations(at_cut, tuple(_padded(tensor[start : start + n], size) for tensor in inputs.pooled))
        results.append(function(part)[:n].cpu())
    return torch.cat(results)


def _tensors(activations: Activations) -> list[Tensor]:
    return [*([] if activations.at_cut is None else [activations.at_cut]), *activations.pooled]


def _padded(tensor: Tensor, size: int) -> Tensor:
    return torch.cat([tensor, tensor.new_zeros((size - len(tensor), *tensor.shape[1:]))])


def prefix_dtype(backbone: Backbone, precision: str, device: torch.device) -> torch.dtype:
    """Return the number format of frozen forwards for a precision of the user's.

    "auto" is bfloat16 on devices that compute in it where the backbone's features then move by less than
    HALF_PRECISION_ERROR; else float32. A decision by what the machine can do, never by a clock.
    """
    if precision == "auto":
        asked = _has_bfloat16(device) and (backbone.name, backbone.weights) not in KNOWN_TO_MOVE
        half = asked and bfloat16_error(backbone, device) < HALF_PRECISION_ERROR
        precision = "bf16-mixed" if half else "32-true"
    return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision, torch.float32)


def bfloat16_error(backbone: Backbone, device: torch.device) -> float:
    """Return |b16 − f32| / |f32| of the last stage's pooled features on two sample images."""
    normalise = Normalise(backbone.preprocessing)
    pooled = []
    with torch.no_grad(), true_float32():
        for dtype in (torch.float32, torch.bfloat16):
            activation = normalise(sample_images(2, backbone.preprocessing.crop_px)).to(device, dtype)
            for stage in plain_copies(backbone.stages).to(device, dtype):
                activation = stage(activation)
            pooled.append(backbone.pool(activation.float()))
    exact, rough = pooled
    return float((rough - exact).norm() / exact.norm().clamp_min(1e-30))


def _has_bfloat16(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 matrices in hardware (of CPUs those with AMX or AVX-512 BF16)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    probes = [getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")]
    return device.type == "cpu" and any(probe is not None and bool(probe()) for probe in probes)
