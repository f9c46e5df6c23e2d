"""Place: where a cache keeps one backbone's numbers, and who may write there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from toolkit.features.passes import cache_error
from toolkit.features.request import Request, key_of
from toolkit.progress import say
from toolkit.storage import TEMPORARY_PREFIX, publish_json, read_json

ABOUT, LOCK, USED, MEASURED = "about.json", "lock", "used", "measured"

# cache_dir/
#   contents/ROOT.safetensors       digests of files by path and look
#   models/KEY/about.json           what the numbers depend on; `used`: touched at every use; `lock`
#   models/KEY/clean/SHARD          view 0
#   models/KEY/RECIPE/SHARD         the other views of one recipe and seed
#   models/KEY/measured/KEY.json    what was measured of some images by the backbone


class Place:
    """The folders of one backbone's numbers: those of clean views and those of one recipe's other views."""

    def __init__(self, cache: Path, request: Request) -> None:
        self.about = request.about()
        self.folder = cache / "models" / key_of(self.about)
        self.clean, self.others = self.folder / "clean", self.folder / key_of(request.view_recipe())

    def folder_of(self, view: int) -> Path:
        """Return where the shards of a view number go."""
        return self.others if view else self.clean

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock of a backbone's numbers; the system gives it back when its holder dies, however it dies."""
        lock = FileLock(self.folder / LOCK)
        with self.in_words():
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=1)
            except Timeout:
                say("another process is computing the same features; waiting for it")
                lock.acquire()
        try:
            with self.in_words():
                for pattern in (f"{TEMPORARY_PREFIX}*", f"*/{TEMPORARY_PREFIX}*"):
                    for stray in self.folder.glob(pattern):  # what a killed process left unfinished
                        stray.unlink(missing_ok=True)
                if not self._says_what_it_is():
                    publish_json(self.folder / ABOUT, self.about)
            yield
        finally:
            lock.release()

    def mark_used(self) -> None:
        """Note that the numbers were used now, for whoever makes the cache smaller."""
        with suppress(OSError):  # it may be another user's, or not exist at all
            (self.folder / USED).touch()

    @contextmanager
    def in_words(self) -> Iterator[None]:
        """Turn an error of the cache's file system into one line."""
        try:
            yield
        except OSError as error:
            raise cache_error(self.folder, error) from error

    def _says_what_it_is(self) -> bool:
        try:
            return bool(read_json(self.folder / ABOUT) == json.loads(json.dumps(self.about)))
        except (OSError, ValueError):
            return False
