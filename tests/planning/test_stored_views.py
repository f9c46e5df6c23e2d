"""The views that a plan has stored: as many as differ from each other."""

from __future__ import annotations

import pytest

from tests.planning.test_policy import make
from toolkit.errors import SettingError
from toolkit.options import Options


@pytest.mark.parametrize("strategy", ["partial", "full", "scratch"])
def test_without_augmentation_a_single_view_is_stored(strategy: str) -> None:
    plan = make(Options(strategy=strategy, augment="none"))
    assert (plan.augmentation, plan.views) == ("none", 1)
    assert make(Options(strategy=strategy, augment="none", views=1)).views == 1
    assert make(Options(strategy=strategy, augment="crop")).views > 1


@pytest.mark.parametrize("strategy", ["auto", "head", "partial", "full", "scratch"])
def test_more_views_without_augmentation_are_refused(strategy: str) -> None:
    with pytest.raises(SettingError, match="without augmentation all views of an image are the same; set views to 1"):
        make(Options(strategy=strategy, augment="none", views=2))
