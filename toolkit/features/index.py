"""Where shards hold which view of which image, and columns of rows read from them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.features.shard import SUFFIX, BrokenShardError, Shard
from toolkit.progress import say
from toolkit.storage import TEMPORARY_PREFIX

SHORT_RUN = 8  # rows of one shard in a row; where runs are shorter on average, rows are sorted by their shards


class Column:
    """One output of N views, their tensors mapped from shards; nothing is read before it is taken.

    shards: the tensors, None for a shard that is not needed. place: int32 (N, 2): which tensor, which row of it.
    shape, dtype: of a single row.
    """

    def __init__(
        self, shards: Sequence[Tensor | None], place: NDArray[np.int32], shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        self.shards = shards
        self.place = place
        self.shape = shape
        self.dtype = dtype

    def take(self, positions: NDArray[np.int64], out: Tensor | None = None) -> Tensor:
        """Return the rows at `positions`, (k, …), copied out of the files; into `out`, of any strides, if it is given.

        Raises IndexError for a position that there is not.
        """
        taken = torch.empty((len(positions), *self.shape), dtype=self.dtype) if out is None else out
        if not len(positions):
            return taken
        places = self.place[positions]
        numbers, rows = places[:, 0], torch.from_numpy(places[:, 1].astype(np.int64))
        ends = _ends_of_runs(numbers)
        as_stored = len(ends) * SHORT_RUN <= len(numbers)
        order = np.arange(len(numbers)) if as_stored else np.argsort(numbers, kind="stable")
        if not as_stored:
            ends = _ends_of_runs(numbers[order])
        for start, end in zip([0, *ends], ends, strict=False):
            number = int(numbers[order[start]])
            shard = self.shards[number] if number >= 0 else None
            assert shard is not None, "a view that is not stored was asked for"
            if as_stored:  # copied once, to where it belongs
                torch.index_select(shard, 0, rows[start:end], out=taken[start:end])
            else:
                here = torch.from_numpy(order[start:end])
                taken[here] = shard.index_select(0, rows[here])
        return taken


class Index:
    """The shards of some folders, each opened once; those that are not what was written are left out."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self.folders = tuple(folders)
        self.shards: list[Shard] = []
        self._seen: set[Path] = set()
        self._broken: list[Path] = []

    def refresh(self) -> None:
        """Open the shards that have come since the last time."""
        for path in (path for folder in self.folders for path in _shards_in(folder)):
            if path in self._seen:
                continue
            self._seen.add(path)
            try:
                self.shards.append(Shard(path))
            except BrokenShardError:
                self._broken.append(path)
            except FileNotFoundError:  # pruned this moment
                self._seen.discard(path)

    def remove_broken(self) -> None:
        """Remove the shards that were found broken, so that they are computed again; only the lock's holder may."""
        for path in self._broken:
            try:
                shard = Shard(path)
                for name in shard.names:
                    shard.tensor(name)
            except BrokenShardError:
                say(f"note: {path} was damaged; what it held is computed again")
                path.unlink(missing_ok=True)
            except FileNotFoundError:
                pass
            self._seen.discard(path)  # another process may have mended it
        self._broken.clear()

    def locate(self, names: Iterable[str], digests: NDArray[np.uint8], n_views: int) -> dict[str, NDArray[np.int32]]:
        """Return, by output, int32 (N, V, 2): the shard that holds a view and the row in it, −1 where none does.

        digests: uint8 (N, 16), of the images' contents, zeros where it is not known. Nothing is read but keys.
        """
        found: dict[frozenset[int], NDArray[np.int32]] = {}  # most outputs are in the same shards
        places = {}
        for name in names:
            holders = frozenset(number for number, shard in enumerate(self.shards) if name in shard.names)
            if holders not in found:
                found[holders] = self._locate(sorted(holders), digests, n_views)
            places[name] = found[holders]
        return places

    def open(self, places: Mapping[str, NDArray[np.int32]]) -> dict[str, list[Tensor | None]] | None:
        """Return the verified tensors that `places` needs, by output and shard; None where one was found broken."""
        tensors: dict[str, list[Tensor | None]] = {name: [None] * len(self.shards) for name in places}
        broken: set[int] = set()
        for name, place in places.items():
            for number in np.unique(place[..., 0]).tolist():
                if number < 0 or number in broken:
                    continue
                try:
                    tensors[name][number] = self.shards[number].tensor(name)
                except BrokenShardError:
                    broken.add(number)
        if not broken:
            return tensors
        self._broken += [self.shards[number].path for number in sorted(broken)]
        self.shards = [shard for number, shard in enumerate(self.shards) if number not in broken]
        return None

    def mark_used(self, places: Mapping[str, NDArray[np.int32]]) -> None:
        """Note at the shards that `places` needs that they were used now: those that nobody used for long are pruned.

        It costs next to nothing beside verifying what they hold. They may be another user's, or pruned this moment.
        """
        distinct = {id(place): place[..., 0] for place in places.values()}  # most outputs share one
        needed = {number for numbers in distinct.values() for number in np.unique(numbers).tolist() if number >= 0}
        for number in sorted(needed):
            with suppress(OSError):
                os.utime(self.shards[number].path)

    def _locate(self, holders: Sequence[int], digests: NDArray[np.uint8], n_views: int) -> NDArray[np.int32]:
        wanted, image = np.unique(keys_of(digests), return_inverse=True)
        table = np.full((len(wanted), n_views, 2), -1, np.int32)
        for number in reversed(holders) if len(wanted) else ():  # the first shard that holds a view wins
            shard = self.shards[number]
            keys = keys_of(shard.digests)
            starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))[: len(keys)]
            at = np.minimum(np.searchsorted(wanted, keys[starts]), len(wanted) - 1)
            at[wanted[at] != keys[starts]] = -1
            at = np.repeat(at, np.diff(starts, append=len(keys)))  # an image's views stand side by side
            rows = np.flatnonzero((at >= 0) & (shard.views >= 0) & (shard.views < n_views))
            table[at[rows], shard.views[rows], 0] = number
            table[at[rows], shard.views[rows], 1] = rows
        place: NDArray[np.int32] = table[image]
        place[~digests.any(axis=1)] = -1
        return place


def _ends_of_runs(numbers: NDArray[np.int32]) -> list[int]:
    """Return where each run of equal numbers ends."""
    return [*(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]


def keys_of(digests: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    """Return S16 (N,): digests as comparable values."""
    return np.ascontiguousarray(digests).view("S16").ravel()


def _shards_in(folder: Path) -> list[Path]:
    """Return the paths of a folder's shards in the order of their names; unfinished ones are not among them."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                Path(entry.path)
                for entry in entries
                if entry.name.endswith(SUFFIX) and not entry.name.startswith(TEMPORARY_PREFIX) and entry.is_file()
            )
    except FileNotFoundError:
        return []
