"""What the tests of stored features share: small data, backbones of every family, and the same numbers made live."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.backbones.test_families import SMALLEST, network
from tests.photos import make_photos
from tests.training.tiny import tiny_backbone
from toolkit.backbones.backbone import Backbone
from toolkit.data.decode import read_image
from toolkit.data.manifest import Manifest
from toolkit.data.scan import scan
from toolkit.data.views import view
from toolkit.features.prefix import FrozenPrefix
from toolkit.features.request import PIXELS, Request, pool_name, stage_name
from toolkit.features.store import FeatureStore
from toolkit.features.stored import Stored

SIZES = {name: size for name, size, *_ in SMALLEST}


def photos(folder: Path, n: int, **settings: Any) -> Manifest:
    """Return `n` small photographs of two classes."""
    return scan(make_photos(folder, {"cat": n - n // 2, "dog": n // 2}, **settings))


def family(name: str) -> Backbone:
    """Return the smallest member of a family with random weights, nothing in it constant; "tiny" for our own."""
    if name == "tiny":
        return tiny_backbone()
    found = network(name, SIZES[name])
    parts = found.split(found.model)
    return Backbone(name, parts.stages, found.preprocessing.at_image_size(SIZES[name]), parts.layout)


def fetch(folder: Path, request: Request, manifest: Manifest, rows: Any = None, **settings: Any) -> Stored:
    """Fetch from the store in `folder`."""
    return FeatureStore(folder).fetch(request, manifest, None if rows is None else np.asarray(rows), **settings)


def everything(stored: Stored) -> dict[str, Tensor]:
    """Return all that was fetched, by output: (N, V, …)."""
    n, v = len(stored), stored.request.views
    places = np.arange(n * v)
    return {name: column.take(places).reshape(n, v, *column.shape) for name, column in stored.columns.items()}


def live(request: Request, manifest: Manifest, rows: Sequence[int], seed: int = 0) -> dict[str, Tensor]:
    """Return what `everything` gives for `rows`, made from the files in random company, a few views at a time."""
    generator = np.random.default_rng(seed)
    wanted = [(position, number) for position in range(len(rows)) for number in range(request.views)]
    order = generator.permutation(len(wanted))
    made: dict[str, list[Tensor]] = {name: [torch.empty(0)] * len(wanted) for name in request.shapes}
    prefix = None
    if request.cut != 0:
        prefix = FrozenPrefix(request.backbone, cut=request.cut, taps=request.taps, dtype=request.dtype)
    start = 0
    while start < len(order):
        some = order[start : start + int(generator.integers(1, 40))]
        start += len(some)
        pixels = torch.from_numpy(np.stack([pixels_of(request, manifest, rows, wanted[i]) for i in some]))
        outputs = {PIXELS: pixels}
        if prefix is not None:
            found = prefix(pixels)
            outputs = {pool_name(tap): part for tap, part in zip(prefix.taps, found.pooled, strict=True)}
            if request.cut is not None:
                assert found.at_cut is not None
                outputs[stage_name(request.cut)] = found.at_cut
        for name, tensor in outputs.items():
            for position, row in zip(some, tensor, strict=True):
                made[name][position] = row
    return {name: torch.stack(parts).reshape(len(rows), request.views, *parts[0].shape) for name, parts in made.items()}


def pixels_of(request: Request, manifest: Manifest, rows: Sequence[int], key: tuple[int, int]) -> NDArray[np.uint8]:
    position, number = key
    digest, image = read_image(manifest.file(int(rows[position])))
    return view(
        image,
        request.backbone.preprocessing,
        request.augmentation,
        digest=digest,
        number=number,
        seed=request.seed,
    )


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Check that two answers are equal to the bit."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype and tensor.shape == other[name].shape, name
        assert torch.equal(tensor, other[name]), name


def files_below(folder: Path) -> dict[str, bytes]:
    """Return the content of every shard below a cache folder by its path, and the names of unfinished files."""
    paths = [path for path in (folder / "models").rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in paths
        if path.suffix == ".safetensors" or path.name.startswith(".")
    }
