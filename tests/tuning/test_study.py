"""A study: stages, pruning, failures; killed and gone on with, it is the study that was never killed."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from tests.tuning.tries import ABOUT, SPACE, TOO_LARGE, KilledError, Tries, run, study_in, told
from toolkit.errors import ArtifactError
from toolkit.tuning.outcomes import best_of
from toolkit.tuning.samplers import Schedule
from toolkit.tuning.study import JOURNAL, LOCKS, Study

SAMPLERS = ("coarse_to_fine", "random", "grid", "tpe")


def test_coarse_to_fine_has_its_stages(tmp_path: Path) -> None:
    outcomes = run(tmp_path, n_trials=20)
    assert [o.stage for o in outcomes] == ["default"] + ["coarse"] * 9 + ["fine"] * 10
    assert not outcomes[0].options and outcomes[0].state == "finished"
    coarse = [o for o in outcomes if o.stage == "coarse" and o.state == "finished"]
    best = max(coarse, key=lambda o: o.value or 0.0)
    assert dict(outcomes[10].params) == dict(best.params), "the best short trial is done at full length first"
    spread = {
        stage: np.std([np.log10(o.params["lr"]) for o in outcomes if o.stage == stage]) for stage in ("coarse", "fine")
    }
    assert spread["fine"] < 0.6 * spread["coarse"]


def test_short_trainings_are_of_the_coarse_stage_alone(tmp_path: Path) -> None:
    objective = Tries()
    study = study_in(tmp_path)
    outcomes = study.run(12, objective, lambda outcome: None)
    short = [o.options for o in outcomes if o.stage == "coarse"]
    assert {json.dumps(options) for options, _, is_short in objective.asked if is_short} == {
        json.dumps(dict(options)) for options in short
    }


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_trial_0_is_the_default_and_numbers_are_as_many_as_asked_for(sampler: str, tmp_path: Path) -> None:
    outcomes = run(tmp_path, sampler, 10)
    assert outcomes[0].options == {} and [o.number for o in outcomes] == list(range(10 if sampler != "grid" else 9))
    assert all(0 < float(o.params["lr"]) <= 10 for o in outcomes)


def test_what_diverges_has_failed_and_says_why(tmp_path: Path) -> None:
    outcomes = run(tmp_path, "random", 30)
    failed = [o for o in outcomes if o.state == "failed"]
    assert failed and {o.reason for o in failed} == {"the loss is not finite any more"}
    assert all(o.params["lr"] > TOO_LARGE for o in failed)
    assert all(o.accuracy is None for o in failed)


def test_hopeless_trials_are_pruned_after_their_second_fold_and_never_the_default(tmp_path: Path) -> None:
    objective = Tries()
    outcomes = study_in(tmp_path, "random", 30).run(30, objective, lambda outcome: None)
    pruned = [o for o in outcomes if o.state == "pruned"]
    assert pruned and outcomes[0].state == "finished"
    for one in pruned:
        assert 2 <= sum(options == one.options for options, _, _ in objective.asked) < 4
    best = best_of(outcomes)
    assert best is not None and all((o.value or 0) < (best.value or 0) for o in pruned)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_killed_at_any_fold_it_ends_in_the_same_trials(sampler: str, tmp_path: Path) -> None:
    whole = told(run(tmp_path / "whole", sampler, 14))
    done = 0
    for _ in range(60):
        study = study_in(tmp_path / "killed", sampler, 14)
        before = [o for o in study.outcomes() if o.state != "running"]
        assert told(before) == whole[: len(before)], "no finished trial is lost"
        objective = Tries(killed_at=5)  # a trial takes up to four questions
        try:
            outcomes = study.run(14, objective, lambda outcome: None)
        except KilledError:
            done += 1
            continue
        break
    assert done > 5
    assert told(outcomes) == whole


def test_more_trials_go_on_where_it_ended(tmp_path: Path) -> None:
    first = told(run(tmp_path, n_trials=8))
    more = run(tmp_path, n_trials=12)
    assert told(more)[:8] == first and len(more) == 12
    assert [o.stage for o in more[8:]] == ["fine"] * 4
    assert told(run(tmp_path, n_trials=5)) == told(more), "fewer take nothing away"
    assert len(run(tmp_path / "grid", "grid", 7)) == 7 == len(run(tmp_path / "grid", "grid", 30))


def test_a_line_that_a_kill_tore_is_cut_off(tmp_path: Path) -> None:
    whole = told(run(tmp_path / "whole"))
    with pytest.raises(KilledError):
        study_in(tmp_path / "torn").run(12, Tries(killed_at=9), lambda outcome: None)
    with open(tmp_path / "torn" / JOURNAL, "ab") as file:
        file.write(b'{"op_code":8,"worker_id":"x","trial')
    assert told(run(tmp_path / "torn")) == whole
    for line in (tmp_path / "torn" / JOURNAL).read_text().splitlines():
        json.loads(line)


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({**ABOUT, "data": "others"}, "other data"),
        ({**ABOUT, "settings": {"seed": 0, "epochs": 4}}, "other settings (epochs: 3 there, 4 here)"),
    ],
)
def test_a_folder_about_something_else_is_refused(about: dict[str, object], said: str, tmp_path: Path) -> None:
    run(tmp_path, n_trials=2)
    with pytest.raises(ArtifactError) as error:
        Study(tmp_path, Schedule("coarse_to_fine", SPACE, 0, 2), about, dict)
    assert said in str(error.value) and "choose another --out" in str(error.value)


def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_text("[1, 2]\nnonsense\n")
    with pytest.raises(ArtifactError, match="not the journal of a search"):
        study_in(tmp_path)


def test_the_fine_stage_waits_for_the_whole_coarse_one(tmp_path: Path) -> None:
    """Another process holds the last coarse trial: this one must not begin a fine trial before that has ended."""
    whole = told(run(tmp_path / "whole", n_trials=8))
    with pytest.raises(KilledError):
        study_in(tmp_path / "shared", n_trials=8).run(8, Tries(killed_at=12), lambda outcome: None)
    (running,) = [o for o in study_in(tmp_path / "shared", n_trials=8).outcomes() if o.state == "running"]
    assert running.number == 3 and running.stage == "coarse"
    held = FileLock(tmp_path / "shared" / LOCKS / f"{running.number:05d}.lock")
    held.acquire()
    study, found = study_in(tmp_path / "shared", n_trials=8), []
    worker = threading.Thread(target=lambda: found.append(study.run(8, Tries(), lambda outcome: None)))
    worker.start()
    worker.join(1.0)
    assert worker.is_alive() and [o.number for o in study.outcomes()] == [0, 1, 2, 3], "it waits"
    held.release()  # as if the other one had been killed: its trial is run by this one
    worker.join(60)
    assert told(found[0]) == whole


def test_what_an_earlier_version_did_not_note_is_noted_when_it_goes_on(tmp_path: Path) -> None:
    schedule = Schedule("coarse_to_fine", SPACE, 0, 2)
    run(tmp_path, n_trials=2)
    with pytest.raises(ArtifactError, match="other data"):
        Study(tmp_path, schedule, {**ABOUT, "data": "others", "weights": {"a.pth": "0"}}, dict)
    for weights, refused in (({"a.pth": "1"}, False), ({"a.pth": "1"}, False), ({"a.pth": "2"}, True)):
        if refused:
            with pytest.raises(ArtifactError, match=r"other weights \(a.pth: '1' there, '2' here\)"):
                Study(tmp_path, schedule, {**ABOUT, "weights": weights}, dict)
        else:
            assert len(Study(tmp_path, schedule, {**ABOUT, "weights": weights}, dict).outcomes()) == 2
