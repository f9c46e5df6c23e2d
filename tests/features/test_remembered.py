"""What a store remembers of measurements: made once for what they depend on, never for anything else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.features.small import fetch, photos
from tests.training.tiny import tiny_backbone
from toolkit.features.prune import kept_in, prune
from toolkit.features.request import Request
from toolkit.features.store import FeatureStore
from toolkit.storage import TEMPORARY_PREFIX


@pytest.fixture()
def request_of(tmp_path: Path) -> Request:
    """Return a Request of which something is stored in tmp_path already."""
    request = Request(tiny_backbone(), (3,))
    fetch(tmp_path, request, photos(tmp_path / "photos", 2))
    return request


class Counted:
    """A measurement that counts how often it is made."""

    def __init__(self, value: dict[str, Any]) -> None:
        self.value, self.times, self.kept = value, 0, True

    def __call__(self) -> tuple[dict[str, Any], bool]:
        self.times += 1
        return self.value, self.kept


def test_it_is_measured_once(tmp_path: Path, request_of: Request) -> None:
    measure = Counted({"value": 0.1, "n": 3, "none": None})
    for _ in range(3):
        store = FeatureStore(tmp_path)
        assert store.remembered(request_of, {"what": 1, "images": "abc"}, measure) == measure.value
    assert measure.times == 1


def test_other_images_backbones_and_precisions_are_measured_anew(tmp_path: Path, request_of: Request) -> None:
    store, measure = FeatureStore(tmp_path), Counted({"value": 1})
    store.remembered(request_of, {"images": "abc"}, measure)
    store.remembered(request_of, {"images": "abd"}, measure)
    store.remembered(replace(request_of, dtype=torch.bfloat16), {"images": "abc"}, measure)
    assert measure.times == 3
    store.remembered(replace(request_of, taps=(0,)), {"images": "abc"}, measure)
    assert measure.times == 3, "it is the backbone's, whatever the taps"
    trained = tiny_backbone()
    with torch.no_grad():
        next(trained.stages[0].parameters()).add_(1)
    store.remembered(Request(trained, (3,)), {"images": "abc"}, measure)
    assert measure.times == 4


BROKEN = ["", "{", "[]", '{"what": {}, "value": {"value": 2}}', '{"value": 2}', "null", "[" * 100_000]
BROKEN += [f'{{"what": {{"images": "abc"}}, "value": {value}}}' for value in ("null", "5", "[]")]


@pytest.mark.parametrize("content", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_or_foreign_file_is_not_believed(tmp_path: Path, request_of: Request, content: str) -> None:
    store, measure = FeatureStore(tmp_path), Counted({"value": 1})
    store.remembered(request_of, {"images": "abc"}, measure)
    (file,) = tmp_path.glob("models/*/measured/*.json")
    file.write_text(content)
    assert store.remembered(request_of, {"images": "abc"}, measure) == {"value": 1} and measure.times == 2
    assert json.loads(file.read_text())["value"] == {"value": 1}


def test_where_nothing_can_be_kept_it_is_measured(tmp_path: Path, request_of: Request) -> None:
    store, measure = FeatureStore(tmp_path), Counted({"value": 1})
    store.remembered(request_of, {"images": "abc"}, measure)
    (folder,) = tmp_path.glob("models/*/measured")
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    folder.write_text("in the way")
    assert store.remembered(request_of, {"images": "abc"}, measure) == {"value": 1} and measure.times == 2


def test_emptying_the_cache_forgets(tmp_path: Path, request_of: Request) -> None:
    store, measure = FeatureStore(tmp_path), Counted({"value": 1})
    store.remembered(request_of, {"images": "abc"}, measure)
    (kept,) = kept_in(tmp_path)
    shards = sum(path.stat().st_size for path in tmp_path.glob("models/*/clean/*"))
    assert kept.n_shards == 1 and kept.bytes > shards > 0
    prune(tmp_path, 0)
    assert not list(tmp_path.glob("models/*/measured/*"))
    store.remembered(request_of, {"images": "abc"}, measure)
    assert measure.times == 2


def test_beside_nothing_stored_nothing_is_kept(tmp_path: Path) -> None:
    measure = Counted({"value": 1})
    for times in (1, 2):
        FeatureStore(tmp_path).remembered(Request(tiny_backbone(), (3,)), {"images": "abc"}, measure)
        assert measure.times == times
    assert not list(tmp_path.glob("models/*"))


def test_what_is_not_to_be_kept_is_measured_again(tmp_path: Path, request_of: Request) -> None:
    store, measure = FeatureStore(tmp_path), Counted({"value": 1})
    measure.kept = False
    for times in (1, 2):
        assert store.remembered(request_of, {"images": "abc"}, measure) == {"value": 1} and measure.times == times


def test_a_killed_write_is_counted_once(tmp_path: Path, request_of: Request) -> None:
    store = FeatureStore(tmp_path)
    store.remembered(request_of, {"images": "abc"}, Counted({"value": 1}))
    (folder,) = tmp_path.glob("models/*/measured")
    (folder / f"{TEMPORARY_PREFIX}stray.json").write_bytes(bytes(20_000))
    files = [path for path in tmp_path.glob("models/*/*/*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    assert prune(tmp_path, 0)[0] >= size and prune(tmp_path, 0)[0] == 0
