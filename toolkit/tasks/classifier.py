"""ImageClassifier: the notes' `train(images, labels) -> model` and `predict(model, images) -> labels` as one object."""

from __future__ import annotations

import copy
import io
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from toolkit.data.decode import UnreadableImage, as_rgb, decode, read_image
from toolkit.data.manifest import UNASSIGNED, Manifest, common_root
from toolkit.data.verify import too_large
from toolkit.errors import DataError, SettingError, ToolkitError
from toolkit.options import Options

# What PNG holds as it is. What is white in a mode of more bits depends on the format that an image was opened from,
# which is lost on the way to another one.
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")


class ImageClassifier:
    """A classifier of images in scikit-learn's manner: the constructor stores, `fit` learns, `predict` answers.

    Images are paths, PIL images, or uint8 arrays (H, W, 3) or (H, W). A large JPEG that is given by its path is decoded
    at a fraction of its size, so the last digits of its probabilities are not those of the same image in memory.
    Keywords are those of `finetune`, `out` and `overwrite` included: without `out`, the run folder is temporary.

    >>> model = ImageClassifier().fit(images, labels)  # doctest: +SKIP
    >>> model.predict(images)  # doctest: +SKIP

    After `fit`: `classes_` (names in order), `model_` (a TrainedModel), `metrics_` (what `metrics.json` holds).
    """

    def __init__(self, *, out: str | None = None, overwrite: bool = False, **options: Any) -> None:
        self.out = out
        self.overwrite = overwrite
        self.options = options

    def fit(self, images: Sequence[Any], labels: Sequence[Any]) -> Self:
        """Train on N images and their N labels; a part (`val`) of them is held out for the scores."""
        from toolkit.artifacts.model_folder import load_model
        from toolkit.tasks.run import start_run

        try:
            options = Options(**self.options)
        except TypeError as error:
            raise SettingError(f"ImageClassifier: {str(error).replace('Options.__init__() got an ', '')}") from None
        _check_several(images, at_least=1)
        if len(images) != len(labels):
            raise DataError(f"as many labels as images expected, got {len(images)} images and {len(labels)} labels")
        with tempfile.TemporaryDirectory() as folder:
            manifest = _manifest(images, [str(label) for label in labels], Path(folder))
            manifest = manifest.without(too_large(manifest, max_pixels=options.max_pixels))
            drawn = replace(options, pictures=options.pictures and self.out is not None)
            run = start_run(manifest, self.out or str(Path(folder) / "run"), drawn, overwrite=self.overwrite)
            self.model_ = load_model(run.path, stages=_stages(options))
        self.classes_ = np.array(self.model_.classes)
        self.metrics_ = run.metrics
        self._device = options.device
        return self

    def predict(self, images: Sequence[Any]) -> NDArray[np.str_]:
        """Return the labels of N images, str (N,)."""
        probabilities = self.predict_proba(images)
        labels: NDArray[np.str_] = self.classes_[probabilities.argmax(axis=1)]
        return labels

    def predict_proba(self, images: Sequence[Any]) -> NDArray[np.float32]:
        """Return float32 (N, C), columns as in `classes_`; DataError for an image that cannot be read."""
        from toolkit.data.views import clean_view
        from toolkit.features.prefix import chunk_of
        from toolkit.hardware import resolve_device

        if not hasattr(self, "model_"):
            raise ToolkitError("this ImageClassifier has learnt nothing yet: call fit(images, labels) first")
        _check_several(images, at_least=0)
        device = resolve_device(self._device)
        size = chunk_of(device)
        parts = [np.empty((0, len(self.classes_)), np.float32)]
        for start in range(0, len(images), size):
            views = [
                clean_view(_decoded(image, start + i, self.model_), self.model_.preprocessing)
                for i, image in enumerate(images[start : start + size])
            ]
            logits = self.model_.logits(torch.from_numpy(np.stack(views)), device)
            parts.append(logits.double().softmax(dim=1).float().numpy())
        return np.concatenate(parts)


def _stages(options: Options) -> Any:
    """Return the modules of a backbone of the user's own."""
    if isinstance(options.backbone, str):
        return None
    from toolkit.backbones.catalog import as_backbone

    return as_backbone(copy.deepcopy(options.backbone)).stages


def _manifest(images: Sequence[Any], labels: Sequence[str], folder: Path) -> Manifest:
    """Return a Manifest of the images.

    Those that are no files are written as PNG into `folder`, which is its root then. The root of files alone is the
    folder that holds them all, so that they are hashed once for many fits.
    """
    paths = []
    for number, image in enumerate(images):
        if isinstance(image, (str, os.PathLike)):
            paths.append(str(Path(image).expanduser().absolute()))
        else:
            place = folder / f"{number:08d}.png"
            place.write_bytes(_as_png(image, number))
            paths.append(place.name)  # the split hashes it: no trace of the folder, which is another each time
    root, names = folder, tuple(paths)
    if all(os.path.isabs(path) for path in paths):
        with suppress(ValueError):  # files on several drives
            root, names = common_root(paths)
    order = sorted(range(len(names)), key=lambda i: names[i])
    classes = tuple(sorted(set(labels)))
    label_of = {name: index for index, name in enumerate(classes)}
    return Manifest(
        root=root,
        classes=classes,
        paths=tuple(names[i] for i in order),
        labels=np.array([label_of[labels[i]] for i in order], dtype=np.int64),
        splits=np.full(len(names), UNASSIGNED, dtype=np.int8),
    )


def _check_several(images: Any, at_least: int) -> None:
    if isinstance(images, (str, os.PathLike, Image.Image)):
        raise DataError(f"a list of images expected, got one {type(images).__name__}")
    if len(images) < at_least:
        raise DataError("at least one image expected, got none")


def _as_png(image: Any, number: int) -> bytes:
    """Return an image as PNG, turned as its EXIF says, whose pixels are those that the image's own file would give."""
    written = io.BytesIO()
    try:
        opened = _as_image(image, number)
        (ImageOps.exif_transpose(opened) if opened.mode in PNG_MODES else as_rgb(opened)).save(written, format="PNG")
    except (OSError, ValueError) as error:
        raise DataError(f"image {number}: {error}") from error
    return written.getvalue()


def _as_image(image: Any, number: int) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] in ((), (3,)) and image.ndim > 1:
        return Image.fromarray(image)
    what = f"{image.dtype} array {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise DataError(f"image {number}: a path, a PIL image or a uint8 array (H, W, 3) expected, got {what}")


def _decoded(image: Any, number: int, model: Any) -> Image.Image:
    """Return RGB pixels by the one decoding that training used too."""
    from toolkit.data.views import decoded_px

    try:
        if isinstance(image, (str, os.PathLike)):
            return read_image(image, model.max_pixels, decoded_px(model.preprocessing))[1]
        return decode(_as_png(image, number), model.max_pixels)
    except UnreadableImage as reason:
        what = os.fspath(image) if isinstance(image, (str, os.PathLike)) else f"image {number}"
        raise DataError(f"{what}: {reason}") from reason
