"""Digests of files: taken once, believed while the file looks the same, forgotten rather than wrong."""

from __future__ import annotations

import builtins
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.features.test_damage import flip
from toolkit.features import contents
from toolkit.features.contents import Contents
from toolkit.storage import TEMPORARY_PREFIX, digest

ZEROS = bytes(16)


@pytest.fixture(autouse=True)
def settled_soon(monkeypatch) -> None:
    """Let the files of these tests count as settled although they are seconds old."""
    monkeypatch.setattr(contents, "SETTLED_AFTER_NS", -1)


@pytest.fixture
def root(tmp_path) -> Path:
    """Return a folder of ten files."""
    (tmp_path / "root" / "deep").mkdir(parents=True)
    for number in range(10):
        (tmp_path / "root" / ("deep" if number % 2 else ".") / f"{number}.bin").write_bytes(bytes([number]) * 300)
    return tmp_path / "root"


PATHS = [f"deep/{number}.bin" if number % 2 else f"{number}.bin" for number in range(10)]


def taken(cache: Path, root: Path, paths: list[str] = PATHS) -> list[bytes]:
    return [row.tobytes() for row in Contents(cache, root).digests(paths)]


def right(root: Path, paths: list[str] = PATHS) -> list[bytes]:
    return [digest((root / path).read_bytes()) for path in paths]


@pytest.fixture
def opened(monkeypatch, root) -> list[str]:
    """Return the names of the files of the folder that are opened from now on, in order of their names."""
    names: list[str] = []
    open_file = builtins.open

    def noted(file, *arguments, **settings):
        if str(file).startswith(str(root)):
            names.append(Path(file).name)
        return open_file(file, *arguments, **settings)

    monkeypatch.setattr(builtins, "open", noted)
    return names


def test_digests_are_those_of_the_contents(tmp_path, root):
    assert taken(tmp_path / "cache", root) == right(root)
    assert taken(tmp_path / "cache", root, []) == []
    assert taken(tmp_path / "cache", root, PATHS[::-1]) == right(root)[::-1]
    assert taken(tmp_path / "cache", root, [PATHS[3], PATHS[3]]) == [right(root)[3]] * 2


def test_unchanged_files_are_not_opened_again(tmp_path, root, opened):
    taken(tmp_path / "cache", root)
    assert len(opened) == 10
    opened.clear()
    assert taken(tmp_path / "cache", root) and taken(tmp_path / "cache", root, PATHS[2:5])
    assert opened == []
    (root / "4.bin").write_bytes(b"other")
    (root / "deep" / "11.bin").write_bytes(b"new")
    (root / "6.bin").unlink()
    found = taken(tmp_path / "cache", root, [*PATHS, "deep/11.bin"])
    assert sorted(opened) == ["11.bin", "4.bin"]
    assert found[4] == digest(b"other") and found[10] == digest(b"new") and found[6] == ZEROS


def test_what_is_young_is_read_again(tmp_path, root, opened, monkeypatch):
    monkeypatch.setattr(contents, "SETTLED_AFTER_NS", 10**12)
    for _ in range(2):
        opened.clear()
        assert taken(tmp_path / "cache", root) == right(root)
        assert len(opened) == 10
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("when", [0, 1, 4 * 10**18, 2**63 - 1])
def test_any_time_stamp_will_do(tmp_path, root, opened, monkeypatch, when):
    """Dates before the first and after the last that somebody meant: cameras and archives have them all."""
    monkeypatch.setattr(contents, "SETTLED_AFTER_NS", 10_000_000)
    os.utime(root / "2.bin", ns=(when, when))
    os.utime(root / "4.bin", (when / 1e9, -1.5))
    time.sleep(0.03)
    assert taken(tmp_path / "cache", root) == right(root)
    opened.clear()
    taken(tmp_path / "cache", root)
    assert opened == [], "a date in the future is no reason to read a file every time"


def test_a_date_that_does_not_fit_into_64_bits_does_no_harm(tmp_path, root, monkeypatch):
    real = os.stat

    class Late:
        def __init__(self, status):
            self.status = status

        def __getattr__(self, name):
            return 2**63 + 7 if name.endswith("_ns") else getattr(self.status, name)

    monkeypatch.setattr(contents.os, "stat", lambda path, *a, **k: Late(real(path, *a, **k)))
    assert taken(tmp_path / "cache", root) == right(root)


@pytest.mark.parametrize("edit", ["same size and time", "same inode too", "back and forth"])
def test_other_content_that_looks_the_same_is_seen(tmp_path, root, edit):
    path = root / "4.bin"
    before = path.stat()
    taken(tmp_path / "cache", root)
    if edit == "same size and time":
        path.unlink()
    path.write_bytes(b"x" * 300)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert taken(tmp_path / "cache", root)[4] == digest(b"x" * 300)
    if edit == "back and forth":
        path.write_bytes(b"\4" * 300)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert taken(tmp_path / "cache", root)[4] == digest(b"\4" * 300)


def test_what_is_no_file_gives_zeros_and_does_not_hang(tmp_path, root):
    os.mkfifo(root / "pipe.jpg")
    (root / "folder.jpg").mkdir()
    (root / "dangling.jpg").symlink_to(root / "nothing")
    (root / "device.jpg").symlink_to("/dev/zero")
    (root / "link.jpg").symlink_to(root / "2.bin")
    odd = ["pipe.jpg", "folder.jpg", "dangling.jpg", "device.jpg", "missing.jpg", "a\0b.jpg", "2.bin/below.jpg"]
    for _ in range(2):
        found = taken(tmp_path / "cache", root, [*odd, "link.jpg"])
        assert found == [ZEROS] * len(odd) + [right(root)[2]]


