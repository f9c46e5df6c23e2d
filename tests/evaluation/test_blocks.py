"""Blocks: every decoding holds the same images in the same order, whatever is broken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluation.nets import CPU, net, photos
from toolkit.data.scan import scan
from toolkit.evaluation.blocks import Block, array_blocks, file_blocks
from toolkit.evaluation.ensemble import Ensemble
from toolkit.evaluation.scoring import answers_to
from toolkit.features.prefix import CHUNK


def both_sizes() -> Ensemble:
    return Ensemble.of([net(side=12), net(side=20, seed=1)])


def test_every_image_is_there_once_in_the_order_asked_for(tmp_path: Path) -> None:
    manifest = photos(tmp_path / "photos", {"cat": 15, "dog": 15, "owl": 10})
    rows = np.random.default_rng(0).permutation(len(manifest))
    blocks = list(file_blocks(both_sizes(), manifest, rows, workers=0))
    assert [len(block.rows) for block in blocks] == [CHUNK, CHUNK, 40 - 2 * CHUNK]
    assert np.concatenate([block.rows for block in blocks]).tolist() == rows.tolist()
    (whole,) = file_blocks(both_sizes(), manifest, rows[3:4], workers=0)
    for key, pixels in whole.pixels.items():
        assert torch.equal(pixels[0], blocks[0].pixels[key][3])


@pytest.mark.parametrize("broken", [[0], [2, 3], [11], list(range(12))])
def test_a_file_that_is_broken_is_broken_for_all(broken: list[int], tmp_path: Path) -> None:
    manifest = photos(tmp_path / "photos")
    for row in broken:
        manifest.file(row).write_bytes(manifest.file(row).read_bytes()[:700])
    (block,) = file_blocks(both_sizes(), manifest, np.arange(12), workers=0)
    assert block.rows.tolist() == [row for row in range(12) if row not in broken]
    assert [len(own) for own in block.pixels.values()] == [12 - len(broken)] * 2
    assert sorted(row for row, _ in block.failures) == broken and all(reason for _, reason in block.failures)


def test_a_file_that_breaks_between_two_models_is_broken_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toolkit.data import loading
    from toolkit.data.decode import UnreadableImage

    manifest, ensemble = photos(tmp_path / "photos"), both_sizes()
    (sound,) = file_blocks(ensemble, manifest, np.arange(12), workers=0)
    read, count = loading.read_image, iter(range(100))

    def failing(path: Path, *settings: int) -> object:
        if next(count) in (4, 12 + 7):  # one file for the first model, another one for the second
            raise UnreadableImage("gone")
        return read(path, *settings)

    monkeypatch.setattr(loading, "read_image", failing)
    (block,) = file_blocks(ensemble, manifest, np.arange(12), workers=0)
    kept = [row for row in range(12) if row not in (4, 7)]
    assert block.rows.tolist() == kept and sorted(block.failures) == [(4, "gone"), (7, "gone")]
    for key, pixels in block.pixels.items():
        assert torch.equal(pixels, sound.pixels[key][kept])


def test_the_processes_change_nothing(tmp_path: Path) -> None:
    manifest = photos(tmp_path / "photos")
    (alone,), (shared,) = (file_blocks(both_sizes(), manifest, np.arange(12), workers=n) for n in (0, 2))
    assert all(torch.equal(alone.pixels[key], shared.pixels[key]) for key in alone.pixels)


def test_the_model_with_the_strictest_limit_decides(tmp_path: Path) -> None:
    manifest = photos(tmp_path / "photos")
    Image.new("RGB", (200, 200)).save(manifest.file(0))
    strict = Ensemble.of([net(), net(max_pixels=10_000, side=20)])
    (block,) = file_blocks(strict, manifest, np.arange(12), workers=0)
    assert [row for row, _ in block.failures] == [0]


def test_grey_arrays_are_read_as_their_files_would_be(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (40, 12, 12)).astype(np.uint8)
    for number, image in enumerate(images):
        (tmp_path / "x").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / f"x/{number:02}.png")
    manifest = scan(tmp_path, classes=("x", "y"))
    rows = generator.permutation(40)[:35]
    arrays, files = (
        list(blocks)
        for blocks in (
            array_blocks(both_sizes(), images, rows),
            file_blocks(both_sizes(), manifest, rows, workers=0),
        )
    )
    assert len(arrays) == len(files) == 3
    for mine, theirs in zip(arrays, files, strict=True):
        assert mine.rows.tolist() == theirs.rows.tolist() and mine.failures == ()
        assert all(torch.equal(mine.pixels[key], theirs.pixels[key]) for key in theirs.pixels)


def test_answers_are_those_of_the_blocks_in_their_order(tmp_path: Path) -> None:
    manifest, ensemble = photos(tmp_path / "photos"), both_sizes()
    manifest.file(5).write_bytes(b"")
    rows = np.array([7, 5, 0, 11])
    blocks = list(file_blocks(ensemble, manifest, rows, workers=0))
    answers = answers_to(ensemble, manifest, blocks, 4, device=CPU)
    said = ensemble.judge(blocks[0].pixels, CPU)
    assert answers.predictions.paths == tuple(manifest.paths[row] for row in (7, 0, 11))
    assert answers.predictions.labels.tolist() == [manifest.labels[row] for row in (7, 0, 11)]
    assert torch.equal(answers.predictions.probabilities, said.probabilities)
    assert answers.spread is not None and said.spread is not None
    assert answers.spread.tolist() == said.spread.tolist() and answers.votes.tolist() == said.votes.tolist()
    assert [row for row, _ in answers.failures] == [5]


def test_answers_where_nothing_can_be_read(tmp_path: Path) -> None:
    manifest, ensemble = photos(tmp_path / "photos"), both_sizes()
    lost = Block(np.empty(0, np.int64), {}, ((3, "gone"),))
    answers = answers_to(ensemble, replace(manifest), [lost], 1, device=CPU)
    assert len(answers.predictions) == 0 and answers.spread is None and answers.votes.shape == (2, 0)
    assert answers.failures == ((3, "gone"),)
