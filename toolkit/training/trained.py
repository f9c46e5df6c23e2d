"""TrainedModel: what training gives and a model folder holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from toolkit.backbones.backbone import Backbone
from toolkit.data.preprocessing import Preprocessing
from toolkit.features.prefix import Activations, chunk_of, in_chunks
from toolkit.hardware import true_float32
from toolkit.training.network import TransferNetwork
from toolkit.training.passes import dropout_layers, sampled_logits
from toolkit.training.settled import SettledNetwork, state_of


class Predictor(Protocol):
    """What can be scored and asked for predictions: a TrainedModel, or a baseline."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def preprocessing(self) -> Preprocessing: ...

    @property
    def max_pixels(self) -> int: ...

    def logits(self, inputs: Tensor | Activations, device: torch.device | None = None) -> Tensor:
        """Return float32 (N, C) on the CPU for uint8 (N, 3, S, S)."""

    def sampled_logits(self, pixels: Tensor, passes: int, device: torch.device | None = None) -> Tensor:
        """Return float32 (K, N, C) on the CPU, the scores of K passes with dropout; SettingError without any."""


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A network that is ready to predict, with what it needs to know about its input and output.

    classes: names in the order of the scores. layout, weights: the backbone's axes and the origin of its weights.
    max_pixels: images above are refused, as in training.
    """

    network: TransferNetwork
    classes: tuple[str, ...]
    backbone: str
    weights: str
    layout: str
    preprocessing: Preprocessing
    max_pixels: int
    _settled: list[Any] = field(default_factory=list, init=False, repr=False)
    _placed: list[torch.device] = field(default_factory=list, init=False, repr=False)

    @classmethod
    def of(
        cls, network: TransferNetwork, backbone: Backbone, classes: tuple[str, ...], max_pixels: int
    ) -> TrainedModel:
        """Return a trained network with what its backbone knows of its input."""
        preprocessing = backbone.preprocessing
        network.renew_prefix()
        return cls(network.eval(), classes, backbone.name, backbone.weights, backbone.layout, preprocessing, max_pixels)

    @true_float32()
    def logits(self, inputs: Tensor | Activations, device: torch.device | None = None) -> Tensor:
        """Return float32 (N, C) on the CPU for uint8 (N, 3, S, S), or for the float32 Activations of the frozen stages.

        Always in float32 and in passes of one fixed size, so that an image's scores do not depend on its company.
        """
        device = device or torch.device("cpu")
        network = self._as_it_predicts(device)
        with torch.inference_mode():
            return in_chunks(lambda part: network(_to(part, device)).float(), inputs, chunk_of(device))

    def _as_it_predicts(self, device: torch.device) -> Callable[[Tensor | Activations], Tensor]:
        """Return the network, its trained stages settled; made anew when they have changed."""
        network = self._on(device)
        state = None if network.spec.cut == len(network.stages) else state_of(network, device)
        if state is None:
            return network
        if not self._settled or self._settled[0] != state:
            self._settled[:] = [state, SettledNetwork(network, device)]
        settled: SettledNetwork = self._settled[1]
        return settled

    def _on(self, device: torch.device) -> TransferNetwork:
        """Return the network in eval mode on a device; a look at what is so already takes a tenth of doing it again."""
        network = self.network
        if any(module.training for module in network.modules()):
            network.eval()
        if self._placed != [device] or any(parameter.device != device for parameter in network.parameters()):
            network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            self._placed[:] = [device]
        return network

    def one_pass(self, pixels: Tensor) -> Tensor:
        """Return float32 (N, C) for uint8 (N, 3, S, S) in one pass of just these images, on the CPU.

        For a few images much cheaper than `logits`, from which the last bits may differ.
        """
        network = self.network.eval().to("cpu", memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.inference_mode():
            scores: Tensor = network(network.by_stages(pixels) if network.spec.cut else pixels)
            return scores.float()

    @true_float32()
    def sampled_logits(self, pixels: Tensor, passes: int, device: torch.device | None = None) -> Tensor:
        """Return float32 (K, N, C) on the CPU for uint8 (N, 3, S, S), N >= 1: the scores of K passes with dropout.

        Frozen stages drop nothing, and run once. Raises SettingError where nothing that was trained has dropout.
        """
        device = device or torch.device("cpu")
        network = self.network.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        trained = [*network.stages[network.spec.cut :], network.head]
        layers = [layer for part in trained for layer in dropout_layers(part)]
        inputs: Tensor | Activations = pixels.to(device)
        if network.spec.cut and layers:
            inputs = network.prefix()(pixels.to(device))
        return sampled_logits(layers, lambda row, n: network(_copies(inputs, row, n)), len(pixels), passes, device)

    def __str__(self) -> str:
        classes = ", ".join(self.classes[:8]) + (", …" if len(self.classes) > 8 else "")
        return f"{self.backbone} at {self.preprocessing.crop_px} px for {len(self.classes)} classes: {classes}"


def _copies(inputs: Tensor | Activations, row: int, n: int) -> Tensor | Activations:
    def copied(tensor: Tensor) -> Tensor:
        return tensor[row : row + 1].expand(n, *tensor.shape[1:])

    if isinstance(inputs, Tensor):
        return copied(inputs)
    at_cut = None if inputs.at_cut is None else copied(inputs.at_cut)
    return Activations(at_cut, tuple(copied(part) for part in inputs.pooled))


def _to(inputs: Tensor | Activations, device: torch.device) -> Tensor | Activations:
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    at_cut = None if inputs.at_cut is None else inputs.at_cut.to(device)
    return Activations(at_cut, tuple(part.to(device) for part in inputs.pooled))
