"""Preprocessing: NumPy's means and deviations, of the training split alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.reference import preprocessing
from toolkit.reference.preprocessing import Standardize, ZeroCenter, channel_mean, mean_image

AXES = {"feature": (0,), "channel": (0, 2, 3)}


@given(
    n=st.integers(1, 9),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    per=st.sampled_from(list(AXES)),
    dtype=st.sampled_from([torch.uint8, torch.float32, torch.float64]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_transforms_are_numpys(n, shape, per, dtype, seed):
    random = np.random.default_rng(seed)
    train, other = (torch.from_numpy(random.integers(0, 256, (m, *shape))).to(dtype) for m in (n, 5))
    x, y = train.numpy().astype(np.float64), other.numpy().astype(np.float64)
    mean, std = x.mean(AXES[per], keepdims=True), x.std(AXES[per], keepdims=True)
    changes = x.max(AXES[per], keepdims=True) > x.min(AXES[per], keepdims=True)
    centred = ZeroCenter(per).fit(train).transform(other)
    scaled = Standardize(per).fit(train).transform(other)
    assert centred.numpy() == pytest.approx(y - mean, abs=1e-4)
    assert scaled.numpy() == pytest.approx((y - mean) / np.where(changes, std, 1), rel=1e-5, abs=1e-4)
    assert centred.dtype == scaled.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
    statistic = mean_image(train) if per == "feature" else channel_mean(train)
    assert statistic.numpy() == pytest.approx(mean.squeeze(0) if per == "feature" else mean.flatten(), rel=1e-12)


@pytest.mark.parametrize("shape", [(8, 3), (8, 3, 5), (4, 2, 3, 2, 2)])
def test_a_channel_is_the_second_dimension_of_any_inputs(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    axes = (0, *range(2, x.ndim))
    centred = x.numpy() - x.numpy().mean(axes, keepdims=True)
    assert ZeroCenter("channel").fit(x).transform(x).numpy() == pytest.approx(centred, abs=1e-12)
    scaled = centred / x.numpy().std(axes, keepdims=True)
    assert Standardize("channel").fit(x).transform(x).numpy() == pytest.approx(scaled, abs=1e-12)


def test_numbers_one_by_one_are_inputs_too():
    x = torch.tensor([1, 3], dtype=torch.uint8)
    assert mean_image(x).item() == 2.0 and mean_image(x).shape == ()
    assert ZeroCenter().fit(x).transform(x).tolist() == Standardize().fit(x).transform(x).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("scaler", [ZeroCenter, Standardize])
def test_statistics_come_from_the_training_split_alone(scaler):
    """Other data than that of `fit` is moved by the same numbers, so it does not have mean 0 itself."""
    train, test = torch.randn(50, 3), 5 + torch.randn(20, 3)
    model = scaler().fit(train)
    before = model.mean_.clone()
    moved = model.transform(test)
    assert torch.equal(model.mean_, before) and moved.mean() > 3
    assert torch.equal(model.transform(test[:1]), moved[:1])
    assert model.transform(train).mean(0).abs().max() < 1e-6


def test_many_rows_in_blocks_are_the_same_as_all_at_once(monkeypatch):
    monkeypatch.setattr(preprocessing, "BLOCK_ROWS", 7)
    x = torch.randn(50, 4, dtype=torch.float64)
    assert Standardize().fit(x).std_.numpy() == pytest.approx(x.numpy().std(0), rel=1e-12)


def test_a_feature_that_never_changes_becomes_zero():
    x = torch.full((7, 1), 0.1)  # its mean is not 0.1 to the last bit
    assert Standardize().fit(x).transform(x).abs().max() < 1e-6
    assert Standardize().fit(x).std_.item() == 1


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ZeroCenter("pixel"), "'feature' or 'channel', got 'pixel'"),
        (lambda: Standardize("pixel"), "'feature' or 'channel', got 'pixel'"),
        (lambda: ZeroCenter().transform(torch.zeros(1, 2)), "fit before transform"),
        (lambda: Standardize().transform(torch.zeros(1, 2)), "fit before transform"),
        (lambda: mean_image(torch.zeros(0, 2)), r"inputs \(N, \.\.\.\) that are not empty, got shape \(0, 2\)"),
        (lambda: mean_image(torch.tensor(3.0)), r"not empty, got shape \(\)"),
        (lambda: channel_mean(torch.zeros(3)), r"\(N, C, \.\.\.\) that are not empty, got shape \(3,\)"),
        (lambda: ZeroCenter().fit(torch.zeros(2, 3)).transform(torch.zeros(2, 4)), r"\(N, \*\(3,\)\)"),
        (lambda: ZeroCenter("channel").fit(torch.zeros(2, 3)).transform(torch.zeros(2, 4)), r"\(N, 3, ...\)"),
        (lambda: ZeroCenter("channel").fit(torch.zeros(2, 3)).transform(torch.zeros(3)), r"\(N, 3, ...\)"),
    ],
)
def test_what_does_not_fit_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
