"""FeatureExtractor: paths in, features out, as scikit-learn wants its transformers."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils import estimator_checks, get_tags

import toolkit
from tests.photos import make_photos, photo
from tests.tasks.small import SMALL
from tests.training.tiny import WIDTHS, tiny_backbone
from toolkit.errors import DataError, SettingError, WeightsError
from toolkit.features.shard import SUFFIX, Shard
from toolkit.tasks import extractor
from toolkit.tasks.extractor import CHECKS_NOT_FOR_PATHS, FeatureExtractor, NotPathsError
from toolkit.tasks.features import extract_features

# Made by the checks from X: sparse arrays of paths there are none, so these can only be had with numbers.
SPARSE_CHECKS = {"check_estimator_sparse_tag", "check_estimator_sparse_matrix"}


@pytest.fixture(scope="module")
def paths(photos: Path) -> list[str]:
    """Return 30 paths, sorted, 10 of each of 3 classes."""
    return [str(path) for path in sorted(photos.rglob("*.jpg"))]


def tiny(**settings: Any) -> FeatureExtractor:
    """Return an extractor with four small stages."""
    return FeatureExtractor(**{"backbone": tiny_backbone(), "workers": 0, "device": "cpu", **settings})


def labels_of(paths: list[str]) -> list[str]:
    return [Path(path).parent.name for path in paths]


def n_stored(cache: Path) -> int:
    """Return how many views of images a cache holds, each as often as it was computed."""
    return sum(len(Shard(path).views) for path in cache.rglob(f"*/*/*{SUFFIX}") if "contents" not in path.parts)


def test_rows_are_those_of_the_verb_in_the_order_of_the_paths(photos: Path, paths: list[str]) -> None:
    table = extract_features(str(photos), backbone=tiny_backbone(), taps=[1, 3], device="cpu")  # type: ignore[arg-type]
    found = tiny(taps=[3, 1]).fit_transform(paths)
    assert found.dtype == np.float32 and found.shape == (30, WIDTHS[1] + WIDTHS[3]) and type(found) is np.ndarray
    np.testing.assert_array_equal(found, table.X)
    order = [7, 3, 3, 29, 0, 7]
    np.testing.assert_array_equal(tiny(taps=[1, 3]).transform([paths[i] for i in order]), table.X[order])


def test_a_named_backbone_gives_what_the_verb_gives(photos: Path, paths: list[str]) -> None:
    model = toolkit.FeatureExtractor(**SMALL).fit(paths)
    assert (model.n_features_in_, model.n_features_out_, model.taps_) == (1, 1280, (7,))
    np.testing.assert_array_equal(model.transform(paths), extract_features(str(photos), **SMALL).X)
    names = model.get_feature_names_out()
    assert names.dtype == object and len(names) == 1280
    assert names[0] == "efficientnet_lite0.7_0" and names[-1] == "efficientnet_lite0.7_1279"
    both = FeatureExtractor(taps=(7, 6), **SMALL).get_feature_names_out()
    assert len(both) == 1600 and both[0] == "efficientnet_lite0.6_0" and both[320] == "efficientnet_lite0.7_0"


def test_paths_come_in_many_forms(paths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    some = paths[:3]
    expected = tiny().transform(some)
    folder = Path(some[0]).parent.parent
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    column = np.array([[path] for path in some], dtype=object)
    for X in (
        tuple(some),
        np.array(some),
        np.array(some, dtype=object),
        column,
        column.astype(str),
        [[path] for path in some],
        [Path(path) for path in some],
        [os.path.relpath(path) for path in some],
        [f"~/{os.path.relpath(path)}" for path in some],
        [Path(path).parent / ".." / Path(path).parent.name / Path(path).name for path in some],
    ):
        np.testing.assert_array_equal(tiny().fit(X).transform(X), expected)
    np.testing.assert_array_equal(tiny().transform(some[:1]), expected[:1])


def test_names_may_be_any_that_the_system_allows(tmp_path: Path) -> None:
    names = ["~x.png", "ä ö.png", "a\nb.png", os.fsdecode(b"\xff.png"), "no suffix"]
    for number, name in enumerate(names):
        with open(tmp_path / name, "wb") as file:
            photo(0, number).save(file, format="PNG")
    found = tiny().transform([os.path.join(tmp_path, name) for name in names])
    assert len(np.unique(found, axis=0)) == len(names)
    with open(tmp_path / names[3], "wb") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=r"udcff\.png': not an image") as error:
        tiny().transform([os.path.join(tmp_path, name) for name in names])
    assert str(error.value).isascii()


@pytest.mark.parametrize(
    ("X", "words"),
    [
        ("photo.jpg", "a list or array of image paths expected, got one str"),
        (Path("photo.jpg"), "got one PosixPath"),
        (b"photo.jpg", "got one bytes"),
        ([], "Found array with 0 sample"),
        (np.empty((0, 1), dtype=object), "Found array with 0 sample"),
        (None, "X: "),
        ((path for path in ["photo.jpg"]), "X: "),
        ([["a.jpg", "b.jpg"]], "one path a row expected, got an array of 2 columns"),
        (np.full((1, 1, 1), "a.jpg", dtype=object), "Found array with dim 3"),
        (["a.jpg", b"b.jpg"], r"row 1: a path \(str or Path\) expected, got b'b.jpg' \(bytes\)"),
        (["a.jpg", ""], "row 1: a path"),
        ([None], "row 0: a path"),
        ([float("nan")], "row 0: a path"),
        (np.zeros((3, 1)), "row 0: a path"),
        ([["a.jpg"], ["b.jpg", "c.jpg"]], "row 0: a path"),
        (csr_array(np.eye(3)), "[Ss]parse"),
    ],
)
def test_what_is_no_column_of_paths_is_refused(X: Any, words: str) -> None:
    for method in (tiny().fit, tiny().transform):
        with pytest.raises(NotPathsError, match=words) as error:
            method(X)
        assert isinstance(error.value, ValueError) and "\n" not in str(error.value)


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    good = make_photos(tmp_path, {"cat": 2})
    (good / "text.jpg").write_text("text")
    (good / "cut.jpg").write_bytes((good / "cat/000.jpg").read_bytes()[:700])
    first, second = str(good / "cat/000.jpg"), str(good / "cat/001.jpg")
    for bad, reason in (
        ("text.jpg", r"not an image of a known format"),
        ("cut.jpg", "truncated"),
        ("no.jpg", "No such file or directory"),
        ("cat", "not a regular file"),
        ("nul\0.jpg", "null"),
    ):
        with pytest.raises(DataError, match=reason) as error:
            tiny().fit_transform([first, str(good / bad), second])
        assert repr(str(good / bad)) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(DataError, match=r"cut\.jpg': .*truncated.* \(and 1 more that cannot be read\)$"):
        tiny().transform([str(good / name) for name in ("text.jpg", "cat/000.jpg", "cut.jpg", "text.jpg")])


def test_a_missing_file_stops_before_the_others_are_computed(tmp_path: Path, paths: list[str]) -> None:
    with pytest.raises(DataError, match=r"'/nowhere/b\.jpg': No such file or directory \(and 1 more"):
        tiny(cache_dir=str(tmp_path)).transform([*paths, "/nowhere/b.jpg", "/nowhere/a.jpg", "/nowhere/b.jpg"])
    assert n_stored(tmp_path) == 0


def test_a_stored_image_that_is_too_large_is_refused_as_well(tmp_path: Path, paths: list[str]) -> None:
    photo(0, 0).resize((100, 100)).save(tmp_path / "large.png")
    files = [*paths, str(tmp_path / "large.png"), str(tmp_path / "large.png")]
    for cache in ("empty", "full"):
        if cache == "full":
            assert len(tiny(cache_dir=str(tmp_path / cache)).transform(files)) == 32
        with pytest.raises(DataError, match=r"large\.png': 100 × 100 pixels is more than max_pixels=9999$"):
            tiny(cache_dir=str(tmp_path / cache), max_pixels=9999).transform(files)
    assert len(tiny(cache_dir=str(tmp_path / "full"), max_pixels=9999).transform(paths)) == 30
    (tmp_path / "cut.png").write_bytes((tmp_path / "large.png").read_bytes()[:700])
    with pytest.raises(DataError, match=r"cut\.png': .*truncated"):
        tiny().transform([*paths, str(tmp_path / "cut.png")])


def test_settings_are_checked_by_fit_alone(paths: list[str]) -> None:
    for settings, words in (
        ({"backbone": "efficientnet_lite9"}, "unknown backbone 'efficientnet_lite9'; did you mean"),
        ({"backbone": tiny_backbone(), "taps": [4]}, "taps: distinct stages from 0 to 3"),
        ({"backbone": 3}, "backbone: "),
        ({"image_size": 3}, "image_size: 16 to 4096"),
        ({"device": "abacus"}, "unknown device"),
        ({"precision": "16-mixed", "device": "cpu"}, "needs a GPU"),
        ({"cache": "yes"}, "cache: true or false"),
        ({"workers": -1}, "workers: "),
    ):
        model = FeatureExtractor(**settings)  # type: ignore[arg-type]
        with pytest.raises(SettingError, match=words):
            model.fit(paths)
        assert not hasattr(model, "n_features_out_")
    with pytest.raises(WeightsError, match=r"none\.pt"):
        FeatureExtractor("resnet18", weights="none.pt").fit(paths)


def test_another_weights_file_of_that_name_is_seen(tmp_path: Path, paths: list[str]) -> None:
    file = tmp_path / "weights.pt"
    found = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            torch.save(torchvision.models.mobilenet_v3_small().state_dict(), file)
        found.append(FeatureExtractor("mobilenet_v3_small", weights=str(file), **SMALL).transform(paths[:2]))
    assert (found[0] != found[1]).any(axis=1).all()


def test_a_pickle_and_a_clone_carry_the_settings_alone(paths: list[str]) -> None:
    for model in (FeatureExtractor(taps=[6], **SMALL), FeatureExtractor(taps=[6], **SMALL).fit(paths)):
        packed = pickle.dumps(model)
        assert len(packed) < 1000
        again, copy = pickle.loads(packed), clone(model)
        assert again.get_params() == copy.get_params() == model.get_params()
        assert vars(again) == vars(model)
        for other in (again, copy):
            np.testing.assert_array_equal(other.transform(paths[:2]), model.transform(paths[:2]))
    own = tiny()
    assert clone(own).get_params().keys() == own.get_params().keys()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(own)).transform(paths), own.transform(paths))


def test_a_network_by_name_is_opened_once(paths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    extractor._kept_open.cache_clear()
    opened: list[Any] = []

    def count(options: Any) -> Any:
        opened.append(options)
        return real(options)

    real = extractor._open
    monkeypatch.setattr(extractor, "_open", count)
    for taps in ([7], [6, 7], [7]):
        FeatureExtractor(taps=taps, **SMALL).fit(paths).transform(paths)
    assert len(opened) == 1
    FeatureExtractor(**{**SMALL, "image_size": 40}).fit(paths)
    assert len(opened) == 2


@pytest.mark.parametrize("kind", ["Backbone", "list"])
def test_modules_of_the_user_s_are_read_anew(paths: list[str], kind: str) -> None:
    backbone: Any = tiny_backbone()
    own = backbone if kind == "Backbone" else list(backbone.stages)
    model = tiny(backbone=own, image_size=32).fit(paths)
    before = model.transform(paths)
    backbone.stages[0][0].weight.data.mul_(2)
    assert (model.transform(paths) != before).any(axis=1).all()
    backbone.stages[0][0].weight.data.div_(2)
    np.testing.assert_array_equal(model.transform(paths), before)


def test_the_cache_and_none(paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("home", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    model = tiny(cache_dir=str(tmp_path / "cache"))
    first = model.transform(paths)
    assert n_stored(tmp_path / "cache") == 30
    np.testing.assert_array_equal(tiny(cache=False).transform(paths), first)
    assert not list((tmp_path / "home").iterdir()) and not list((tmp_path / "temporary").iterdir())
    monkeypatch.setattr("toolkit.features.store.compute", None)
    np.testing.assert_array_equal(model.transform(paths[::-1]), first[::-1])
    np.testing.assert_array_equal(clone(model).set_params(taps=[0, 3]).transform(paths)[:, WIDTHS[0] :], first)


@pytest.mark.parametrize("n_jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_search_puts_every_image_through_the_network_once(
    paths: list[str], tmp_path: Path, n_jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    steps = [("features", FeatureExtractor(cache_dir=str(tmp_path), **SMALL)), ("classify", LogisticRegression())]
    grid = {"features__taps": [[7], [5, 6], None], "classify__C": [0.1, 1.0]}
    search = GridSearchCV(Pipeline(steps), grid, cv=3, n_jobs=n_jobs, error_score="raise")
    search.fit(paths, labels_of(paths))
    assert n_stored(tmp_path) == 30
    assert search.best_score_ > 0.9
    assert search.predict(paths[:3]).tolist() == ["cat", "cat", "cat"]


def test_on_a_cpu_every_number_of_threads_has_features_of_its_own(paths: list[str], tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        for number, expected in ((1, 30), (2, 60), (1, 60)):
            torch.set_num_threads(number)
            tiny(cache_dir=str(tmp_path)).transform(paths)
            assert n_stored(tmp_path) == expected
    finally:
        torch.set_num_threads(threads)


def test_in_a_pipeline_and_beside_other_columns(paths: list[str]) -> None:
    model = make_pipeline(tiny(taps=[2, 3]), LogisticRegression(max_iter=1000))
    assert cross_val_score(model, np.array(paths), labels_of(paths), cv=2, error_score="raise").mean() > 0.6
    table = np.array([[path, number % 2] for number, path in enumerate(paths)], dtype=object)
    columns = ColumnTransformer([("image", tiny(), [0]), ("rest", "passthrough", [1])])
    joined = columns.fit_transform(table)
    assert joined.shape == (30, 17)
    assert columns.get_feature_names_out()[:2].tolist() == ["image__custom.3_0", "image__custom.3_1"]


def test_frames(paths: list[str]) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"photo": paths}, index=[f"row {number}" for number in range(30)])
    expected = tiny().transform(paths)
    for X in (frame, frame["photo"], frame["photo"].astype("string"), frame["photo"].astype("category")):
        np.testing.assert_array_equal(tiny().fit_transform(X), expected)
    model = tiny().set_output(transform="pandas").fit(frame)
    assert model.feature_names_in_.tolist() == ["photo"]
    found = model.transform(frame)
    assert found.columns[0] == "custom.3_0" and found.index.tolist() == frame.index.tolist()
    np.testing.assert_array_equal(found.to_numpy(), expected)
    assert tiny().set_output(transform="pandas").transform(paths).index.tolist() == list(range(30))
    with pytest.raises(NotPathsError, match="got an array of 2 columns"):
        tiny().fit(frame.assign(label="x"))
    with pytest.raises(NotPathsError, match="row 2: a path"):
        tiny().fit(frame["photo"].where(frame["photo"] != paths[2]))


def test_tags() -> None:
    tags = get_tags(FeatureExtractor())
    assert tags.input_tags.string and tags.input_tags.one_d_array and tags.input_tags.two_d_array
    assert not tags.requires_fit and not tags.input_tags.sparse and not tags.target_tags.required
    assert tags.transformer_tags.preserves_dtype == []


class PathNumber(float):
    """A number of scikit-learn's that is the path of an image as well."""

    files: tuple[str, ...] = ()

    def __fspath__(self) -> str:
        return self.files[hash(float(self)) % len(self.files)]


