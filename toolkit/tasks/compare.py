"""`toolkit compare`: which of two runs is better, by how much, and whether it could be chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import ArtifactError, DataError, SettingError
from toolkit.settings import checked

if TYPE_CHECKING:
    from toolkit.artifacts.run_folder import RunFolder
    from toolkit.evaluation.paired import Paired
    from toolkit.evaluation.predictions_csv import PredictionTable

SPLITS = {"val": "validation", "test": "test"}
SURE = 0.05  # below this p a difference is called hardly chance
NAMED = 3  # images that are left out, by name


@dataclass(frozen=True)
class Comparison:
    """Two runs, and how they do on the images that both were scored on, by split.

    nll: of either run, by split, as its metrics.json has it; only where both were scored on the very same images, since
    predictions.csv does not have the probability of the true class. left_out: images that one of the runs alone was
    scored on, with the reason. remarks: what else there is to know.
    """

    run: Path
    other: Path
    splits: Mapping[str, Paired]
    nll: Mapping[str, tuple[float, float]]
    left_out: Mapping[str, str]
    remarks: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "run": str(self.run),
            "other": str(self.other),
            **{
                split: {**found.to_dict(), "nll": list(self.nll[split]) if split in self.nll else None}
                for split, found in self.splits.items()
            },
            "left_out": dict(self.left_out),
            "remarks": list(self.remarks),
        }

    def __str__(self) -> str:
        lines = [f"{split}: {_sentence(self, split)}" for split in self.splits]
        for split, (first, second) in self.nll.items():
            lines.append(f"{split}: NLL {first:.3f} of {_names(self)[0]}, {second:.3f} of {_names(self)[1]}")
        if self.left_out:
            some = ", ".join(list(self.left_out)[:NAMED]) + (", …" if len(self.left_out) > NAMED else "")
            lines.append(f"left out: {len(self.left_out)} images that one run alone was scored on ({some})")
        return "\n".join([*lines, *(f"note: {remark}" for remark in self.remarks)])


def compare(run: str, other: str, *, seed: int = 0) -> Comparison:
    """Return which of two runs is better on the images that both were scored on, by how much, and how sure that is.

    Runs of finetune and of baseline, in any mixture, on the same split of the same images. Raises ToolkitError.

    Args:
        run: the folder of a finished run
        other: the folder of another one
        seed: of the bootstrap
    """
    seed = checked("seed", seed)
    from toolkit.evaluation.paired import paired

    first, second = _finished(run), _finished(other)
    if first.path.resolve() == second.path.resolve():
        raise SettingError(f"{first.path} is given twice; give two runs")
    metrics = _metrics(first), _metrics(second)
    _check_classes(first.path, second.path, *(set(one["classes"]) for one in metrics))
    tables = _table(first), _table(second)
    for folder, table, one in zip((first, second), tables, metrics, strict=True):
        odd = sorted(set(table.predictions) - set(one["classes"]))
        if odd:
            raise ArtifactError(f"{folder.path}/predictions.csv predicts {odd[0]!r}, which is no class of the run")
    splits: dict[str, Paired] = {}
    nll_of: dict[str, tuple[float, float]] = {}
    left_out: dict[str, str] = {}
    for split in SPLITS:
        rows = [{table.paths[row]: row for row in table.labelled(split)} for table in tables]
        if not all(rows):
            continue
        gone = _alone(rows, (first, second), split)
        left_out |= gone
        both = [path for path in rows[0] if path in rows[1]]
        _check_labels(both, rows, tables, (first, second))
        right = [table.right[[of[path] for path in both]] for table, of in zip(tables, rows, strict=True)]
        splits[split] = paired(right[0], right[1], seed=seed)
        scored = [nll for one in metrics if (nll := _number(one, split, "nll")) is not None]
        if not gone and len(scored) == 2:
            nll_of[split] = scored[0], scored[1]
    if not splits:
        raise DataError(f"{first.path} and {second.path} have no split with labelled images that both were scored on")
    return Comparison(first.path, second.path, splits, nll_of, left_out, _remarks((first, second), metrics))


def _metrics(folder: RunFolder) -> dict[str, Any]:
    """Return a run's metrics; ArtifactError where they are not what a run writes."""
    found = folder.read("metrics.json")
    if not isinstance(found, dict) or not isinstance(found.get("classes"), list):
        raise ArtifactError(f"{folder.path}/metrics.json is not one that a run wrote; its classes are missing")
    return found


def _number(metrics: dict[str, Any], split: str, key: str) -> float | None:
    """Return a score of a split, None where it is missing or no number."""
    scores = metrics.get(split)
    value = scores.get(key) if isinstance(scores, dict) else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _finished(path: str) -> RunFolder:
    from toolkit.artifacts.run_folder import RunFolder

    folder = RunFolder.open(path)
    if not folder.finished:
        raise ArtifactError(f"{folder.path} is not finished (there is no metrics.json); go on with it by --resume")
    return folder


def _table(folder: RunFolder) -> PredictionTable:
    from toolkit.artifacts.run_folder import PREDICTIONS
    from toolkit.evaluation.predictions_csv import read_predictions

    return read_predictions(folder.path / PREDICTIONS)


