"""Where one trial is not sure, others are asked, and all the images that they were held out of judge together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.photos import make_photos
from tests.tasks.trials import (  # fixtures among them
    HEAD,
    STEPS,
    TRIAL_STEPS,
    Killed,
    assert_same,
    fits,
    go,
    photos,
    resumed,
    rows,
    stop_at,
    verdict_of,
    weights,
)
from toolkit.data.manifest import TRAIN, VAL
from toolkit.errors import Interrupted
from toolkit.tasks import tail_fit, trial
from toolkit.tasks.run import Run
from toolkit.training.collapse import CollapsedError
from toolkit.training.mixing import WENT_ASTRAY, Verdict

__all__ = ["fits", "photos"]

HELD_OUT = 12  # of the 64 photographs that train


def unsure(times: int, share: float = 0.5) -> Callable[..., Verdict]:
    """Return a judge that is nearly sure of a gain until it sees the images of so many trials and one, then sure."""
    judge = trial.judge

    def judged(scores: Any, labels: Any, *shares: Any) -> Verdict:
        found = judge(scores, labels, *shares)
        if len(labels) > times * HELD_OUT or len(scores) == 2:  # the latter is the confirmation
            return replace(found, share=share)
        return replace(found, share=0.0, gain=0.1, gain_se=0.055)

    return judged


@pytest.mark.parametrize(("times", "asked"), [(0, 1), (1, 2), (2, 3), (3, 3)])
def test_others_are_asked_until_it_is_sure(
    photos: Path,
    tmp_path: Path,
    fits: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    times: int,
    asked: int,
) -> None:
    seen: list[list[int]] = []
    monkeypatch.setattr(trial, "judge", unsure(times))
    judge = trial.judge

    def noted(scores: Any, labels: Any, *shares: Any) -> Verdict:
        assert all(len(some) == len(labels) for some in scores)
        seen.append(labels.tolist())
        return judge(scores, labels, *shares)

    monkeypatch.setattr(trial, "judge", noted)
    found = go(photos, tmp_path / "run")
    verdict = verdict_of(found)
    kept = times < 3
    names = ["trial", "trial2", "trial3"][:asked]
    assert [name for name, *_ in fits] == [*names, *(["checkpoints"] if kept else [])]
    assert (verdict.share, verdict.trials, verdict.n) == (0.5 if kept else 0.0, asked, asked * HELD_OUT)
    tried = [manifest for name, _, manifest in fits if name.startswith("trial")]
    out = [set(manifest.rows(VAL)) for manifest in tried]
    assert len(set().union(*out)) == asked * HELD_OUT, "each judges once"
    everything = set(tried[0].rows(TRAIN)) | out[0]
    assert all(set(manifest.rows(TRAIN)) == everything - held for manifest, held in zip(tried, out, strict=True))
    labels = [manifest.labels[manifest.rows(VAL)].tolist() for manifest in tried]
    assert seen[:asked] == [[*chain(*labels[: number + 1])] for number in range(asked)]
    said = capsys.readouterr().err
    assert said.count("not sure yet (gain 0.100 ± 0.055)") == asked - 1
    assert ("held out of it" if asked == 1 else f"held out of {asked} trials") in str(found)
    for name in ("trial", "trial2", "trial3"):
        assert (found.path / f"{name}.csv").exists() == (name in names)
    assert not (found.path / "checkpoints").exists()
    if not kept:
        assert weights(found) == weights(go(photos, tmp_path / "head", **{**HEAD, "head": found.plan.head}))


def test_what_no_number_of_images_could_make_sure_is_not_asked(
    photos: Path, tmp_path: Path, fits: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = trial.judge
    hopeless = {"share": 0.0, "gain": 0.1, "gain_se": 0.09}  # three times the images: 1.9 standard errors
    monkeypatch.setattr(trial, "judge", lambda *arguments: replace(judge(*arguments), **hopeless))
    assert verdict_of(go(photos, tmp_path / "run")).trials == 1 and [name for name, *_ in fits] == ["trial"]


def test_what_can_be_asked_is_counted(
    tmp_path: Path, fits: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uneven = make_photos(tmp_path / "photos", {"cat": 3, "dog": 3, "owl": 4})  # 2, 2, 3 train: parts of 1, 1, 1 or less
    asked: list[float] = []

    def noted(verdict: Verdict, times: float) -> bool:
        asked.append(times)
        return True

    monkeypatch.setattr(Verdict, "could_become_sure", noted)
    judge = trial.judge
    monkeypatch.setattr(trial, "judge", lambda *arguments: replace(judge(*arguments), share=0.0))
    found = go(uneven, tmp_path / "run")
    tried = [manifest for _, _, manifest in fits]
    sizes = [len(manifest.rows(VAL)) for manifest in tried]
    assert len(sizes) >= 2 and asked == [
        pytest.approx(sum(sizes) / sum(sizes[: number + 1])) for number in range(len(sizes) - 1)
    ]
    assert verdict_of(found).n == sum(sizes)


def test_of_many_images_one_trial_is_enough(
    photos: Path, tmp_path: Path, fits: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "REFIT_UP_TO", 63)
    monkeypatch.setattr(trial, "judge", unsure(3))
    assert verdict_of(go(photos, tmp_path / "run")).share == 0 and [name for name, *_ in fits] == ["trial"]


def test_where_a_later_trial_goes_astray_the_head_stays(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = tail_fit.fit

    def falls(*arguments: Any, folder: Path, **settings: Any) -> int:
        if folder.name == "trial2" or folder.parent.name == "trial2":
            raise CollapsedError("the training accuracy fell")
        return fit(*arguments, folder=folder, **settings)

    monkeypatch.setattr(tail_fit, "fit", falls)
    monkeypatch.setattr(trial, "judge", unsure(1))
    found = go(photos, tmp_path / "run")
    verdict = verdict_of(found)
    assert (verdict.share, verdict.gain, verdict.reason, verdict.trials) == (0, 0, WENT_ASTRAY.reason, 2)
    assert verdict.n == HELD_OUT and len(verdict.mixtures) == 5, "of the first one, which judged"
    assert not (found.path / "checkpoints").exists()
    assert weights(found) == weights(go(photos, tmp_path / "head", **{**HEAD, "head": found.plan.head}))


def test_a_rate_that_one_of_them_needed_is_that_of_the_training_on_all(
    photos: Path, tmp_path: Path, fits: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = tail_fit.fit

    def falls_once(*arguments: Any, folder: Path, **settings: Any) -> int:
        if folder.name == "trial":
            raise CollapsedError("the training accuracy fell")
        return fit(*arguments, folder=folder, **settings)

    monkeypatch.setattr(tail_fit, "fit", falls_once)
    monkeypatch.setattr(trial, "judge", unsure(1))
    go(photos, tmp_path / "run")
    assert [(name, rate) for name, rate, _ in fits] == [
        ("again", pytest.approx(0.01)),
        ("trial2", pytest.approx(0.1)),
        ("checkpoints", pytest.approx(0.01)),
    ]


@pytest.fixture(scope="module")
def undisturbed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trial, "judge", unsure(2))
        return go(photos, tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.mark.parametrize(
    ("step", "how"),
    [
        (TRIAL_STEPS + 3, "kill"),
        (TRIAL_STEPS + 9, "signal"),
        (2 * TRIAL_STEPS, "kill"),
        (3 * TRIAL_STEPS - 1, "signal"),
        (3 * TRIAL_STEPS + 5, "kill"),
        (3 * TRIAL_STEPS + STEPS - 1, "signal"),
    ],
)
def test_stopped_in_any_of_them_and_resumed_a_run_ends_the_same(
    photos: Path, tmp_path: Path, undisturbed: Run, monkeypatch: pytest.MonkeyPatch, step: int, how: str
) -> None:
    monkeypatch.setattr(trial, "judge", unsure(2))
    with pytest.MonkeyPatch.context() as patched:
        stop_at(step, how, patched)
        with pytest.raises((Interrupted, Killed)):
            go(photos, tmp_path / "run")
    torch.manual_seed(99)  # nothing may hang on what the process drew before
    again = resumed(tmp_path / "run")
    assert_same(again, undisturbed)
    assert verdict_of(again).trials == 3 and len(rows(again, "trial3.csv")) == 2


def test_stopped_between_two_of_them_and_resumed_a_run_ends_the_same(
    photos: Path, tmp_path: Path, undisturbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2, 3):
        out, judge, calls = tmp_path / str(number), unsure(2), iter(range(1, 10))

        def stops(*arguments: Any, judge: Any = judge, calls: Any = calls, number: int = number) -> Verdict:
            if next(calls) == number:
                raise Killed
            return judge(*arguments)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(trial, "judge", stops)
            with pytest.raises(Killed):
                go(photos, out)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(trial, "judge", judge)
            assert_same(resumed(out), undisturbed)
