"""FeatureExtractor: image paths → pooled features, as a scikit-learn transformer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_array, validate_data

from toolkit.errors import DataError
from toolkit.options import Options

if TYPE_CHECKING:
    from toolkit.data.manifest import Manifest
    from toolkit.features.request import Request


class NotPathsError(DataError, ValueError):
    """What was given as X is not a column of paths; a ValueError as well, which is what scikit-learn expects."""


class FeatureExtractor(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Turns paths of images into pooled features of a pretrained backbone; a step for a `Pipeline`.

    X is a list or array of N paths (str or Path), a pandas Series of them, or one column (N, 1) of an array or
    frame; the result is float32 (N, D) in the order of X, one row a path, the taps side by side. Nothing is learnt
    from X: `transform` works without `fit`, which checks the settings and sets `n_features_in_` (1),
    `n_features_out_` (D) and `taps_`.

    With `cache` (the default) features are kept on the disk by the content of the images, in the folder that
    `toolkit features` uses: in a `GridSearchCV` every image goes through the network once, in one over taps among the
    last four stages as well. On a CPU that is once for each number of threads, which decides the last digits: joblib
    gives its processes fewer than the one that refits has, unless the environment sets OMP_NUM_THREADS for all. The
    keywords are those of `toolkit features`; `backbone` may also be a Backbone, or modules of your own. A pickle or a
    clone carries the settings alone; of the networks by name, the one used last stays open.

    Raises ToolkitError, in one line: DataError names the first image that cannot be read and the reason.

    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> model = make_pipeline(FeatureExtractor(taps=[6, 7]), LogisticRegression())  # then model.fit(paths, labels)

    Of scikit-learn's estimator checks, CHECKS_NOT_FOR_PATHS says which do not apply to paths, and why.
    """

    def __init__(
        self,
        backbone: Any = "efficientnet_lite0",
        *,
        taps: Sequence[int] | None = None,
        image_size: int | None = None,
        weights: str | None = None,
        cache: bool = True,
        cache_dir: str | None = None,
        max_pixels: int = 50_000_000,
        device: str = "auto",
        precision: str = "auto",
        workers: int | None = None,
    ) -> None:
        self.backbone = backbone
        self.taps = taps
        self.image_size = image_size
        self.weights = weights
        self.cache = cache
        self.cache_dir = cache_dir
        self.max_pixels = max_pixels
        self.device = device
        self.precision = precision
        self.workers = workers

    def fit(self, X: Any, y: Any = None) -> Self:
        """Check the settings and that X is a column of paths; no image is opened. y is not used."""
        self._paths(X, reset=True)
        request, taps = _request(self._options())
        self.n_features_in_ = 1
        self.n_features_out_ = sum(_widths(request, taps))
        self.taps_ = taps
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Return float32 (N, D), the features of N images in the order of X, a path as often as it occurs."""
        paths, options = self._paths(X, reset=False), self._options()
        request, taps = _request(options)
        from toolkit.tasks.feature_table import in_memory
        from toolkit.tasks.job import worker_count
        from toolkit.tasks.stores import open_store

        manifest, rows = _manifest(paths, options.max_pixels)
        with open_store(options.cache, options.cache_dir) as store:
            workers = worker_count(options, len(manifest))
            stored = store.fetch(request, manifest, workers=workers, max_pixels=options.max_pixels)
            if stored.failures:
                row, reason = stored.failures[0]
                raise _unreadable(str(manifest.file(row)), reason, len(stored.failures))
            return in_memory(stored.pooled(taps=taps), rows)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Return the D names of the features: `efficientnet_lite0.7_0` is the first of stage 7; opens the network."""
        request, taps = _request(self._options())
        widths = zip(taps, _widths(request, taps), strict=True)
        names = [f"{request.backbone.name}.{tap}_{i}" for tap, width in widths for i in range(width)]
        return np.array(names, dtype=object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True  # beside one column of two axes
        tags.transformer_tags.preserves_dtype = []
        tags.requires_fit = False
        return tags

    def _options(self) -> Options:
        return Options(**self.get_params(deep=False))

    def _paths(self, X: Any, reset: bool) -> list[str]:
        """Return X as absolute paths; raises NotPathsError."""
        if isinstance(X, (str, bytes, os.PathLike)):
            raise NotPathsError(f"X: a list or array of image paths expected, got one {type(X).__name__}; make it [X]")
        try:
            column = check_array(
                X, dtype=object, ensure_2d=False, ensure_all_finite=False, input_name="X", estimator=self
            )
        except (TypeError, ValueError) as error:
            raise NotPathsError(f"X: {' '.join(str(error).split())}") from error
        if column.ndim == 2 and column.shape[1] != 1:
            raise NotPathsError(f"X: one path a row expected, got an array of {column.shape[1]} columns")
        if reset or hasattr(self, "n_features_in_"):
            validate_data(self, X, reset=reset, skip_check_array=True, ensure_2d=False)  # the name of a frame's column
        working = os.getcwd()
        return [_absolute(path, row, working) for row, path in enumerate(column.ravel())]


class _Opened(NamedTuple):
    """An open network as a Request, and those made from it, by their taps: each has run the network for its shapes."""

    request: Request
    by_taps: dict[tuple[int, ...], Request]


def _request(options: Options) -> tuple[Request, tuple[int, ...]]:
    """Return the Request that some options make, and their taps.

    It asks for the usual taps as well where it asks for one of them, so that a search over them is one pass over the
    images. A network by name stays open for the next call that wants it.
    """
    from toolkit.backbones.taps import check_taps, default_taps
    from toolkit.tasks.features import with_usual_taps

    if isinstance(options.backbone, str):
        keys = ("backbone", "weights", "image_size", "device", "precision")
        opened = _kept_open(Options(**{key: getattr(options, key) for key in keys}), _look(options.weights))
    else:
        opened = _open(replace(options, taps=None))  # the user's modules may have changed since
    taps = check_taps(options.taps, len(opened.request.backbone))
    if taps not in opened.by_taps:
        request = replace(opened.request, taps=taps)
        usual = set(taps) & set(default_taps(request.backbone))
        opened.by_taps[taps] = with_usual_taps(request) if usual else request
    return opened.by_taps[taps], taps


def _open(options: Options) -> _Opened:
    from toolkit.tasks.features import request_of

    return _Opened(request_of(options)[0], {})


@lru_cache(maxsize=1)
def _kept_open(options: Options, look: tuple[int, ...]) -> _Opened:
    return _open(options)


def _widths(request: Request, taps: Sequence[int]) -> list[int]:
    """Return how many features each tap gives."""
    from toolkit.features.request import pool_name

    return [request.shapes[pool_name(tap)][0] for tap in taps]


def _look(weights: str | None) -> tuple[int, ...]:
    """Return what tells a changed weights file from an unchanged one."""
    if weights is None or not os.path.exists(os.path.expanduser(weights)):
        return ()
    status = os.stat(os.path.expanduser(weights))
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _absolute(path: Any, row: int, working: str) -> str:
    path = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(path, str) or not path:
        raise NotPathsError(f"X: row {row}: a path (str or Path) expected, got {path!r} ({type(path).__name__})")
    return str(Path(working, os.path.expanduser(path)))


def _manifest(paths: Sequence[str], max_pixels: int) -> tuple[Manifest, NDArray[np.int64]]:
    """Return the Manifest of the different files among absolute paths, and the row in it of each path, int64 (N,).

    Its root is the folder that holds them all, so that digests are shared with the other verbs. Raises DataError for
    the first path that is no file, and for the first image that is too large, which what is stored would not tell.
    """
    from toolkit.data.decode import UnreadableImage, probe_image
    from toolkit.data.manifest import UNASSIGNED, UNLABELLED, Manifest, common_root
    from toolkit.data.verify import too_large

    different = sorted(set(paths))
    row_of = {path: row for row, path in enumerate(different)}
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:  # before the others are computed
        try:
            probe_image(missing[0], max_pixels)
        except UnreadableImage as reason:
            raise _unreadable(missing[0], str(reason), len(set(missing))) from None
    try:
        root, names = common_root(different)
    except ValueError:  # on several drives
        root, names = Path(different[0]).parent, tuple(different)
    labels = np.full(len(different), UNLABELLED, np.int64)
    manifest = Manifest(root, (), names, labels, np.full(len(different), UNASSIGNED, np.int8))
    large = too_large(manifest, max_pixels=max_pixels)
    if large:
        row, why = large[0]
        raise _unreadable(different[row], why, len(large))
    return manifest, np.array([row_of[path] for path in paths], np.int64)


def _unreadable(path: str, reason: str, count: int) -> DataError:
    others = f" (and {count - 1} more that cannot be read)" if count > 1 else ""
    return DataError(f"{path!r}: {reason}{others}")


# `check_estimator` makes its own X, of numbers. Where that is all that stands in the way, the check holds once paths
# are put in their place; a test does both. For `check_estimator(FeatureExtractor(), expected_failed_checks=…)`.
_GIVEN_PATHS = "feeds numbers as X, which are no paths; holds when it is given paths"
CHECKS_NOT_FOR_PATHS: dict[str, str] = {
    "check_estimators_dtypes": "casts X to float32, float64, int32 and int64; a path is none of them",
    "check_complex_data": "wants complex numbers refused in words of its own; they are refused as no paths",
    "check_estimators_nan_inf": "wants NaN and infinity refused in words of its own; they are refused as no paths",
    "check_positive_only_tag_during_fit": "subtracts the mean from X",
    "check_estimator_sparse_array": "makes a sparse array, which can hold no paths; sparse input is refused",
    "check_n_features_in_after_fitting": "takes another column out of X, which has one",
    "check_fit2d_predict1d": "wants X of one axis to be refused; here it is the usual one, a list of paths",
    **dict.fromkeys(
        (
            "check_fit_score_takes_y",
            "check_estimators_overwrite_params",
            "check_dont_overwrite_parameters",
            "check_estimators_fit_returns_self",
            "check_readonly_memmap_input",
            "check_dtype_object",
            "check_pipeline_consistency",
            "check_estimators_pickle",
            "check_f_contiguous_array_estimator",
            "check_transformer_data_not_an_array",
            "check_transformer_general",
            "check_transformers_unfitted_stateless",
            "check_methods_sample_order_invariance",
            "check_methods_subset_invariance",
            "check_fit2d_1sample",
            "check_fit2d_1feature",
            "check_dict_unchanged",
            "check_fit_idempotent",
            "check_fit_check_is_fitted",
            "check_n_features_in",
        ),
        _GIVEN_PATHS,
    ),
}
