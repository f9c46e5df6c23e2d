"""How near images are to a network's training: the order of real sets, grey below colour, nothing left behind."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor, nn

from toolkit.backbones.catalog import as_backbone, build_backbone
from toolkit.data.preprocessing import Preprocessing
from toolkit.planning import similarity as room
from toolkit.planning.similarity import NORMS, PHOTOGRAPHS, Similarity, in_words, similarity_of

CPU = torch.device("cpu")
SIZE = 128


def resized(images: list[np.ndarray]) -> Tensor:
    pixels = [torch.from_numpy(image.copy()).permute(2, 0, 1).float()[None] for image in images]
    sized = [nn.functional.interpolate(one, (SIZE, SIZE), mode="bicubic", antialias=True) for one in pixels]
    return torch.cat(sized).clamp(0, 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def sets() -> dict[str, Tensor]:
    """Sets of 32 images: parts of two photographs, the same without colour, digits, white noise."""
    parts = [
        photograph[top : top + 213, left : left + 213]
        for photograph in load_sample_images().images
        for top in (0, 70, 140, 213)
        for left in (0, 140, 280, 426)
    ]
    photographs = resized(parts)
    grey = photographs.float().mean(1, keepdim=True).round().to(torch.uint8).expand(-1, 3, -1, -1)
    digits = [np.repeat(one[:, :, None] * (255 / 16), 3, axis=2).astype(np.uint8) for one in load_digits().images[:32]]
    noise = np.random.default_rng(0).integers(0, 256, (32, SIZE, SIZE, 3), dtype=np.uint8)
    return {"photographs": photographs, "grey": grey, "digits": resized(digits), "noise": resized(list(noise))}


@pytest.mark.parametrize("measured_by", [NORMS, PHOTOGRAPHS])
def test_sets_stand_in_the_order_that_a_person_would_give_them(
    measured_by: str, sets: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = build_backbone("efficientnet_lite0", image_size_px=SIZE)
    if measured_by == PHOTOGRAPHS:
        monkeypatch.setattr(room, "_has_statistics", lambda module: False)
    found = {name: similarity_of(backbone, pixels, CPU) for name, pixels in sets.items()}
    values = {name: one.value for name, one in found.items() if one is not None}
    assert {one.measured_by for one in found.values() if one is not None} == {measured_by}
    assert values["photographs"] > values["grey"] > values["digits"] > values["noise"] > 0
    assert values["photographs"] > 0.5 and values["noise"] < 0.2


def test_the_training_statistics_themselves_are_as_near_as_can_be() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8, momentum=None), nn.AdaptiveAvgPool2d(1))
    pixels = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    backbone = as_backbone([net], preprocessing=Preprocessing(32, 32))
    net.train()(room.Normalise(backbone.preprocessing)(pixels))
    near = similarity_of(backbone, pixels, CPU)
    far = similarity_of(backbone, pixels // 8, CPU)
    assert near is not None and far is not None
    assert near.value > 0.99 > 0.5 > far.value
    assert net.training  # as it was


def test_it_is_the_stated_distance() -> None:
    mean, variance = torch.tensor([1.0, 0.0]).double(), torch.tensor([4.0, 1.0]).double()
    own = torch.tensor([0.0, 0.0]).double(), torch.tensor([1.0, 1.0]).double()
    expected = (1 / (4 * 5) - 0.5 * math.log(2 * 2 / 5)) / 2  # Bhattacharyya, one channel; the other is equal
    assert room._distance((mean, variance), own) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "vit_b_16"])
def test_nothing_of_the_backbone_changes(name: str, sets: dict[str, Tensor]) -> None:
    backbone = build_backbone(name, pretrained=False, image_size_px=64)
    stages = nn.ModuleList(backbone.stages).train()
    before = copy.deepcopy(stages.state_dict())
    hooks = sum(len(module._forward_pre_hooks) for module in stages.modules())
    found = similarity_of(backbone, sets["photographs"][:4, :, :64, :64], CPU)
    assert found is not None and 0 < found.value <= 1
    assert found.measured_by == (NORMS if name == "efficientnet_lite0" else PHOTOGRAPHS)
    assert all(torch.equal(before[key], value) for key, value in stages.state_dict().items())
    assert all(module.training for module in stages.modules())
    assert sum(len(module._forward_pre_hooks) for module in stages.modules()) == hooks


def test_there_may_be_none() -> None:
    backbone = build_backbone("efficientnet_lite0", pretrained=False, image_size_px=64)
    assert similarity_of(backbone, torch.empty(0, 3, 64, 64, dtype=torch.uint8), CPU) is None
    with torch.no_grad():
        next(iter(backbone.stages[0].parameters())).fill_(math.nan)
    assert similarity_of(backbone, torch.zeros(2, 3, 64, 64, dtype=torch.uint8), CPU) is None


def test_values_in_words() -> None:
    told = [in_words(value) for value in (0.9, 0.7, 0.5, 0.2, 0.1)]
    assert [words.split(" what")[0] for words in told] == [
        "much like",
        "much like",
        "somewhat like",
        "little like",
        "nothing like",
    ]
    assert str(Similarity(0.456, NORMS, 64)).startswith("0.46: somewhat like what the network was trained on (by batch")


def test_norms_may_be_called_by_keyword_and_some_never_reached() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.unused = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            normed: Tensor = self.norm(input=self.conv(x))
            return normed

    backbone = as_backbone([Named()], preprocessing=Preprocessing(32, 32))
    found = similarity_of(backbone, torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8), CPU)
    assert found is not None and 0 < found.value <= 1


def test_activations_far_from_zero_keep_their_variance() -> None:
    sums = room._Sums(channels_last=False, shift=torch.full((2,), 100.0).double())
    values = 100 + 0.01 * torch.randn(16, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    sums.add(values)
    mean, variance = sums.moments()
    assert torch.allclose(mean, torch.full((2,), 100.0).double(), atol=1e-3)
    assert torch.allclose(variance, torch.full((2,), 1e-4).double(), rtol=0.1)
