"""FeatureStore: what frozen stages give for the images of a Manifest, computed once, kept on disk, never stale."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.allocator import hand_back_freed_memory
from toolkit.data.manifest import Manifest
from toolkit.errors import ArtifactError
from toolkit.features.contents import Contents
from toolkit.features.index import Column, Index, keys_of
from toolkit.features.passes import NoRoomError, compute, group_bounds
from toolkit.features.place import LOCK, MEASURED, Place
from toolkit.features.request import PIXELS, SIZE, SOURCE, Request, key_of
from toolkit.features.stored import Stored
from toolkit.storage import as_size, publish_json, read_json

MAKE_ROOM = "make room (toolkit cache --limit 0 empties the cache), choose another --cache_dir, or take --cache false"
SPARE_BYTES = 1 << 20  # for headers, names and the file system's own
Plain = dict[str, Any]  # values for JSON
MAX_ROUNDS = 10  # of computing what is missing; more than two are needed only where files change all the time


class FeatureStore:
    """A cache folder of activations and pooled features that any number of processes may share.

    An image is known by its content and a backbone by its weights: a changed, added, renamed or removed file costs that
    file alone, and other weights, sizes, seeds or libraries find nothing that is not theirs. Numbers are always read
    back from the disk, so a first run equals a later one to the bit.

    >>> store = FeatureStore("cache")  # doctest: +SKIP
    >>> stored = store.fetch(Request(backbone, taps=(5, 6, 7)), manifest)  # doctest: +SKIP
    >>> stored.pooled()[:100].shape  # doctest: +SKIP
    """

    def __init__(self, folder: str | os.PathLike[str], *, advice: str = MAKE_ROOM) -> None:
        self.advice = advice  # for a person whose disk is full
        self.folder = Path(os.path.expanduser(folder)).absolute()
        try:
            (self.folder / "models").mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = getattr(error, "strerror", None) or error
            raise ArtifactError(
                f"{self.folder}: no cache can be kept here ({reason}); choose another --cache_dir"
            ) from error
        if not os.access(self.folder / "models", os.W_OK):
            raise ArtifactError(f"{self.folder}: no cache can be kept here (not writable); choose another --cache_dir")

    def fetch(
        self,
        request: Request,
        manifest: Manifest,
        rows: NDArray[np.int64] | None = None,
        *,
        workers: int = 0,
        max_pixels: int = 50_000_000,
    ) -> Stored:
        """Return what is asked for of `rows` (all by default); what is not stored yet is computed and published.

        Of images of which something is missing the other stages that the pass goes by are stored as well, where it
        costs next to nothing (`Request.with_stages_on_the_way`). One process computes at a time, others that want the
        same backbone's numbers wait and then find them. Raises NoRoomError before the work where the disk has no room,
        WeightsError for features that are not finite, ArtifactError where the cache cannot be used. max_pixels: of
        files that have to be read.
        """
        search = _Search(self, request, manifest, rows)
        with ExitStack() as stack:
            alone = False
            for _ in range(MAX_ROUNDS):
                missing = search.missing()
                if not missing.any():
                    stored = search.stored()
                    if stored is not None:
                        return stored
                elif not alone:  # look again: another process may have been here
                    stack.enter_context(search.place.alone())
                    alone = True
                else:
                    search.compute(missing, workers, max_pixels)
                    hand_back_freed_memory()  # what comes next is not of the size of forward passes
        raise ArtifactError(
            f"{self.folder}: what is stored is gone before it can be read: images change while they are read, or "
            "something empties the cache; run again when that has ended"
        )

    def remembered(self, request: Request, what: Plain, measure: Callable[[], tuple[Plain, bool]]) -> Plain:
        """Return what `measure` gives, plain values, measured once; it says as well whether that is to be kept.

        what: plain values that say what is measured, and of which images: all that it depends on beside the request's
        backbone, number format, device and libraries. It is kept beside the stored numbers of the same backbone; where
        there are none, or nothing can be kept, it is measured anew.
        """
        place = Place(self.folder, request)
        file = place.folder / MEASURED / f"{key_of(what)}.json"
        with suppress(OSError, ValueError, RecursionError):
            known = read_json(file)
            if isinstance(known, dict) and known.get("what") == what and isinstance(known.get("value"), dict):
                with suppress(OSError):  # it may be another user's
                    os.utime(file)  # as at a shard: what nobody used for long is pruned first
                return dict(known["value"])
        value, kept = measure()
        with suppress(OSError):
            if kept and (place.folder / LOCK).exists():  # else nobody would find it again to remove it
                file.parent.mkdir(exist_ok=True)
                publish_json(file, {"what": what, "value": value})
        return value

    def missing_bytes(self, request: Request, manifest: Manifest, rows: NDArray[np.int64] | None = None) -> int:
        """Return how many bytes are missing of what is asked for."""
        return int(_Search(self, request, manifest, rows).missing().sum()) * request.bytes_per_view

    def room_for(
        self,
        request: Request,
        manifest: Manifest,
        rows: NDArray[np.int64] | None = None,
        *,
        after: int = 0,
        clean_there: bool = False,
    ) -> int:
        """Return how many bytes a fetch would store, and raise the NoRoomError that it would, before any work.

        after: bytes that will be stored before it; clean_there: the clean views are among these.
        """
        search = _Search(self, request, manifest, rows)
        missing = search.missing() & _first_of_each(search.digests)[:, None]
        n_views = int(missing[:, 1 if clean_there else 0 :].sum())
        return n_views * search.with_room(n_views, after).bytes_per_view

    def free_bytes(self) -> int:
        """Return how many bytes the cache's disk has left."""
        there = next(folder for folder in (self.folder, *self.folder.parents) if folder.exists())  # it may be gone
        return max(0, shutil.disk_usage(there).free - SPARE_BYTES)


