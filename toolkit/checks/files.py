"""What the list of files alone says: unreadable, tiny and huge ones, empty or missing classes, imbalance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from toolkit.checks.finding import FAIL, PASS, WARN, Finding, Suspect
from toolkit.data.decode import TOO_LARGE
from toolkit.data.manifest import SPLIT_NAMES, TEST, TRAIN, UNASSIGNED, VAL, Manifest
from toolkit.planning.facts import facts_of

UNREADABLE_SHARE = 0.1  # of the image files; more of them cannot be an accident
TINY_PX = 32  # of the shorter side: enlarged seven times for a network of 224 px, and more
HUGE_PIXELS = 20_000_000  # decoded 60 MB; more than most cameras give
FEW_IMAGES = 5  # of a class, below which neither cross-validation nor a split says anything of it
IMBALANCE = 10.0  # times; beyond, the plain loss all but ignores the smallest class
NAMED = 3  # examples in a line


def file_findings(manifest: Manifest, own_splits: Sequence[int]) -> tuple[list[Finding], list[Suspect]]:
    """Return the findings and suspects of a split Manifest whose sizes are known, unusable files quarantined.

    own_splits: those of val and test that folder or list gave, where a class may have been forgotten.
    """
    suspects: list[Suspect] = []
    findings = [
        _unreadable(manifest, suspects),
        _tiny(manifest, suspects),
        _huge(manifest, suspects),
        _empty_class(manifest),
        _missing_class(manifest, own_splits),
        _few_images(manifest),
        _imbalance(manifest),
    ]
    return findings, suspects


def suspect(manifest: Manifest, row: int, finding: str, detail: str, suspicion: float) -> Suspect:
    """Return a row of a Manifest as a Suspect."""
    label, split = int(manifest.labels[row]), int(manifest.splits[row])
    name = manifest.classes[label] if label >= 0 else ""
    return Suspect(
        manifest.paths[row], "" if split == UNASSIGNED else SPLIT_NAMES[split], name, finding, detail, suspicion
    )


def some_of(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def count(n: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun: 1 image, 2 images."""
    return f"{n} {one}" if n == 1 else f"{n} {many or one + 's'}"


def _unreadable(manifest: Manifest, suspects: list[Suspect]) -> Finding:
    bad = [one for one in manifest.quarantined if TOO_LARGE not in one.reason]
    n = len(manifest) + len(manifest.quarantined)
    if not bad:
        return Finding("unreadable", PASS, f"all {n} image files can be read")
    suspects += [Suspect(one.path, "", "", "unreadable", one.reason, 1.0) for one in bad]
    status = FAIL if len(bad) > UNREADABLE_SHARE * n else WARN
    seen = f"{len(bad)} of {n} image files cannot be used: {some_of([f'{one.path} ({one.reason})' for one in bad])}"
    return Finding("unreadable", status, seen, "mend or remove them; a run leaves them out")


def _tiny(manifest: Manifest, suspects: list[Suspect]) -> Finding:
    sides = manifest.sizes.min(axis=1) if len(manifest.sizes) else np.empty(0, np.int32)
    rows = np.flatnonzero((sides > 0) & (sides < TINY_PX))
    if not len(rows):
        return Finding("tiny_images", PASS, f"the shorter side is {int(sides.min()) if len(sides) else 0} px or more")
    all_of_them = len(rows) == len(manifest)
    if not all_of_them:
        for row in rows.tolist():
            width, height = manifest.sizes[row].tolist()
            suspects.append(suspect(manifest, row, "tiny_images", f"{width} × {height} px", 0.5))
    seen = (
        f"{len(rows)} of {len(manifest)} images have a shorter side below {TINY_PX} px, the least {sides[rows].min()}"
    )
    alike = "a smaller --image_size (64, say) is as good and quicker"
    return Finding("tiny_images", WARN, seen, alike if all_of_them else "are they thumbnails, or icons? Replace them")


