"""Nothing stale: whatever happens to files and options, a filled cache gives what an empty one gives."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.features.small import assert_same, everything, fetch, files_below
from tests.photos import photo
from tests.training.tiny import SMALL, tiny_backbone
from toolkit.backbones.backbone import Backbone
from toolkit.data.preprocessing import Preprocessing
from toolkit.data.scan import scan
from toolkit.data.views import AUGMENTATIONS, Augmentation
from toolkit.features import contents
from toolkit.features.contents import Contents
from toolkit.features.request import Request

SETTLED_AFTER_NS = 20_000_000  # well above the 4 ms in which Linux counts
N_BYTES, CUT_OFF = 414, 20  # of every image; of one that was spoilt
OUTPUTS = [
    {"taps": (3,)},
    {"taps": (0, 3)},
    {"taps": (1, 3), "cut": 2},
    {"cut": 1},
    {"cut": 3, "taps": (2,), "dtype": torch.bfloat16},
    {"cut": 0},
    {"cut": 0, "source": True},
]
BACKBONES = {seed: tiny_backbone(seed) for seed in (0, 1)}
SIZES = [SMALL, Preprocessing(28, 24), Preprocessing(36, 32, interpolation="nearest")]
CONTRARY = replace(AUGMENTATIONS["crop"], min_scale=0.3)


def picture(path: Path, number: int) -> None:
    """Write an image of one size in bytes, whatever is in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    photo(number % 7, number, (12, 10)).save(path)


