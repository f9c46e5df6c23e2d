"""The Backbone: a pretrained network as ordered stages, with its own preprocessing."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from toolkit.data.preprocessing import Preprocessing
from toolkit.errors import SettingError

Layout = Literal["NCHW", "NHWC", "NLC"]


@dataclass(frozen=True, eq=False)
class Backbone:
    """An image network up to its last Linear, cut into stages that run in order.

    stages: modules; `stages[0]` takes float (N, 3, H, W), the last one gives (N, D).
    preprocessing: what the weights expect. layout: axes of the activations between stages
    (channels first, channels last, or tokens). classifier: the Linear that the weights came with, if any.
    weights: where they came from ("random", "embedded", "torchvision IMAGENET1K_V1", "timm a1_in1k", "file NAME",
    "custom"). weights_digest: identifies their values ("" while unknown).
    """

    name: str
    stages: tuple[nn.Module, ...]
    preprocessing: Preprocessing
    layout: Layout = "NCHW"
    classifier: nn.Linear | None = None
    weights: str = "random"
    weights_digest: str = field(default="", repr=False)
    _shapes: dict[int, tuple[tuple[int, ...], ...]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.stages:
            raise SettingError(f"backbone {self.name!r}: at least one stage expected, got none")
        owners: dict[object, int] = {}
        for index, stage in enumerate(self.stages):
            for tensor in (*stage.parameters(), *stage.buffers()):
                owner = owners.setdefault(_identity(tensor), index)
                if owner != index:
                    raise SettingError(
                        f"backbone {self.name!r}: stages {owner} and {index} share parameters or buffers, and one "
                        "could not train without the other; join them in one stage, or copy what they share"
                    )

    def __len__(self) -> int:
        return len(self.stages)

    @cached_property
    def feature_dim(self) -> int:
        """D, the width of the last stage's output."""
        return self.stage_shapes()[-1][0]

    def stage_shapes(self, image_size_px: int | None = None) -> tuple[tuple[int, ...], ...]:
        """Return the output shape of every stage, without N, for square images of this size (its own by default).

        One real forward of one black image, in eval mode: the meta device would be slower, since its first use
        imports for seconds. The outcome is remembered. Modes, BatchNorm and gradients are left as they were. Raises
        SettingError for a size that a stage cannot take.
        """
        size = image_size_px or self.preprocessing.crop_px
        if size not in self._shapes:
            self._shapes[size] = self._seen_shapes(size)
        return self._shapes[size]

    def _seen_shapes(self, size: int) -> tuple[tuple[int, ...], ...]:
        modes = [(module, module.training) for stage in self.stages for module in stage.modules()]
        reference = next((p for stage in self.stages for p in stage.parameters()), torch.empty(0))
        activation = torch.zeros(1, 3, size, size, device=reference.device, dtype=reference.dtype)
        shapes: list[tuple[int, ...]] = []
        try:
            with torch.no_grad():  # not inference_mode: a module may keep a tensor that it makes here
                for stage in self.stages:
                    activation = stage.eval()(activation)
                    shapes.append(tuple(activation.shape[1:]))
        except (RuntimeError, AssertionError, ValueError, TypeError, AttributeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise SettingError(
                f"backbone {self.name!r}: stage {len(shapes)} of {len(self)} cannot take an image of "
                f"{size} × {size} px: {reason}"
            ) from error
        finally:
            for module, training in modes:
                module.training = training
        return tuple(shapes)

    def pool(self, activation: Tensor) -> Tensor:
        """Return (N, C): the mean over positions, or tokens, of a stage's output; (N, D) passes unchanged."""
        if activation.ndim == 2:
            return activation
        if activation.ndim == 3:
            return activation.mean(dim=1)
        return activation.mean(dim=(1, 2) if self.layout == "NHWC" else (2, 3))

    def n_parameters(self) -> int:
        """Number of parameters of the stages (the classifier not counted)."""
        return sum(self.stage_sizes())

    def stage_sizes(self) -> tuple[int, ...]:
        """Return the number of parameters of each stage; lazy ones are made first, by a forward."""
        if any(is_lazy(p) for stage in self.stages for p in stage.parameters()):
            self.stage_shapes()
        return tuple(sum(p.numel() for p in stage.parameters()) for stage in self.stages)

    def __str__(self) -> str:
        return (
            f"{self.name}: {len(self)} stages, {self.n_parameters() / 1e6:.1f} M parameters, "
            f"{self.preprocessing.crop_px} px, weights: {self.weights}"
        )


def _identity(tensor: Tensor) -> object:
    """Return what two tensors have in common if they are the same, or start at the same place in memory."""
    if is_lazy(tensor) or not tensor.data_ptr():  # not allocated: of the meta device, or empty
        return id(tensor)
    return tensor.device, tensor.data_ptr()
