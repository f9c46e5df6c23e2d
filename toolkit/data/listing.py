"""Read a CSV of `path,label[,split]`: what each row says, before any file is looked at."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path, PurePath

from toolkit.data.manifest import TEST, TRAIN, UNASSIGNED, VAL
from toolkit.errors import DataError

SPLIT_WORDS = {"train": TRAIN, "val": VAL, "valid": VAL, "validation": VAL, "test": TEST}


def read_listing(file: Path) -> Iterator[tuple[int, str, str | None, int]]:
    """Yield (line number, path, class name or None, split) for each row of a CSV; raises DataError."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream)
            header = [cell.strip().lower() for cell in next(rows, [])]
            if "path" not in header or "label" not in header:
                raise DataError(f"{file}: the first line must be path,label or path,label,split; it is {header}")
            for cells in rows:
                if any(cell.strip() for cell in cells):  # blank lines say nothing
                    row = dict(zip(header, cells, strict=False))
                    yield rows.line_num, *_parse_row(row, f"{file}, line {rows.line_num}")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except (csv.Error, OSError) as error:
        raise DataError(f"{file}: cannot be read as CSV: {error}") from error


def _parse_row(row: dict[str, str], where: str) -> tuple[str, str | None, int]:
    path, name, word = row.get("path", ""), row.get("label", "").strip(), row.get("split", "").strip().lower()
    if not path.strip():
        raise DataError(f"{where}: the path is empty")
    if word and word not in SPLIT_WORDS:
        raise DataError(f"{where}: split {word!r} is unknown; expected one of: {', '.join(SPLIT_WORDS)}")
    split = SPLIT_WORDS[word] if word else UNASSIGNED
    if not name and split != TEST:
        raise DataError(f"{where}: the label is empty, which only rows of split test may be")
    return PurePath(path).as_posix(), name or None, split
