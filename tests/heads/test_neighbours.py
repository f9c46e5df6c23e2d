"""NeighbourHead: scikit-learn's neighbours and votes, none of an image's own views, a module that can be saved."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from sklearn.neighbors import KNeighborsClassifier

from tests.heads.rows import WIDTHS, OnDisk, clouds, unit, with_views
from toolkit.heads.examples import UNSEEN_BIAS
from toolkit.heads.neighbours import NEIGHBOURS, NeighbourHead
from toolkit.heads.votes import VOTE_TEMPERATURE, NeighbourVotes


def shares(scores: np.ndarray, n_seen: int) -> np.ndarray:
    """Return the shares of the votes, without the one that is spread over the classes."""
    votes = np.exp(scores.astype(np.float64)) - 1 / n_seen
    return votes / votes.sum(axis=1, keepdims=True)


def sklearns(k: int) -> KNeighborsClassifier:
    """Return scikit-learn's classifier with votes exp(similarity / 0.07), the cosine being the mean of two taps'."""
    weights = lambda far: np.exp((far.min(axis=1, keepdims=True) - far) / VOTE_TEMPERATURE)  # noqa: E731
    return KNeighborsClassifier(k, metric="cosine", weights=weights, algorithm="brute")


def test_votes_are_scikit_learns():
    features, labels = clouds([30, 20, 40], noise=2.0)
    fresh = clouds([20, 20, 20], noise=2.0, seed=1)[0]
    head = NeighbourHead(WIDTHS).fit(features, labels, 3)
    theirs = sklearns(int(head.strength_)).fit(unit(features), labels).predict_proba(unit(fresh))
    ours = shares(head.head_(torch.from_numpy(fresh)).numpy(), 3)
    assert np.abs(ours - theirs).max() < 1e-4


@pytest.mark.parametrize("n_views", [1, 3])
def test_an_images_own_views_are_no_neighbours(n_views):
    features, labels, images = with_views(*clouds([30, 20, 40], noise=2.0), n_views)
    head = NeighbourHead(WIDTHS).fit(features, labels, 3, images)
    assert head.strength_ in [k * n_views for k in NEIGHBOURS] + [len(labels)]
    weights = np.array([1 / (images == image).sum() for image in images])
    inputs = unit(features) / np.sqrt(2)
    for row in (0, 5, 88, len(labels) - 1):
        similarity = np.where(images == images[row], -np.inf, inputs @ inputs[row])
        nearest = np.argsort(-similarity)[: int(head.strength_)]
        votes = np.exp((similarity[nearest] - similarity[nearest[0]]) / VOTE_TEMPERATURE) * weights[nearest]
        expected = np.log(np.bincount(labels[nearest], votes, minlength=3) + 1 / 3)
        assert np.abs(head.oof_[row] - expected).max() < 1e-4


def test_many_rows_in_blocks_are_the_same_as_all_at_once():
    features, labels = clouds([2000, 1500, 1000], noise=3.0)
    head = NeighbourHead(WIDTHS).fit(OnDisk(features), labels, 3)
    some = np.array([0, 2047, 2048, 4499])
    inputs = unit(features) / np.sqrt(2)
    similarity = inputs[some] @ inputs.T
    similarity[np.arange(4), some] = -np.inf
    nearest = np.argsort(-similarity, axis=1)[:, : int(head.strength_)]
    for row, rows, near in zip(some, nearest, np.take_along_axis(similarity, nearest, axis=1), strict=True):
        votes = np.bincount(labels[rows], np.exp((near - near[0]) / VOTE_TEMPERATURE), minlength=3)
        assert np.abs(head.oof_[row] - np.log(votes + 1 / 3)).max() < 1e-4


def test_a_state_dict_of_safetensors_restores_it():
    features, labels = clouds([30, 20])
    head = NeighbourHead(WIDTHS).fit(features, np.where(labels == 1, 2, 0), 3).head_
    head.temperature.fill_(0.5)
    state = load(save(head.state_dict()))
    again = NeighbourVotes(WIDTHS, len(state["floor"]), len(state["references"]))
    again.load_state_dict(state)
    fresh = torch.randn(9, sum(WIDTHS))
    assert torch.equal(again(fresh), head(fresh)) and head(fresh).dtype == torch.float32
    assert (head(fresh)[:, 1] == UNSEEN_BIAS).all() and set(head(fresh).argmax(1).tolist()) <= {0, 2}


def test_scores_are_finite_whatever_comes():
    head = NeighbourHead(WIDTHS).fit(*clouds([5, 5]), 2).head_
    odd = torch.stack([torch.zeros(16), torch.full((16,), 1e9), torch.full((16,), -1e-9)])
    assert head(odd).isfinite().all()


def test_balanced_votes_count_for_the_rare_class():
    features, labels = clouds([200, 10], noise=3.0)
    fresh, truth = clouds([200, 200], noise=3.0, seed=5)
    recall = {}
    for balanced in (False, True):
        head = NeighbourHead(WIDTHS, balanced=balanced).fit(features, labels, 2).head_
        recall[balanced] = (head(torch.from_numpy(fresh)).argmax(1).numpy()[truth == 1] == 1).mean()
    assert recall[True] > recall[False] + 0.1
