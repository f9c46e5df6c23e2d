"""Study: the trials of a search, in a journal that several processes may work on and a kill cannot lose."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.pruners import MedianPruner
from optuna.trial import FrozenTrial, Trial, TrialState

from toolkit.errors import ArtifactError, LostWorkerError, ToolkitError
from toolkit.features.passes import NoRoomError
from toolkit.tuning.journal import open_journal
from toolkit.tuning.objective import Objective
from toolkit.tuning.outcomes import COARSE, DEFAULT, FAILED, FINISHED, PRUNED, RUNNING, Judged, Outcome
from toolkit.tuning.samplers import Sampler, Schedule, distributions_of

JOURNAL, LOCKS, NAME = "study.jsonl", "locks", "search"
ABOUT, RESULT, BEGUN_WITH = "about", "result", "n_trials"
NEVER_PRUNED_STEPS = 1  # a single fold says too little
COMPARED_WITH = 4  # finished trials of the same stage at least
FULL_LENGTH = 1_000  # added to the steps of trials at full length: the pruner holds them against each other alone
STATES = {TrialState.COMPLETE: FINISHED, TrialState.PRUNED: PRUNED, TrialState.FAIL: FAILED}


class Study:
    """The trials of a Schedule, in a folder.

    about: what the trials depend on, as plain values; a folder whose study is about something else is refused.
    as_options: from the parameters of a space to the keys that they set.

    A trial that is being worked on is locked by its process, and the lock goes with the process: a trial that is
    neither ended nor locked was killed, and is run again, with the same parameters. Raises ArtifactError.
    """

    def __init__(
        self,
        folder: Path,
        schedule: Schedule,
        about: Mapping[str, Any],
        as_options: Callable[[Mapping[str, Any]], dict[str, Any]],
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.folder, self.as_options = folder, as_options
        (folder / LOCKS).mkdir(parents=True, exist_ok=True)
        self._claiming = FileLock(folder / LOCKS / "claim.lock")
        with self._claiming:
            storage = open_journal(folder / JOURNAL)
            pruner = MedianPruner(COMPARED_WITH, n_min_trials=COMPARED_WITH)
            self._study = optuna.create_study(
                storage=storage, pruner=pruner, study_name=NAME, direction="maximize", load_if_exists=True
            )
            known = self._study.user_attrs.get(ABOUT) or {BEGUN_WITH: schedule.n_trials}
            _check_same(folder, known, about)
            if not about.keys() <= known.keys():  # a new study, or one of a version that noted less
                known = {**known, **about}
                self._study.set_user_attr(ABOUT, known)
        n_trials = int(known[BEGUN_WITH])
        self.schedule = Schedule(schedule.sampler, schedule.space, schedule.seed, n_trials)
        self._study.sampler = Sampler(self.schedule)

    def run(self, n_trials: int, objective: Objective, said: Callable[[Outcome], None]) -> list[Outcome]:
        """Work until there are so many trials and all have ended, and return them; each of ours is told to `said`."""
        while (claimed := self._next(self.schedule.most(n_trials))) is not None:
            trial, lock = claimed
            try:
                self._run(trial, objective)
            finally:
                lock.release()
            said(self.outcomes()[trial.number])
        return self.outcomes()

    def outcomes(self) -> list[Outcome]:
        """Return all trials, by their numbers."""
        return [self._outcome(trial) for trial in self._study.get_trials(deepcopy=False)]

    def _next(self, n_trials: int) -> tuple[Trial, FileLock] | None:
        """Return the next trial for this process, and its lock; None when all have ended.

        Where all that is left to do is with other processes, it waits for one of them to end or to be killed.
        """
        while True:
            with self._claiming:
                trials = self._study.get_trials(deepcopy=False)
                others = []
                for frozen in trials:
                    if frozen.state == TrialState.RUNNING:
                        lock = self._lock(frozen.number)
                        if _taken(lock, 0):
                            return self._begun(Trial(self._study, frozen._trial_id)), lock
                        others.append(frozen.number)
                number = len(trials)
                if number < n_trials and not (others and self.schedule.waits(number)):
                    lock = self._lock(number)
                    lock.acquire()
                    return self._begun(self._study.ask()), lock
            if not others:
                return None
            lock = self._lock(others[0])
            lock.acquire()  # as long as it takes
            lock.release()

    def _lock(self, number: int) -> FileLock:
        return FileLock(self.folder / LOCKS / f"{number:05d}.lock")

    def _begun(self, trial: Trial) -> Trial:
        """Return the trial with its parameters; what was drawn before a kill is what is drawn again."""
        for name, distribution in distributions_of(self.schedule.space).items():
            trial._suggest(name, distribution)
        return trial

    def _run(self, trial: Trial, objective: Objective) -> None:
        stage = self.schedule.stage(trial.number)
        short = stage == COARSE
        options = {} if stage == DEFAULT else self.as_options(trial.params)
        n_folds = objective.n_folds(short)
        parts: list[Judged] = []
        start, reason = time.perf_counter(), ""
        state = TrialState.COMPLETE
        try:
            for fold in range(n_folds):
                parts.append(objective.judge(options, fold, short))
                if fold + 1 < n_folds and self._hopeless(trial, stage, fold, Judged.joined(parts).value):
                    state = TrialState.PRUNED
                    break
        except (ArtifactError, LostWorkerError, NoRoomError):
            raise  # the machine's fault, not the settings': the trial is run again
        except ToolkitError as error:
            state, reason = TrialState.FAIL, str(error)
        result: dict[str, Any] = {"stage": stage, "options": options, "reason": reason}
        value = None
        if state != TrialState.FAIL:
            judged = Judged.joined(parts)
            value = judged.value
            result |= {"accuracy": judged.accuracy, "se": judged.se, "nll": judged.mean_nll}
        trial.set_user_attr(RESULT, {**result, "seconds": round(time.perf_counter() - start, 3)})
        self._study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)

    def _hopeless(self, trial: Trial, stage: str, fold: int, value: float) -> bool:
        """Return whether what a trial has come to lies below the median of those of its length, at the same fold."""
        step = fold + (0 if stage == COARSE else FULL_LENGTH)
        latest = self._study.get_trials(deepcopy=False)[trial.number].last_step
        if latest is None or latest < step:
            trial.report(value, step)
        elif latest > step:  # it was killed later than here, and was not hopeless yet
            return False
        return fold >= NEVER_PRUNED_STEPS and stage != DEFAULT and trial.should_prune()

    def _outcome(self, trial: FrozenTrial) -> Outcome:
        result = trial.user_attrs.get(RESULT, {})
        ended = trial.state.is_finished()
        numbers = {key: result.get(key) if ended else None for key in ("accuracy", "se", "nll", "seconds")}
        return Outcome(
            trial.number,
            self.schedule.stage(trial.number),
            STATES.get(trial.state, RUNNING),
            dict(trial.params),
            result.get("options", {}),
            value=trial.value if ended else None,
            reason=result.get("reason", ""),
            **numbers,
        )


def _taken(lock: FileLock, timeout: float) -> bool:
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        return False
    return True


def _check_same(folder: Path, known: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Raise ArtifactError, with the first difference, where a study is about something else, as far as it is known."""
    for key, value in about.items():
        if key in known and known[key] != value:
            differ = ""
            if isinstance(value, Mapping) and isinstance(known[key], Mapping):
                odd = next(name for name in {**value, **known[key]} if value.get(name) != known[key].get(name))
                differ = f" ({odd}: {known[key].get(odd)!r} there, {value.get(odd)!r} here)"
            raise ArtifactError(f"{folder} holds a search with other {key}{differ}; choose another --out")