class Edits(RuleBasedStateMachine):
    """A folder and options that somebody changes, one cache that lives through all of it."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="edits-"))
        self.number = 0
        self.wanted = {"backbone": BACKBONES[0], "taps": (3,)}
        for name in ("a/0.bmp", "a/1.bmp", "a/2.bmp", "b/0.bmp", "b/1.bmp", "b/2.bmp"):
            picture(self.folder / "images" / name, self.new())
        self.check()

    def new(self) -> int:
        self.number += 1
        return self.number

    def files(self) -> list[Path]:
        return sorted((self.folder / "images").rglob("*.bmp"))

    def one(self, data: st.DataObject) -> Path:
        return data.draw(st.sampled_from(self.files()))

    def check(self) -> None:
        manifest = scan(self.folder / "images")
        request = Request(**self.wanted)
        warm = fetch(self.folder / "cache", request, manifest)
        cold = fetch(self.folder / f"cold{self.new()}", request, manifest)
        assert warm.failures == cold.failures and np.array_equal(warm.rows, cold.rows)
        assert np.array_equal(warm.digests, cold.digests)
        assert_same(everything(warm), everything(cold))
        assert fetch(self.folder / "cache", request, manifest).n_computed == 0

    @rule(data=st.data())
    def replace_content(self, data) -> None:
        picture(self.one(data), self.new())
        self.check()

    @rule(data=st.data(), inode=st.booleans())
    def replace_content_keeping_size_and_time(self, data, inode) -> None:
        path = self.one(data)
        before = path.stat()
        fresh = self.folder / "fresh.bmp"
        picture(fresh, self.new())
        assert fresh.stat().st_size == N_BYTES and before.st_size in (N_BYTES, N_BYTES - CUT_OFF)
        if inode:
            os.replace(fresh, path)
        else:
            with open(path, "r+b") as file:
                file.write(fresh.read_bytes())
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        self.check()

    @rule(data=st.data())
    def swap_two_files(self, data) -> None:
        one, other = self.one(data), self.one(data)
        aside = self.folder / "aside"
        one.rename(aside)
        other.rename(one) if other != one else None
        aside.rename(other)
        self.check()

    @rule(data=st.data())
    def swap_contents_keeping_times(self, data) -> None:
        one, other = self.one(data), self.one(data)
        contents_of = [one.read_bytes(), other.read_bytes()]
        times = [one.stat().st_mtime_ns, other.stat().st_mtime_ns]
        for path, content, mtime in zip((other, one), contents_of, reversed(times), strict=True):
            path.write_bytes(content)
            os.utime(path, ns=(mtime, mtime))
        self.check()

    @rule(data=st.data())
    def rename_a_file(self, data) -> None:
        path = self.one(data)
        path.rename(path.with_name(f"{self.new()}.bmp"))
        self.check()

    @rule(data=st.data(), when=st.sampled_from([0, 10**18, 4 * 10**18]))
    def touch(self, data, when) -> None:
        os.utime(self.one(data), ns=(when, when))
        self.check()

    @rule(kind=st.sampled_from("ab"))
    def delete(self, kind) -> None:
        files = sorted((self.folder / "images" / kind).glob("*.bmp"))
        if len(files) > 1:  # a class needs one
            files[self.number % len(files)].unlink()
            self.check()

    @rule(kind=st.sampled_from("ab"))
    def add(self, kind) -> None:
        picture(self.folder / "images" / kind / f"{self.new()}.bmp", self.number)
        self.check()

    @rule(data=st.data(), kind=st.sampled_from("ab"))
    def copy(self, data, kind) -> None:
        shutil.copy2(self.one(data), self.folder / "images" / kind / f"{self.new()}.bmp")
        self.check()

    @rule(data=st.data())
    def spoil(self, data) -> None:
        path = self.one(data)
        path.write_bytes(path.read_bytes()[: N_BYTES - CUT_OFF])
        self.check()

    @rule()
    def move_the_folder(self) -> None:
        (self.folder / "images").rename(self.folder / "elsewhere")
        shutil.copytree(self.folder / "elsewhere", self.folder / "images")
        shutil.rmtree(self.folder / "elsewhere")
        self.check()

    @rule(
        weights=st.sampled_from([0, 1]),
        size=st.sampled_from(SIZES),
        seed=st.sampled_from([0, 1]),
        views=st.sampled_from([1, 3]),
        augmentation=st.sampled_from([AUGMENTATIONS["standard"], AUGMENTATIONS["crop"], CONTRARY]),
        outputs=st.sampled_from(OUTPUTS),
    )
    def change_options(self, weights, size, seed, views, augmentation, outputs) -> None:
        backbone = replace(BACKBONES[weights], preprocessing=size)
        options = {"seed": seed, "views": 1 if outputs.get("source") else views, "augmentation": augmentation}
        self.wanted = {"backbone": backbone, **options, **outputs}
        self.check()

    @rule()
    def let_the_time_stamps_settle(self) -> None:
        time.sleep(2 * SETTLED_AFTER_NS / 1e9)
        self.check()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


@pytest.mark.parametrize("n", [5, pytest.param(150, marks=pytest.mark.slow)])
def test_a_filled_cache_gives_what_an_empty_one_gives(monkeypatch, n):
    monkeypatch.setattr(contents, "SETTLED_AFTER_NS", SETTLED_AFTER_NS)
    Edits.TestCase.settings = settings(
        max_examples=n,
        stateful_step_count=12,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # what failed is short enough to be read
    )
    Edits.TestCase("runTest").runTest()


@pytest.fixture
def images(tmp_path) -> Path:
    for number in range(6):
        picture(tmp_path / "images" / "ab"[number % 2] / f"{number}.bmp", number)
    return tmp_path / "images"


def test_an_edit_right_after_a_fetch_is_seen_where_clocks_are_coarse(tmp_path, images, monkeypatch):
    """Time stamps in steps of 2 s, as FAT has them: the file looks the same before and after."""
    look = Contents.look

    def coarse(self, paths):
        looks = look(self, paths)
        looks.values[:, 1:3] -= looks.values[:, 1:3] % 2_000_000_000
        return looks

    monkeypatch.setattr(Contents, "look", coarse)
    request = Request(tiny_backbone())
    changed = images / "a" / "2.bmp"
    for number in range(100, 103):
        fetch(tmp_path / "cache", request, scan(images))
        with open(changed, "r+b") as file:
            picture(tmp_path / "fresh.bmp", number)
            file.write((tmp_path / "fresh.bmp").read_bytes())
        warm = fetch(tmp_path / "cache", request, scan(images))
        assert warm.n_computed == 1
        assert_same(everything(warm), everything(fetch(tmp_path / f"cold{number}", request, scan(images))))


def test_an_edit_in_the_middle_of_a_fetch_is_not_remembered_for_what_it_was(tmp_path, images, monkeypatch):
    """The file changes after it was looked at and before it is decoded, or after both."""
    monkeypatch.setattr(contents, "SETTLED_AFTER_NS", SETTLED_AFTER_NS)
    request = Request(tiny_backbone())
    time.sleep(2 * SETTLED_AFTER_NS / 1e9)
    changed = images / "a" / "2.bmp"
    look, remember = Contents.look, Contents.remember

    def look_then_edit(self, paths):
        looks = look(self, paths)
        picture(changed, 100)
        return looks

    def edit_then_remember(self, paths, looks, digests):
        picture(changed, 101)
        remember(self, paths, looks, digests)

    for name, function in (("look", look_then_edit), ("remember", edit_then_remember)):
        with monkeypatch.context() as patched:
            patched.setattr(Contents, name, function)
            fetch(tmp_path / f"cache {name}", request, scan(images))
        warm = fetch(tmp_path / f"cache {name}", request, scan(images))
        assert_same(everything(warm), everything(fetch(tmp_path / f"cold {name}", request, scan(images))))


@pytest.mark.parametrize("what", ["seed", "min_scale", "max_aspect", "flip", "colour"])
def test_other_recipes_share_the_clean_view_alone(tmp_path, images, what):
    recipe = Augmentation("one", min_scale=0.5, max_aspect=1.2, flip=False, colour=0.1)
    changes = {"min_scale": 0.4, "max_aspect": 1.3, "flip": True, "colour": 0.2}
    one = Request(tiny_backbone(), views=4, augmentation=recipe)
    other = (
        replace(one, seed=1) if what == "seed" else replace(one, augmentation=replace(recipe, **{what: changes[what]}))
    )
    first, second = (fetch(tmp_path / "cache", request, scan(images)) for request in (one, other))
    assert (first.n_computed, second.n_computed) == (24, 18)
    one_pool, other_pool = everything(first)["pool.3"], everything(second)["pool.3"]
    assert torch.equal(one_pool[:, 0], other_pool[:, 0]) and not torch.equal(one_pool[:, 1:], other_pool[:, 1:])
    renamed = replace(other, augmentation=replace(other.augmentation, name="two"))
    assert fetch(tmp_path / "cache", renamed, scan(images)).n_computed == 0


def changed_parameter(backbone: Backbone) -> Backbone:
    with torch.no_grad():
        backbone.stages[2][0].weight[0, 0, 0, 0] += 1e-3
    return backbone


def changed_statistics(backbone: Backbone) -> Backbone:
    backbone.stages[0][1].running_mean[0] += 1e-3
    return backbone


@pytest.mark.parametrize("change", [changed_parameter, changed_statistics])
@pytest.mark.parametrize("digest", ["", "of the file that they once came from"])
def test_weights_that_change_in_memory_are_other_weights(tmp_path, images, change, digest):
    """Their digest may be that of a file: it says nothing of what became of them since."""
    backbone = replace(tiny_backbone(), weights_digest=digest)
    before = fetch(tmp_path / "cache", Request(backbone, (3,), 3), scan(images))
    after = fetch(tmp_path / "cache", Request(change(backbone), (3,), 3), scan(images))
    cold = fetch(
        tmp_path / "cold", Request(change(replace(tiny_backbone(), weights_digest=digest)), (3,), 3), scan(images)
    )
    assert_same(everything(after), everything(cold))
    assert not torch.equal(everything(before)["stage.2"], everything(after)["stage.2"])


def test_a_request_made_from_another_has_weights_of_its_own(tmp_path, images):
    one = Request(tiny_backbone(0), (3,))
    fetch(tmp_path / "cache", one, scan(images))
    other = replace(one, backbone=tiny_backbone(1))
    warm = fetch(tmp_path / "cache", other, scan(images))
    assert_same(everything(warm), everything(fetch(tmp_path / "cold", Request(tiny_backbone(1), (3,)), scan(images))))


def test_a_copied_folder_is_hashed_and_then_found(tmp_path, images):
    request = Request(tiny_backbone(), views=2)
    fetch(tmp_path / "cache", request, scan(images))
    shutil.copytree(images, tmp_path / "copy")
    assert fetch(tmp_path / "cache", request, scan(tmp_path / "copy")).n_computed == 0


def test_a_cache_may_be_moved(tmp_path, images):
    request = Request(tiny_backbone(), views=2)
    whole = everything(fetch(tmp_path / "cache", request, scan(images)))
    before = files_below(tmp_path / "cache")
    (tmp_path / "cache").rename(tmp_path / "moved")
    moved = fetch(tmp_path / "moved", request, scan(images))
    assert moved.n_computed == 0 and files_below(tmp_path / "moved") == before
    assert_same(everything(moved), whole)