class _Search:
    """What is known in the course of one fetch of N images, V views each.

    digests: uint8 (N, 16), zeros where the content is not known (yet). places: of `Index.locate`.
    """

    def __init__(
        self, store: FeatureStore, request: Request, manifest: Manifest, rows: NDArray[np.int64] | None
    ) -> None:
        self.store, self.request, self.manifest = store, request, manifest
        self.rows = np.arange(len(manifest)) if rows is None else rows
        self.paths = [manifest.paths[row] for row in self.rows.tolist()]
        self.contents = Contents(store.folder / "contents", manifest.root)
        self.place = Place(store.folder, request)
        self.index = Index([self.place.clean, self.place.others][: 1 if request.views == 1 else 2])
        self.digests = np.zeros((len(self.rows), 16), np.uint8)
        self.places: dict[str, NDArray[np.int32]] = {}
        self.failures: dict[int, str] = {}
        self.n_computed = 0
        self._hashed = False
        self._rounds = 0

    def missing(self) -> NDArray[np.bool_]:
        """Return bool (N, V): which views of readable images are not stored, as far as is known now."""
        with self.place.in_words():
            self.index.refresh()
        if self.index.shards and not self._hashed:  # where nothing is stored, the contents are hashed when decoded
            self.digests, self._hashed = self.contents.digests(self.paths), True
        self.places = self.index.locate(self.request.shapes, self.digests, self.request.views)
        missing: NDArray[np.bool_] = np.any([place[..., 0] < 0 for place in self.places.values()], axis=0)
        return missing & self._readable()[:, None]

    def compute(self, missing: NDArray[np.bool_], workers: int, max_pixels: int) -> None:
        """Compute and publish the missing views, and take over what was seen; the lock is held."""
        with self.place.in_words():
            self.index.remove_broken()
        if self._rounds == 0:  # images of equal content are computed once
            missing = missing & _first_of_each(self.digests)[:, None]
        self._rounds += 1
        made = self.with_room(int(missing.sum()))
        positions = np.flatnonzero(missing.any(axis=1))
        looks = self.contents.look([self.paths[position] for position in positions])
        read = compute(
            made,
            self.manifest,
            self.rows[positions],
            missing[positions],
            group_bounds(made, positions),
            self.place.folder_of,
            workers=workers,
            max_pixels=max_pixels,
        )
        place = np.full(len(self.manifest), -1, np.int64)
        place[read.rows] = np.arange(len(read.rows))
        at = place[self.rows]
        self.digests[at >= 0] = read.digests[at[at >= 0]]  # a file may have changed since it was hashed
        self._hashed = True
        self.failures.update(read.failures)
        self.n_computed += read.n_views
        known = np.where((at >= 0)[positions, None], self.digests[positions], 0)
        self.contents.remember([self.paths[position] for position in positions], looks, known)

    def stored(self) -> Stored | None:
        """Return what was found, nothing missing; None where a shard turned out to be broken."""
        with self.place.in_words():
            tensors = self.index.open(self.places)
        if tensors is None:
            return None
        self.place.mark_used()
        self.index.mark_used(self.places)
        kept = self._readable()
        places = {id(place): place[kept].reshape(-1, 2) for place in self.places.values()}  # most outputs share one
        columns = {
            name: Column(tensors[name], places[id(place)], self.request.shapes[name], self._dtype(name))
            for name, place in self.places.items()
        }
        failures = tuple(self.failures.items())
        return Stored(
            self.request,
            self.rows[kept],
            self.digests[kept],
            failures,
            columns,
            self.n_computed,
            self.store.folder,
        )

    def _readable(self) -> NDArray[np.bool_]:
        readable: NDArray[np.bool_] = ~np.isin(self.rows, np.array([*self.failures], np.int64))
        return readable

    def _dtype(self, name: str) -> torch.dtype:
        if name == SIZE:
            return torch.int32
        if name in (PIXELS, SOURCE):
            return torch.uint8
        return self.request.dtype if name.startswith("stage.") else torch.float32

    def with_room(self, n_views: int, after: int = 0) -> Request:
        """Return what is computed of so many views: the stages on the way too, or, where they would take more than half
        of the disk's room, what was asked for; raises NoRoomError where it has none for that. after: bytes that will
        be stored before."""
        folder, free = self.store.folder, max(0, self.store.free_bytes() - after)
        more = self.request.with_stages_on_the_way()
        if 2 * n_views * more.bytes_per_view <= free:
            return more
        needed = n_views * self.request.bytes_per_view
        if needed > free:
            raise NoRoomError(
                f"{folder}: {as_size(needed)} are needed for the features of {n_views} views, and {as_size(free)} are "
                f"free; {self.store.advice}"
            )
        return self.request


def _first_of_each(digests: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return bool (N,): whether it is the first of its content, or its content is not known."""
    first: NDArray[np.bool_] = np.all(digests == 0, axis=1)
    first[np.unique(keys_of(digests), return_index=True)[1]] = True
    return first
