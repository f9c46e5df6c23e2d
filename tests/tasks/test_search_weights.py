"""A search is not gone on with when other weights lie in the file that it began with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tasks.small import SMALL
from toolkit.backbones.efficientnet_lite import SCALES, EfficientNetLite
from toolkit.errors import ArtifactError
from toolkit.tasks.search import search

FILES = ("best.yaml", "trials.csv", "search.json")
KINDS: list[dict[str, Any]] = [
    {},
    {"strategy": "partial", "cut": 6, "epochs": 1, "views": 1, "folds": 2},
    {"model": "softmax", "on": "features", "epochs": 1, "folds": 2},
]


def write_weights(file: Path, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.save(EfficientNetLite(SCALES["efficientnet_lite0"]).state_dict(), file)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_search_with_replaced_weights_is_not_gone_on_with(
    photo_folder: Path, tmp_path: Path, kind: dict[str, Any]
) -> None:
    file, out = tmp_path / "net.pth", tmp_path / "search"

    def go(trials: int) -> int:
        found = search(str(photo_folder), out=str(out), weights=str(file), trials=trials, **SMALL, **kind)
        return int(found.summary["trials"]["trials"])

    write_weights(file, 0)
    assert go(2) == 2
    write_weights(file, 1)
    before = [(out / name).read_bytes() for name in FILES]
    for trials in (2, 3):
        with pytest.raises(ArtifactError, match=r"holds a search with other weights \(net\.pth: '") as error:
            go(trials)
        assert "\n" not in str(error.value)
        assert [(out / name).read_bytes() for name in FILES] == before
    write_weights(file, 0)
    assert go(3) == 3
