"""Rows → the text of a CSV file (RFC 4180 quoting, LF line ends)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Value = str | int | float | None


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Value]]) -> str:
    """Return a CSV table; a float has six decimals, None is an empty field.

    Python's own writer leaves a carriage return unquoted, and then its reader refuses the file. Bytes of a file name
    that are not UTF-8 appear as \\udcXX: the table is valid UTF-8 whatever the files are called.
    """
    lines = (",".join(_field(value) for value in row) for row in (header, *rows))
    return "".join(line + "\n" for line in lines).encode("utf-8", "backslashreplace").decode("utf-8")


def _field(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6f}"
    text = str(value)
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\r\n') else text
