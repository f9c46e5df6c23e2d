"""The straight line of a search: data → stored features → trials → the best, judged again → best.yaml."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from toolkit.artifacts.run_folder import CONFIG
from toolkit.baselines.options import BaselineOptions
from toolkit.data.manifest import TRAIN
from toolkit.errors import ArtifactError, DataError, Interrupted, SettingError
from toolkit.options import Options
from toolkit.progress import say
from toolkit.storage import TEMPORARY_PREFIX, publish_bytes, publish_json, publish_text, read_json
from toolkit.tasks.apart import check_apart, check_cache_apart
from toolkit.tasks.search_trials import Trials, open_trials
from toolkit.tuning.final import play_final
from toolkit.tuning.gain import Gain
from toolkit.tuning.journal import is_journal
from toolkit.tuning.outcomes import RUNNING, Outcome, counts_of, spelled, trials_csv
from toolkit.tuning.picture import draw_search
from toolkit.tuning.samplers import Schedule
from toolkit.tuning.space import described
from toolkit.tuning.spaces import as_options
from toolkit.tuning.study import JOURNAL, LOCKS, NAME, Study

BEST, TRIALS, SUMMARY, PICTURE = "best.yaml", "trials.csv", "search.json", "search.png"
DIGITS = 16  # of a digest, which a person is shown where it differs
NOT_ABOUT = ("workers", "cache", "cache_dir")  # what changes no result


@dataclass(frozen=True)
class SearchReport:
    """A finished search: where it is and what came out, as in its search.json."""

    path: Path
    summary: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return self.summary

    @property
    def best(self) -> dict[str, Any]:
        """The keys of `finetune` or `baseline` that the search found; none where the defaults stay."""
        return dict(self.summary["settings"])

    def __str__(self) -> str:
        found, trials = self.summary, self.summary["trials"]
        spent = f"{trials['finished']} finished, {trials['pruned']} pruned, {trials['failed']} failed"
        lines = [
            f"search for {found['what']}: {trials['trials']} trials by {found['sampler']} ({spent}), each on "
            f"{found['folds']} folds of {found['n_train']} training images",
            _line("default settings", found["default"], {}),
            _line("best", found["best"], found["best"]["options"]),
        ]
        again = {one["number"]: one["again"] for one in found["finalists"]}
        if (mine := again.get(found["best"]["number"])) is not None:
            lines.append(f"  it won the final of the best {len(again)} trials, on other folds, with {mine:.3f}")
        if found["gain"] is not None:
            gain = {key: value for key, value in found["gain"].items() if key != "beyond_chance"}
            lines += [f"  picked from {trials['trials']}, it looks better than it is", str(Gain(**gain))]
        lines.append("validation and test images took no part: the run with these settings is scored on them")
        return "\n".join([*lines, f"search folder: {self.path}", "to train with them:", f"  {found['command']}"])


def start_search(
    data: str | os.PathLike[str],
    out: str,
    options: Options | BaselineOptions,
    given: Mapping[str, Any],
    *,
    trials: int,
    sampler: str,
    n_folds: int,
) -> SearchReport:
    """Begin a search in a folder, or go on with the one in it; a mistake is refused before the folder is made.

    given: the keys that the user set, which are not searched.
    """
    where = Path(out).expanduser().absolute()
    check_apart(data, where)
    check_cache_apart(data, options.cache_dir)
    _check_place(where)
    with open_trials(data, options, given, n_folds) as ours:
        if not ours.space:
            raise SettingError("search: everything that could be searched was given; leave something open")
        schedule = Schedule(sampler, ours.space, options.seed, trials)
        about = {
            "data": ours.manifest.fingerprint(),
            "sampler": sampler,
            "settings": {**_plain(options), "folds": n_folds},
            "space": described(ours.space),
        }
        if options.weights is not None:  # the file may be replaced before the search is gone on with
            about["weights"] = {Path(options.weights).name: ours.weights_digest[:DIGITS]}
        try:
            where.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtifactError(f"{where}: cannot be written ({error.strerror}); choose another --out") from error
        study = Study(where, schedule, about, as_options)

        def said(outcome: Outcome) -> None:
            say(_told(outcome))
            publish_text(where / TRIALS, trials_csv(study.outcomes(), ours.defaults))

        try:
            outcomes = study.run(trials, ours.objective, said)
            with FileLock(where / LOCKS / "finish.lock"):
                return _finished(where, outcomes, ours, study.schedule, data, n_folds)
        except Interrupted as stop:
            raise Interrupted(stop.signal_number, "stopped; the same command goes on with the search") from stop


def _check_place(where: Path) -> None:
    """Raise ArtifactError for a folder that holds anything but a search."""
    try:
        present = {entry.name for entry in where.iterdir()} if os.path.lexists(where) else set()
    except OSError as error:
        raise ArtifactError(f"{where}: cannot be written ({error.strerror}); choose another --out") from error
    if CONFIG in present:
        raise ArtifactError(f"{where} holds a run; choose another --out for the search")
    if JOURNAL not in present and any(name != LOCKS and not name.startswith(TEMPORARY_PREFIX) for name in present):
        raise ArtifactError(f"{where} is not empty and holds no search; choose another --out")
    if JOURNAL in present and not is_journal(where / JOURNAL, NAME):
        raise ArtifactError(f"{where / JOURNAL} is not one that a search wrote; choose another --out")


def _finished(
    where: Path,
    outcomes: list[Outcome],
    ours: Trials,
    schedule: Schedule,
    data: str | os.PathLike[str],
    n_folds: int,
) -> SearchReport:
    """Judge the best and the defaults again, and write what was found; what is there already is returned as it is."""
    known = _read(where / SUMMARY)
    if known is not None and known["trials"]["trials"] == len(outcomes):
        say(f"{where} has its {len(outcomes)} trials; nothing to do")
        return SearchReport(where, known)
    say("the best trials are judged again on other folds")
    final = play_final(outcomes, ours.redealt)
    if final is None:
        reasons = [one.reason for one in outcomes if one.reason]
        raise DataError(f"none of {len(outcomes)} trials could be trained; the first: {' '.join(reasons[:1])}")
    best, gain = final.best, final.gain
    kept = {} if gain is not None and gain.gain <= 0 else dict(best.options)
    command = f"toolkit {ours.verb} --config {shlex.quote(str(where / BEST))} --out {shlex.quote(f'{where}-best')}"
    summary = {
        "what": ours.what,
        "sampler": schedule.sampler,
        "seed": schedule.seed,
        "n_train": len(ours.manifest.rows(TRAIN)),
        "folds": n_folds,
        "trials": counts_of(outcomes),
        "coarse": schedule.n_coarse,
        "default": _plain_outcome(outcomes[0]),
        "best": _plain_outcome(best),
        "finalists": [dict(zip(("number", "accuracy", "again"), one, strict=True)) for one in final.finalists],
        "gain": None if gain is None else gain.to_dict(),
        "settings": kept,
        "command": command,
    }
    told = f"found by toolkit search: {best.accuracy:.3f} on held-out folds of the training images"
    if not kept:
        told = "toolkit search found nothing better than the default settings"
    head = f"# {command}\n# {told}\n"
    config = {"data": str(Path(data).expanduser().absolute()), **ours.given, **kept}
    publish_text(where / BEST, head + yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    publish_text(where / TRIALS, trials_csv(outcomes, ours.defaults))
    title = f"Search for {ours.what}: {len(outcomes)} trials by {schedule.sampler}"
    publish_bytes(where / PICTURE, draw_search(title, ours.space, outcomes, best))
    publish_json(where / SUMMARY, summary)
    for one in outcomes:
        if one.state != RUNNING:  # by another process
            (where / LOCKS / f"{one.number:05d}.lock").unlink(missing_ok=True)
    return SearchReport(where, summary)


def _plain(options: Options | BaselineOptions) -> dict[str, Any]:
    return {key: value for key, value in options.to_dict().items() if key not in NOT_ABOUT}


def _plain_outcome(outcome: Outcome) -> dict[str, Any]:
    keys = ("number", "stage", "state", "accuracy", "se", "nll")
    return {**{key: getattr(outcome, key) for key in keys}, "options": dict(outcome.options)}


def _read(path: Path) -> dict[str, Any] | None:
    """Return a summary that was written before, if there is one."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "trials" in found else None


def _told(outcome: Outcome) -> str:
    """Return a line on a trial."""
    settings = ", ".join(f"{key} {spelled(value)}" for key, value in outcome.options.items()) or "default settings"
    if outcome.accuracy is None:
        return f"trial {outcome.number} ({outcome.stage}) failed: {outcome.reason} ({settings})"
    pruned = ", pruned" if outcome.state == "pruned" else ""
    return f"trial {outcome.number} ({outcome.stage}{pruned}): {outcome.accuracy:.3f} ± {outcome.se:.3f}  {settings}"


def _line(name: str, outcome: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """Return a line on a trial of the summary."""
    if outcome["accuracy"] is None:
        return f"{name} (trial {outcome['number']}): could not be trained"
    settings = ", ".join(f"{key} {spelled(value)}" for key, value in options.items())
    first = f"{name} (trial {outcome['number']}): accuracy {outcome['accuracy']:.3f} ± {outcome['se']:.3f}"
    return f"{first}\n  {settings}" if settings else first
