"""Request: which numbers are wanted of every image, and everything that they depend on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import PIL
import torch
from torch import Tensor

from toolkit.backbones.backbone import Backbone
from toolkit.backbones.taps import check_taps
from toolkit.backbones.weights import state_sha256
from toolkit.data.decode import DECODING_POLICY
from toolkit.data.gpu_jpegs import GpuJpegs
from toolkit.data.views import AUGMENTATIONS, Augmentation, source_px
from toolkit.errors import SettingError
from toolkit.features.fuse import VERSION as FUSED
from toolkit.features.jpegs import jpeg_decoder
from toolkit.features.prefix import FrozenPrefix, chunk_of
from toolkit.features.sample import sample_images

FORMAT = 2  # of the store; another number, another folder
PIXELS, SOURCE, SIZE = "pixels", "source", "size"
MOST_POOLED = 12  # stages, where all are wanted: a list of modules of one's own may have a hundred
CUSTOM = "custom"  # what a backbone's weights are called that are a user's own modules


@dataclass(frozen=True, eq=False)
class Request:
    """The activations at a cut and the pooled outputs at taps, of V seeded views of every image.

    cut: the stage whose input is wanted; 0 wants the views' pixels themselves (then there are no taps), None pooled
    outputs alone. taps: stages to pool. views: V ≥ 1; view 0 is the clean one. seed: of the others. dtype: float32,
    bfloat16 or float16, of the forward and of what is stored at the cut (pooled features are float32). source: with cut
    0, the reduced image instead, from which any view is cut without decoding; `views` then is 1. weights: the backbone
    and the identity that it had when the Request was made; taken here, and again where another backbone is put in.
    """

    backbone: Backbone
    taps: tuple[int, ...] = ()
    cut: int | None = None
    views: int = 1
    augmentation: Augmentation = field(default=AUGMENTATIONS["standard"])
    seed: int = 0
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    source: bool = False
    weights: tuple[Backbone, str] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        n = len(self.backbone)
        if self.cut is not None and not 0 <= self.cut < n:
            raise SettingError(f"cut: 0 to {n - 1} expected for a backbone of {n} stages, got {self.cut}")
        if self.views < 1:
            raise SettingError(f"views: at least 1 expected, got {self.views}")
        if self.source and (self.cut != 0 or self.views != 1):
            raise SettingError("source: only with cut 0 and one view, which all others are cut from")
        if self.taps and self.cut == 0:
            raise SettingError("taps: none expected with cut 0, whose pixels have met no stage")
        if self.taps or self.cut is None:
            object.__setattr__(self, "taps", check_taps(self.taps or None, n))
        if self.cut != 0 and (self.weights is None or self.weights[0] is not self.backbone):
            object.__setattr__(self, "weights", (self.backbone, identity_of(self.backbone)))

    @property
    def identity(self) -> str:
        """Digest of the backbone as it was when the Request was made; "" for pixels, which have met none."""
        return "" if self.weights is None else self.weights[1]

    def with_stages_on_the_way(self) -> Request:
        """Return the Request with all stages as taps, the last 12 at most, that its pass goes by anyway.

        That takes 0.4 % of a pass (EfficientNet-Lite0), and whoever asks for them later, such as a plan after an
        extraction, finds them. Room for them: against the last stage alone up to twice as much, for a ViT six times (18
        kB an image). It is the Request as it is where more than pooled outputs of the clean view is wanted, and for
        modules of a user's own: nobody has promised that all of their outputs are finite, small and to be pooled.
        """
        if self.views > 1 or self.cut is not None or self.backbone.weights == CUSTOM:
            return self
        return replace(self, taps=tuple(sorted({*self.taps, *range(self.taps[-1])[-MOST_POOLED:]})))

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of one view's outputs by name: `stage.K` (the output of stage K), `pool.K`, `pixels`, `source`."""
        side = self.backbone.preprocessing.crop_px
        if self.source:
            reduced = source_px(self.backbone.preprocessing)
            return {SOURCE: (3, reduced, reduced), SIZE: (2,)}
        if self.cut == 0:
            return {PIXELS: (3, side, side)}
        whole = self.backbone.stage_shapes()
        shapes: dict[str, tuple[int, ...]] = {
            pool_name(tap): (_channels(whole[tap], self.backbone.layout),) for tap in self.taps
        }
        return shapes if self.cut is None else {**shapes, stage_name(self.cut): whole[self.cut - 1]}

    @property
    def bytes_per_view(self) -> int:
        """Bytes that one view of one image takes on the disk."""
        sizes = {PIXELS: 1, SOURCE: 1, SIZE: 4}
        half = 2 if self.dtype in (torch.float16, torch.bfloat16) else 4
        return sum(
            sizes.get(name, half if name.startswith("stage.") else 4) * torch.Size(shape).numel()
            for name, shape in self.shapes.items()
        )

    @property
    def jpegs(self) -> GpuJpegs | None:
        """What decodes JPEGs of clean views on the device; None for the CPU, and for pixels, which go through none."""
        return None if self.cut == 0 else jpeg_decoder(self.backbone, self.identity, self.device)

    def maker(self) -> Callable[[Tensor], dict[str, Tensor]]:
        """Return the function from uint8 (n, 3, S, S) to the outputs by name, on the device that they are computed on.

        Raises SettingError where the backbone was trained on since the Request was made.
        """
        if self.cut == 0:
            return lambda pixels: {SOURCE if self.source else PIXELS: pixels}
        if identity_of(self.backbone) != self.identity:
            raise SettingError(f"{self.backbone.name}: its weights have changed since the Request; make a new one")
        prefix = FrozenPrefix(self.backbone, cut=self.cut, taps=self.taps, dtype=self.dtype, device=self.device)

        def make(pixels: Tensor) -> dict[str, Tensor]:
            found = prefix(pixels)
            outputs = {pool_name(tap): part for tap, part in zip(prefix.taps, found.pooled, strict=True)}
            if found.at_cut is not None and self.cut is not None:
                outputs[stage_name(self.cut)] = found.at_cut
            return outputs

        return make

    def about(self) -> dict[str, Any]:
        """Return everything that the clean view's numbers depend on, but the image: plain values."""
        preprocessing = self.backbone.preprocessing.to_dict()
        facts: dict[str, Any] = {"format": FORMAT, "decoding": DECODING_POLICY, "pillow": PIL.__version__}
        facts["preprocessing"] = preprocessing
        if self.cut == 0:
            return {**facts, "backbone": PIXELS}
        return {
            **facts,
            "backbone": self.backbone.name,
            "weights": self.backbone.weights,
            "weights_digest": self.identity,
            "dtype": str(self.dtype),
            "chunk": chunk_of(self.device),
            "fused": FUSED,
            **{package: _version(package) for package in ("torch", "torchvision", "timm")},
            "device": _device_name(self.device),
            **({} if self.jpegs is None else {"jpegs": "decoded by the device"}),
        }

    def view_recipe(self) -> dict[str, Any]:
        """Return what the views other than view 0 depend on besides: plain values."""
        recipe = {key: value for key, value in asdict(self.augmentation).items() if key != "name"}
        return {**recipe, "seed": self.seed}


