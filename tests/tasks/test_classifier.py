"""ImageClassifier: fit(images, labels), predict(images), in the notes' shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import toolkit
from tests.data.encoded import white_is_zero
from tests.photos import photo
from tests.tasks.small import SMALL
from toolkit.data.decode import decode, read_image
from toolkit.errors import ArtifactError, DataError, SettingError, ToolkitError
from toolkit.features import contents, prefix
from toolkit.tasks.classifier import ImageClassifier, _as_png
from toolkit.tasks.evaluate import evaluate
from toolkit.tasks.finetune import finetune
from toolkit.training.trained import TrainedModel

N = 8


def images(kind: str) -> tuple[list[Any], list[str]]:
    made = [photo(number % 2, number) for number in range(2 * N)]
    labels = [("square", "circle")[number % 2] for number in range(2 * N)]
    return ([np.asarray(image) for image in made] if kind == "arrays" else made), labels


@pytest.fixture(scope="module")
def fitted() -> ImageClassifier:
    return ImageClassifier(**SMALL).fit(*images("PIL"))


def test_train_then_predict(fitted: ImageClassifier) -> None:
    given, labels = images("PIL")
    assert fitted.classes_.tolist() == ["circle", "square"]
    predicted = fitted.predict(given)
    assert predicted.shape == (2 * N,) and predicted.dtype.kind == "U"
    assert (predicted == np.array(labels)).mean() > 0.8
    chances = fitted.predict_proba(given)
    assert chances.shape == (2 * N, 2) and chances.dtype == np.float32
    np.testing.assert_allclose(chances.sum(axis=1), 1, atol=1e-6)
    assert fitted.metrics_["val"]["n"] == 4 and fitted.metrics_["train"]["n"] == 12
    assert toolkit.ImageClassifier is ImageClassifier


def test_paths_images_and_arrays_are_the_same(fitted: ImageClassifier, tmp_path: Path) -> None:
    given, labels = images("PIL")
    paths = []
    for number, image in enumerate(given):
        image.save(tmp_path / f"{number:02}.png")
        paths.append(tmp_path / f"{number:02}.png")
    arrays = images("arrays")[0]
    expected = fitted.predict_proba(given)
    for same in (arrays, np.stack(arrays), paths, [str(path) for path in paths]):
        np.testing.assert_array_equal(fitted.predict_proba(same), expected)
    from_paths = ImageClassifier(**SMALL).fit(paths, labels)
    assert from_paths.metrics_["val"]["n"] == 4
    assert (from_paths.predict(given) == fitted.predict(given)).mean() > 0.8


def test_images_of_every_mode(fitted: ImageClassifier) -> None:
    rgb = photo(0, 0)
    for mode in ("L", "P", "RGBA", "CMYK", "1", "F", "HSV", "LA", "I;16", "I"):
        image = rgb.convert("L").convert("I").convert(mode) if mode == "I;16" else rgb.convert(mode)
        assert fitted.predict([image]).shape == (1,), mode
    grey = np.asarray(rgb.convert("L"))
    np.testing.assert_array_equal(fitted.predict_proba([grey]), fitted.predict_proba([rgb.convert("L")]))


# With the value that is white; 65,535 tells 16 bits from 8.
MODES = [(mode, 255) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")] + [
    *((mode, 65535) for mode in ("I", "I;16", "I;16B", "F")),
    ("I", 255),
    ("F", 1),
]


def of_mode(mode: str, white: int) -> Image.Image:
    """Return a picture of a mode, with values all the way from black to `white`."""
    if mode not in ("I", "I;16", "I;16B", "F"):
        return photo(1, 3).convert(mode)
    kind = {"I": "<i4", "I;16": "<u2", "I;16B": ">u2", "F": "<f4"}[mode]
    return Image.fromarray(np.linspace(0, white, 20 * 30).reshape(20, 30).astype(kind))


@pytest.mark.parametrize(("mode", "white"), MODES)
def test_a_file_and_the_image_in_memory_give_the_same_pixels(mode: str, white: int, tmp_path: Path) -> None:
    image, file = of_mode(mode, white), tmp_path / "one.tif"
    assert image.mode == mode
    image.save(file)
    expected = np.asarray(read_image(file)[1])
    assert np.ptp(expected) > 30
    with Image.open(file) as opened:
        for same in (image, opened, opened):  # twice: it is not changed
            np.testing.assert_array_equal(np.asarray(decode(_as_png(same, 0))), expected)


def test_what_only_an_image_s_own_format_says_of_its_values_is_kept(tmp_path: Path) -> None:
    dark = Image.fromarray(np.arange(200, dtype=np.uint16).reshape(10, 20))
    dark.save(tmp_path / "dark.pgm")  # whose mode is I, with values that would be light in another file
    dark.save(tmp_path / "key.png", transparency=100)
    exif = Image.Exif()
    exif[0x0112] = 6
    of_mode("I;16", 65535).save(tmp_path / "turned.png", exif=exif)
    (tmp_path / "x_ray.tif").write_bytes(white_is_zero(dark))
    for name in ("dark.pgm", "key.png", "turned.png", "x_ray.tif"):
        expected = np.asarray(read_image(tmp_path / name)[1])
        with Image.open(tmp_path / name) as opened:
            for _ in range(2):
                np.testing.assert_array_equal(np.asarray(decode(_as_png(opened, 0))), expected, name)


def test_an_image_is_turned_as_its_exif_says(fitted: ImageClassifier, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(0, 0).rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(
        fitted.predict_proba([Image.open(tmp_path / "turned.png")]), fitted.predict_proba([tmp_path / "turned.png"])
    )


def test_more_images_than_a_pass_takes_and_none_at_all(fitted: ImageClassifier) -> None:
    many = [photo(number % 2, number) for number in range(35)]
    np.testing.assert_array_equal(fitted.predict_proba(many)[33], fitted.predict_proba(many[33:34])[0])
    assert fitted.predict([]).shape == (0,) and fitted.predict_proba([]).shape == (0, 2)


def test_a_pass_is_as_large_as_its_device_takes(fitted: ImageClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, logits = [], TrainedModel.logits

    def counted(model: TrainedModel, pixels: Tensor, device: torch.device) -> Tensor:
        sizes.append(len(pixels))
        return logits(model, pixels, device)

    monkeypatch.setattr(TrainedModel, "logits", counted)
    monkeypatch.setattr(prefix, "chunk_of", lambda device: 32)
    fitted.predict_proba([photo(0, 0)] * 40)
    assert sizes == [32, 8], "what is missing in a pass is padded"


def test_labels_of_any_kind_become_names() -> None:
    given, labels = images("arrays")
    model = ImageClassifier(**SMALL).fit(np.stack(given), np.array([label == "circle" for label in labels]).astype(int))
    assert model.classes_.tolist() == ["0", "1"]


def test_the_run_folder_can_be_kept(tmp_path: Path) -> None:
    given, labels = images("PIL")
    out = str(tmp_path / "run")
    model = ImageClassifier(out=out, **SMALL).fit(given, labels)
    assert (tmp_path / "run/metrics.json").exists()
    loaded = toolkit.load_model(out)
    assert loaded.classes == tuple(model.classes_)
    with pytest.raises(ArtifactError, match="already holds a run"):
        ImageClassifier(out=out, **SMALL).fit(given, labels)
    ImageClassifier(out=out, overwrite=True, **SMALL).fit(given, labels)


def test_the_constructor_stores_and_fit_checks() -> None:
    given, labels = images("PIL")
    with pytest.raises(SettingError, match=r"^ImageClassifier: unexpected keyword argument 'epoch'$"):
        ImageClassifier(epoch=3).fit(given, labels)
    with pytest.raises(SettingError, match="unknown backbone 'x'"):
        ImageClassifier(backbone="x").fit(given, labels)
    with pytest.raises(ToolkitError, match="call fit"):
        ImageClassifier().predict(given)


def test_wrong_input_is_named(fitted: ImageClassifier, tmp_path: Path) -> None:
    given, labels = images("PIL")
    model = ImageClassifier(**SMALL)
    for wrong, wanted in (
        ([np.zeros((4, 4, 3), np.float32)], "image 0: .* got float32 array"),
        ([np.zeros((4, 4, 4), np.uint8)], r"got uint8 array \(4, 4, 4\)"),
        ([np.zeros(4, np.uint8)], r"got uint8 array \(4,\)"),
        ([None], "got NoneType"),
    ):
        with pytest.raises(DataError, match=wanted):
            model.fit([*wrong, *given], ["a", *labels])
        with pytest.raises(DataError, match=wanted):
            fitted.predict(wrong)
    with pytest.raises(DataError, match="as many labels as images expected, got 16 images and 3 labels"):
        model.fit(given, labels[:3])
    with pytest.raises(DataError, match="at least one image expected, got none"):
        model.fit([], [])
    with pytest.raises(DataError, match="at least 2 classes"):
        model.fit(given, ["same"] * len(given))
    for one in ("photo.jpg", tmp_path, given[0]):
        with pytest.raises(DataError, match="a list of images expected, got one"):
            fitted.predict(one)
    with pytest.raises(DataError, match=r"gone\.jpg: No such file"):
        fitted.predict([tmp_path / "gone.jpg"])


def test_a_path_that_cannot_be_read_is_left_out_of_the_training(tmp_path: Path) -> None:
    given, labels = images("PIL")
    model = ImageClassifier(**SMALL).fit([*given, tmp_path / "gone.jpg"], [*labels, "circle"])
    assert model.metrics_["quarantined"] == 1 and model.metrics_["used"] == 2 * N


def test_an_image_that_is_too_large_is_left_out_though_its_features_are_stored(tmp_path: Path) -> None:
    given, labels = images("PIL")
    photo(0, 50).resize((100, 100)).save(tmp_path / "large.png")
    given = [*given, tmp_path / "large.png", photo(1, 51).resize((101, 99))]
    labels = [*labels, "square", "circle"]
    settings = {**SMALL, "cache_dir": str(tmp_path / "cache")}
    assert ImageClassifier(**settings).fit(given, labels).metrics_["quarantined"] == 0
    strict = ImageClassifier(max_pixels=9_000, **settings).fit(given, labels)
    assert (strict.metrics_["quarantined"], strict.metrics_["used"]) == (2, 2 * N)


def test_files_are_hashed_once_for_many_fits_and_for_the_other_verbs(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "SETTLED_AFTER_NS", -1)  # files of these tests are seconds old
    files = sorted(photos.rglob("*.jpg"))
    labels = [file.parent.name for file in files]
    out, settings = tmp_path / "run", {**SMALL, "cache_dir": str(tmp_path / "cache")}
    ImageClassifier(**settings).fit(files, labels)
    assert len(list((tmp_path / "cache/contents").glob("*.safetensors"))) == 1
    monkeypatch.setattr(contents.Contents, "_digest", None)
    ImageClassifier(out=str(out), **settings).fit(files[::-1], labels[::-1])
    toolkit.FeatureExtractor(**settings).transform(files)
    folder_run = finetune(str(photos), out=str(tmp_path / "folder"), **settings)
    assert len(list((tmp_path / "cache/contents").glob("*.safetensors"))) == 1
    assert (out / "predictions.csv").read_bytes() == (folder_run.path / "predictions.csv").read_bytes()
    found = evaluate(str(out), str(photos), device="cpu", workers=0)
    assert (found.split, found.scores.n) == ("val", 6)


def test_a_run_of_given_labels_is_not_gone_on_with_by_those_of_the_folder(tmp_path: Path, photos: Path) -> None:
    files = sorted(photos.rglob("*.jpg"))
    ImageClassifier(out=str(tmp_path / "run"), **SMALL).fit(files, ["odd", "even"] * (len(files) // 2))
    assert finetune(resume=str(tmp_path / "run")).metrics["classes"] == ["even", "odd"]
    (tmp_path / "run/metrics.json").unlink()
    with pytest.raises(ArtifactError, match="only the program that called ImageClassifier has its labels"):
        finetune(resume=str(tmp_path / "run"))


def test_one_seed_gives_one_result_for_arrays_too(photos: Path) -> None:
    files = sorted(photos.rglob("*.jpg"))
    arrays, labels = [np.asarray(Image.open(file)) for file in files], [file.parent.name for file in files]
    fits = [ImageClassifier(image_size=32, workers=0, device="cpu").fit(arrays, labels) for _ in range(2)]
    assert fits[0].metrics_["val"] == fits[1].metrics_["val"]
    assert np.array_equal(fits[0].predict_proba(arrays), fits[1].predict_proba(arrays))


def test_modules_of_ones_own_are_not_changed(photos: Path) -> None:
    torch.manual_seed(0)
    own = [nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU()), nn.Sequential(nn.Conv2d(8, 8, 3, 2), nn.ReLU())]
    before = [parameter.clone() for stage in own for parameter in stage.parameters()]
    files = sorted(photos.rglob("*.jpg"))
    ImageClassifier(backbone=own, strategy="full", epochs=1, image_size=32, workers=0, device="cpu", lr=0.1).fit(
        files, [file.parent.name for file in files]
    )
    after = [parameter for stage in own for parameter in stage.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_small_arrays_have_light_views_as_small_files_do(tmp_path: Path) -> None:
    images = [np.full((20, 28, 3), 10 * number, np.uint8) for number in range(8)]
    out = tmp_path / "run"
    settings = {"image_size": 64, "strategy": "partial", "epochs": 2, "cache": False, "workers": 0, "mixing": 1.0}
    ImageClassifier(out=str(out), **settings).fit(images, ["a", "b"] * 4)
    plan = json.loads((out / "plan.json").read_text())
    assert (plan["augmentation"], plan["facts"]["median_side_px"]) == ("light", 20)
