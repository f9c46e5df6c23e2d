"""Norms computed inside convolutions while a tail trains: the same function, the same gradients, and no traces."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from toolkit.backbones.catalog import build_backbone
from toolkit.features.sample import sample_images
from toolkit.heads.linear import LinearHead
from toolkit.plan import FreezeSpec
from toolkit.training.folded import folded_norms
from toolkit.training.network import TransferNetwork

FAMILIES = {"efficientnet_lite0": 49, "resnet18": 20, "mobilenet_v3_small": 34, "timm/efficientnet_lite0": 49}


def network(name: str, cut: int, batchnorm: str = "fixed") -> TransferNetwork:
    """A network with random weights, in double precision, whose norms are not the identity."""
    torch.manual_seed(0)
    backbone = build_backbone(name, pretrained=False, image_size_px=64)
    made = TransferNetwork(
        backbone,
        LinearHead((backbone.feature_dim,), 3),
        FreezeSpec.at_cut(len(backbone), cut),
        batchnorm=batchnorm,
    ).double()
    made.head.float()
    nn.init.normal_(made.head.linear.weight)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return made.train()


def gradients(made: TransferNetwork, pixels: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    for module in made.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    made.zero_grad()
    scores = made(pixels)
    scores.square().mean().backward()
    return scores.detach(), {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", sorted(FAMILIES))
@pytest.mark.parametrize("batchnorm", ["fixed", "frozen"])
def test_scores_and_gradients_are_those_of_the_norms(name: str, batchnorm: str) -> None:
    made = network(name, 0, batchnorm)
    names, pixels = list(made.state_dict()), sample_images(3, 64, seed=5)
    scores, wanted = gradients(made, pixels)
    sample = made.normalise(sample_images(1, 64))
    with folded_norms(made.stages, 0, sample) as count:
        assert count == FAMILIES[name]
        folded_scores, found = gradients(made, pixels)
        assert list(made.state_dict()) == names
    torch.testing.assert_close(folded_scores, scores, rtol=1e-5, atol=1e-6)  # the head is in single precision
    assert found.keys() == wanted.keys()
    for key, gradient in wanted.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-5, atol=1e-6 * float(gradient.abs().max()))
    assert not any("forward" in vars(module) for module in made.modules())
    again, _ = gradients(made, pixels)
    assert torch.equal(again, scores)


def test_it_is_put_back_after_an_error_and_can_be_copied() -> None:
    made = network("resnet18", 3)
    with pytest.raises(KeyError), made.folded():
        assert any("forward" in vars(module) for module in made.stages[3].modules())
        assert not any("forward" in vars(module) for module in made.stages[:3].modules())  # frozen: nobody's affair
        raise KeyError
    assert not any("forward" in vars(module) for module in made.modules())
    copy.deepcopy(made)


def test_moving_norms_are_left_alone() -> None:
    made = network("resnet18", 3, "moving")
    with made.folded():
        assert not any("forward" in vars(module) for module in made.modules())


def test_a_norm_in_training_mode_is_computed_as_ever() -> None:
    made = network("resnet18", 3).float()
    pixels, twin = sample_images(4, 64), copy.deepcopy(made)
    with made.folded():
        for one in (made, twin):
            one.stages[3][0].train()
        torch.testing.assert_close(made(pixels), twin(pixels), rtol=1e-6, atol=1e-6)
    for (name, one), other in zip(made.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6, msg=name)


class Stage(nn.Module):
    """A convolution and its norm with something between or around them that forbids to fold."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv, self.norm = kind, nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.gain = nn.Parameter(torch.ones(4, 1, 1))
        self.dropout = nn.Dropout2d(0.5) if kind == "dropout" else nn.Dropout(0.5, inplace=True)
        if kind == "branch of zeros":
            nn.init.zeros_(self.norm.weight)

    def forward(self, activation: torch.Tensor) -> torch.Tensor:
        made = self.conv(activation)
        if self.kind == "fork":
            return made + self.norm(made)
        if self.kind == "branch of zeros":
            return activation + self.norm(made) * (1 + made.mean())
        if "dropout" in self.kind:
            return self.norm(self.dropout(made))
        if self.kind == "noise":
            return self.norm(made + torch.randn_like(made)) if self.training else self.norm(made)
        return self.norm(made)


class Gaining(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(4, 4, 1)
        self.gain = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * self.gain


class Shifting(nn.BatchNorm2d):
    def __init__(self) -> None:
        super().__init__(4)
        self.more = nn.Parameter(torch.zeros(1, 4, 1, 1))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + self.more


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    "kind", ["fork", "branch of zeros", "dropout", "dropout in place", "noise", "gain", "shift", "changed"]
)
def test_a_stage_that_would_give_or_learn_other_numbers_is_left_as_it_is(kind: str, training: bool) -> None:
    torch.manual_seed(0)
    stage = Stage(kind)
    if kind == "gain":
        stage.conv = Gaining()
    elif kind == "shift":
        stage.norm = Shifting()
    elif kind == "changed":
        stage.conv.forward = lambda input: 2 * nn.Conv2d.forward(stage.conv, input)
    plain = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.Dropout(0.5), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    stages = nn.ModuleList([nn.Conv2d(3, 4, 1), stage, plain]).train(training)
    before = torch.get_rng_state()
    with folded_norms(stages, 1, torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))) as count:
        assert count == 1 and "forward" in vars(plain[2]) and "forward" not in vars(stage.norm)
        assert ("forward" in vars(stage.conv)) == (kind == "changed")
        assert torch.equal(torch.get_rng_state(), before), "training draws what it would have drawn"


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenet_v2"])
def test_modes_do_not_decide(name: str) -> None:
    made = network(name, 0)
    with made.train().folded() as one, made.eval().folded() as other:
        assert one > 40 and other == 0  # which are folded already
    with made.eval().folded() as again:
        assert again == one


def test_modes_and_statistics_survive_the_look() -> None:
    made = network("resnet18", 3)
    modes = [module.training for module in made.modules()]
    state = {key: value.clone() for key, value in made.state_dict().items()}
    with made.folded():
        assert [module.training for module in made.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in made.state_dict().items())
