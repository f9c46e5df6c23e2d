"""BaselineModel: a trained baseline on pixels or hand-made features, ready to predict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.baselines.neighbours import Neighbours
from toolkit.baselines.net import CentredNet, NetSpec
from toolkit.baselines.reading import Reading
from toolkit.data.preprocessing import Preprocessing
from toolkit.errors import ArtifactError
from toolkit.features.prefix import Activations, in_chunks
from toolkit.training.passes import dropout_layers, sampled_logits

Body = CentredNet | Neighbours


class BaselineNetwork(nn.Module):
    """Images, or rows that were read of them already, → scores: a Reading and what was trained on its rows."""

    def __init__(self, reading: Reading, body: Body) -> None:
        super().__init__()
        self.reading = reading
        self.body = body

    def forward(self, inputs: Tensor) -> Tensor:
        """Return scores (N, C)."""
        scores: Tensor = self.body(self.reading(inputs))
        return scores


@dataclass(frozen=True, eq=False)
class BaselineModel:
    """A baseline and what it needs to know about its input and output: a Predictor, as TrainedModel is.

    classes: names in the order of the scores. max_pixels: images above are refused, as in training.
    """

    network: BaselineNetwork
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    max_pixels: int

    def logits(self, inputs: Tensor | Activations, device: torch.device | None = None) -> Tensor:
        """Return float32 (N, C) on the CPU for uint8 (N, 3 or 1, S, S), or rows that were read of such pixels.

        A net always runs in float32 and in passes of one fixed size, so that an image's scores do not depend on its
        company; so are features made by hand, and neighbours are exact whatever the company is.
        """
        assert isinstance(inputs, Tensor)
        device = device or torch.device("cpu")
        network = self.network.eval().to(device)
        with torch.inference_mode():
            if isinstance(network.body, Neighbours):
                scores: Tensor = network.body(self._rows(inputs, device))
                return scores.cpu()
            return in_chunks(lambda part: network(part.to(device)).float(), inputs)

    def one_pass(self, pixels: Tensor) -> Tensor:
        """Return float32 (N, C) for uint8 (N, 3 or 1, S, S) in one pass of just these images, on the CPU."""
        with torch.inference_mode():
            scores: Tensor = self.network.eval().to("cpu")(pixels)
            return scores.float()

    def sampled_logits(self, pixels: Tensor, passes: int, device: torch.device | None = None) -> Tensor:
        """Return float32 (K, N, C) on the CPU for N >= 1 images: the scores of K passes with dropout.

        Raises SettingError where the net has none.
        """
        device = device or torch.device("cpu")
        network = self.network.eval().to(device)
        with torch.inference_mode():
            rows = self._rows(pixels, device)
        layers = dropout_layers(network.body)
        return sampled_logits(
            layers, lambda row, n: network.body(rows[row : row + 1].expand(n, -1)), len(rows), passes, device
        )

    def _rows(self, inputs: Tensor, device: torch.device) -> Tensor:
        """Return the rows (N, D) of images in passes of one fixed size; rows pass as they are."""
        if inputs.ndim == 2:
            return inputs.to(device)
        return in_chunks(lambda part: self.network.reading(part.to(device)), inputs).to(device)

    def __str__(self) -> str:
        kind = "neighbours" if isinstance(self.network.body, Neighbours) else "net"
        classes = ", ".join(self.classes[:8]) + (", …" if len(self.classes) > 8 else "")
        side = self.preprocessing.crop_px
        return f"{kind} on {self.network.reading.on} at {side} px for {len(self.classes)} classes: {classes}"


def described(body: Body) -> dict[str, Any]:
    """Return what rebuilds a body before its tensors are loaded."""
    if isinstance(body, Neighbours):
        return {"kind": "neighbours", **body.to_dict()}
    return {"kind": "net", **body.spec.to_dict()}


def rebuilt(values: dict[str, Any], n_classes: int) -> Body:
    """Return the body that `described` spoke of; raises ArtifactError where it has another number of classes."""
    rest = {key: value for key, value in values.items() if key != "kind"}
    if values["kind"] == "neighbours":
        return Neighbours.from_dict(rest, n_classes)
    spec = NetSpec.from_dict(rest)
    if spec.n_classes != n_classes:
        raise ArtifactError(f"the model has {spec.n_classes} scores for {n_classes} classes; restore or train again")
    return CentredNet(spec)