@pytest.fixture
def checked(tmp_path: Path) -> Iterator[FeatureExtractor]:
    yield FeatureExtractor(cache_dir=str(tmp_path / "cache"), **SMALL)


def failed(model: FeatureExtractor) -> set[str]:
    results = estimator_checks.check_estimator(model, on_fail=None, on_skip=None)
    assert len(results) > 35
    return {result["check_name"] for result in results if result["status"] == "failed"}


@pytest.mark.filterwarnings("ignore")
def test_the_estimator_checks_that_fail_are_those_that_are_not_for_paths(checked: FeatureExtractor) -> None:
    assert failed(checked) == set(CHECKS_NOT_FOR_PATHS)
    results = estimator_checks.check_estimator(checked, expected_failed_checks=CHECKS_NOT_FOR_PATHS, on_skip=None)
    assert {result["check_name"] for result in results if result["status"] == "skipped"} == {"check_array_api_input"}


@pytest.mark.filterwarnings("ignore")
def test_given_paths_the_other_checks_hold(
    checked: FeatureExtractor, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PathNumber, "files", tuple(paths))

    def as_paths(estimator: Any, X: Any, **others: Any) -> NDArray[Any]:
        return np.array([[PathNumber(row[0])] for row in np.asarray(X).reshape(len(X), -1)], dtype=object)

    monkeypatch.setattr(estimator_checks, "_enforce_estimator_tags_X", as_paths)
    not_for_paths = {name for name, why in CHECKS_NOT_FOR_PATHS.items() if "holds when it is given paths" not in why}
    assert failed(checked) == not_for_paths | SPARSE_CHECKS


def test_importing_it_imports_no_torch() -> None:
    code = (
        "import sys; from toolkit import FeatureExtractor; print(FeatureExtractor(taps=[1])); "
        "assert not {'torch', 'torchvision'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "FeatureExtractor(taps=[1])\n"
