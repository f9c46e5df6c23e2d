"""LinearHead: taps of unit length, and a start from zero."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from toolkit.errors import SettingError
from toolkit.heads.linear import LinearHead, unit_rms, unit_taps


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


@pytest.mark.parametrize("widths", [(64,), (40, 24), (1, 2, 3)])
def test_a_scale_gives_features_the_size_that_layers_have(widths):
    features = torch.randn(50, sum(widths)).abs() * 0.01
    scaled = unit_taps(features, widths) * unit_rms(widths)
    assert scaled.square().mean() == pytest.approx(1)
    head = LinearHead(widths, 3, unit_rms(widths))
    torch.nn.init.normal_(head.linear.weight)
    torch.nn.init.normal_(head.linear.bias)
    before = head(features)
    assert torch.allclose(before, scaled @ head.linear.weight.T + head.linear.bias, atol=1e-5)
    head.fold_scale()
    assert head.scale == 1 and torch.allclose(head(features), before, atol=1e-5)
    plain = LinearHead(widths, 3)
    plain.load_state_dict(head.state_dict())
    assert torch.equal(plain(features), head(features)), "what is saved needs no scale"


def test_without_a_scale_steps_of_a_usual_size_leave_a_head_of_zeros_behind():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 64, generator=generator)
    labels = torch.arange(4).repeat(16)
    features = centres[labels] + 0.5 * torch.randn(64, 64, generator=generator)
    losses = []
    for scale in (1.0, unit_rms((64,))):
        head = LinearHead((64,), 4, scale)
        optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
        for _ in range(200):
            loss = F.cross_entropy(head(features), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 10 * losses[1], losses


@pytest.mark.parametrize(("widths", "n_classes"), [((), 3), ((4,), 0)])
def test_impossible_sizes_are_refused(widths, n_classes):
    with pytest.raises(SettingError, match="at least one tap and one class"):
        LinearHead(widths, n_classes)
