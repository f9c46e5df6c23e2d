"""Ensemble: one model is itself to the bit, two are the mean of both; who does not fit is refused in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.evaluation.nets import CLASSES, CPU, net, noise, photos, pixels_of
from toolkit.baselines.model import BaselineModel
from toolkit.errors import SettingError
from toolkit.evaluation.ensemble import Ensemble, Judgement


def judged(pixels: Tensor, *members: BaselineModel, **settings: Any) -> Judgement:
    """Return what models of one size say."""
    ensemble = Ensemble.of(members, **settings)
    return ensemble.judge({key: pixels for key in ensemble.decodings}, CPU)


def test_one_model_is_itself_to_the_bit() -> None:
    pixels = noise(40)
    found = judged(pixels, net())
    assert torch.equal(found.probabilities, net().logits(pixels).double().softmax(1).float())
    assert torch.equal(found.votes[0], net().logits(pixels).argmax(1))
    assert found.spread is None


def test_two_models_are_the_mean_of_both() -> None:
    pixels = noise(40)
    one, two = net(seed=1), net(seed=2, hidden=(5, 4))
    found = judged(pixels, one, two)
    chances = torch.stack([model.logits(pixels).double().softmax(1) for model in (one, two)])
    torch.testing.assert_close(found.probabilities.double(), (chances[0] + chances[1]) / 2, atol=1e-7, rtol=0)
    named = found.probabilities.argmax(1)
    apart = (chances[0] - chances[1]).abs()[torch.arange(40), named]
    assert found.spread is not None
    torch.testing.assert_close(found.spread, apart / 2**0.5)  # of two numbers, with n − 1
    assert [votes.tolist() for votes in found.votes] == [chance.argmax(1).tolist() for chance in chances]
    assert found.votes[0].tolist() != found.votes[1].tolist()


def test_the_same_model_twice_changes_nothing() -> None:
    pixels = noise(40)
    alone, twice = judged(pixels, net()), judged(pixels, net(), net())
    assert torch.equal(twice.probabilities, alone.probabilities)
    assert twice.spread is not None and twice.spread.max() == 0


def test_classes_in_another_order() -> None:
    pixels, order = noise(40), [2, 0, 1]
    one, two = net(seed=1), net(seed=2)
    with torch.no_grad():
        last = two.network.body.net.layers[-1]
        turned = net(seed=2, classes=tuple(CLASSES[i] for i in order))
        turned.network.body.net.layers[-1].weight.copy_(last.weight[order])
        turned.network.body.net.layers[-1].bias.copy_(last.bias[order])
    assert turned.classes == ("owl", "cat", "dog")
    expected, found = judged(pixels, one, two), judged(pixels, one, turned)
    torch.testing.assert_close(found.probabilities, expected.probabilities)
    torch.testing.assert_close(found.spread, expected.spread)
    assert torch.equal(found.votes, expected.votes)
    assert Ensemble.of([turned, one]).classes == turned.classes


def test_models_of_different_image_sizes(tmp_path: Path) -> None:
    manifest, (small, large) = photos(tmp_path / "photos"), (net(side=12), net(side=20, seed=1))
    ensemble = Ensemble.of([small, large])
    pixels = pixels_of(ensemble, manifest)
    assert sorted(own.shape[-1] for own in pixels.values()) == [12, 20]
    chances = [
        model.logits(pixels_of(Ensemble.of([model]), manifest)[model.preprocessing.decoding]).double().softmax(1)
        for model in (small, large)
    ]
    found = ensemble.judge(pixels, CPU).probabilities.double()
    torch.testing.assert_close(found, (chances[0] + chances[1]) / 2, atol=1e-7, rtol=0)


def test_models_that_differ_in_normalisation_alone_share_their_pixels() -> None:
    other = replace(net(), preprocessing=replace(net().preprocessing, mean=(0.1, 0.2, 0.3)))
    assert len(Ensemble.of([net(), other]).decodings) == 1
    sharper = replace(net(), preprocessing=replace(net().preprocessing, interpolation="bicubic"))
    assert len(Ensemble.of([net(), other, sharper]).decodings) == 2


@pytest.mark.parametrize(
    ("classes", "wanted"),
    [
        (("cat", "dog"), "ensemble: second knows other classes: it lacks 'owl'"),
        (("cat", "dog", "owl", "yak"), "ensemble: second knows other classes: it has 'yak'"),
        (("ant", "bee", "cow"), "ensemble: second knows other classes: it has 'ant' and 2 more, it lacks 'cat' and 2"),
    ],
)
def test_other_classes_are_refused(classes: tuple[str, ...], wanted: str) -> None:
    with pytest.raises(SettingError, match=wanted) as caught:
        Ensemble.of([net(), net(classes=classes)], names=["first", "second"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("passes", [1, 0, -1])
def test_less_than_two_passes_are_refused(passes: int) -> None:
    with pytest.raises(SettingError, match=f"mc: at least 2 passes expected, got {passes}"):
        Ensemble.of([net(dropout=0.5)], passes=passes)


def test_the_strictest_limit_of_size_holds() -> None:
    assert Ensemble.of([net(max_pixels=900), net(max_pixels=400), net()]).max_pixels == 400


@pytest.mark.parametrize("passes", [None, 5, 33])
def test_company_and_order_change_nothing(passes: int | None) -> None:
    pixels = noise(40)
    members = [net(seed=1, dropout=0.5), net(seed=2, dropout=0.3, hidden=(7, 5))]
    whole = judged(pixels, *members, passes=passes)
    turned = judged(pixels.flip(0), *members, passes=passes)
    assert whole.spread is not None and turned.spread is not None and whole.spread.min() > 0
    # Some CPUs round a row of a matrix product by its place in it: only what has the same place is equal to the bit.
    torch.testing.assert_close(turned.probabilities.flip(0), whole.probabilities, atol=1e-6, rtol=0)
    torch.testing.assert_close(turned.spread.flip(0), whole.spread, atol=1e-6, rtol=0)
    for number in (0, 31, 32, 39):
        alone = judged(pixels[number : number + 1], *members, passes=passes)
        assert alone.spread is not None
        same = 0 if number % 32 == 0 else 1e-6
        torch.testing.assert_close(alone.probabilities[0], whole.probabilities[number], atol=same, rtol=0)
        torch.testing.assert_close(alone.spread[0], whole.spread[number], atol=same, rtol=0)


def test_passes_are_opinions() -> None:
    pixels, model = noise(6), net(dropout=0.5)
    found = judged(pixels, model, passes=8)
    chances = model.sampled_logits(pixels, 8).double().softmax(2)
    torch.testing.assert_close(found.probabilities.double(), chances.mean(0), atol=1e-7, rtol=0)
    assert found.spread is not None and found.votes.shape == (1, 6)
    named = found.probabilities.argmax(1)
    expected = [np.std(chances[:, i, named[i]].numpy(), ddof=1) for i in range(6)]
    assert found.spread.tolist() == pytest.approx(expected)


class Opinion:
    """A model that always says the same."""

    classes = CLASSES
    max_pixels = 100

    def __init__(self, *logits: float) -> None:
        self.preprocessing = net().preprocessing
        self._logits = torch.tensor([logits])

    def logits(self, inputs: Tensor, device: object = None) -> Tensor:
        return self._logits.expand(len(inputs), -1)


def test_a_draw_goes_to_the_first_class_however_the_sums_are_rounded() -> None:
    votes = [(1, 1, 3.01), (1, 3.01, 1), (2.01, 1, 2), (2.01, 2, 1)]  # of neighbours: dog and owl have equally many
    members = [Opinion(*(torch.tensor(row, dtype=torch.float64) + 1 / 3).log().tolist()) for row in votes]
    for turn in range(4):
        ensemble = Ensemble.of([*members[turn:], *members[:turn]])  # type: ignore[list-item]
        found = ensemble.judge({key: noise(1) for key in ensemble.decodings}, CPU).probabilities[0]
        assert found[1] == found[2] and found.argmax() == 1
