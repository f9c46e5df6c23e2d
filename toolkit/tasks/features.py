"""`toolkit features`: pooled features of a folder's images as a table."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.errors import SettingError
from toolkit.tasks.apart import check_apart, check_cache_apart
from toolkit.tasks.feature_table import FeatureTable, checked_path, images_and_views, in_memory, write_table
from toolkit.tasks.head_start import head_start

if TYPE_CHECKING:
    from toolkit.data.manifest import Manifest
    from toolkit.features.request import Request
    from toolkit.options import Options


def extract_features(
    data: str,
    *,
    out: str | None = None,
    overwrite: bool = False,
    backbone: str = "efficientnet_lite0",
    taps: list[int] | None = None,
    image_size: int | None = None,
    views: int | None = None,
    augment: str | None = None,
    seed: int = 0,
    weights: str | None = None,
    cache: bool = True,
    cache_dir: str | None = None,
    max_pixels: int = 50_000_000,
    device: str = "auto",
    precision: str = "auto",
    workers: int | None = None,
) -> FeatureTable:
    """Return the pooled features of all images of a folder, and write them to an .npz or .parquet file.

    A folder without classes gives y = −1. With `out`, features go to the file in blocks and are never in memory as a
    whole; .parquet needs pyarrow (the extra `parquet`). Raises ToolkitError.

    Args:
        data: the photos: DIR/CLASS/…, DIR/train/CLASS/… with val, a CSV, or a folder of images without classes
        out: the file to write: .npz (paths, X, y, classes, split) or .parquet (path, split, label, y, view, X)
        overwrite: replace the file that is there
        backbone: name of the pretrained network; `toolkit backbones` lists them
        taps: stages whose pooled outputs are the features, such as 5,6,7; the last one by default
        image_size: side of the square input in pixels; the weights' own by default
        views: rows of an image, numbered in a column `view`: the clean one, then augmented ones; 1 by default
        augment: standard (crop, flip, colour; default), light (crop, flip), crop, none, trivial or rand (-Augment)
        seed: of the augmented views; one seed, one result
        weights: a checkpoint file (safetensors or state dict) instead of the backbone's own weights
        cache: false keeps nothing on disk but the file
        cache_dir: where features are kept; the platform's cache folder by default
        max_pixels: larger images are left out
        device: auto, cpu, cuda, cuda:1, mps
        precision: auto (bfloat16 where device and network are fit for it), 32-true, bf16-mixed, 16-mixed
        workers: how many processes (on a CPU: threads) decode; by the number of images and cores by default
    """
    keys = {key: value for key, value in locals().items() if key not in ("data", "out", "overwrite")}
    from toolkit.options import Options

    options = Options(**keys)
    if overwrite and out is None:
        raise SettingError("overwrite is not used where nothing is written; give out, or remove it")
    n_views = options.views or 1
    if augment is not None and n_views == 1:
        raise SettingError("augment is not used with views 1, the clean view alone; set views to 2 or more")
    if out is not None:
        out = checked_path(out, overwrite=overwrite)
        check_apart(data, Path(out))
    check_cache_apart(data, cache_dir)

    with head_start(data, options) if n_views == 1 else nullcontext():
        return _extract(data, options, out)


def _extract(data: str, options: Options, out: str | None) -> FeatureTable:
    from toolkit.tasks.job import some_left, worker_count
    from toolkit.tasks.stores import open_store

    n_views = options.views or 1
    manifest = some_left(_scan_any(data, options.max_pixels))
    request, asked = request_of(options)
    if n_views == 1 and asked[-1] == len(request.backbone) - 1:  # the whole network runs: the other taps cost nothing
        request = with_usual_taps(request)
    with open_store(options.cache, options.cache_dir) as store:
        workers = worker_count(options, len(manifest))
        stored = store.fetch(request, manifest, workers=workers, max_pixels=options.max_pixels)
        usable = some_left(manifest.without(stored.failures))
        rows = stored.pooled(*images_and_views(0, len(usable) * n_views, n_views), taps=asked)
        if out is None:
            return FeatureTable(usable, n_views, rows.shape, in_memory(rows))
        table = FeatureTable(usable, n_views, rows.shape, out)
        write_table(out, table, rows)
    return table


def request_of(options: Options) -> tuple[Request, tuple[int, ...]]:
    """Return the Request that some options make, their backbone opened, and its taps: the last stage by default."""
    from toolkit.data.views import AUGMENTATIONS
    from toolkit.features.prefix import prefix_dtype
    from toolkit.features.request import Request
    from toolkit.hardware import resolve_device, resolve_precision
    from toolkit.tasks.job import open_backbone

    device = resolve_device(options.device)
    resolve_precision(options.precision, device)  # refuses what the device cannot do
    backbone = open_backbone(options)
    request = Request(
        backbone,
        tuple(options.taps or ()),
        views=options.views or 1,
        augmentation=AUGMENTATIONS[options.augment or "standard"],
        seed=options.seed,
        dtype=prefix_dtype(backbone, options.precision, device),
        device=device,
    )
    return request, request.taps


def with_usual_taps(request: Request) -> Request:
    """Return the Request with the taps among which `finetune` chooses besides, which then finds them stored."""
    from toolkit.backbones.taps import default_taps

    return replace(request, taps=tuple(sorted({*request.taps, *default_taps(request.backbone)})))


def _scan_any(data: str, max_pixels: int) -> Manifest:
    """Scan a labelled data set, or else a folder of images without classes."""
    from toolkit.data.scan import scan, scan_flat
    from toolkit.data.walk import folders_in
    from toolkit.errors import DataError
    from toolkit.progress import say

    path = Path(data).expanduser()
    if path.is_dir() and not folders_in(path):
        return scan_flat(path, max_pixels=max_pixels)
    try:
        return scan(path, max_pixels=max_pixels)
    except DataError as error:
        if not path.is_dir():
            raise
        manifest = scan_flat(path, max_pixels=max_pixels)  # folders, but no data set: features need no labels
        say(f"note: the images are taken without labels: {error}")
        return manifest