def _huge(manifest: Manifest, suspects: list[Suspect]) -> Finding:
    refused = [one for one in manifest.quarantined if TOO_LARGE in one.reason]
    areas = manifest.sizes.astype(np.int64).prod(axis=1) if len(manifest.sizes) else np.empty(0, np.int64)
    rows = np.flatnonzero(areas > HUGE_PIXELS)
    if not len(rows) and not refused:
        return Finding(
            "huge_images", PASS, f"the largest has {(areas.max() if len(areas) else 0) / 1e6:.1f} megapixels"
        )
    suspects += [Suspect(one.path, "", "", "huge_images", one.reason, 0.9) for one in refused]
    for row in rows.tolist():
        suspects.append(suspect(manifest, row, "huge_images", f"{areas[row] / 1e6:.0f} megapixels", 0.2))
    left_out = f"{len(refused)} are left out for their size" if refused else "they slow the first pass down"
    seen = f"{count(len(rows) + len(refused), 'image')} above {HUGE_PIXELS / 1e6:.0f} megapixels; {left_out}"
    return Finding("huge_images", WARN, seen, "reduce them, or raise --max_pixels where they are left out")


def _empty_class(manifest: Manifest) -> Finding:
    if not manifest.empty:
        return Finding("empty_class", PASS, "every class folder has images")
    return Finding(
        "empty_class",
        FAIL,
        f"no image that can be used in {count(len(manifest.empty), 'class folder')}: {some_of(manifest.empty)}",
        "put images in, or remove the folder: its class would never be learned",
    )


def _missing_class(manifest: Manifest, own_splits: Sequence[int]) -> Finding:
    present = {split: manifest.class_counts(split) > 0 for split in (TRAIN, VAL, TEST)}
    untrained = _names(manifest, (present[VAL] | present[TEST]) & ~present[TRAIN])
    if untrained:
        seen = f"no images in train of {count(len(untrained), 'class', 'classes')}: {some_of(untrained)}"
        return Finding("missing_class", FAIL, seen, "add training images, or take the class out of the other splits")
    unjudged = [
        f"{name} ({SPLIT_NAMES[split]})"
        for split in own_splits
        if present[split].any()
        for name in _names(manifest, present[TRAIN] & ~present[split])
    ]
    if unjudged:
        seen = f"classes that a split has no image of: {some_of(unjudged)}"
        return Finding("missing_class", WARN, seen, "their accuracy stays unknown: move some images there")
    if not own_splits and (unseen := _names(manifest, present[TRAIN] & ~present[VAL])) and present[VAL].any():
        seen = f"too few images to validate {count(len(unseen), 'class', 'classes')}: {some_of(unseen)}"
        return Finding("missing_class", WARN, seen, "collect more of them: nothing tells how well they are known")
    return Finding("missing_class", PASS, f"all {len(manifest.classes)} classes are in every labelled split")


def _few_images(manifest: Manifest) -> Finding:
    counts = manifest.class_counts(TRAIN)
    few = [f"{name} ({count})" for name, count in zip(manifest.classes, counts, strict=True) if 0 < count < FEW_IMAGES]
    if not few:
        return Finding("few_images", PASS, f"{int(counts[counts > 0].min())} training images a class at least")
    seen = f"less than {FEW_IMAGES} training images of {count(len(few), 'class', 'classes')}: {some_of(few)}"
    return Finding("few_images", WARN, seen, "collect more of them; --augment and --views help a little")


def _imbalance(manifest: Manifest) -> Finding:
    ratio = facts_of(manifest).imbalance
    counts = manifest.class_counts(TRAIN)
    largest, smallest = manifest.classes[int(counts.argmax())], manifest.classes[int(counts.argmin())]
    seen = f"{largest} has {counts.max()} training images, {smallest} {counts.min()}: {ratio:.1f} times as many"
    if counts.max() == counts.min():
        seen = f"all classes have {counts.max()} training images"
    if ratio < IMBALANCE:
        return Finding("imbalance", PASS, seen)
    return Finding("imbalance", WARN, seen, "try --class_weights balanced, and go by the balanced accuracy")


def _names(manifest: Manifest, mask: NDArray[np.bool_]) -> list[str]:
    return [name for name, wanted in zip(manifest.classes, mask, strict=True) if wanted]
