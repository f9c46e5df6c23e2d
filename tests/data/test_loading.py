"""Order, views and batches: pure functions of (seed, epoch), whoever loads and however often it is interrupted."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler, SequentialSampler, get_worker_info

from tests.photos import make_photos
from toolkit.data.loading import Batch, ResumableLoader, ViewDataset, clean_batches, default_workers
from toolkit.data.manifest import Manifest
from toolkit.data.preprocessing import Preprocessing
from toolkit.data.samplers import SeededSampler, SteadySampler
from toolkit.data.scan import scan
from toolkit.data.views import AUGMENTATIONS, view
from toolkit.errors import ToolkitError

SMALL = Preprocessing(36, 32)
ROWS = np.arange(5, 5 + 103)


def keys(epoch: int = 0, **settings) -> list[tuple[int, int]]:
    sampler = SeededSampler(ROWS, **{"views": 4, "seed": 0, **settings})
    sampler.set_epoch(epoch)
    return list(sampler)


def test_order_is_a_function_of_seed_and_epoch():
    orders = {(seed, epoch): tuple(row for row, _ in keys(epoch, seed=seed)) for seed in (0, 1) for epoch in range(4)}
    assert len(set(orders.values())) == 8
    torch.manual_seed(77)
    assert all(tuple(row for row, _ in keys(epoch, seed=seed)) == order for (seed, epoch), order in orders.items())
    assert all(sorted(order) == ROWS.tolist() for order in orders.values())
    assert all(list(order) != ROWS.tolist() for order in orders.values())


def test_unshuffled_is_the_given_order():
    rows = np.array([9, 2, 5])
    assert list(SeededSampler(rows, views=1, seed=3, shuffle=False)) == [(9, 0), (2, 0), (5, 0)]


@pytest.mark.parametrize("views", [1, 3, 100])
def test_views_cycle_with_the_epochs(views):
    for epoch in (0, 1, 2, 3, 4, 101):
        assert {number for _, number in keys(epoch, views=views)} == {epoch % views}


@pytest.mark.parametrize("replicas", [1, 2, 4])
@pytest.mark.parametrize("shuffle", [True, False])
def test_shards_cover_everything_in_equal_parts(replicas, shuffle):
    whole = [row for row, _ in keys(2, shuffle=shuffle)]
    shares = [[row for row, _ in keys(2, shuffle=shuffle, replicas=replicas, rank=r)] for r in range(replicas)]
    length = -(-103 // replicas)
    assert {len(share) for share in shares} == {length}
    assert len(SeededSampler(ROWS, views=1, seed=0, replicas=replicas)) == length
    dealt = [row for position in zip(*shares, strict=True) for row in position]
    assert dealt == whole + whole[: replicas * length - 103], "padded by repeating the first ones"


def test_more_replicas_than_images():
    rows = np.array([7, 8])
    shares = [list(SeededSampler(rows, views=1, seed=0, shuffle=False, replicas=5, rank=r)) for r in range(5)]
    assert shares == [[(7, 0)], [(8, 0)], [(7, 0)], [(8, 0)], [(7, 0)]]


def test_no_images_no_batches():
    assert list(SeededSampler(np.empty(0, np.int64), views=1, seed=0)) == []


def test_a_steady_sampler_has_the_first_order_in_every_epoch_and_other_views():
    steady, seeded = SteadySampler(ROWS, views=4, seed=3), SeededSampler(ROWS, views=4, seed=3)
    first = list(seeded)
    for epoch in (0, 1, 6):
        steady.set_epoch(epoch)
        assert list(steady) == [(row, epoch % 4) for row, _ in first]
    shares = [list(SteadySampler(ROWS, views=4, seed=3, replicas=2, rank=rank)) for rank in (0, 1)]
    assert sorted(set(shares[0]) | set(shares[1])) == sorted(first)
    assert isinstance(steady, SequentialSampler) and not isinstance(seeded, SequentialSampler)


def test_lightning_leaves_the_sampler_as_it_is():
    assert isinstance(SeededSampler(ROWS, views=1, seed=0), DistributedSampler)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return scan(make_photos(tmp_path / "photos", {"cat": 8, "dog": 7}))


def loader(manifest: Manifest, *, workers: int = 0, batch_size: int = 4, augment: str = "standard") -> ResumableLoader:
    dataset = ViewDataset(manifest, SMALL, AUGMENTATIONS[augment], seed=5, max_pixels=10**6)
    sampler = SeededSampler(np.arange(len(manifest)), views=3, seed=5)
    return ResumableLoader(dataset, sampler, batch_size=batch_size, workers=workers, pin=False)


def epoch_of(loader: ResumableLoader, epoch: int) -> list[Batch]:
    assert isinstance(loader.sampler, SeededSampler)
    loader.sampler.set_epoch(epoch)
    return list(loader)


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        assert torch.equal(mine.inputs, theirs.inputs) and torch.equal(mine.labels, theirs.labels)
        assert torch.equal(mine.rows, theirs.rows) and mine.failures == theirs.failures


def test_batches_are_the_same_with_and_without_workers(manifest):
    alone, helped = loader(manifest), loader(manifest, workers=2)
    for epoch in (0, 1):
        assert_same(epoch_of(alone, epoch), epoch_of(helped, epoch))


def test_loading_leaves_the_global_random_state(manifest):
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    for workers in (0, 2):
        epoch_of(loader(manifest, workers=workers), 1)
    assert torch.equal(torch.get_rng_state(), before[0]) and np.random.get_state()[1].tolist() == before[1]


def test_a_batch_holds_the_seeded_views_and_labels(manifest):
    from toolkit.data.decode import read_image

    for epoch in (0, 1, 5):
        for batch in epoch_of(loader(manifest), epoch):
            assert batch.inputs.dtype == torch.uint8 and batch.labels.dtype == batch.rows.dtype == torch.int64
            assert batch.labels.tolist() == manifest.labels[batch.rows.numpy()].tolist()
            for row, pixels in zip(batch.rows.tolist(), batch.inputs, strict=True):
                digest, image = read_image(manifest.file(row), 10**6)
                expected = view(image, SMALL, AUGMENTATIONS["standard"], digest=digest, number=epoch % 3, seed=5)
                assert np.array_equal(pixels.numpy(), expected)


@pytest.mark.parametrize("done", [0, 1, 3, 4])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_where_another_was(manifest, done, workers):
    whole = epoch_of(loader(manifest), 1)
    first = loader(manifest, workers=workers)
    first.sampler.set_epoch(1)
    batches = iter(first)
    for _ in range(done):
        next(batches)
    state = first.state_dict()
    assert state == ({"epoch": 1, "batches": done} if done else {"epoch": -1, "batches": 0})
    second = loader(manifest, workers=workers)
    second.load_state_dict(state)
    assert second.state_dict() == state, "a state saved before the first batch is the one that was loaded"
    assert_same(epoch_of(second, 1), whole[done:])
    assert_same(epoch_of(second, 2), epoch_of(loader(manifest), 2))
    assert second.state_dict() == {"epoch": 2, "batches": 4}


def test_the_length_is_that_of_a_whole_epoch(manifest):
    resumed = loader(manifest)
    resumed.load_state_dict({"epoch": 0, "batches": 3})
    assert len(resumed) == 4 and len(epoch_of(resumed, 0)) == 1 and len(resumed) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_files_are_left_out_and_named(manifest, workers):
    broken, gone = manifest.file(3), manifest.file(9)
    broken.write_bytes(broken.read_bytes()[:60])
    gone.unlink()
    batches = epoch_of(loader(manifest, workers=workers), 0)
    failures = dict(failure for batch in batches for failure in batch.failures)
    assert set(failures) == {3, 9} and all(failures.values())
    rows = [row for batch in batches for row in batch.rows.tolist()]
    assert sorted(rows) == sorted(set(range(15)) - {3, 9})
    assert all(len(batch.inputs) == len(batch.labels) == len(batch.rows) for batch in batches)
    complete = {row for batch in batches for row in [*batch.rows.tolist(), *(row for row, _ in batch.failures)]}
    assert complete == set(range(15))


def test_a_batch_of_unreadable_files_is_empty_but_well_formed(manifest):
    for row in range(15):
        manifest.file(row).write_bytes(b"")
    for batch in epoch_of(loader(manifest), 0):
        assert batch.inputs.shape == (0, 3, 32, 32) and batch.inputs.dtype == torch.uint8
        assert batch.labels.shape == batch.rows.shape == (0,) and batch.labels.dtype == torch.int64
        assert len(batch.failures) in (3, 4)


def test_images_above_the_cap_fail(manifest):
    dataset = ViewDataset(manifest, SMALL, AUGMENTATIONS["none"], seed=0, max_pixels=100)
    row, reason = dataset[2, 0]
    assert row == 2 and isinstance(reason, str) and "pixels" in reason


def test_clean_batches_keep_the_order_of_the_rows(manifest):
    rows = np.array([4, 0, 14, 7, 3])
    batches = list(clean_batches(manifest, rows, SMALL, batch_size=2, workers=0, max_pixels=10**6))
    assert [batch.rows.tolist() for batch in batches] == [[4, 0], [14, 7], [3]]
    whole = next(clean_batches(manifest, np.arange(15), SMALL, batch_size=15, workers=0, max_pixels=10**6))
    assert torch.equal(torch.cat([batch.inputs for batch in batches]), whole.inputs[rows])


def test_default_workers():
    assert default_workers(63) == 0 and 1 <= default_workers(64) <= 8


class Mortal(ViewDataset):
    """Ends the process that decodes one of its rows, unless that is the main one."""

    how: Any = signal.SIGKILL

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, NDArray[np.uint8] | str]:
        if key[0] == 5 and get_worker_info() is not None:
            os.kill(os.getpid(), self.how) if isinstance(self.how, signal.Signals) else os._exit(self.how)
        return super().__getitem__(key)


def mortal(root: Path, how: Any, workers: int) -> ResumableLoader:
    manifest = scan(root if root.exists() else make_photos(root, {"a": 5, "b": 5}))
    dataset = Mortal(manifest, Preprocessing(8, 8), AUGMENTATIONS["none"], seed=0, max_pixels=10**6)
    dataset.how = how
    sampler = SeededSampler(np.arange(10), views=1, seed=0)
    return ResumableLoader(dataset, sampler, batch_size=2, workers=workers, pin=False)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGBUS, 3])
def test_a_killed_process_is_named_and_the_same_batches_come_without(
    tmp_path: Path, how: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.data.loading.LOST_AFTER_S", 20.0)
    whole = list(mortal(tmp_path / "photos", how, 0))
    loader = mortal(tmp_path / "photos", how, 2)
    found = list(loader)
    assert [batch.rows.tolist() for batch in found] == [batch.rows.tolist() for batch in whole]
    assert all(torch.equal(one.inputs, other.inputs) for one, other in zip(found, whole, strict=True))
    assert loader.state_dict() == {"epoch": 0, "batches": 5}
    told = f"was killed by {how.name}" if isinstance(how, signal.Signals) else "ended with exit code 3"
    said = capsys.readouterr().err
    assert re.search(rf"note: decoding process \d+ {told}, maybe .*goes on without such processes", said), said
    loader.sampler.set_epoch(1)
    assert len(list(loader)) == 5 and "note" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_death_between_batches_is_heard_of_with_the_next_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the program is when a process dies, nothing is raised there; also between two epochs."""
    monkeypatch.setattr("toolkit.data.loading.LOST_AFTER_S", 20.0)
    for after in (1, 5):
        loader = mortal(tmp_path / "photos", 0, 1)
        loader.dataset.how = signal.SIGCONT  # which ends nobody
        batches = iter(loader)
        seen = [next(batches).rows.tolist() for _ in range(after)]
        if after == 5:
            assert list(batches) == []
            loader.sampler.set_epoch(1)
        (worker,) = loader._iterator._workers
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        for _ in range(1000):  # torch's handler would raise here
            sum(range(100))
        batches = iter(loader) if after == 5 else batches
        seen += [batch.rows.tolist() for batch in batches]
        whole = mortal(tmp_path / "photos", 0, 0)
        wanted = [batch.rows.tolist() for batch in whole]
        if after == 5:
            whole.sampler.set_epoch(1)
            wanted += [batch.rows.tolist() for batch in whole]
        assert seen == wanted
        assert f"process {worker.pid} was killed by SIGKILL" in capsys.readouterr().err


