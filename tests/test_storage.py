"""Publishing: a file is whole or absent, whatever goes wrong and wherever TMPDIR is."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import random
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from toolkit.storage import (
    TEMPORARY_PREFIX,
    digest,
    file_sha256,
    publish_bytes,
    publish_json,
    publish_text,
    publishing,
    read_json,
)

N_KILLS = 24
# Every version is one byte repeated: a torn or mixed file shows at once.
WRITER = """
import itertools, sys
from toolkit.storage import publish_bytes
for version in itertools.cycle(range(1, 250)):
    publish_bytes(sys.argv[1], bytes([version]) * int(sys.argv[2]))
    print(version, flush=True)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_bytes_and_json_arrive_whole_in_new_folders(tmp_path: Path) -> None:
    publish_bytes(tmp_path / "new" / "a.bin", b"\x00\xff")
    publish_text(tmp_path / "new" / "b.txt", "größe\n")
    publish_json(tmp_path / "new" / "c.json", {"straße": [1, None, 0.5]})
    assert (tmp_path / "new" / "a.bin").read_bytes() == b"\x00\xff"
    assert (tmp_path / "new" / "b.txt").read_bytes() == "größe\n".encode()
    assert read_json(tmp_path / "new" / "c.json") == {"straße": [1, None, 0.5]}
    assert names(tmp_path / "new") == ["a.bin", "b.txt", "c.json"]


def test_an_error_inside_the_block_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    publish_text(tmp_path / "a", "old")
    with pytest.raises(RuntimeError, match="midway"), publishing(tmp_path / "a") as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError("midway")
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_nothing_is_visible_before_the_block_ends(tmp_path: Path) -> None:
    with publishing(tmp_path / "a") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "a").exists()
        assert temporary.parent == tmp_path  # never TMPDIR: a rename across file systems is a copy
    assert (tmp_path / "a").read_text() == "new"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_refuses_what_is_no_json(tmp_path: Path, value: float) -> None:
    publish_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="JSON"):
        publish_json(tmp_path / "a.json", {"score": value})
    assert json.loads((tmp_path / "a.json").read_text()) == 1
    assert names(tmp_path) == ["a.json"]


def test_file_and_folder_are_synced_around_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        real_fsync(handle)

    def replace(source: Path, target: Path) -> None:
        steps.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    publish_text(tmp_path / "a", "x")
    assert steps[-3:] == ["file", "rename", "folder"]


def failing_fsync(monkeypatch: pytest.MonkeyPatch, code: int, *, of_folders: bool) -> None:
    """Let syncing folders, or files, fail with an error of the system."""
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) == of_folders:
            raise OSError(code, os.strerror(code))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_sync_folders_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    failing_fsync(monkeypatch, code, of_folders=True)
    publish_text(tmp_path / "a", "whole")
    assert (tmp_path / "a").read_text() == "whole" and names(tmp_path) == ["a"]


@pytest.mark.parametrize(("code", "of_folders"), [(errno.EIO, True), (errno.EINVAL, False), (errno.EIO, False)])
def test_a_disk_that_fails_and_a_file_that_cannot_be_synced_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, of_folders: bool
) -> None:
    failing_fsync(monkeypatch, code, of_folders=of_folders)
    with pytest.raises(OSError) as caught:
        publish_text(tmp_path / "a", "x")
    assert caught.value.errno == code
    assert not [name for name in names(tmp_path) if name.startswith(TEMPORARY_PREFIX)]


def test_a_file_is_open_for_writing_when_it_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")  # not on Windows
    modes: list[int] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            modes.append(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE)
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    publish_text(tmp_path / "a", "x")
    assert modes == [os.O_RDWR], "Windows syncs nothing else"


def test_a_read_only_file_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def barred(path: Path, flags: int, *more: int, **settings: int) -> int:  # root may write what is read-only
        if flags & os.O_RDWR and Path(path).name.startswith(TEMPORARY_PREFIX):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, flags, *more, **settings)

    monkeypatch.setattr(os, "open", barred)
    with publishing(tmp_path / "a") as temporary:
        temporary.write_text("whole")
        temporary.chmod(0o444)
    assert (tmp_path / "a").read_text() == "whole" and names(tmp_path) == ["a"]


def test_tmpdir_on_another_file_system_does_no_harm(tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    elsewhere = memory if os.access(memory, os.W_OK) else tmp_path / "none"
    program = "import sys; from toolkit.storage import publish_text; publish_text(sys.argv[1], 'whole')"
    environment = os.environ | {"TMPDIR": str(elsewhere)}
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "a")], env=environment, check=True)
    assert (tmp_path / "a").read_text() == "whole"
    assert names(tmp_path) == ["a"]


def test_digests(tmp_path: Path) -> None:
    content = b"abc" * 1_000_000
    (tmp_path / "a").write_bytes(content)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    assert digest(b"abc").hex() == "cf4ab791c62b8d2b2109c90275287816"  # b2sum --length=128
    assert digest(b"abd") != digest(b"abc")


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    target, size = tmp_path / "a.bin", 3_000_000
    moments = random.Random(0)
    n_left_behind = 0
    for _ in range(N_KILLS):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(target), str(size)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "1\n"  # it is at work
        time.sleep(moments.uniform(0.0, 0.05))
        writer.kill()
        writer.communicate()
        content = target.read_bytes()
        assert len(content) == size
        assert content == content[:1] * size
        left = [name for name in names(tmp_path) if name != "a.bin"]
        assert all(name.startswith(TEMPORARY_PREFIX) for name in left)
        n_left_behind += len(left)
        for name in left:
            (tmp_path / name).unlink()
    assert n_left_behind > 0  # some kills did hit in mid-write
