"""What is decoded ahead is what would be decoded later, or is not handed over."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.photos import make_photos
from toolkit.data import ahead
from toolkit.data.ahead import DecodedAhead, begin, end, images_of, take
from toolkit.data.decode import read_image
from toolkit.data.loading import clean_batches
from toolkit.data.preprocessing import Preprocessing
from toolkit.data.scan import scan
from toolkit.data.views import clean_view, decoded_px
from toolkit.errors import DataError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it forks")
SMALL = Preprocessing(36, 32)
CAP = 10**6


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos", {"cat": 7, "dog": 6})


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch):
    begun: list[int] = []
    fork = os.fork

    def noted() -> int:
        process = fork()
        begun.append(process)
        return process

    monkeypatch.setattr(os, "fork", noted)
    yield
    end()
    for process in begun:
        with pytest.raises(ChildProcessError):  # ended, and waited for
            os.waitpid(process, os.WNOHANG)


def finished(folder: Path, n: int, processes: int = 2, preprocessing: Preprocessing = SMALL) -> DecodedAhead:
    """Begin, wait until so many images are decoded, and take them."""
    begin(images_of(folder), preprocessing, CAP, processes)
    assert ahead._begun is not None
    for _ in range(600):
        if ahead._begun.done.sum() >= n:
            break
        time.sleep(0.05)
    found = take(preprocessing, CAP)
    assert found is not None
    return found


@pytest.mark.parametrize("processes", [1, 3, 40])
def test_it_is_what_would_be_decoded_later(photos: Path, processes: int) -> None:
    found = finished(photos, 13, processes)
    paths = sorted(str(path) for path in photos.rglob("*.jpg"))
    assert found.paths == paths and len(paths) == 13
    for path in paths:
        digest, image = read_image(path, CAP, decoded_px(SMALL))
        decoded = found.get(path)
        assert decoded is not None
        assert decoded.digest == digest and decoded.size == image.size
        assert np.array_equal(decoded.pixels, clean_view(image, SMALL))
    assert found.get(str(photos / "cat" / "other.jpg")) is None


def test_a_file_that_changed_is_not_handed_over(photos: Path) -> None:
    found = finished(photos, 13)
    changed, gone, touched, replaced = found.paths[:4]
    Path(changed).write_bytes(Path(found.paths[5]).read_bytes())
    Path(gone).unlink()
    os.utime(touched, ns=(1, 1))
    content, status = Path(replaced).read_bytes(), os.stat(replaced)
    Path(replaced).unlink()
    Path(replaced).write_bytes(content)
    os.utime(replaced, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert [found.get(path) for path in found.paths[:4]] == [None] * 4
    assert found.get(found.paths[4]) is not None


def test_what_cannot_be_read_is_left_to_whoever_needs_it(photos: Path) -> None:
    (photos / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    (photos / "cat" / "empty.png").touch()
    (photos / "cat" / "text.txt").write_text("no image")
    os.mkfifo(photos / "cat" / "pipe.jpg")
    found = finished(photos, 13)
    assert len(found.paths) == 16 and int(found.done.sum()) == 13
    assert found.get(str(photos / "cat" / "broken.jpg")) is None


def test_it_is_taken_once_and_only_for_its_own_preprocessing(photos: Path) -> None:
    begin(images_of(photos), SMALL, CAP, 1)
    assert take(Preprocessing(40, 32), CAP) is None and take(SMALL, CAP) is None
    begin(images_of(photos), SMALL, CAP, 1)
    assert take(SMALL, CAP + 1) is None
    begin(images_of(photos), SMALL, CAP, 1)
    assert take(SMALL, CAP) is not None and take(SMALL, CAP) is None


def test_it_may_be_stopped_at_any_time(photos: Path) -> None:
    for wait in (0, 0.001, 0.01, 0.03):
        begin(images_of(photos), SMALL, CAP, 2)
        time.sleep(wait)
        found = take(SMALL, CAP)
        assert found is not None
        for path in found.paths:
            decoded = found.get(path)
            if decoded is not None:
                assert np.array_equal(decoded.pixels, clean_view(read_image(path, CAP)[1], SMALL))


def test_its_memory_is_bounded(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "AT_LEAST", 1)
    monkeypatch.setattr(ahead, "MOST_BYTES", 3 * 32 * 32 * 5)
    assert len(finished(photos, 5).paths) == 5
    monkeypatch.setattr(ahead, "MOST_IMAGES", 3)
    assert len(finished(photos, 3).paths) == 3


def test_a_folder_without_images_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    begin(images_of(tmp_path), SMALL, CAP, 2)
    assert take(SMALL, CAP) is None


def test_a_process_that_was_killed_costs_nothing_but_its_share(photos: Path) -> None:
    begin(images_of(photos), SMALL, CAP, 2)
    assert ahead._begun is not None
    os.kill(ahead._begun._processes[0], 9)
    found = take(SMALL, CAP)
    assert found is not None and len(found.paths) == 13


def test_no_process_is_left_where_the_system_refuses_one(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fork, count = os.fork, iter(range(9))

    def refused() -> int:
        if next(count) == 1:
            raise BlockingIOError("no more processes")
        return fork()

    monkeypatch.setattr(os, "fork", refused)
    with pytest.raises(BlockingIOError):
        begin(images_of(photos), SMALL, CAP, 3)
    assert ahead._begun is None


@pytest.mark.slow
def test_its_processes_end_with_the_program(tmp_path: Path) -> None:
    import signal
    import subprocess

    photos = make_photos(tmp_path / "photos", {"cat": 400, "dog": 400})
    code = (
        "import sys, time; from pathlib import Path; from toolkit.data import ahead; "
        "from toolkit.data.preprocessing import Preprocessing; "
        "ahead.begin(ahead.images_of(Path(sys.argv[1])), Preprocessing(300, 299), 10**6, 2); "
        "print(*ahead._begun._processes, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(photos)], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        children = [int(word) for word in program.stdout.readline().split()]
        program.send_signal(signal.SIGKILL)
    for _ in range(100):
        if not any(os.path.exists(f"/proc/{child}") for child in children):
            break
        time.sleep(0.1)
    else:
        pytest.fail("they go on")


def test_a_list_is_read_as_far_as_it_can_be(photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    rows = [f"{photos}/dog/001.jpg,dog", "photos/cat/002.jpg,cat", "photos/cat/../cat/001.jpg,cat"]
    file.write_text("\n".join(["path,label", *rows, *rows]))
    expected = [f"{tmp_path}/photos/cat/../cat/001.jpg", f"{tmp_path}/photos/cat/002.jpg", f"{photos}/dog/001.jpg"]
    assert sorted(images_of(file)) == sorted(expected)
    file.write_text("path;label\n")
    with pytest.raises(DataError, match="first line"):
        list(images_of(file))


def test_a_few_are_not_worth_the_while(photos: Path) -> None:
    begin(list(images_of(photos))[: ahead.AT_LEAST - 1], SMALL, CAP, 1)
    assert ahead._begun is None and take(SMALL, CAP) is None


def test_what_is_ready_is_not_decoded_again(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, rows = scan(photos), np.array([12, 3, 7])
    how = {"batch_size": 2, "workers": 0, "max_pixels": CAP}
    expected = [batch.inputs for batch in clean_batches(manifest, rows, SMALL, **how)]
    found = finished(photos, 13)
    monkeypatch.setattr("toolkit.data.loading.read_image", None)
    for workers, turns in ((0, False), (1, True), (1, False)):
        how["workers"] = workers
        batches = list(clean_batches(manifest, rows, SMALL, **how, turns=turns, ready=found))
        assert [batch.rows.tolist() for batch in batches] == [[12, 3], [7]]
        assert all(torch.equal(batch.inputs, other) for batch, other in zip(batches, expected, strict=True))


def test_a_stop_while_it_begins_leaves_no_process(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fork, begun = os.fork, []

    def stopped() -> int:
        if begun:
            raise KeyboardInterrupt
        begun.append(fork())
        return begun[0]

    monkeypatch.setattr(os, "fork", stopped)
    with pytest.raises(KeyboardInterrupt):
        begin(images_of(photos), SMALL, CAP, 2)
    assert ahead._begun is None
    with pytest.raises(ChildProcessError):
        os.waitpid(begun[0], os.WNOHANG)


def test_a_process_that_somebody_else_waited_for_is_none_to_stop(photos: Path) -> None:
    begin(images_of(photos), SMALL, CAP, 1)
    assert ahead._begun is not None
    (process,) = ahead._begun._processes
    os.kill(process, 9)
    os.waitpid(process, 0)
    assert take(SMALL, CAP) is not None
