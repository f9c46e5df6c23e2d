"""The pictures of a run: which there are, that they are the same for the same run, and that none can lose it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.baselines.idx_files import write_idx
from tests.photos import make_photos
from tests.tasks.small import SMALL, run, words
from toolkit.artifacts.run_folder import PICTURES
from toolkit.cli import main
from toolkit.data.manifest import TRAIN, Manifest
from toolkit.data.preprocessing import Preprocessing
from toolkit.tasks import pictures as module
from toolkit.tasks.baseline import train_baseline
from toolkit.tasks.classifier import ImageClassifier
from toolkit.tasks.finetune import finetune
from toolkit.tasks.pictures import Images

ALWAYS = {"confusion.png", "reliability.png", "filters.png", "excitation.png"}


def drawn(folder: Path) -> dict[str, bytes]:
    """Return the PNGs of a folder, each of which opens."""
    found = {file.name: file.read_bytes() for file in folder.glob("*.png")}
    for name in found:
        with Image.open(folder / name) as image:
            image.load()
            assert max(image.size) < 2400
    return found


@pytest.fixture(scope="module")
def head(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(photos, tmp_path_factory.mktemp("drawn") / "head", pictures=True).path


def mistakes_in(folder: Path) -> set[str]:
    return {"mistakes.png"} if len((folder / "mistakes.csv").read_text().splitlines()) > 1 else set()


def test_a_head_has_what_applies_to_it(head: Path) -> None:
    assert set(drawn(head)) == ALWAYS | mistakes_in(head)
    assert set(drawn(head)) <= set(PICTURES)


def test_the_same_run_gives_the_same_bytes(head: Path, photos: Path, tmp_path: Path) -> None:
    assert drawn(run(photos, tmp_path / "again", pictures=True).path) == drawn(head)


def test_what_was_trained_has_curves_and_rates(photos: Path, tmp_path: Path) -> None:
    trained = run(photos, tmp_path / "run", "partial", pictures=True).path
    assert set(drawn(trained)) == ALWAYS | {"curves.png", "rates.png"} | mistakes_in(trained)
    assert drawn(run(photos, tmp_path / "again", "partial", pictures=True).path) == drawn(trained)


def test_a_trial_s_history_is_drawn_where_there_is_no_other(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []
    monkeypatch.setattr(module, "_curves", lambda folder, history, title, *_: titles.append(title))
    judged = run(photos, tmp_path / "run", "partial", pictures=True, mixing=None).path
    assert (judged / "trial.csv").exists() and "rates.png" in drawn(judged)
    expected = "partial on efficientnet_lite0"
    if not (judged / "history.csv").exists():
        expected += " of the trial, judged by training images held out of it"
    assert titles == [expected]


def test_none_are_drawn_where_none_are_wanted(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["finetune", str(photos), "--out", str(out), *words(strategy="head", pictures=False)]) == 0
    assert drawn(out) == {} and (out / "metrics.json").exists()


def test_a_classifier_without_a_folder_draws_none(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawings: list[Any] = []
    monkeypatch.setattr(module, "draw_run", lambda *given: drawings.append(given))
    paths = sorted(photos.rglob("*.jpg"))
    ImageClassifier(strategy="head", **SMALL).fit(paths, [path.parent.name for path in paths])
    assert drawings == []


def test_overwriting_a_run_removes_its_pictures(head: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(head, out)
    (out / "mine.png").write_bytes((out / "filters.png").read_bytes())
    run(photos, out, overwrite=True)
    assert set(drawn(out)) == {"mine.png"}


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({"model": "svm"}, {"curves.png", "rates.png", "filters.png"}),
        ({"model": "mlp", "on": "hog"}, {"curves.png", "rates.png"}),
        ({"model": "nn"}, set()),
        ({"model": "softmax", "on": "features", "image_size": 32}, {"curves.png", "rates.png", "filters.png"}),
    ],
    ids=("svm", "mlp on hog", "nn", "softmax on features"),
)
def test_a_baseline_has_what_applies_to_it(
    photos: Path, tmp_path: Path, options: dict[str, Any], more: set[str]
) -> None:
    trained = () if options["model"] == "nn" else (("epochs", 2),)
    found = train_baseline(str(photos), out=str(tmp_path / "run"), workers=0, **options, **dict(trained))
    assert set(drawn(found.path)) == {"confusion.png", "reliability.png"} | more | mistakes_in(found.path)
    assert not (found.path / "checkpoints").exists()


def test_a_picture_that_cannot_be_drawn_is_a_note(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> bytes:
        raise MemoryError("no room\nat all")

    monkeypatch.setattr(module, "draw_confusion", broken)
    found = run(photos, tmp_path / "run", pictures=True)
    assert set(drawn(found.path)) >= ALWAYS - {"confusion.png"} and "confusion.png" not in drawn(found.path)
    assert "note: confusion.png could not be drawn (MemoryError: no room at all)\n" in capsys.readouterr().err
    assert found.metrics["val"]["n"] == 6 and not (found.path / "checkpoints").exists()


@pytest.mark.parametrize("strategy", ["head", "partial"])
def test_a_run_that_is_stopped_while_it_draws_is_finished_and_draws_when_it_is_gone_on_with(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    whole = drawn(run(photos, tmp_path / "whole", strategy, pictures=True).path)
    out = tmp_path / "run"

    def stopped(*_: Any) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "draw_filters", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(photos, out, strategy, pictures=True)
    metrics = (out / "metrics.json").read_bytes()
    assert "filters.png" not in drawn(out)
    finetune(resume=str(out))
    assert drawn(out) == whole and not (out / "checkpoints").exists()
    assert (out / "metrics.json").read_bytes() == metrics
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    finetune(resume=str(out))
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before


def test_so_is_a_baseline(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = drawn(train_baseline(str(photos), out=str(tmp_path / "whole"), workers=0, epochs=2).path)
    out = tmp_path / "run"

    def stopped(*_: Any) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "draw_reliability", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_baseline(str(photos), out=str(out), workers=0, epochs=2)
    train_baseline(resume=str(out))
    assert drawn(out) == whole and not (out / "checkpoints").exists()


def test_a_finished_run_stays_finished_though_its_photos_are_gone(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "photos", tmp_path / "run"
    shutil.copytree(photos, data)

    def stopped(*_: Any) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "draw_confusion", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(data, out, pictures=True)
    shutil.rmtree(data)
    assert main(["finetune", "--resume", str(out)]) == 0
    told = capsys.readouterr()
    assert "note: the pictures could not be drawn" in told.err and "is finished; nothing to do" in told.err
    assert told.out.startswith("head on efficientnet_lite0")


def test_a_photo_that_is_gone_or_damaged_is_a_grey_square(tmp_path: Path) -> None:
    root = make_photos(tmp_path / "photos", {"cat": 3})
    paths = ("cat/000.jpg", "cat/001.jpg", "cat/002.jpg")
    manifest = Manifest(root, ("cat",), paths, np.zeros(3, np.int64), np.full(3, TRAIN, np.int8))
    images = Images(manifest, Preprocessing(36, 32), 50_000_000)
    (root / "cat/001.jpg").unlink()
    (root / "cat/002.jpg").write_bytes(b"no image")
    found = images.of_paths([*paths, "never/seen.jpg"])
    assert found[paths[0]].shape == (3, 32, 32) and found[paths[0]].unique().numel() > 9
    for path in (*paths[1:], "never/seen.jpg"):
        assert torch.equal(found[path], torch.full((3, 32, 32), 200, dtype=torch.uint8))


def test_names_of_any_kind_and_a_class_that_is_never_validated(tmp_path: Path) -> None:
    names = {"$_{": 5, '$x^2$, "quoted"': 5, "고양이": 5, "x" * 100: 1}
    found = run(make_photos(tmp_path / "photos", names), tmp_path / "run", pictures=True)
    assert set(drawn(found.path)) >= ALWAYS


def test_nothing_to_score_nothing_to_draw_of_it(tmp_path: Path) -> None:
    root = make_photos(tmp_path / "data/train", {"cat": 4, "dog": 4}).parent
    (root / "test").mkdir()
    shutil.copy(root / "train/cat/000.jpg", root / "test/a.jpg")
    found = train_baseline(str(root), out=str(tmp_path / "run"), model="nn", val=0, workers=0)
    assert found.metrics["val"] is None and set(drawn(found.path)) == set()


def test_channels_of_a_head_are_those_that_are_stored(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_pass(*_: Any) -> None:
        raise AssertionError("another pass through the network")

    monkeypatch.setattr(module, "_pooled_live", no_pass)
    stages: list[int] = []
    monkeypatch.setattr(module, "draw_excitation", lambda found, *_: stages.extend(one.stage for one in found))
    run(photos, tmp_path / "run", pictures=True, taps=[3, 7])
    assert set(stages) == {3, 7}


def test_live_channels_are_those_of_the_network_that_is_shipped(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    live = module._pooled_live

    def watched(network: Any, rows: Any, images: Images, device: Any) -> Any:
        seen.update(network=network, rows=rows, images=images, found=live(network, rows, images, device))
        return seen["found"]

    monkeypatch.setattr(module, "_pooled_live", watched)
    run(photos, tmp_path / "run", "partial", pictures=True)
    network, rows, images = seen["network"], seen["rows"], seen["images"]
    assert (images.manifest.splits[rows] == TRAIN).all() and len(rows) == 24
    pixels = torch.stack([images.of_row(int(row)) for row in rows])
    with torch.inference_mode():
        features = network.features(pixels).numpy()
    stacked = np.concatenate([seen["found"][tap] for tap in network.taps], axis=1)
    np.testing.assert_allclose(stacked, features, atol=1e-3 * np.abs(features).max())


def test_images_of_idx_files_are_shown_from_the_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 255, (40, 8, 8)), np.arange(40) % 2
    data = write_idx(tmp_path / "idx", "train", images[:30], labels[:30])
    write_idx(data, "t10k", images[30:], labels[30:])
    shown: dict[str, torch.Tensor] = {}

    def sheet(rows: list[dict[str, str]], picture: Any, title: str) -> None:
        shown.update({row["path"]: picture(row["path"]) for row in rows})

    monkeypatch.setattr(module, "draw_mistakes", sheet)
    found = train_baseline(str(data), out=str(tmp_path / "run"), model="softmax", epochs=1)
    assert {"confusion.png", "filters.png", "curves.png"} <= set(drawn(found.path)) and shown
    kept = {image.tobytes() for image in images.astype(np.uint8)}
    for pixels in shown.values():
        assert pixels.shape == (3, 8, 8) and pixels[0].numpy().tobytes() in kept
