"""What the options of every verb share: how a dataclass of them is checked, and written down as plain values."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.backbones import names
from toolkit.errors import SettingError, unknown_name

PATHS = ("weights", "cache_dir")
LISTS = {"taps": (0, "distinct stage numbers"), "hidden": (1, "sizes such as 256,128,100")}


class Range(NamedTuple):
    """The values of a number: its kind, a test, and what is expected in words."""

    kind: type | tuple[type, ...]
    holds: Callable[[Any], bool]
    wanted: str


NUMBER = (int, float)
COMMON_RANGES = {
    "epochs": Range(int, lambda x: 1 <= x <= 100_000, "1 to 100000"),
    "lr": Range(NUMBER, lambda x: 0 < x <= 100, "a number above 0, at most 100,"),
    "patience": Range(int, lambda x: x >= 1, "at least 1 epoch"),
    "max_pixels": Range(int, lambda x: x >= 1, "at least 1 pixel"),
    "seed": Range(int, lambda x: 0 <= x < 2**32, "0 to 2**32 − 1"),
    "workers": Range(int, lambda x: 0 <= x <= 1024, "0 to 1024 processes"),
}
ALONE = {**COMMON_RANGES, "mc": Range(int, lambda x: x >= 2, "at least 2 passes")}  # of verbs without such a dataclass


def check_settings(
    options: Any,
    known: Mapping[str, Sequence[str]],
    ranges: Mapping[str, Range],
    words: Mapping[str, str] | None = None,
) -> None:
    """Raise SettingError, one line, for a value of a frozen dataclass that is unknown or out of range.

    known: names that a key may have. ranges: of numbers; words: what may stand in a number's place. A value may be None
    where that is its default. Numbers and strings of NumPy and others become Python's, in place, and a torch.device
    its name.
    """
    for key, value in vars(options).items():
        plain = str(value) if key == "device" and value is not None else _plain(value)
        if plain is not value:
            object.__setattr__(options, key, plain)
    values = {k: v for k, v in vars(options).items() if not (v is None and getattr(type(options), k) is None)}
    for key in known:
        if key in values and values[key] not in known[key]:
            raise unknown_name(key, str(values[key]), known[key])
    for key, expected in ranges.items():
        if key in values and not (words and key in words and values[key] == words[key]):
            _check_number(key, values[key], expected)
    for key in LISTS:
        if key in values:
            _check_list(key, values[key])
    for key in (field.name for field in fields(options) if isinstance(field.default, bool)):
        if not isinstance(values[key], bool):
            raise SettingError(f"{key}: true or false expected, got {values[key]!r}")
    for key in PATHS:
        if key in values and not isinstance(values[key], (str, os.PathLike)):
            raise SettingError(f"{key}: a path expected, got {values[key]!r}")
    if not options.cache and options.cache_dir is not None:
        raise SettingError("cache_dir is not used where cache is false; remove it")


def checked(key: str, value: Any) -> int:
    """Return a whole number of ALONE as Python's own; raises SettingError, one line."""
    plain: int = _plain(value)
    _check_number(key, plain, ALONE[key])
    return plain


def _check_number(key: str, value: Any, expected: Range) -> None:
    number = isinstance(value, expected.kind) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not expected.holds(value):
        raise SettingError(f"{key}: {expected.wanted} expected, got {value!r}")


def _plain(value: Any) -> Any:
    """Return a number or string as Python's own, also in a list; anything else as it is."""
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, str):
        return str(value)
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _check_list(key: str, value: Any) -> None:
    least, wanted = LISTS[key]
    whole = isinstance(value, (list, tuple)) and all(type(number) is int and number >= least for number in value)
    if not whole or not value or (key == "taps" and len(set(value)) < len(value)):
        raise SettingError(f"{key}: {wanted} expected, got {value!r}")


def check_backbone(name: Any) -> None:
    """Raise SettingError for a name that no backbone has; modules of a user's own, and None, pass."""
    if isinstance(name, str) and name not in names.plain_names() and not name.startswith(names.TIMM_PREFIX):
        raise unknown_name("backbone", name, names.plain_names())


def plain_values(options: Any) -> dict[str, Any]:
    """Return the values of a dataclass for a YAML file; files by their absolute paths."""
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    for key in PATHS:
        if values[key] is not None:
            values[key] = str(Path(values[key]).expanduser().absolute())
    return {key: list(value) if isinstance(value, (list, tuple)) else value for key, value in values.items()}
