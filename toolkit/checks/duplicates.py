"""What copies mean: images that count twice, pictures under two labels, and answers that validation has seen before."""

from __future__ import annotations

from collections.abc import Sequence

from toolkit.checks.copies import Twin
from toolkit.checks.files import count, some_of, suspect
from toolkit.checks.finding import FAIL, PASS, WARN, Finding, Suspect
from toolkit.data.manifest import SPLIT_NAMES, TRAIN, UNASSIGNED, UNLABELLED, Manifest

MUCH = 0.01  # of the images, or of a split: then scores and training are no longer what they seem


def duplicate_findings(
    manifest: Manifest, exact: Sequence[Twin], near: Sequence[Twin], own_splits: Sequence[int]
) -> tuple[list[Finding], list[Suspect]]:
    """Return the findings on copies in a split Manifest, and the files to look at; each names its twin.

    own_splits: those of val and test that folder or list gave: copies in one of them and another split are somebody's
    mistake, else they fell apart when we split.
    """
    twins = [*exact, *near]
    split = [twin for twin in twins if _apart(manifest, twin)]
    torn = [twin for twin in twins if _labels(manifest, twin) == 2]
    findings = [
        _copies(
            "exact_duplicates",
            manifest,
            exact,
            ("file has the content of another one", "files have the content of another one"),
        ),
        _copies("near_duplicates", manifest, near, ("pair shows the same picture", "pairs show the same picture")),
        _conflicting(manifest, torn),
        _leaks(manifest, split, own_splits),
    ]
    suspects = [
        _suspect(manifest, twin, "exact_duplicates" if twin.exact else "near_duplicates", 0.6) for twin in twins
    ]
    suspects += [_suspect(manifest, twin, "conflicting_labels", 1.0) for twin in torn]
    suspects += [_suspect(manifest, twin, "leaks", 0.9) for twin in split]
    return findings, suspects


def _copies(name: str, manifest: Manifest, twins: Sequence[Twin], what: tuple[str, str]) -> Finding:
    if not twins:
        return Finding(name, PASS, f"no two of {len(manifest)} images")
    seen = f"{count(len(twins), *what)}: {some_of(_pairs(manifest, twins))}"
    return Finding(name, WARN, seen, "keep one of each, lest it count twice and make the intervals too narrow")


def _conflicting(manifest: Manifest, torn: Sequence[Twin]) -> Finding:
    if not torn:
        return Finding("conflicting_labels", PASS, "no picture has two labels")
    images = {row for twin in torn for row in (twin.first, twin.second)}
    status = FAIL if len(images) >= MUCH * len(manifest) else WARN
    seen = f"{count(len(torn), 'picture')} under two labels: {some_of(_pairs(manifest, torn))}"
    return Finding("conflicting_labels", status, seen, "decide which label is right and remove the other copy")


def _leaks(manifest: Manifest, split: Sequence[Twin], own_splits: Sequence[int]) -> Finding:
    if not split:
        return Finding("leaks", PASS, "no picture is in two splits")
    judged: dict[int, set[int]] = {}
    for twin in split:
        for row in (twin.first, twin.second):
            if manifest.splits[row] != TRAIN:
                judged.setdefault(int(manifest.splits[row]), set()).add(row)
    shares = {SPLIT_NAMES[k]: len(rows) / max(1, len(manifest.rows(k))) for k, rows in judged.items()}
    seen = f"{count(len(split), 'picture')} in two splits ({_shares(shares)}): {some_of(_pairs(manifest, split))}"
    given = [shares[SPLIT_NAMES[split]] for split in own_splits if SPLIT_NAMES[split] in shares]
    if given and max(given) >= MUCH:
        return Finding("leaks", FAIL, seen, "remove them from val and test: what was learned by heart is scored there")
    advice = (
        "remove them from val and test" if given else "remove one of each, or give a split that keeps them together"
    )
    return Finding("leaks", WARN, seen, advice)


def _shares(shares: dict[str, float]) -> str:
    return ", ".join(f"{share:.1%} of {name}" for name, share in shares.items())


def _apart(manifest: Manifest, twin: Twin) -> bool:
    first, second = int(manifest.splits[twin.first]), int(manifest.splits[twin.second])
    return first != second and UNASSIGNED not in (first, second)


def _labels(manifest: Manifest, twin: Twin) -> int:
    return len({int(manifest.labels[row]) for row in (twin.first, twin.second)} - {UNLABELLED})


def _pairs(manifest: Manifest, twins: Sequence[Twin]) -> list[str]:
    return [f"{manifest.paths[twin.first]} = {manifest.paths[twin.second]}" for twin in twins]


def _suspect(manifest: Manifest, twin: Twin, finding: str, suspicion: float) -> Suspect:
    """Return the later of two files, of two splits the one that is judged, as a Suspect."""
    row, other = twin.second, twin.first
    if finding == "leaks" and manifest.splits[row] == TRAIN:
        row, other = other, row
    detail = f"{twin.how}: {manifest.paths[other]}"
    if finding == "conflicting_labels":
        detail += f" ({manifest.classes[int(manifest.labels[other])]})"
    certainty = suspicion if twin.exact else suspicion * twin.likeness
    return suspect(manifest, row, finding, detail, round(certainty, 4))
