"""Walk a data set's folders: what is an image, what is hidden, and loops of links that end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from toolkit.data.decode import looks_like_image
from toolkit.errors import DataError

_JUNK = ("thumbs.db", "desktop.ini", "__macosx")  # beside names that begin with a dot


def _entries(folder: Path) -> list[tuple[str, bool]]:
    """Return (name, whether it is a folder) of a folder's entries, sorted; raises DataError."""
    try:
        with os.scandir(folder) as entries:
            # isdir for links, since DirEntry.is_dir raises on a link to itself
            return sorted((e.name, os.path.isdir(e.path) if e.is_symlink() else e.is_dir()) for e in entries)
    except OSError as error:
        raise _cannot_list(folder, error) from error


def folders_in(folder: Path) -> list[str]:
    """Return the names of a folder's visible folders, sorted."""
    return [name for name, is_folder in _entries(folder) if is_folder and not _is_hidden(name)]


def files_in(root: Path, folder: str) -> Iterator[tuple[str, bool]]:
    """Yield (path, whether it is an image) for files directly in a folder, and for those of its hidden folders."""
    for name, is_folder in _entries(root / folder):
        path = f"{folder}/{name}" if folder else name
        if not is_folder:
            yield path, not _is_hidden(name) and looks_like_image(root / path)
        elif _is_hidden(name):
            yield from files_below(root, path, hidden=True)


def files_below(root: Path, folder: str, *, hidden: bool = False) -> Iterator[tuple[str, bool]]:
    """Yield (path, whether it is a visible image) for all files in and below a folder, hidden ones included.

    A folder that was entered is not entered again; nor is one that this one lies in, to which a link leads back.
    """
    pending = [(folder, hidden)]
    entered = _above(root, folder)
    while pending:
        folder, hidden = pending.pop()
        try:
            status = os.stat(root / folder)
        except OSError as error:
            raise _cannot_list(root / folder, error) from error
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        for name, is_folder in _entries(root / folder):
            path, invisible = f"{folder}/{name}" if folder else name, hidden or _is_hidden(name)
            if is_folder:
                pending.append((path, invisible))
            else:
                yield path, not invisible and looks_like_image(root / path)


def _above(root: Path, folder: str) -> set[tuple[int, int]]:
    """Return device and inode of the folders that one lies in, from the root down."""
    found = set()
    for place in Path(folder).parents:
        with suppress(OSError):
            status = os.stat(root / place)
            found.add((status.st_dev, status.st_ino))
    return found


def _cannot_list(folder: Path, error: OSError) -> DataError:
    return DataError(f"{folder}: cannot list the folder: {error.strerror}")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _JUNK