def test_a_file_that_cannot_be_read_gives_zeros_until_it_can(tmp_path, root, monkeypatch):
    open_file = builtins.open

    def barred(file, *arguments, **settings):
        if Path(str(file)).name == "4.bin":
            raise PermissionError(13, "Permission denied")
        return open_file(file, *arguments, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(builtins, "open", barred)
        assert taken(tmp_path / "cache", root)[4] == ZEROS
    assert taken(tmp_path / "cache", root) == right(root)


def test_folders_are_kept_apart_and_known_by_where_they_are(tmp_path, root, opened):
    other = tmp_path / "other"
    other.mkdir()
    (other / "4.bin").write_bytes(b"another folder's")
    taken(tmp_path / "cache", root)
    assert taken(tmp_path / "cache", other, ["4.bin"]) == [digest(b"another folder's")]
    (tmp_path / "link").symlink_to(root)
    opened.clear()
    assert taken(tmp_path / "cache", tmp_path / "link") == right(tmp_path / "link")
    assert [name for name in opened if name != "link"] == []
    absolute = [str(other / "4.bin"), "4.bin"]  # as a CSV may name them
    assert taken(tmp_path / "cache", root, absolute) == [digest(b"another folder's"), digest(b"\4" * 300)]


def test_odd_names(tmp_path, root):
    names = ["with space", "umlaut ä", "e\u0301", "\udcff undecodable", "line\nbreak", "ツ", "~", "-x", "%s", "a" * 200]
    for name in names:
        (root / name).write_bytes(name.encode("utf-8", "surrogateescape"))
    assert taken(tmp_path / "cache", root, names) == right(root, names)
    assert Contents(tmp_path / "cache", root)._known()[0] == names


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"garbage" * 100),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: flip(path, 3),
        lambda path: flip(path, 40),
        lambda path: flip(path, -1),
        lambda path: flip(path, -300),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: path.chmod(0),
    ],
    ids=["empty", "garbage", "cut", "length", "header", "end", "middle", "a folder", "barred"],
)
def test_a_damaged_memory_is_only_forgotten(tmp_path, root, damage):
    taken(tmp_path / "cache", root)
    (memory,) = (tmp_path / "cache").glob("*.safetensors")
    damage(memory)
    for _ in range(2):
        assert taken(tmp_path / "cache", root) == right(root)


def test_every_flipped_byte_of_the_memory_is_noticed(tmp_path, root):
    taken(tmp_path / "cache", root)
    (memory,) = (tmp_path / "cache").glob("*.safetensors")
    content = memory.read_bytes()
    for at in range(0, len(content), 7):
        flip(memory, at)
        assert Contents(tmp_path / "cache", root)._known()[0] == [], at
        memory.write_bytes(content)


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path, root, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(contents, "publish_bytes", full)
        assert taken(tmp_path / "cache", root) == right(root)
    (tmp_path / "file").write_text("in the way")
    assert taken(tmp_path / "file", root) == right(root)
    assert taken(tmp_path / "file" / "below", root) == right(root)


def test_what_a_killed_process_left_is_removed(tmp_path, root):
    (tmp_path / "cache").mkdir()
    stray = tmp_path / "cache" / f"{TEMPORARY_PREFIX}0123-abc.safetensors"
    stray.write_bytes(b"half")
    taken(tmp_path / "cache", root)
    assert not stray.exists()


def test_several_may_remember_at_once(tmp_path, root, opened):
    """Nothing is lost, and nobody's unfinished file is taken for a leftover."""
    for number in range(60):
        (root / f"more{number}.bin").write_bytes(bytes([number]) * 10)
    errors = []

    def work(number: int) -> None:
        try:
            for start in range(number, 60, 6):
                taken(tmp_path / "cache", root, [f"more{start}.bin"])
        except BaseException as error:  # shown below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    opened.clear()
    assert taken(tmp_path / "cache", root, [f"more{number}.bin" for number in range(60)])
    assert opened == []
    assert not list((tmp_path / "cache").glob(f"{TEMPORARY_PREFIX}*"))


def test_looks_from_before_the_file_was_read_are_what_counts(tmp_path, root):
    """Remembered with the look of what came before, another content is not believed."""
    kept = Contents(tmp_path / "cache", root)
    looks = kept.look(["4.bin"])
    (root / "4.bin").write_bytes(b"y" * 300)
    kept.remember(["4.bin"], looks, np.frombuffer(digest(b"x" * 300), np.uint8).reshape(1, 16))
    assert taken(tmp_path / "cache", root, ["4.bin"]) == [digest(b"y" * 300)]


@pytest.mark.parametrize(("most_files", "most_bytes"), [(10, 10**9), (10**6, 3000)], ids=["files", "bytes"])
def test_reading_much_is_counted_and_reading_little_is_not(tmp_path, root, monkeypatch, capsys, most_files, most_bytes):
    monkeypatch.setattr(contents, "COUNTED_FROM_FILES", most_files)
    monkeypatch.setattr(contents, "COUNTED_FROM_BYTES", most_bytes)
    monkeypatch.setattr(contents, "COUNTED_AT_A_TIME", 3)
    monkeypatch.setattr(contents, "BLOCK", 4)
    monkeypatch.setattr("toolkit.progress.SECONDS_BETWEEN_LINES", 0.0)
    assert taken(tmp_path / "cache", root) == right(root)
    out, err = capsys.readouterr()
    steps = [line.split(",")[0] for line in err.splitlines()[:-1]]
    assert steps == [f"reading files: {done}/10 files" for done in (3, 4, 7, 8, 10)]
    assert err.splitlines()[-1].startswith("reading files: 10 files in ") and out == ""
    (root / "4.bin").write_bytes(b"changed")
    assert taken(tmp_path / "cache", root) == right(root)
    assert capsys.readouterr() == ("", ""), "one file of ten"
