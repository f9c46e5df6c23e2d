"""Robustness: the same numbers however it is called, honest differences, and files that open."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.evaluation.nets import CLASSES, CPU, net, photos
from toolkit.data.manifest import Manifest
from toolkit.errors import DataError
from toolkit.evaluation import robustness as module
from toolkit.evaluation.blocks import Block, file_blocks
from toolkit.evaluation.changes import CHANGES, Change
from toolkit.evaluation.ensemble import Ensemble
from toolkit.evaluation.robustness import Robustness, robustness
from toolkit.evaluation.sheet import sheet_png
from toolkit.features.prefix import CHUNK


def found(ensemble: Ensemble, manifest: Manifest, order: Any = None, pool: Any = None, seed: int = 0) -> Robustness:
    """Return the robustness over all images of a Manifest, in an order."""
    rows = np.arange(len(manifest)) if order is None else np.asarray(order)
    pool = np.arange(len(manifest)) if pool is None else np.asarray(pool)
    blocks, others = (file_blocks(ensemble, manifest, some, workers=0) for some in (rows, pool))
    return robustness(ensemble, manifest, blocks, others, len(rows), seed=seed, device=CPU)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return photos(tmp_path_factory.mktemp("robust") / "photos", {"cat": 14, "dog": 13, "owl": 13})


@pytest.fixture(scope="module")
def ensemble() -> Ensemble:
    return Ensemble.of([net(side=16), net(side=12, seed=1)])


@pytest.fixture(scope="module")
def whole(ensemble: Ensemble, manifest: Manifest) -> Robustness:
    return found(ensemble, manifest)


def hits(result: Robustness) -> list[list[bool]]:
    return [outcome.hits.tolist() for outcome in result.outcomes]


def test_a_second_call_gives_the_same(ensemble: Ensemble, manifest: Manifest, whole: Robustness) -> None:
    again = found(ensemble, manifest)
    assert again.to_dict() == whole.to_dict() and hits(again) == hits(whole)
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(again.examples, whole.examples, strict=True))


def test_the_order_of_the_rows_changes_nothing(ensemble: Ensemble, manifest: Manifest, whole: Robustness) -> None:
    order = np.random.default_rng(1).permutation(len(manifest))
    turned = found(ensemble, manifest, order)
    assert turned.to_dict() == whole.to_dict()
    for one, other in zip(turned.outcomes, whole.outcomes, strict=True):
        assert one.hits.tolist() == other.hits[order].tolist()


def test_an_image_is_changed_the_same_among_few(ensemble: Ensemble, manifest: Manifest, whole: Robustness) -> None:
    few = [3, 17, 39]
    assert hits(found(ensemble, manifest, few)) == [outcome.hits[few].tolist() for outcome in whole.outcomes]


def test_a_seed_means_other_changes(ensemble: Ensemble, manifest: Manifest, whole: Robustness) -> None:
    other = found(ensemble, manifest, seed=1)
    assert hits(other) != hits(whole) and hits(other)[0] == hits(whole)[0]


def test_dropout_at_test_time_is_as_repeatable(manifest: Manifest) -> None:
    sampled = Ensemble.of([net(side=12, dropout=0.5)], passes=4)
    order = np.arange(10)[::-1]
    first, second = found(sampled, manifest, np.arange(10)), found(sampled, manifest, order)
    assert first.to_dict() == second.to_dict()


def test_unchanged_is_what_is_scored(ensemble: Ensemble, manifest: Manifest, whole: Robustness) -> None:
    (first, *_), labels = file_blocks(ensemble, manifest, np.arange(CHUNK), workers=0), manifest.labels[:CHUNK]
    named = ensemble.judge(first.pixels, CPU).probabilities.argmax(1).numpy()
    clean = whole.outcomes[0]
    assert clean.hits[:CHUNK].tolist() == (named == labels).tolist()
    assert (clean.name, clean.drop, clean.margin) == ("unchanged", 0.0, 0.0)


def test_drops_and_margins_are_those_of_paired_differences(whole: Robustness) -> None:
    clean = whole.outcomes[0].hits.astype(int)
    some_drop = False
    for outcome in whole.outcomes[1:]:
        lost, kept = int((clean > outcome.hits).sum()), int((clean < outcome.hits).sum())
        n = len(clean)
        assert outcome.drop == pytest.approx((lost - kept) / n)
        assert outcome.accuracy == pytest.approx(whole.outcomes[0].accuracy - outcome.drop)
        variance = (lost + kept) / n - ((lost - kept) / n) ** 2
        assert outcome.margin == pytest.approx(1.96 * math.sqrt(variance / n))
        some_drop = some_drop or lost + kept > 0
    assert some_drop


def test_classes_add_up(manifest: Manifest, whole: Robustness) -> None:
    for outcome in whole.outcomes:
        assert [(name, n) for name, n, _ in outcome.by_class] == [("cat", 14), ("dog", 13), ("owl", 13)]
        assert sum(n * accuracy for _, n, accuracy in outcome.by_class) / 40 == pytest.approx(outcome.accuracy)
        assert outcome.worst[2] == min(accuracy for *_, accuracy in outcome.by_class)


def spied(monkeypatch: pytest.MonkeyPatch, ensemble: Ensemble, manifest: Manifest, **settings: Any) -> list[int]:
    """Return for every row the row whose image became its background."""
    seen: list[Tensor] = []

    def spy(pixels: Tensor, drawn: Tensor, strength: float, others: Tensor) -> Tensor:
        seen.append(others)
        return pixels

    monkeypatch.setattr(module, "CHANGES", (Change("spy", "clutter", "", 0.0, spy),))
    found(ensemble, manifest, **settings)
    monkeypatch.undo()
    blocks = list(file_blocks(ensemble, manifest, np.arange(len(manifest)), workers=0))
    key = ensemble.decodings[0]
    known = torch.cat([block.pixels[key] for block in blocks]).flatten(1)
    given = torch.cat(seen[:: len(ensemble.decodings)]).flatten(1)
    return [int((known == image).all(1).nonzero()[0]) for image in given]


def test_the_background_is_of_another_class(
    monkeypatch: pytest.MonkeyPatch, ensemble: Ensemble, manifest: Manifest
) -> None:
    backgrounds = spied(monkeypatch, ensemble, manifest)
    assert (manifest.labels[backgrounds] != manifest.labels).all()
    assert len(set(backgrounds)) > 10
    few = spied(monkeypatch, ensemble, manifest, pool=[0, 20])
    assert set(few) == {0, 20} and (manifest.labels[few] != manifest.labels).sum() == 40


def test_where_there_is_one_class_the_background_is_of_that(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ensemble: Ensemble
) -> None:
    manifest = photos(tmp_path / "photos", {"dog": 5})
    assert set(spied(monkeypatch, ensemble, manifest)) <= set(range(5))
    result = found(ensemble, manifest)
    assert [name for name, *_ in result.outcomes[0].by_class] == ["dog"] and result.spread == 0
    json.dumps(result.to_dict(), allow_nan=False)


def test_one_image_is_enough(tmp_path: Path, ensemble: Ensemble) -> None:
    result = found(ensemble, photos(tmp_path / "photos", {"owl": 1}))
    assert all(outcome.accuracy in (0.0, 1.0) and outcome.margin == 0 for outcome in result.outcomes)
    json.dumps(result.to_dict(), allow_nan=False)
    assert "nan" not in str(result).lower()


def test_files_that_break_meanwhile_are_left_out(tmp_path: Path, ensemble: Ensemble) -> None:
    manifest = photos(tmp_path / "photos")
    manifest.file(0).write_bytes(b"")
    assert len(found(ensemble, manifest).outcomes[0].hits) == 11
    for row in range(12):
        manifest.file(row).write_bytes(b"")
    with pytest.raises(DataError, match="can be read any more"):
        found(ensemble, manifest)


def test_both_sizes_see_the_same_change(manifest: Manifest, ensemble: Ensemble) -> None:
    """Models that are equal but for the size agree about as well on changed images as on unchanged ones."""
    seen: list[list[Tensor]] = []

    class Seeing:
        classes, max_pixels = CLASSES, 1_000_000

        def __init__(self, side: int) -> None:
            self.preprocessing = net(side=side).preprocessing
            self.own: list[Tensor] = []
            seen.append(self.own)

        def logits(self, inputs: Tensor, device: object = None) -> Tensor:
            self.own.append(inputs)
            return torch.zeros(len(inputs), 3)

    found(Ensemble.of([Seeing(48), Seeing(24)]), manifest, [0, 20])  # type: ignore[list-item]
    for large, small in zip(*seen, strict=True):
        halved = torch.nn.functional.avg_pool2d(large.float(), 2)
        assert (halved - small.float()).abs().mean() < 12


def test_names_that_no_file_system_should_have(manifest: Manifest, ensemble: Ensemble) -> None:
    odd = replace(manifest, paths=("caf\udce9.jpg", *manifest.paths[1:]))
    (block, *_) = file_blocks(ensemble, manifest, np.arange(4), workers=0)
    assert len(robustness(ensemble, odd, [block], [block], 4, seed=0, device=CPU).outcomes) == 15


def test_json_and_table(whole: Robustness) -> None:
    values = json.loads(json.dumps(whole.to_dict(), allow_nan=False))
    assert [row["change"] for row in values["changes"]] == ["unchanged", *(change.name for change in CHANGES)]
    rows = list(csv.DictReader(io.StringIO(whole.to_csv())))
    assert len(rows) == 15 * 4 and {row["class"] for row in rows} == {"", *CLASSES}
    for row in rows:
        (outcome,) = (o for o in whole.outcomes if (o.name, o.strength) == (row["change"], row["strength"]))
        of_class = {name: (n, accuracy) for name, n, accuracy in outcome.by_class}
        n, accuracy = of_class.get(row["class"], (40, outcome.accuracy))
        assert int(row["n"]) == n and float(row["accuracy"]) == pytest.approx(accuracy, abs=1e-6)


def test_class_names_that_a_table_must_quote(whole: Robustness) -> None:
    outcome = replace(whole.outcomes[0], by_class=(('a, "b"\nc', 3, 0.5),))
    rows = list(csv.reader(io.StringIO(Robustness((outcome,)).to_csv())))
    assert rows[2] == ["unchanged", "", 'a, "b"\nc', "3", "0.500000"]


def test_it_prints_a_line_a_change(whole: Robustness) -> None:
    lines = str(whole).splitlines()
    assert len(lines) == 1 + 15 + 1 and len({line.index("  0.") for line in lines[2:-1] if "  0." in line}) <= 2
    assert lines[-1].startswith(f"classes differ by {whole.spread:.3f}")


def test_the_sheet_opens_and_shows_every_picture(whole: Robustness) -> None:
    image = Image.open(io.BytesIO(sheet_png(whole.examples, columns=5)))
    image.load()
    assert image.format == "PNG" and image.mode == "RGB" and len(whole.examples) == 15
    reds = [("red", torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1).expand(3, 9, 9))] * 4
    pixels = np.asarray(Image.open(io.BytesIO(sheet_png(reds, columns=3))))
    share = ((pixels == (255, 0, 0)).all(2)).sum() / 128**2
    assert share == 4


def test_blocks_without_images_are_passed_over(ensemble: Ensemble, manifest: Manifest, whole: Robustness) -> None:
    lost = Block(np.empty(0, np.int64), {key: torch.empty(0) for key in ensemble.decodings}, ((0, "gone"),))
    (block,) = file_blocks(ensemble, manifest, np.arange(14), workers=0)
    result = robustness(ensemble, manifest, [lost, block], [block], 15, seed=0, device=CPU)
    assert len(result.outcomes[0].hits) == 14
