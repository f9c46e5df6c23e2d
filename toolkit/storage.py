"""Publish a file whole or not at all, wherever the process is killed; digests of bytes and files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMPORARY_PREFIX = ".publishing-"
NO_SYNC_OF_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)  # of file systems that sync files alone


@contextmanager
def publishing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path` in one step, on error it goes.

    The temporary file lies in the destination's own folder (a rename across file systems is a copy, and a
    copy can be torn), and both the file and the folder entry are synced before the block ends.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}-{target.name}"
    try:
        yield temporary
        _sync_file(temporary)
        os.replace(temporary, target)
        _sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def publish_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` as the whole of `path`, atomically."""
    with publishing(path) as temporary:
        temporary.write_bytes(content)


def publish_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as the whole of `path` in UTF-8, atomically."""
    publish_bytes(path, text.encode("utf-8"))


def publish_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and Infinity are a ValueError, not output."""
    publish_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file written by `publish_json`."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def digest(content: bytes) -> bytes:
    """Return the 16-byte BLAKE2b digest that identifies an image's content."""
    return hashlib.blake2b(content, digest_size=16).digest()


def as_size(n_bytes: int) -> str:
    """Return a size for a person: 12 kB, 3.4 MB, 5.6 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes / 1e3:.0f} kB"


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file in hexadecimal, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_file(path: Path) -> None:
    """Flush a file to the disk."""
    try:
        handle = os.open(path, os.O_RDWR)  # Windows flushes only what is open for writing
    except PermissionError:  # a file that its writer made read-only
        if os.name == "nt":
            return
        handle = os.open(path, os.O_RDONLY)
    _flush(handle)


def _sync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk, where the system has a way to do so."""
    if os.name == "nt":  # Windows cannot open a folder
        return
    try:
        _flush(os.open(path, os.O_RDONLY))
    except OSError as error:  # the file is published already: some network and encrypted file systems cannot do more
        if error.errno not in NO_SYNC_OF_FOLDERS:
            raise


def _flush(handle: int) -> None:
    """Flush and close an open file."""
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def cache_folder(cache_dir: str | None) -> Path:
    """Return the cache folder that was named, or the platform's."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_path("transfer-toolkit")) / "features"
