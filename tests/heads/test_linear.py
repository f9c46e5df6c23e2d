"""LinearHead: taps of unit length, and a start from zero."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from toolkit.errors import SettingError
from toolkit.heads.linear import LinearHead, unit_taps


@pytest.mark.parametrize("n_classes", [2, 7, 1000])
def test_the_first_loss_is_ln_c(n_classes):
    head = LinearHead((4, 3), n_classes)
    features, labels = torch.randn(5, 7), torch.arange(5) % n_classes
    assert F.cross_entropy(head(features), labels).item() == pytest.approx(math.log(n_classes), rel=1e-6)


def test_nothing_is_left_to_chance():
    """Its start does not depend on the global random state."""
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        states.append(LinearHead((4,), 3).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not any(value.any() for value in states[0].values())


def test_every_tap_has_unit_length():
    features = torch.randn(6, 9) * torch.tensor([1e3] * 4 + [1e-3] * 5)
    scaled = unit_taps(features, (4, 5))
    for part, original in ((scaled[:, :4], features[:, :4]), (scaled[:, 4:], features[:, 4:])):
        assert torch.allclose(part.norm(dim=1), torch.ones(6))
        assert torch.allclose(F.cosine_similarity(part, original), torch.ones(6))
    assert not unit_taps(torch.zeros(1, 4), (4,)).any(), "a black image may have no activation at all"


def test_scores_are_linear_in_the_unit_taps():
    head = LinearHead((4, 5), 3)
    torch.nn.init.normal_(head.linear.weight)
    torch.nn.init.normal_(head.linear.bias)
    features = torch.randn(6, 9)
    expected = unit_taps(features, (4, 5)) @ head.linear.weight.T + head.linear.bias
    assert torch.allclose(head(features), expected, atol=1e-6)
    longer = features * torch.tensor([3.0] * 4 + [0.1] * 5)
    assert torch.allclose(head(longer), head(features), atol=1e-5)


@pytest.mark.parametrize(("widths", "n_classes"), [((), 3), ((4,), 0)])
def test_impossible_sizes_are_refused(widths, n_classes):
    with pytest.raises(SettingError, match="at least one tap and one class"):
        LinearHead(widths, n_classes)
