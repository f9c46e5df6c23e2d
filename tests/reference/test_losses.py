"""Losses: the notes' numbers, torch's values and gradients, and scores of any size."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from tests.reference.against import assert_close, assert_smooth, autograd, numbers
from toolkit.reference import losses as room

NOTES = torch.tensor([3.2, 5.1, -1.7], dtype=torch.float64)
LOSSES = [
    (room.cross_entropy, room.cross_entropy_backward, room.CrossEntropyLoss, functional.cross_entropy),
    (room.hinge, room.hinge_backward, room.HingeLoss, lambda s, y: s.shape[1] * functional.multi_margin_loss(s, y)),
]
BATCHES = {
    "n": st.integers(1, 5),
    "c": st.integers(1, 6),
    "seed": st.integers(0, 999),
    "scale": st.sampled_from([1, 30]),
}


def batch(n: int, c: int, seed: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scores (n, c) and labels (n,)."""
    labels = torch.randint(c, (n,), generator=torch.Generator().manual_seed(seed))
    return numbers(n, c, seed=seed, scale=scale), labels


def test_the_notes_softmax():
    expected = torch.tensor([0.12998254, 0.86904954, 0.00096793], dtype=torch.float64)
    assert_close(room.softmax(NOTES), expected, 1e-8)
    log10 = torch.tensor([0.88611498, 0.06095547, 3.01415795], dtype=torch.float64)
    assert_close(-room.log_softmax(NOTES) / math.log(10), log10, 1e-8)
    for label in range(3):
        loss = room.cross_entropy(NOTES[None], torch.tensor([label]))
        assert float(loss) == pytest.approx(float(log10[label]) * math.log(10), abs=1e-7), "in nats"


def test_the_notes_hinge():
    assert float(room.hinge(NOTES[None], torch.tensor([0]))) == pytest.approx(2.9, abs=1e-12)
    assert float(room.hinge(NOTES[None], torch.tensor([1]))) == 0.0
    assert float(room.hinge(NOTES[None], torch.tensor([2]))) == pytest.approx(5.9 + 7.8, abs=1e-12)


@pytest.mark.parametrize(("function", "backward", "module", "theirs"), LOSSES)
@settings(max_examples=40, deadline=None)
@given(**BATCHES)
def test_value_and_gradients_are_torchs(function, backward, module, theirs, n, c, seed, scale):
    scores, labels = batch(n, c, seed, scale)
    assert_close(function(scores, labels), theirs(scores, labels))
    assert_close(module()(scores, labels), theirs(scores, labels))
    upstream = torch.tensor(1.7, dtype=torch.float64)
    (expected,) = autograd(lambda s: theirs(s, labels), upstream, scores)
    assert_close(autograd(lambda s: function(s, labels), upstream, scores)[0], expected)
    assert_close(backward(upstream, scores, labels), expected)
    assert_close(backward(1.7, scores, labels), expected)


@settings(max_examples=40, deadline=None)
@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=3), seed=st.integers(0, 999))
def test_softmax_and_its_logarithm_are_torchs(shape, seed):
    scores, upstream = numbers(*shape, seed=seed, scale=3), numbers(*shape, seed=seed + 1)
    for name in ("softmax", "log_softmax"):
        function, backward, theirs = (getattr(room, name), getattr(room, f"{name}_backward"), getattr(torch, name))
        (expected,) = autograd(lambda s, theirs=theirs: theirs(s, -1), upstream, scores)
        assert_close(function(scores), theirs(scores, -1))
        assert_close(autograd(function, upstream, scores)[0], expected)
        assert_close(backward(upstream, scores), expected)