def _check_classes(first: Path, second: Path, ours: set[str], theirs: set[str]) -> None:
    """Raise DataError where two runs know other classes."""
    if ours != theirs:
        odd = sorted(ours ^ theirs)[0]
        has, lacks = (first, second) if odd in ours else (second, first)
        raise DataError(
            f"the runs know other classes: {has} has {odd!r}, {lacks} has not; compare runs on the same data"
        )


def _alone(rows: list[dict[str, int]], folders: tuple[RunFolder, RunFolder], split: str) -> dict[str, str]:
    """Return the images of a split that one run alone was scored on, and why; DataError where the splits are others.

    A file that one run could not read is missing there, and may move another one from one split to the other.
    """
    unused = [_quarantined(folder) for folder in folders]
    missing = {path: 1 for path in rows[0] if path not in rows[1]} | {p: 0 for p in rows[1] if p not in rows[0]}
    moved = [path for path, which in missing.items() if path not in unused[which]]
    if len(moved) > len(set(unused[0]) ^ set(unused[1])):
        both = len(rows[0].keys() & rows[1].keys())
        raise DataError(
            f"{split}: {folders[0].path} was scored on {len(rows[0])} images, {folders[1].path} on {len(rows[1])}, "
            f"{both} of them the same; run both on the same data with the same --seed and --val"
        )
    reasons = {path: unused[which].get(path, "in another split") for path, which in missing.items()}
    return {path: f"not in {folders[missing[path]].path.name}: {reason}" for path, reason in reasons.items()}


def _quarantined(folder: RunFolder) -> dict[str, str]:
    import csv

    from toolkit.artifacts.run_folder import QUARANTINE

    try:
        with open(folder.path / QUARANTINE, encoding="utf-8", newline="") as file:
            return {row["path"]: row["reason"] for row in csv.DictReader(file)}
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise ArtifactError(f"{folder.path / QUARANTINE} cannot be read ({type(error).__name__})") from error


def _check_labels(
    paths: list[str],
    rows: list[dict[str, int]],
    tables: tuple[PredictionTable, PredictionTable],
    folders: tuple[RunFolder, RunFolder],
) -> None:
    """Raise DataError where an image had another label in each run."""
    for path in paths:
        labels = [table.labels[of[path]] for table, of in zip(tables, rows, strict=True)]
        if labels[0] != labels[1]:
            raise DataError(
                f"{path} is {labels[0]!r} in {folders[0].path} and {labels[1]!r} in {folders[1].path}: the labels have "
                "changed between the runs; run one of them again"
            )


def _remarks(folders: tuple[RunFolder, RunFolder], metrics: tuple[Any, Any]) -> tuple[str, ...]:
    """Return what a reader of the comparison has to know besides."""
    remarks = []
    data = [folder.config().get("data") for folder in folders]
    if data[0] != data[1]:
        remarks.append(f"the runs name other data, {data[0]} and {data[1]}: images are matched by their paths in them")
    for folder, one in zip(folders, metrics, strict=True):
        if one.get("val_chose") == "epoch":
            remarks.append(f"the validation images chose the epoch of {folder.path.name}, which flatters it there")
    return tuple(remarks)


def _names(found: Comparison) -> tuple[str, str]:
    """Return what to call the runs: the ends of their paths, as long as it takes to tell them apart."""
    parts = found.run.parts, found.other.parts
    n = next((n for n in range(1, max(map(len, parts)) + 1) if parts[0][-n:] != parts[1][-n:]), 1)
    return "/".join(parts[0][-n:]), "/".join(parts[1][-n:])


def _sentence(found: Comparison, split: str) -> str:
    one, (first, second) = found.splits[split], _names(found)
    low, high = one.interval
    if one.difference < 0:
        first, second, low, high = second, first, -high, -low
    ahead, behind = max(one.wins, one.losses), min(one.wins, one.losses)
    accuracies = sorted((one.accuracy, one.other_accuracy), reverse=True)
    interval = f"95 % interval {100 * low + 0:.1f} to {100 * high + 0:.1f}"
    if one.wins + one.losses == 0:
        return f"{first} and {second} are right for the same of {one.n} {SPLITS[split]} images ({accuracies[0]:.3f})"
    if one.difference == 0:
        return (
            f"{first} and {second} are equally good on {one.n} {SPLITS[split]} images: {accuracies[0]:.3f} both "
            f"({interval}; each alone is right for {ahead})"
        )
    chance = "less than 0.1 %" if one.p < 0.001 else f"{100 * one.p:.1f} %"
    verdict = "it is hardly chance" if one.p < SURE else "it may well be chance"
    return (
        f"{first} is better than {second} by {100 * abs(one.difference):.1f} points on {one.n} {SPLITS[split]} images, "
        f"{accuracies[0]:.3f} against {accuracies[1]:.3f} ({interval}; {ahead} images against {behind}); chance alone "
        f"would give a difference as large in {chance} of cases: {verdict}"
    )