def pool_name(tap: int) -> str:
    """Return the name of a stage's pooled output."""
    return f"pool.{tap}"


def stage_name(cut: int) -> str:
    """Return the name of what goes into stage `cut`."""
    return f"stage.{cut - 1}"


def key_of(values: dict[str, Any]) -> str:
    """Return a digest of plain values, 24 hexadecimal digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:24]


def identity_of(backbone: Backbone) -> str:
    """Return a digest of a backbone's modules, parameters and buffers; of a user's own, also of how they answer.

    Taken from the tensors themselves: what a file once was says nothing of a network that has been trained since.
    """
    total = hashlib.sha256(state_sha256(backbone.stages, repr(backbone.stages)).encode())
    if backbone.weights == CUSTOM:
        taps = tuple(range(len(backbone)))
        sample = sample_images(1, backbone.preprocessing.crop_px)
        for part in FrozenPrefix(backbone, cut=None, taps=taps).run(sample).pooled:
            total.update(part.contiguous().numpy().data)
    return total.hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _channels(shape: tuple[int, ...], layout: str) -> int:
    return shape[-1] if len(shape) == 2 or (len(shape) == 3 and layout == "NHWC") else shape[0]


def _device_name(device: torch.device) -> str:
    """Return what chooses the kernels: the GPU's name, or the CPU's instruction set and the number of threads.

    Threads share out the sums of a matrix product, so that their number decides the last bits.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
