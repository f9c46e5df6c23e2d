"""Finding: one line of a preflight; CheckReport: all of them, and the files to look at."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from toolkit.evaluation.csv_text import csv_text
from toolkit.storage import publish_text

PASS, WARN, FAIL = "pass", "warn", "fail"
SEVERITIES = (PASS, WARN, FAIL)
FIX_LIST_COLUMNS = ("path", "split", "label", "finding", "detail")
WIDTH = 100  # columns of the printed table


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: its status, what was seen in words and numbers, and what to do about it."""

    name: str
    status: str
    seen: str
    advice: str = ""

    def __post_init__(self) -> None:
        if self.status not in SEVERITIES:
            raise ValueError(f"status: {', '.join(SEVERITIES)} expected, got {self.status!r}")


@dataclass(frozen=True)
class Suspect:
    """A file to look at: the Finding it belongs to, what is odd about it, and how sure that is, from 0 to 1."""

    path: str
    split: str
    label: str
    finding: str
    detail: str
    suspicion: float


@dataclass(frozen=True)
class CheckReport:
    """What a preflight found, in the order in which it looked; the files to look at, the most suspicious first."""

    findings: tuple[Finding, ...]
    suspects: tuple[Suspect, ...] = ()

    @property
    def status(self) -> str:
        """The worst status of all findings."""
        return worst(finding.status for finding in self.findings)

    def finding(self, name: str) -> Finding:
        """Return a finding by its name; raises KeyError."""
        return {finding.name: finding for finding in self.findings}[name]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "status": self.status,
            "findings": [asdict(finding) for finding in self.findings],
            "suspects": [asdict(suspect) for suspect in self.suspects],
        }

    def write_fix_list(self, path: str | os.PathLike[str]) -> None:
        """Publish `path,split,label,finding,detail`, the most suspicious first."""
        rows = ((one.path, one.split, one.label, one.finding, one.detail) for one in self.suspects)
        publish_text(path, csv_text(FIX_LIST_COLUMNS, rows))

    def __str__(self) -> str:
        width = max(len(finding.name) for finding in self.findings) if self.findings else 0
        indent = " " * (width + 8)
        lines = []
        for one in self.findings:
            lines += _wrapped(f"{one.status:4}  {one.name.replace('_', ' '):{width}}  ", one.seen, indent)
            if one.advice:
                lines += _wrapped(indent + "→ ", one.advice, indent + "  ")
        counts = [sum(finding.status == status for finding in self.findings) for status in SEVERITIES]
        lines.append(f"{counts[0]} passed, {counts[1]} to look at, {counts[2]} failed")
        return "\n".join(lines)


def worst(statuses: Iterable[str]) -> str:
    """Return the most severe of some statuses, `pass` for none."""
    return max(statuses, key=SEVERITIES.index, default=PASS)


def by_suspicion(suspects: Iterable[Suspect]) -> tuple[Suspect, ...]:
    """Return suspects, the most suspicious first, equal ones by path."""
    return tuple(sorted(suspects, key=lambda one: (-one.suspicion, one.path, one.finding)))


def _wrapped(start: str, text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=start, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    ) or [start.rstrip()]