def test_smooth_ones_are_smooth():
    labels = torch.tensor([1, 0])
    assert_smooth(room.softmax, numbers(2, 3))
    assert_smooth(room.log_softmax, numbers(2, 3))
    assert_smooth(lambda scores: room.cross_entropy(scores, labels), numbers(2, 3))
    assert_smooth(lambda scores: room.hinge(scores, labels), numbers(2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [-1e4, 0.0, 1e4])
def test_scores_of_ten_thousand_do_not_overflow(offset, dtype):
    scores = torch.tensor([[0.0, 1e4, -1e4], [1.0, 0.0, 2.0]], dtype=dtype) + offset
    labels = torch.tensor([0, 2])
    for function, backward, _, theirs in LOSSES:
        (expected,) = autograd(lambda s, theirs=theirs: theirs(s, labels), None, scores)
        assert_close(function(scores, labels), theirs(scores, labels), 1e-5)
        assert_close(backward(1.0, scores, labels), expected, 1e-5)
        assert_close(autograd(lambda s, f=function: f(s, labels), None, scores)[0], expected, 1e-5)
    assert_close(room.softmax(scores), torch.softmax(scores, 1), 1e-6)
    assert room.log_softmax(scores)[0, 2] == -2e4


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 4), c=st.integers(2, 6))
def test_scores_that_say_nothing(n, c):
    """The first loss of a new net: log C, and C − 1."""
    scores, labels = torch.zeros(n, c, dtype=torch.float64), torch.arange(n) % c
    assert float(room.cross_entropy(scores, labels)) == pytest.approx(math.log(c), abs=1e-12)
    assert float(room.hinge(scores, labels)) == pytest.approx(c - 1, abs=1e-12)


def test_hinge_is_flat_once_every_margin_is_met_and_cross_entropy_is_not():
    labels = torch.tensor([0])
    for scores in ([[2.0, 1.0, -3.0]], [[5.0, 1.0, 1.0]]):
        scores = torch.tensor(scores, dtype=torch.float64)
        assert float(room.hinge(scores, labels)) == 0.0
        assert not room.hinge_backward(1.0, scores, labels).any()
        assert room.cross_entropy(scores, labels) > 0 and room.cross_entropy_backward(1.0, scores, labels).all()


def test_the_gradients_of_a_row_add_up_to_zero():
    scores, labels = batch(6, 4, 0, 1.0)
    for _, backward, _, _ in LOSSES:
        assert backward(1.0, scores, labels).sum(1).abs().max() < 1e-15
        assert backward(1.0, scores.float(), labels).dtype == torch.float32


@pytest.mark.parametrize(("function", "backward", "module", "theirs"), LOSSES)
def test_nan_is_seen(function, backward, module, theirs):
    assert function(torch.tensor([[math.nan, 1.0], [1.0, 2.0]]), torch.tensor([1, 0])).isnan()


@pytest.mark.parametrize(("function", "backward", "module", "theirs"), LOSSES)
def test_what_does_not_fit_is_refused(function, backward, module, theirs):
    scores, labels = numbers(2, 3), torch.tensor([0, 2])
    wrong = [
        (scores[0], labels, r"expected scores of shape \(N, C\) with N, C ≥ 1, got \(3,\)"),
        (scores[None], labels, r"got \(1, 2, 3\)"),
        (scores[:0], labels[:0], r"got \(0, 3\)"),
        (scores[:, :0], labels, r"got \(2, 0\)"),
        (scores.long(), labels, "expected scores of a floating-point dtype, got torch.int64"),
        (scores, labels.int(), "expected labels of dtype torch.int64, got torch.int32"),
        (scores, labels.double(), "expected labels of dtype torch.int64, got torch.float64"),
        (scores, labels[:1], r"expected labels of shape \(2,\), got \(1,\)"),
        (scores, labels[:, None], r"expected labels of shape \(2,\), got \(2, 1\)"),
        (scores, torch.tensor([0, 3]), "expected labels from 0 to 2, got 0 to 3"),
        (scores, torch.tensor([-1, 1]), "expected labels from 0 to 2, got -1 to 1"),
    ]
    for some_scores, some_labels, message in wrong:
        for call in (function, module(), lambda s, y: backward(1.0, s, y)):
            with pytest.raises(ValueError, match=message):
                call(some_scores, some_labels)


def test_softmax_needs_a_class():
    for empty in (torch.zeros(()), torch.zeros(3, 0)):
        for function in (room.softmax, room.log_softmax):
            with pytest.raises(ValueError, match=r"expected scores of shape \(..., C\) with C ≥ 1, got \("):
                function(empty)
    assert room.softmax(torch.tensor([4.0])).tolist() == [1.0]
