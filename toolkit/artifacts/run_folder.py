"""The run folder: opened before any work, complete when `metrics.json` is there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from toolkit.artifacts.description import DESCRIPTION, WEIGHTS
from toolkit.data.manifest import Manifest
from toolkit.errors import ArtifactError
from toolkit.evaluation.csv_text import csv_text
from toolkit.storage import TEMPORARY_PREFIX, publish_json, publish_text, publishing, read_json

CONFIG, PLAN, METRICS, HISTORY = "config.yaml", "plan.json", "metrics.json", "history.csv"
PREDICTIONS, QUARANTINE = "predictions.csv", "quarantine.csv"
TRAINED_ON = "trained_on.csv"  # path and fingerprint of every training image
BAD_BATCH = "bad_batch.csv"  # whose loss was no number
LR_RANGE, LR_RANGE_PICTURE = "lr_range.csv", "lr_range.png"
PER_CLASS, CONFUSION, MISTAKES = "per_class.csv", "confusion.csv", "mistakes.csv"
CURVES, RATES, CONFUSION_PICTURE, MISTAKES_SHEET = "curves.png", "rates.png", "confusion.png", "mistakes.png"
RELIABILITY, FILTERS, EXCITATION = "reliability.png", "filters.png", "excitation.png"
PICTURES = (CURVES, RATES, CONFUSION_PICTURE, MISTAKES_SHEET, RELIABILITY, FILTERS, EXCITATION)
MODEL, CHECKPOINTS, LOCK = "model", "checkpoints", "run.lock"
TENSORBOARD = "tensorboard"  # a folder a training of it
# Within the checkpoints: trials of the training, a training begun again after a collapse, and starting weights.
TRIAL_FOLDERS, AGAIN, START = ("trial", "trial2", "trial3"), "again", "start.safetensors"
TRIAL_HISTORIES = ("trial.csv", "trial2.csv", "trial3.csv")
CHECKPOINT_FILES = ("last.ckpt", "best.safetensors", START)
TRACKED = tuple(f"{Path(name).stem}{more}" for name in (HISTORY, *TRIAL_HISTORIES) for more in ("", f"_{AGAIN}"))
FOUND = (BAD_BATCH, LR_RANGE, LR_RANGE_PICTURE)
TABLES = (PREDICTIONS, QUARANTINE, TRAINED_ON, PER_CLASS, CONFUSION, MISTAKES)
FILES = (CONFIG, PLAN, METRICS, HISTORY, *TRIAL_HISTORIES, *TABLES, *PICTURES, *FOUND)
MODEL_FILES = tuple(f"{MODEL}/{name}" for name in (DESCRIPTION, WEIGHTS))
# What every run leaves from its beginning on, and nobody else: a config such as a run's may be a person's as well, and
# files that are called as a run's are, metrics.json or last.ckpt, another program's.
TRACES = (f"{CHECKPOINTS}/{LOCK}", QUARANTINE, TRAINED_ON)


@dataclass
class _Lock:
    """Whether a run is held by this process, whether it was begun since, and whether the file of its lock is to go when
    it is given back."""

    held: bool = False
    begun: bool = False
    left: bool = False


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run and how they are written; every file is published whole."""

    path: Path
    _lock: _Lock = field(default_factory=_Lock, init=False, repr=False, compare=False)

    @contextmanager
    def claimed(self, *, overwrite: bool) -> Iterator[None]:
        """Keep the folder for a new run, which `begin` begins: nobody else begins one in it until the block has ended.

        What is refused in the block before `begin` costs nothing: an older run is as it was, and the folders that the
        lock needed are gone again. Raises ArtifactError if the folder cannot take a new run, or a process is working on
        the one in it: a run that is there already is refused unless `overwrite` is set, a folder that holds anything
        else always is, be it a config for a run.
        """
        self._check_free(overwrite=overwrite)  # before anything is made in a folder that may be somebody's own
        lock = self.checkpoints / LOCK
        places = (lock, self.checkpoints, self.path, *self.path.parents)
        made = [place for place in places if not os.path.exists(place)]  # False as well where nobody may look
        try:
            with ExitStack() as stack:
                try:
                    stack.enter_context(self.held())
                except OSError as error:
                    raise self._not_writable(error) from error
                try:
                    self._check_free(overwrite=overwrite)  # again: before the lock was ours another may have begun
                    yield
                finally:
                    if not self._lock.begun and lock in made:
                        self._drop_lock()
        finally:
            if not self._lock.begun and lock in made:
                below = os.walk(self.path, topdown=False) if self.path in made else ()  # a cache, say, without content
                for folder in (*(Path(place) for place, _, _ in below), *made[1:]):
                    with contextlib.suppress(OSError):  # another process has made use of it since
                        folder.rmdir()

    def begin(self, config: dict[str, Any]) -> None:
        """Write `config.yaml` into the claimed folder, an older run's files having been removed.

        The two are apart, so that what may yet be refused comes between them: the cache, say, which may lie in this
        folder. Raises ArtifactError.
        """
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        try:
            with publishing(self.path / CONFIG) as temporary:
                temporary.write_text(text, encoding="utf-8")  # first: no run is removed where there is no room for it
                self._lock.begun = True
                self._remove_run()
        except OSError as error:
            raise self._not_writable(error) from error

    def _check_free(self, *, overwrite: bool) -> None:
        """Raise ArtifactError if the folder cannot take a new run."""
        try:
            present = self._present()
        except OSError as error:
            raise self._not_writable(error) from error
        if CONFIG in present and not self._is_run():
            raise ArtifactError(f"{self.path} holds a {CONFIG} that no run wrote; choose another --out")
        if CONFIG in present and not overwrite:
            raise ArtifactError(
                f"{self.path} already holds a run; choose another --out, go on with it by --resume {self.path}, or "
                "replace it by --overwrite"
            )
        if CONFIG not in present and present:
            raise ArtifactError(f"{self.path} is not empty and holds no run; choose another --out")

    def _present(self) -> set[str]:
        """Return the names in the folder, without what a process that was killed before `begin` has left."""
        if not os.path.lexists(self.path):
            return set()
        present = {entry.name for entry in self.path.iterdir() if not entry.name.startswith(TEMPORARY_PREFIX)}
        if self.checkpoints.is_dir() and [entry.name for entry in self.checkpoints.iterdir()] == [LOCK]:
            present.remove(CHECKPOINTS)
        return present

    def _not_writable(self, error: OSError) -> ArtifactError:
        reason = error.strerror or type(error).__name__
        return ArtifactError(f"{self.path}: cannot be written ({reason}); choose another --out")

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Return an existing run's folder; ArtifactError if there is none."""
        folder = cls(Path(path).expanduser().absolute())
        if not (folder.path / CONFIG).is_file():
            raise ArtifactError(f"{folder.path} holds no run (there is no {CONFIG} in it)")
        return folder

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return (self.path / METRICS).is_file()

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints live."""
        return self.path / CHECKPOINTS

    @property
    def tidied(self) -> bool:
        """Whether a finished run came to its very end: pictures are drawn before its checkpoints go."""
        return not self.checkpoints.is_dir()

    def config(self) -> dict[str, Any]:
        """Return the content of `config.yaml`."""
        try:
            values = yaml.safe_load((self.path / CONFIG).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ArtifactError(f"{self.path / CONFIG} cannot be read ({type(error).__name__})") from error
        if not isinstance(values, dict):
            raise ArtifactError(f"{self.path / CONFIG} is not a table of keys")
        return values

    def check_still(self, config: dict[str, Any]) -> None:
        """Raise ArtifactError where `config.yaml` is not what was read before the run was held: another run has taken
        its place since, and would be gone on with as if it were that one."""
        if self.config() != config:
            raise ArtifactError(f"{self.path}: another run was put in its place meanwhile; look which one you want")

    def check_own(self) -> None:
        """Raise ArtifactError where going on with a run would replace files beside which no run has left a trace."""
        kept = self.checkpoints
        folders = [kept, *(kept / name for name in (*TRIAL_FOLDERS, AGAIN))]
        places = [self.path / name for name in (*FILES, *MODEL_FILES) if name != CONFIG]
        places += [folder / name for folder in folders for name in CHECKPOINT_FILES]
        there = next((place for place in places if place.exists()), None)
        if there is not None and not self._has_traces():
            raise ArtifactError(
                f"{self.path} holds a {CONFIG} that no run wrote, beside {there.relative_to(self.path)}; begin in "
                "another folder"
            )

    def read(self, name: str) -> Any:
        """Return the content of a JSON file; ArtifactError if it is missing or damaged."""
        try:
            return read_json(self.path / name)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{self.path / name} cannot be read ({type(error).__name__})") from error

    def write(self, name: str, value: Any) -> None:
        """Publish a JSON file."""
        publish_json(self.path / name, value)

    def write_quarantine(self, manifest: Manifest) -> None:
        """Publish `quarantine.csv`: path and reason of every image file that could not be used."""
        rows = ((item.path, item.reason) for item in manifest.quarantined)
        publish_text(self.path / QUARANTINE, csv_text(("path", "reason"), rows))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out of this run while it is worked on; ArtifactError if one is in it already.

        The lock goes with the process, however it ends.
        """
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.checkpoints / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ArtifactError(
                f"{self.path}: another process is working on this run; wait for it, or choose another --out"
            ) from None
        self._lock.held, self._lock.begun, self._lock.left = True, False, False
        try:
            yield
        finally:
            self._lock.held = False
            lock.release()
            if self._lock.left:  # where an open file cannot be removed, whoever has taken the lock since keeps it
                with contextlib.suppress(OSError):
                    (self.checkpoints / LOCK).unlink(missing_ok=True)
                    self.checkpoints.rmdir()

    def drop_checkpoints(self) -> None:
        """Remove the checkpoints of a finished run, and the file of its lock, be it held."""
        self._remove_checkpoints()
        self._drop_lock()
        with contextlib.suppress(OSError):  # somebody's own file is in it
            self.checkpoints.rmdir()

    def _remove_checkpoints(self) -> None:
        """Remove the checkpoints, but for the lock."""
        kept = self.checkpoints
        trials = [kept / name for name in TRIAL_FOLDERS]
        for folder in (*(trial / AGAIN for trial in trials), *trials, kept / AGAIN, kept):
            unfinished = [file.name for file in folder.glob(f"{TEMPORARY_PREFIX}*")]  # a kill leaves them
            for name in (*CHECKPOINT_FILES, *unfinished):
                (folder / name).unlink(missing_ok=True)
            if folder != kept:
                with contextlib.suppress(OSError):  # somebody's own file is in it, or it was not needed
                    folder.rmdir()

    def _drop_lock(self) -> None:
        """Remove the file of the lock, and that before it is given back: removed later, it could be one that another
        process has taken by then, and a third would find none. Windows removes no open file; there `held` does it."""
        try:
            (self.checkpoints / LOCK).unlink(missing_ok=True)
        except PermissionError:
            if not self._lock.held:
                raise
            self._lock.left = True

    def _is_run(self) -> bool:
        """Return whether `config.yaml` is one that a run wrote here."""
        try:
            keys = set(self.config())
        except ArtifactError:
            return False
        return {"data", "out", "seed"} <= keys and not keys.isdisjoint(("strategy", "model")) and self._has_traces()

    def _has_traces(self) -> bool:
        """Return whether a run was here."""
        return any((self.path / name).exists() for name in TRACES)

    def _remove_run(self) -> None:
        """Remove the files that a run writes, and nothing else; not `config.yaml`, which tells that the others were a
        run's, nor the lock: both have to be there for whoever comes by meanwhile, or after a kill."""
        for name in (*_metrics_first(FILES), *MODEL_FILES):
            if name != CONFIG:
                (self.path / name).unlink(missing_ok=True)
        self._remove_checkpoints()
        tracked = [self.path / TENSORBOARD / name for name in TRACKED]
        for events in (file for folder in tracked for file in folder.glob("events.out.tfevents.*")):
            events.unlink()
        for folder in (*tracked, self.path / TENSORBOARD, self.path / MODEL):
            with contextlib.suppress(OSError):  # somebody's own file is in it
                folder.rmdir()


def _metrics_first(names: Iterable[str]) -> list[str]:
    """Order the removal so that a kill in its midst never leaves a run that looks finished."""
    return sorted(names, key=lambda name: name != METRICS)
