"""The stages that a pass goes by: stored with those that were asked for, where that costs next to nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.features.small import assert_same, everything, fetch, live
from tests.training.tiny import tiny_backbone
from toolkit.backbones.catalog import as_backbone
from toolkit.features import store
from toolkit.features.request import Request


def test_stages_that_a_pass_goes_by_are_stored_as_well(cache, manifest, monkeypatch):
    """Of the clean view; those that it does not reach are not, nor any where they would take half of the room."""
    backbone = replace(tiny_backbone(), weights="somebody's")

    def fetched(taps, rows, folder=cache):
        return fetch(folder, Request(backbone, taps), manifest, rows)

    assert fetched((1,), range(4)).n_computed == 4
    assert fetched((0, 1), range(4)).n_computed == 0
    assert fetched((3,), range(4)).n_computed == 4
    found = fetched((0, 1, 2, 3), range(4))
    assert found.n_computed == 0
    assert_same(everything(found), live(Request(backbone, (0, 1, 2, 3)), manifest, range(4)))
    room = 4 * Request(backbone, (3,)).bytes_per_view
    monkeypatch.setattr(store.FeatureStore, "free_bytes", lambda self: room)
    assert fetched((3,), range(4, 8)).n_computed == 4
    with pytest.raises(store.NoRoomError):
        fetched((2, 3), range(4, 8))


def test_older_caches_of_fewer_stages_are_gone_on_with(cache, manifest, monkeypatch):
    backbone = replace(tiny_backbone(), weights="somebody's")
    with monkeypatch.context() as patched:
        patched.setattr(Request, "with_stages_on_the_way", lambda self: self)
        assert fetch(cache, Request(backbone, (2, 3)), manifest, range(6)).n_computed == 6
    assert fetch(cache, Request(backbone, (2, 3)), manifest).n_computed == 6
    found = fetch(cache, Request(backbone, (0, 3)), manifest)
    assert found.n_computed == 6
    assert_same(everything(found), live(Request(backbone, (0, 3)), manifest, range(12)))


class Apply(torch.nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_of_modules_of_ones_own_only_what_is_asked_for_is_looked_at(cache, manifest):
    """A stage that is not finite, or has its images in another place, is nobody's business if it is no tap."""
    stages = [
        torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 2), torch.nn.ReLU(), Apply(torch.log)),
        Apply(lambda x: x.clamp(-10, 10)),
        Apply(lambda x: x.flatten(2).permute(2, 0, 1)),
        Apply(lambda x: x.permute(1, 2, 0).mean(2)),
    ]
    backbone = as_backbone(stages, preprocessing=tiny_backbone().preprocessing)
    assert fetch(cache, Request(backbone, (3,)), manifest).pooled().shape == (12, 4)
