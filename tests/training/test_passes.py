"""Dropout at test time: the same masks for every image, the right mean, and nothing that is left behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.evaluation.nets import net, noise
from tests.training.tiny import WIDTHS, tiny_backbone
from toolkit.baselines.model import BaselineModel
from toolkit.baselines.neighbours import Neighbours
from toolkit.errors import SettingError
from toolkit.heads.linear import LinearHead
from toolkit.plan import FreezeSpec
from toolkit.training.network import TransferNetwork
from toolkit.training.passes import dropout_layers
from toolkit.training.trained import Predictor, TrainedModel

CLASSES = ("ant", "bee", "cow")


def transfer(cut: int, dropout: float = 0.3) -> TrainedModel:
    """Return a network whose stages all have dropout, those before `cut` frozen."""
    backbone = tiny_backbone(dropout=dropout)
    head = LinearHead((WIDTHS[-1],), len(CLASSES))
    with torch.no_grad():
        head.linear.weight.copy_(torch.randn(head.linear.weight.shape, generator=torch.Generator().manual_seed(1)))
    network = TransferNetwork(backbone, head, FreezeSpec.at_cut(len(backbone), cut)).eval()
    return TrainedModel(network, CLASSES, "tiny", "custom", "NCHW", backbone.preprocessing, 1_000_000)


MODELS = {
    "torch": lambda: (net(dropout=0.5), 12),
    "reference": lambda: (net(dropout=0.5, layers="reference"), 12),
    "hog": lambda: (net(dropout=0.5, on="hog", side=28), 28),
    "partial": lambda: (transfer(cut=2), 32),
    "full": lambda: (transfer(cut=0), 32),
}


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[Predictor, Tensor]:
    model, side = MODELS[request.param]()  # type: ignore[no-untyped-call]
    return model, noise(9, side)


def test_an_images_scores_depend_neither_on_company_nor_on_order(case: tuple[Predictor, Tensor]) -> None:
    model, pixels = case
    together = model.sampled_logits(pixels, 5)
    assert together.shape == (5, 9, 3) and together.dtype == torch.float32
    assert torch.equal(model.sampled_logits(pixels.flip(0), 5), together.flip(1))
    for number in (0, 4, 8):
        assert torch.equal(model.sampled_logits(pixels[number : number + 1], 5)[:, 0], together[:, number])


def test_passes_differ_and_equal_images_meet_equal_masks(case: tuple[Predictor, Tensor]) -> None:
    model, pixels = case
    found = model.sampled_logits(pixels[[0, 1, 0]], 6)
    assert torch.equal(found[:, 0], found[:, 2])
    assert found[:, 0].std(0).min() > 1e-3


def test_nothing_is_left_behind(case: tuple[Predictor, Tensor]) -> None:
    model, pixels = case
    before = model.logits(pixels)
    modes = [module.training for module in model.network.modules()]  # type: ignore[attr-defined]
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    model.sampled_logits(pixels, 3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in model.network.modules()] == modes  # type: ignore[attr-defined]
    assert torch.equal(model.logits(pixels), before)


def test_the_global_state_does_not_matter(case: tuple[Predictor, Tensor]) -> None:
    model, pixels = case
    torch.manual_seed(1)
    first = model.sampled_logits(pixels, 3)
    torch.manual_seed(2)
    assert torch.equal(model.sampled_logits(pixels, 3), first)


def test_a_pass_that_fails_leaves_nothing_behind_either() -> None:
    model = net(dropout=0.5)
    state = torch.random.get_rng_state()
    with pytest.raises(RuntimeError):
        model.sampled_logits(noise(2, side=13), 3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(module.training for module in model.network.modules())


@pytest.mark.parametrize("layers", ["torch", "reference"])
def test_the_mean_of_many_passes_through_a_linear_net_is_its_output(layers: str) -> None:
    model = net(dropout=0.5, activation="identity", hidden=(32,), layers=layers)
    pixels = noise(2)
    found, expected = model.sampled_logits(pixels, 4000), model.logits(pixels)
    error = found.std(0) / 4000**0.5
    assert ((found.mean(0) - expected).abs() < 5 * error).all()
    assert error.max() < 0.1 * expected.abs().max()


def test_passes_beyond_a_forward_are_new_ones() -> None:
    found = net(dropout=0.5, hidden=(64,), activation="tanh").sampled_logits(noise(1), 70)[:, 0]
    assert len(found) == 70 and len(found.unique(dim=0)) == 70


def test_no_forward_is_larger_for_more_passes() -> None:
    model = net(dropout=0.5)
    sizes: list[int] = []
    model.network.body.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    model.sampled_logits(noise(2), 1000)
    assert sum(sizes) == 2000 and max(sizes) <= 32


def test_frozen_stages_drop_nothing() -> None:
    model = transfer(cut=3)
    first, *_ = model.network.stages
    seen: list[bool] = []
    first[-1].register_forward_pre_hook(lambda module, inputs: seen.append(module.training))  # type: ignore[index, operator, union-attr]
    assert model.sampled_logits(noise(2, 32), 4).std(0).max() > 0
    assert not any(seen)


def test_what_has_dropout() -> None:
    from toolkit.reference.dropout import DropoutScaledAtTest, InvertedDropout

    kinds = [nn.Dropout(0.1), nn.Dropout2d(0.1), nn.AlphaDropout(0.1), InvertedDropout(0.9), DropoutScaledAtTest(0.9)]
    others = [nn.Linear(2, 2), nn.Dropout(0.0), InvertedDropout(1.0), nn.BatchNorm1d(2)]
    assert dropout_layers(nn.Sequential(*others, nn.Sequential(*kinds))) == kinds


def no_dropout() -> list[Predictor]:
    plain = net()
    references = noise(4).flatten(1)
    body = Neighbours(references, torch.tensor([0, 1, 2, 0]), 3, k=1)
    plain_knn = net()
    plain_knn.network.body = body
    return [plain, plain_knn, transfer(cut=2, dropout=0.0), transfer(cut=4)]


@pytest.mark.parametrize("number", range(4))
def test_without_dropout_there_is_nothing_to_ask(number: int) -> None:
    model = no_dropout()[number]
    side = 12 if isinstance(model, BaselineModel) else 32
    with pytest.raises(SettingError, match="nothing that was trained in this model has dropout") as caught:
        model.sampled_logits(noise(2, side), 4)
    assert "\n" not in str(caught.value)
