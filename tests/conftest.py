"""Fixtures for every room."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_limits

from tests.photos import make_photos


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Keep torch and NumPy on one thread: for nets and images this small, more only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_disks() -> Iterator[None]:
    """Sync nothing in this process: only a power cut shows the difference, and on a busy disk a sync takes seconds.

    When files are synced is tested for itself; processes that tests start and kill sync as they always do.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the features that tests compute out of the person's cache."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Let SIGINT interrupt: a shell starts its background jobs with the signal ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def photo_folder(tmp_path: Path) -> Path:
    """Return a folder of 3 classes (5, 4 and 6 small JPEGs) in the layout DIR/CLASS."""
    return make_photos(tmp_path / "photos", {"cat": 5, "dog": 4, "owl": 6})


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """Return a copy of the benchmarks that finds the toolkit, and has no results."""
    root = Path(__file__).resolve().parent.parent
    copy = tmp_path / "scripts" / "bench"
    shutil.copytree(root / "scripts/bench", copy, ignore=shutil.ignore_patterns("results", "__pycache__"))
    (tmp_path / "toolkit").symlink_to(root / "toolkit")
    (copy / "results").mkdir()
    return copy