@pytest.mark.slow
def test_a_process_that_crashes_ends_it_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What made it crash would take the main process along."""
    monkeypatch.setattr("toolkit.data.loading.LOST_AFTER_S", 20.0)
    with pytest.raises(ToolkitError, match=r"a decoding process was lost .* --workers 0: process \d+ .* SIGSEGV"):
        list(mortal(tmp_path / "photos", signal.SIGSEGV, 1))


HANGING = """
import ctypes, sys
import numpy as np
from toolkit.data import loading, samplers
from toolkit.data.preprocessing import Preprocessing
from toolkit.data.scan import scan
from toolkit.data.views import AUGMENTATIONS
from toolkit.errors import ToolkitError

class Hanging(loading.ViewDataset):
    def __getitem__(self, key):
        c, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
        while True:  # the second time it waits for itself
            c.pthread_mutex_lock(mutex)

loading.LOST_AFTER_S = 3.0
dataset = Hanging(scan(sys.argv[1]), Preprocessing(8, 8), AUGMENTATIONS["none"], seed=0, max_pixels=10**6)
sampler = samplers.SeededSampler(np.arange(4), views=1, seed=0)
try:
    list(loading.ResumableLoader(dataset, sampler, batch_size=2, workers=1, pin=False))
except ToolkitError as error:
    sys.exit(str(error))
"""


@pytest.mark.slow
def test_a_decoding_process_that_hangs_in_c_does_not_keep_the_program_from_ending(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", {"a": 2, "b": 2})
    done = subprocess.run(
        [sys.executable, "-c", HANGING, str(photos)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1 and "a decoding process was lost" in done.stderr, done.stderr


def test_few_images_few_cores_or_little_shared_memory_mean_few_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16), raising=False)
    monkeypatch.setattr(os.path, "isdir", lambda _: True)
    free = {"bytes": 10**12}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free["bytes"]))
    assert [default_workers(n) for n in (63, 64, 1_999, 2_000)] == [0, 8, 8, 16]
    free["bytes"] = 64 << 20  # what Docker gives
    assert default_workers(10_000) == 2
    free["bytes"] = 1 << 20
    assert default_workers(10_000) == 0
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(3), raising=False)
    free["bytes"] = 10**12
    assert default_workers(10_000) == 3
